import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from nnabla_detofa.backend.launch import Stopped
from nnabla_detofa.cli import program as cli
from nnabla_detofa.cli import train
from nnabla_detofa.cli.paper import expanded
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.common.version import __version__


@pytest.fixture
def runner(monkeypatch):
    """Stands in for every runner: remembers its calls, and raises what it is told to."""
    calls = SimpleNamespace(seen=[], error=None)

    def run(config, device, output, restart=False):
        calls.seen.append((config, device, output, restart))
        if calls.error:
            raise calls.error

    monkeypatch.setitem(sys.modules, "a_runner", SimpleNamespace(run=run))
    monkeypatch.setattr(train, "RUNNERS", dict.fromkeys(train.RUNNERS, "a_runner"))
    return calls


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "small.json"
    file.write_text('{"network": {"centernet_ofa_resnet50": {}}, "dataloader": {"voc": {"holdout": 10}}}')
    return str(file)


@pytest.mark.parametrize("command", [["-f"], ["run", "-f"], ["train", "-f"], ["train"], ["run"]])
def test_a_config_runs_with_or_without_the_command_and_the_flag(command, runner, config):
    assert cli.main([*command, config, "-c", "cpu"]) == 0
    ((loaded, device, output, restart),) = runner.seen
    assert (loaded.name, device.name, str(output), restart) == ("small", "cpu", "runs/small", False)


def test_flags_and_overrides_mix_in_any_order(runner, config, tmp_path):
    line = ["hparams.epochs=3", "-f", config, "args.seed=5", "-c", "cpu", "--restart", "args.context=cudnn", "-d", "1"]
    assert cli.main(["train", *line, "-o", str(tmp_path / "1")]) == 0
    ((loaded, _, output, restart),) = runner.seen
    assert (loaded.hparams.epochs, loaded.args.seed, loaded.args.context, loaded.args.device_id) == (3, 5, "cpu", "1")
    assert (output, restart) == (tmp_path / "1", True)


def test_a_config_is_told_from_its_overrides_and_resuming_is_the_default(runner, config, capsys):
    assert cli.main(["train", "hparams.epochs=3", "args.seed=5", "-f", config, "-c", "cpu", "--resume"]) == 0
    assert cli.main(["train", config, "hparams.epochs=4", "-c", "cpu"]) == 0
    assert [(seen[0].hparams.epochs, seen[3]) for seen in runner.seen] == [(3, False), (4, False)]
    assert cli.main(["train", config, "-f", config]) == 2
    assert f"one config is allowed, got {config} and {config}" in capsys.readouterr().err
    assert cli.main(["train", config, "--resume", "--restart"]) == 2
    assert "not allowed with argument --resume" in capsys.readouterr().err


