"""The examination of an installation: it finds what is wrong, says what to do, and never fails itself."""

import json
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import tiny

from nnabla_detofa.cli.program import main
from nnabla_detofa.tools import doctor, graph_memory, installation
from nnabla_detofa.tools.installation import OK, PROBLEM, WARNING, Finding

ROOT = Path(__file__).parents[2]
Usage = namedtuple("Usage", "total used free")


def one(findings, word) -> Finding:
    (found,) = [finding for finding in findings if word in finding.text]
    return found


def test_this_installation_works_and_the_tiny_config_can_be_run(capsys):
    assert main(["doctor", "-f", str(tiny.config_file())]) == 0
    said = " ".join(capsys.readouterr().out.split())  # where a line breaks depends on the paths in it
    assert "problem" not in said
    assert all(
        word in said for word in ("Python 3.10", "packages: ", "nnabla-nas", "16 train, 6 val, 6 test", "disk", "memory")
    )


def test_without_any_package_it_still_speaks():
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from nnabla_detofa.cli import main; sys.exit(main(sys.argv[1:]))"
    for line in (["doctor"], ["doctor", "-f", str(ROOT / "configs/voc_detofa.json")]):
        done = subprocess.run([sys.executable, "-S", "-c", program, *line], capture_output=True, text=True)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr and "packages are missing: " in done.stdout
        assert "nnabla" in done.stdout and "make setup" in done.stdout


def test_a_build_whose_sums_depend_on_the_processor_is_reported(monkeypatch):
    monkeypatch.setattr(installation, "_order_of_sums_is_fixed", lambda: False)
    assert (
        one(installation.packages(), "sums of this build of NNabla, and so results, depend on the processor").state == WARNING
    )


def test_a_missing_and_a_broken_package(monkeypatch):
    version = installation.installed
    monkeypatch.setattr(installation, "installed", lambda name: None if name == "tqdm" else version(name))
    monkeypatch.setitem(sys.modules, "h5py", None)
    found = list(installation.packages())
    assert one(found, "missing: tqdm").state == PROBLEM and one(found, "cannot be imported: h5py").state == PROBLEM


def test_other_versions(monkeypatch):
    version = installation.installed
    monkeypatch.setattr(installation, "installed", lambda name: {"numpy": "2.0.0", "scipy": "1.0"}.get(name) or version(name))
    monkeypatch.setattr(installation, "required", lambda: {"numpy": "<2", "scipy": "", "nnabla": "==1.39.0"})
    found = list(installation.packages())
    assert one(found, "numpy 2.0.0 (needed: <2)").state == PROBLEM
    assert one(found, f"scipy 1.0 (tested: {installation.locked()['scipy']})").state == WARNING


def test_everything_needed_is_known():
    """setup.py's packages, and the versions of the lock."""
    assert installation.required().keys() >= {"nnabla", "nnabla-nas", "numpy", "opencv-python", "tensorboard"}
    assert installation.required().keys() <= installation.locked().keys()
    text = (ROOT / "setup.py").read_text()
    assert all(f'"{name}' in text for name in installation.MODULES)


@pytest.mark.parametrize(
    "content, state, word",
    [
        ("from nnabla_detofa.cli import main", OK, "belongs to this package"),
        ("from nnabla_nas.main import main", WARNING, "belongs to nnabla-nas"),
        (None, WARNING, "the command nnabla_nas is not installed"),
    ],
)
def test_whose_command_it_is(content, state, word, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    if content:
        (tmp_path / "nnabla_nas").write_text(content)
    (found,) = installation.command()
    assert found.state == state and word in found.text


def test_a_gpu_that_a_config_wants():
    if not installation.no_gpu()[0]:
        pytest.skip("there is one")
    from nnabla_detofa import config as configs

    config = configs.load(tiny.config_file(), ["args.context=cudnn"])
    assert [finding.state for finding in installation.gpu(config)] == [PROBLEM]
    assert [finding.state for finding in installation.gpu()] == [OK]


def test_what_stops_a_config(tmp_path, monkeypatch, capsys):
    content = json.loads(tiny.config_file().read_text())
    content["dataloader"]["voc"]["root"] = "nowhere"
    content["network"]["centernet_ofa_resnet50"]["weights"] = "runs/imagenet_pretrain/supernet.h5"
    content["hparams"]["filter"]["weights"] = str(tmp_path / "filter.h5")
    (tmp_path / "filter.h5").write_text("no weights")
    file = tmp_path / "broken.json"
    file.write_text(json.dumps(content))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(2**30, 2**30, 2**20))
    found = list(doctor.examine(str(file)))
    for word in ("folder nowhere does not exist", "supernet.h5 is missing", "filter.h5 cannot be read", "disk: 1 MiB free"):
        assert one(found, word).state == PROBLEM
    assert "configs/imagenet_pretrain.json" in one(found, "supernet.h5").todo
    assert main(["doctor", "-f", str(file)]) == 2
    assert "broken.json cannot be run: 4 problems above" in capsys.readouterr().err


