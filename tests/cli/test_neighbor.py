"""The command `nnabla_nas` beside NNablaNAS' own: who takes which arguments, and what is said where neither can."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nnabla_detofa.cli import neighbor
from nnabla_detofa.cli import program as cli

OPTIONS = cli._parser("nnabla_nas", (cli.DEFAULT,))._option_string_actions
MAIN = "import sys, nnabla_nas\nprint(nnabla_nas.NAME, *sys.argv[1:])\nsys.exit(int(sys.argv[-1]))\n"


@pytest.fixture
def called(monkeypatch):
    """The program was started as nnabla_nas, and what it changes in this process is undone."""
    monkeypatch.setattr(sys, "argv", ["/bin/nnabla_nas"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    for module in [name for name in sys.modules if name.split(".")[0] == "nnabla_nas"]:
        monkeypatch.delitem(sys.modules, module)
    yield
    sys.modules.pop("nnabla_nas", None)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    for part in neighbor.PARTS:
        (tmp_path / part).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / part).touch()
    (tmp_path / "main.py").write_text(MAIN)
    (tmp_path / "nnabla_nas/__init__.py").write_text("NAME = 'theirs'")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("line", "theirs"),
    [
        ("experiment=classification/darts/cifar10_search", True),
        ("args.context=cudnn experiment=a", True),
        ("+experiment=a", True),
        ("++hparams.epoch=3", True),
        ("~regularizer", True),
        ("--config-name other", True),
        ("--config-path=conf", True),
        ("--multirun experiment=a,b", True),
        ("-m experiment=a,b", True),
        ("experiment=a -f own.json", False),
        ("hparams.epochs=3 --file=own.json", False),
        ("-f own.json", False),
        ("-fown.json", False),
        ("-c cpu", False),
        ("-ccpu", False),
        ("--output-path=runs/a", False),
        ("train experiment=a", False),
        ("serach runs/a", False),
        ("runs/a", False),
    ],
)
def test_arguments_are_ours_or_theirs(line, theirs):
    assert neighbor.is_meant(line.split(), OPTIONS) is theirs


def test_it_hands_over_in_a_checkout(called, checkout, monkeypatch, capsys):
    monkeypatch.setattr(neighbor, "_cuda_missing", str)
    assert cli.main(["experiment=a", "--multirun", "7"]) == 7
    assert capsys.readouterr().out == "theirs experiment=a --multirun 7\n"
    assert cli.main(["--config-name=a", "0"]) == 0


@pytest.mark.parametrize("place", ["elsewhere", "checkout"])
def test_where_it_cannot_run_both_are_named_in_a_sentence(place, called, request, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if place == "checkout":
        request.getfixturevalue("checkout")
    assert cli.main(["experiment=a"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    reason = "needs a GPU, and NNabla's CUDA ext" if place == "checkout" else "no source checkout is in this folder"
    assert line.startswith("error: experiment=a belongs to NNablaNAS' own command") and reason in line
    assert "python main.py experiment=... in a source checkout" in line and "nnabla_nas -f CONFIG" in line


def test_without_arguments_both_are_named(called, monkeypatch, capsys):
    assert cli.main([]) == 2
    assert neighbor.OFFER in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["/bin/detofa"])
    assert cli.main(["--help"]) == 0
    assert "main.py" not in capsys.readouterr().out
    assert cli.main(["experiment=a"]) == 2
    assert "there is no command" in capsys.readouterr().err


@pytest.mark.thorough
@pytest.mark.skipif("UPSTREAM" not in os.environ, reason="UPSTREAM=<checkout of NNablaNAS> is not given")
def test_a_real_checkout_is_found_and_its_command_runs(tmp_path):
    """Hydra prints the composed config of NNablaNAS' command, which needs no GPU."""
    program = (
        "import sys; from nnabla_detofa.cli import neighbor; neighbor._cuda_missing = str; "
        "sys.exit(neighbor.hand_over(['--cfg', 'job', 'hparams.epoch=3']))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=Path(os.environ["UPSTREAM"]), capture_output=True, text=True)
    assert done.returncode == 0 and "algorithm: DartsSearcher" in done.stdout, done.stderr