def test_a_finished_run_says_where_it_is_and_what_follows(runner, config, capsys):
    assert cli.main(["train", config, "-c", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "finished: the results are in runs/small\nnext: python -m nnabla_detofa report runs/small  " in said
    assert "detect runs/small IMAGE" in said


def run_of(method):
    return SimpleNamespace(output_path=Path("runs/a run"), method=method)


FOUND = {"found": {"finished": True, "fine_tuning": None, "method": "detofa"}}
LEFT = {  # what a command leaves for the commands that follow
    "init": {"written": Path("my config.yaml")},
    "search": {"written": Path("runs/a run/found_flops_90M.json")},
    "train": {"trained": run_of("detofa"), "wrong": 0, "missing": False},
    "inspect": FOUND,
}
PLACEHOLDERS = {"BOUND": "90M", "FILE": "file", "N": "8"}


def following(place, command, line, **left):
    """The command lines that follow a command line, each parsed as the program does it."""
    arguments = cli.parsed("detofa", place, shlex.split(line))
    vars(arguments).update({"exported": False, **LEFT.get(place[-1], {}), **left})
    for said, reason in command.following(arguments).items():
        assert reason
        words = [re.sub(r"\b[A-Z]+\b", lambda word: PLACEHOLDERS.get(word[0], word[0]), word) for word in shlex.split(said)]
        found, rest = cli.find(words)
        cli.parsed("detofa", found, rest)
        yield " ".join(found)


@pytest.mark.parametrize("place, command", [*cli.all_commands()], ids=lambda part: part[-1] if isinstance(part, tuple) else "")
def test_every_command_ends_with_valid_commands_that_follow(place, command):
    assert all([*following(place, command, example)] for example in command.examples)


@pytest.mark.parametrize(
    "name, line, left, names",
    [
        ("detect", "a.nnp a.png", {"exported": True}, ["init"]),
        ("search", "'a run' --front", {}, ["search"]),
        ("export", "'a run' --detector 'a path.json' -o a.onnx", {}, ["detect"]),
        ("image-count-study", "-f a.json --weights a.h5 --per-bucket 2", {}, ["train"]),
        ("train", "a.json", {"trained": run_of("fullnet")}, ["report", "detect"]),
        ("train", "a.json", {"trained": run_of("pretrain")}, ["export-weights"]),
        ("train", "a.json --dry-run", {}, ["train"]),
        ("train", "a.json --dry-run", {"missing": True}, ["doctor"]),
        ("train", "a.json --dry-run", {"wrong": 1}, []),
        ("inspect", "run", {"found": FOUND["found"] | {"fine_tuning": {"run": "a"}}}, ["export"]),
        ("inspect", "run", {"found": FOUND["found"] | {"method": "pretrain"}}, ["export-weights"]),
        ("inspect", "run", {"found": FOUND["found"] | {"finished": False}}, []),  # its text says how to resume it
    ],
)
def test_what_follows_fits_the_result(name, line, left, names):
    assert [*following((name,), cli.COMMANDS[name], line, **left)] == names


def test_what_the_user_can_mend_is_one_sentence(runner, config, capsys):
    assert cli.main(["-f", config, "hparams.r_path=25"]) == 2
    assert capsys.readouterr().err == "error: hparams.r_path must be in [0, 0.99], got 25\n"
    runner.error = UserError("the weights w.h5 must be readable")
    assert cli.main(["-f", config, "-c", "cpu"]) == 2
    assert capsys.readouterr().err == "error: the weights w.h5 must be readable\n"


def test_a_stopped_run_says_how_to_go_on(runner, config, capsys):
    for error, how in ((KeyboardInterrupt(), ""), (Stopped("checkpoint saved"), "; checkpoint saved")):
        runner.error = error
        assert cli.main(["-f", config, "-c", "cpu"]) == 130
        assert capsys.readouterr().err == f"Interrupted{how}. Run the same command again to resume.\n"


def test_a_stopped_command_that_saves_nothing_promises_nothing(tmp_path, monkeypatch, capsys):
    def interrupt(arguments):
        raise KeyboardInterrupt

    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setitem(cli.COMMANDS, "export-weights", replace(cli.COMMANDS["export-weights"], run=interrupt))
    assert cli.main(["ship", str(tmp_path), "folder"]) == 130
    assert capsys.readouterr().err == "Interrupted.\n"
    assert {*cli.RESUMABLE} < {" ".join(place) for place, _ in cli.all_commands()}


def test_a_defect_shows_its_traceback(runner, config):
    runner.error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        cli.main(["-f", config, "-c", "cpu"])


@pytest.mark.parametrize(
    "line", [["train"], ["-f"], ["-f", "x", "-c", "gpu"], ["-f", "x", "--rest"], ["search"], ["data", "to-coco"]]
)
def test_wrong_usage_is_one_sentence_too(line, capsys):
    assert cli.main(line) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.endswith(" --help\n") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "near"),
    [
        (["trian"], "train"),
        (["evalute", "runs/a"], "evaluate"),
        (["data", "chek"], "check"),
        (["paper", "tabel3"], "table3"),
        (["train", "x.json", "--dryrun"], "--dry-run"),
        (["paper", "table3", "--profle", "demo"], "--profile"),
    ],
)
def test_the_nearest_known_name_is_suggested(line, near, capsys):
    assert cli.main(line) == 2
    err = capsys.readouterr().err
    assert f"; did you mean {near}?; " in err and err.count("\n") == 1