def test_weights_of_another_network_and_of_no_numbers_are_problems(tmp_path):
    from nnabla_detofa import config as configs
    from nnabla_detofa.methods.build import make_model
    from nnabla_detofa.networks.weights import write

    def found(*overrides):
        return list(doctor.weights(configs.load(tiny.config_file(), overrides)))

    def named(file):
        return f"network.centernet_ofa_resnet50.weights={file}"

    net = make_model(configs.load(tiny.config_file()), 3)
    write(tmp_path / "good.h5", net.get_parameters())
    assert one(found(named(tmp_path / "good.h5")), "good.h5").state == OK
    wider = one(found(named(tmp_path / "good.h5"), "network.centernet_ofa_resnet50.width_scale=0.125"), "good.h5")
    assert wider.state == PROBLEM and "this network's is" in wider.text
    parameter = next(iter(net.get_parameters().values()))
    parameter.d = float("nan")
    write(tmp_path / "nan.h5", net.get_parameters())
    assert one(found(named(tmp_path / "nan.h5")), "finite numbers").state == PROBLEM
    filters = one(found(f"hparams.filter.weights={tmp_path / 'good.h5'}"), "good.h5")
    assert filters.state == PROBLEM and "not the weights file of a path filter" in filters.text


def test_an_output_folder_that_the_run_would_not_get(tmp_path):
    from nnabla_detofa import config as configs
    from nnabla_detofa.runs.lock import locked_run

    def found(folder, *overrides):
        (finding,) = doctor.output(configs.load(tiny.config_file(), [f"args.output_path={folder}", *overrides]))
        return finding.state, finding.text

    (tmp_path / "file").write_text("a file")
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "1.jpg").write_text("no run")
    assert found(tmp_path / "new" / "run") == (OK, f"output: {tmp_path / 'new' / 'run'}; a new run")
    for folder, word in (("file", "is a file"), ("file/run", "is a file"), ("photographs", "files that are not a run")):
        state, text = found(tmp_path / folder)
        assert state == PROBLEM and word in text
    run = tmp_path / "run"
    with locked_run(run, configs.load(tiny.config_file(), [f"args.output_path={run}"])):
        ask = "import pathlib, sys; from nnabla_detofa.runs.lock import is_locked; print(is_locked(pathlib.Path(sys.argv[1])))"
        command = [sys.executable, "-c", ask, str(run)]
        assert subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout == "True\n"
    assert found(run) == (OK, f"output: {run}; the run of this config will be resumed")
    state, text = found(run, "hparams.warmup_epochs=2")
    assert state == PROBLEM and "holds a run with another config (differing: hparams.warmup_epochs)" in text


def test_memory_is_held_against_the_estimate(monkeypatch):
    from nnabla_detofa import config as configs

    config = configs.load(tiny.config_file(), ["args.context=cpu"])
    monkeypatch.setattr(graph_memory, "free_memory", lambda: 2**20)
    (found,) = doctor.memory(config)
    assert found.state == PROBLEM and "1 MiB of memory are free" in found.text
    monkeypatch.setattr(graph_memory, "free_memory", lambda: None)
    assert [finding.state for finding in doctor.memory(config)] == [OK]


def test_a_broken_data_set_is_found(tmp_path):
    from nnabla_detofa import config as configs

    root = Path(shutil.copytree(tiny.digits(), tmp_path / "voc"))
    (root / "Annotations/train_00000.xml").unlink()
    config = configs.load(tiny.config_file(), [f"dataloader.voc.root={root}"])
    (found,) = doctor.config_data(config, "tiny.json a=1")
    assert found.state == PROBLEM and "train_00000.xml: No such file" in found.text
    assert found.todo == "detofa data check tiny.json a=1 lists all"


def test_a_config_that_is_wrong_and_a_check_that_fails(tmp_path, monkeypatch):
    file = tmp_path / "wrong.json"
    file.write_text("{")
    monkeypatch.setattr(doctor, "mpi", lambda: iter([][0]))
    found = list(doctor.examine(str(file)))
    assert one(found, "wrong.json cannot be used").state == PROBLEM
    assert one(found, "failed: IndexError").state == WARNING


def test_what_a_config_needs_and_cannot_be_examined_is_a_problem(monkeypatch):
    monkeypatch.setattr(doctor, "disk", lambda config: iter([][0]))
    found = list(doctor.examine(str(tiny.config_file())))
    assert one(found, "failed: IndexError").state == PROBLEM


@pytest.mark.parametrize("width", [40, 80])
def test_lines_fit(width):
    shown = doctor.lines(Finding(WARNING, "a word and " * 20, "do something " * 10), width)
    assert all(len(line) <= width for line in shown.splitlines())
    assert shown.startswith("warning  a word") and "         -> do" in shown