def test_an_unknown_command_names_the_known_ones(capsys):
    assert cli.main(["zzz"]) == 2
    assert capsys.readouterr().err == f"error: there is no command zzz; known are {', '.join(cli.COMMANDS)}\n"
    assert cli.main(["my config.yaml", "--dry-run"]) == 2
    said = "'my config.yaml' is not a command; to train with a config, write train before it"
    assert capsys.readouterr().err == f"error: {said}\n"
    assert cli.main(["data", "zzz"]) == 2
    assert capsys.readouterr().err == "error: there is no command data zzz; known are check, digits, to-coco\n"


def test_older_and_other_names_of_commands():
    for name, place in (("run", ("train",)), ("val", ("evaluate",)), ("predict", ("detect",)), ("page", ("paper", "page"))):
        assert cli.find([name, "x"]) == (place, ["x"])
    assert cli.find(["paper", "table3", "figure5"]) == (("paper", "reproduce"), ["table3", "figure5"])
    assert cli.find(["reproduce", "table3"]) == (("paper", "reproduce"), ["table3"])
    assert cli.find(["paper", "table1"]) == (("paper", "table1"), [])


def test_groups_of_targets():
    assert expanded(["table3", "tables"])[:2] == ["table3", "table1"]
    assert set(expanded(["tables", "figures"])) < set(expanded(["all"]))


def test_help_and_version(capsys):
    assert cli.main(["--help"]) == 0
    overview = capsys.readouterr().out
    assert overview.count("\n") <= 30
    assert all(f"\n  {name} " in overview for name in cli.COMMANDS)
    assert cli.main([]) == 2
    assert capsys.readouterr().err == overview
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"
    for place, _ in cli.all_commands():
        with pytest.raises(SystemExit) as caught:
            cli.main([*place, "--help"])
        assert caught.value.code == 0
        assert "examples:" in capsys.readouterr().out


def test_a_long_example_is_continued_on_the_next_line():
    long = f"detofa evaluate-paths {'a' * 30} --weights {'b' * 25} -o c.jsonl"
    first, second = cli._wrapped(long).split("\n")
    assert len(first) <= 88 and first.endswith(" \\")
    assert shlex.split(f"{first}\n{second}".replace("\\\n", "")) == long.split()
    assert cli._wrapped("detofa doctor") == "  detofa doctor"


def test_help_of_a_group(capsys):
    assert cli.main(["data", "--help"]) == 0
    overview = capsys.readouterr().out
    assert all(f"\n  {name} " in overview for name in ("check", "digits", "to-coco"))
    assert cli.main(["data"]) == 2
    assert capsys.readouterr().err == overview


def test_data_digits(tmp_path, monkeypatch, capsys):
    digits = pytest.importorskip("nnabla_detofa.data.digits")
    made = []

    def write_digits(root, *, seed, **sizes):
        made.append((root, seed))
        return root

    monkeypatch.setattr(digits, "write_digits", write_digits)
    assert cli.main(["data", "digits", "--root", str(tmp_path), "--seed", "3"]) == 0
    assert made == [(str(tmp_path), 3)]
    said = capsys.readouterr().out
    assert said.startswith(f"the data set digits is in {tmp_path}\nnext: ")
    assert f"dataloader.voc.root={shlex.quote(str(tmp_path))}" in said


@pytest.mark.parametrize(
    ("line", "status", "forbidden"),
    [
        (["--help"], 0, {"numpy", "yaml", "nnabla", "cv2"}),
        (["train", "small.json", "hparams.r_path=25"], 2, {"numpy", "nnabla", "cv2"}),
        (["-f", "small.json", "hparams.batch_size=8", "--processes", "3"], 2, {"nnabla", "cv2", "h5py", "matplotlib", "scipy"}),
        (["evaluate", "nowhere", "--scales", "9"], 2, {"numpy", "nnabla"}),
        (["evaluate-paths", "nowhere", "--per-bucket", "1", "-o", "x"], 2, {"nnabla", "matplotlib", "scipy"}),
        (["finetune", "nowhere", "--detector", "fullnet", "--epochs", "1", "-o", "x"], 2, {"nnabla", "matplotlib", "scipy"}),
        (["inspect", "nowhere"], 2, {"nnabla", "matplotlib", "scipy", "h5py", "tensorboard"}),
        (["reproduce", "table3", "--profile", "nowhere"], 2, {"nnabla", "matplotlib", "scipy"}),
    ],
)
def test_mistakes_are_found_without_what_is_slow_to_import(line, status, forbidden, config):
    program = f"import sys; from nnabla_detofa.cli import main\nassert main({line}) == {status}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(config).parent)
    assert done.returncode == 0, done.stderr
    assert not forbidden & set(done.stdout.splitlines()[-1].split())


def test_the_program_as_a_module_and_help_needs_no_nnabla():
    program = (
        "import runpy, sys; sys.argv = ['__main__.py', 'run', '--help']\n"
        "try: runpy.run_module('nnabla_detofa', run_name='__main__')\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "assert not {'nnabla', 'numpy', 'cv2'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage: python -m nnabla_detofa train" in done.stdout


@pytest.mark.parametrize(
    "line, said",
    [
        (["train", "a.json", "--epochs", "3"], "unrecognized arguments: --epochs 3; keys of the config are set by key=value"),
        (["train", "a.json", "--dryrun"], "; did you mean --dry-run?; "),
        (["inspect", "none", "--xyz"], "unrecognized arguments: --xyz; see "),
        (["train", "a.json", "hparams.epochs", "=", "3"], "hparams.epochs=3, without spaces, got 'hparams.epochs'"),
        (["train", "a.json", "args.context=gpu"], "args.context must be auto, cpu or cudnn, got 'gpu'\n"),
        (["train", "a.json", "hparams.search.budgets=3G"], "hparams.search.budgets must be a list, got '3G'\n"),
        (["train", "a_run"], "file, got the folder a_run; the config of this run is a_run/config.json\n"),
        (["measure-latency", "a_folder/inner", "-o", "x.json"], "a .json or .yaml file, got the folder a_folder/inner\n"),
        (["evaluate-paths", "a.json", "--per-bucket", "1", "-o", "x"], "it is a file; to use a config, write -f a.json\n"),
        (["report", "a.json"], "a.json is not the folder of a run: it is a file\n"),
        (["detect", "a.json", "b.jpg"], "a run: it is a file; a detector in a file must be exported as .nnp\n"),
        (["paper", "claims"], "no target claims; detofa paper results claims makes the claims; known are "),
        (["import-ofa", "none.pth", "-o", "x.h5"], "the checkpoint none.pth does not exist"),
        (["init", "--yolo", "a_run"], "a_run must contain a dataset in YOLO's layout (data.yaml, "),
        (["data", "to-coco", "--voc", "a_run"], "a_run must contain a dataset in VOC layout ("),
    ],
)
def test_a_mistake_of_a_newcomer_is_one_helpful_sentence(line, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("a.json").write_text('{"network": {"centernet_ofa_resnet50": {}}, "dataloader": {"voc": {"holdout": 10}}}')
    Path("a_run").mkdir()
    Path("a_folder/inner").mkdir(parents=True)
    Path("a_run/config.json").write_text("{}")
    assert cli.main(line) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert said in err


def test_help_of_a_command_by_the_word_help(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["help", "data", "check"])
    assert end.value.code == 0
    assert "detofa data check [-h]" in capsys.readouterr().out
