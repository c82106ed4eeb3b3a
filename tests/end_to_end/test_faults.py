"""Runs that are killed, stopped, starved of room or given damaged files: they say what is wrong, lose nothing, and go on."""

import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
from faults_by_kill import differing
from small import GEOMETRY, detofa_config
from tiny_training import Uniform, inputs, parts, values

from nnabla_detofa import config as configs
from nnabla_detofa.cli.program import main
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.data.digits import write_digits
from nnabla_detofa.evaluation import forked
from nnabla_detofa.methods import algorithm1, build, detectors, subnet_search
from nnabla_detofa.path_filter import evaluated_paths
from nnabla_detofa.path_filter.evaluated_paths import EvaluatedPath, EvaluatedPaths
from nnabla_detofa.runs import lock
from nnabla_detofa.space.search_space import ofa_resnet50
from nnabla_detofa.training import filter_fitting, mini_batch
from nnabla_detofa.training import loop as training
from nnabla_detofa.training.checkpoint import Checkpoint, write_moments
from nnabla_detofa.training.loop import train

REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.thorough

SHORT = ("args.runner=fullnet", "hparams.fullnet_epochs=2")
"""Overrides that leave one phase of training and its evaluation."""

DRIVER = """
import os, resource, signal, sys
from nnabla_detofa.cli.program import main
from nnabla_detofa.path_filter import evaluated_paths
from nnabla_detofa.training import loop as training

fault, *arguments = sys.argv[1:]
kind, _, name = fault.partition(":")
replace, write_line, step, steps = os.replace, evaluated_paths._write_line, training.step, []


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def replace_or_die(source, target):
    hit = str(target).endswith(name)
    if hit and kind == "before":
        die()
    replace(source, target)
    if hit and kind == "after":
        die()


def half_a_line(opened, entry):
    if kind == "half" and len(entry) > 4 and opened.name.endswith(name) and opened.tell() > 2000:
        opened.write(b'{"path": {"d"')
        opened.flush()
        die()
    return write_line(opened, entry)


def step_without_room(graph):
    steps.append(graph)
    if kind == "limit" and len(steps) == 3:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(name), resource.RLIM_INFINITY))
    step(graph)


os.replace, evaluated_paths._write_line, training.step = replace_or_die, half_a_line, step_without_room
sys.exit(main(arguments))
"""
"""A command line with a fault: "before:NAME" and "after:NAME" kill at the renaming to NAME, "half:NAME" in the middle of a
line, "limit:N" lets files have no more than N bytes from the third step on."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "digits"
    return write_digits(root, train=16, val=6, test=6, image_size=64, crops_train=40, crops_val=20)


@pytest.fixture(scope="module")
def config(data, tmp_path_factory):
    file = tmp_path_factory.mktemp("config") / "tiny.json"
    file.write_text(json.dumps(detofa_config(data)))
    return file


@pytest.fixture(scope="module")
def unbroken(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    assert main(["-f", str(config), "-o", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def unbroken_short(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "short"
    assert main(["-f", str(config), "-o", str(folder), *SHORT]) == 0
    return folder


def with_fault(fault: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", DRIVER, fault, *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)


def the_error(text: str) -> str:
    """The one sentence of a failed command, which shows no traceback."""
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in text, text
    return errors[0]


# --- Killed and stopped -----------------------------------------------------------------------------------------------


def test_a_run_that_was_killed_at_bad_moments_goes_on_to_the_same_bits(config, unbroken, tmp_path):
    arguments = ["-f", str(config), "-o", str(tmp_path / "run")]
    for fault in ("half:paths.jsonl", "after:checkpoint/fine_tuning.old", "before:subnet_2.json"):
        assert with_fault(fault, *arguments).returncode == -signal.SIGKILL
        assert not (tmp_path / "run" / "summary.json").exists()
    assert main(arguments) == 0
    assert differing(unbroken, tmp_path / "run") == []
    assert not list((tmp_path / "run" / "checkpoint").iterdir())


def test_results_that_differ_are_told(unbroken, tmp_path):
    shutil.copytree(unbroken, tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    (tmp_path / "run" / "summary.json").write_text(json.dumps(summary | {"seconds": {}}))
    assert differing(unbroken, tmp_path / "run") == []
    (tmp_path / "run" / "summary.json").write_text(json.dumps(summary | {"rejected_share": 0.5}))
    with h5py.File(tmp_path / "run" / "fine_tuning" / "weights.h5", "r+") as weights:
        weights[next(iter(weights))].attrs["index"] = 99  # only values count
    with h5py.File(tmp_path / "run" / "fine_tuning" / "optim_train.h5", "r+") as moments:
        moments.visititems(lambda name, item: item.__setitem__(..., 7) if name.endswith("/t") else None)
    os.remove(tmp_path / "run" / "scores.json")
    assert differing(unbroken, tmp_path / "run") == ["fine_tuning/optim_train.h5", "scores.json", "summary.json"]


def test_sigterm_stops_in_every_kind_of_phase_with_status_130(config, unbroken, tmp_path, monkeypatch, capsys):
    arguments = ["-f", str(config), "-o", str(tmp_path / "run")]
    for owner, name in (
        (build, "open_sets"),
        (detectors, "average_precision"),
        (training, "step"),
        (evaluated_paths, "_write_line"),
        (filter_fitting, "fit"),
        (algorithm1, "operation_scores"),
        (algorithm1, "path_thresholds"),
        (subnet_search, "search"),
    ):
        original = getattr(owner, name)

        def stopped(*args, original=original, **options):
            os.kill(os.getpid(), signal.SIGTERM)
            return original(*args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, stopped)
            assert main(arguments) == 130, name
        assert "Run the same command again to resume." in capsys.readouterr().err
    assert main(arguments) == 0
    assert differing(unbroken, tmp_path / "run") == []


def test_forked_processes_end_with_a_killed_parent():
    reading, writing = os.pipe()
    parent = os.fork()
    if not parent:
        list(forked.map_forked(lambda _: (os.write(writing, b"%d\n" % os.getpid()), signal.pause()), range(2), 2))
        os._exit(0)
    pids = b""
    while pids.count(b"\n") < 2:
        pids += os.read(reading, 100)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    while any(map(alive, map(int, pids.split()))):
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Is it there, and not only waiting to be collected?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_forked_process_that_is_killed_is_told():
    with pytest.raises(UserError, match="a process that evaluated paths was killed"):
        list(forked.map_forked(lambda n: os.kill(os.getpid(), signal.SIGKILL) if n == 1 else n, range(3), 2))


# --- Whose folder it is -----------------------------------------------------------------------------------------------


def test_a_second_run_in_a_folder_is_refused_and_a_dead_one_holds_nothing(config, tmp_path, capsys):
    folder, settings = tmp_path / "run", configs.load(config, SHORT)
    reading, writing = os.pipe()
    holder = os.fork()
    if not holder:
        with lock.locked_run(folder, settings):
            os.write(writing, b"held")
            signal.pause()
        os._exit(0)
    assert os.read(reading, 4) == b"held"
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    try:
        for restart in (False, True):
            with (
                pytest.raises(UserError, match="another process is running in .*: wait until it ends"),
                lock.locked_run(folder, settings, restart),
            ):
                pass
        assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
    with lock.locked_run(folder, settings) as held:
        assert not held.fresh
        child = os.fork()
        if not child:
            signal.pause()
            os._exit(0)
    try:  # a process that was forked meanwhile does not hold it either
        with lock.locked_run(folder, settings):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert [file.name for file in folder.iterdir()] == ["config.json"]


class Killed(BaseException):
    """Stands for SIGKILL: nothing here handles it."""


def dying(moment):
    """`os.replace` that works so many times and then kills."""
    replace, left = os.replace, [moment]

    def replace_or_die(source, target):
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        replace(source, target)

    return replace_or_die


def test_a_restart_that_is_cut_short_anywhere_loses_nothing(config, tmp_path, monkeypatch):
    settings, replace = configs.load(config), os.replace
    for moment in range(20):
        folder = tmp_path / f"run{moment}"
        with lock.locked_run(folder, settings):
            (folder / "fullnet").mkdir()
            (folder / "fullnet" / "weights.h5").write_text("weights")
            (folder / "log.txt").write_text("log")
        monkeypatch.setattr(os, "replace", dying(moment))
        try:
            with lock.locked_run(folder, settings, restart=True) as held:
                (folder / "log.txt").write_text("the new run's")
                held.roll_back()
            finished = True
        except Killed:
            finished = False
        monkeypatch.setattr(os, "replace", replace)
        with lock.locked_run(folder, settings) as held:
            assert not held.fresh
            assert (folder / "log.txt").read_text() == "log" and (folder / "fullnet" / "weights.h5").read_text() == "weights"
        assert {file.name for file in folder.iterdir()} == {"config.json", "fullnet", "log.txt"}
        if finished:
            break
    assert finished and moment > 5
    with lock.locked_run(folder, settings, restart=True) as held:
        held.commit()
    assert [file.name for file in folder.iterdir()] == ["config.json"]


def test_a_run_that_cannot_be_done_leaves_its_folder_as_it_was(config, tmp_path):
    settings = configs.load(config)
    for name in ("empty", "target"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "nowhere").symlink_to("missing")
    before = {path: path.lstat().st_ino for path in tmp_path.rglob("*")}
    for name in ("empty", "link", "deep/a/b"):
        with lock.locked_run(tmp_path / name, settings, mini_batch={"mini_batch": 2}) as held:
            (tmp_path / name / "tensorboard").mkdir()
            (tmp_path / name / "log.txt").write_text("log")
            held.roll_back()
        assert {path: path.lstat().st_ino for path in tmp_path.rglob("*")} == before, name
    with (
        pytest.raises(UserError, match="must be a folder that can be written"),
        lock.locked_run(tmp_path / "nowhere", settings),
    ):
        pass
    with pytest.raises(ZeroDivisionError), lock.locked_run(tmp_path / "deep/a/b", settings):
        raise ZeroDivisionError
    assert (tmp_path / "deep/a/b/config.json").exists(), "what is not withdrawn stays"


def test_what_cannot_be_withdrawn_does_not_hide_why(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lock, "_empty", no_room)
    assert main(["-f", str(config), "-o", str(tmp_path / "run"), "hparams.search.budgets=[1.0]"]) == 2
    assert "which is below the smallest path" in the_error(capsys.readouterr().err)


def test_a_run_killed_anywhere_at_its_start_has_its_mini_batch_if_it_has_its_config(config, tmp_path, monkeypatch):
    settings, replace, seen = configs.load(config), os.replace, set()
    for restart in (False, True):
        for moment in range(20):
            folder = tmp_path / f"run{restart}{moment}"
            if restart:
                with lock.locked_run(folder, settings):
                    pass
            monkeypatch.setattr(os, "replace", dying(moment))
            with suppress(Killed), lock.locked_run(folder, settings, restart, {"mini_batch": 2, "processes": 2}) as held:
                held.commit()
                break
            monkeypatch.setattr(os, "replace", replace)
            begun = folder / ".before" / "config.json" if restart else folder / "config.json"
            kept = mini_batch.mini_batch(settings, 1, folder)
            seen.add((restart, (folder / "mini_batch.json").exists(), (folder / "config.json").exists(), begun.exists()))
            assert kept == settings.hparams.batch_size or (folder / "config.json").exists()
            with lock.locked_run(folder, settings) as held:
                assert held.fresh != restart and not (folder / "mini_batch.json").exists()
        monkeypatch.setattr(os, "replace", replace)
        assert mini_batch.mini_batch(settings, 1, folder) == 2
    assert (False, True, False, False) in seen, "a kill between the two"


# --- Damaged files ----------------------------------------------------------------------------------------------------


def test_a_damaged_checkpoint_is_noticed_and_the_one_before_it_taken(tmp_path):
    net, optimizer, loader = parts()
    said: list[str] = []
    checkpoint = Checkpoint(tmp_path / "c", said.append)
    kept = {}
    for number in range(3):
        train(net, optimizer, Uniform(), loader, inputs(), range(number, number + 1))
        checkpoint.save(net, optimizer, {"step": number + 1})
        kept[number + 1] = values(net)
    assert {place.name for place in tmp_path.iterdir()} == {"c", "c.old"}  # the last two
    other, fresh, _ = parts(seed=9)
    assert checkpoint.load(other, fresh) == {"step": 3} and not said
    for name in ("weights.h5", "optim_train.h5", "state.json"):
        file, content = tmp_path / "c" / name, (tmp_path / "c" / name).read_bytes()
        middle = len(content) // 2
        changed = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        for damage in (content[: len(content) // 3], changed, b""):
            file.write_bytes(damage)
            assert checkpoint.load(other, fresh) == {"step": 2}
            assert re.search("the checkpoint .*c cannot be read .*: resuming from the previous one", said.pop())
            for key, value in values(other).items():
                np.testing.assert_array_equal(value, kept[2][key])
        file.write_bytes(content)
    for damage in (
        "null",
        "3",
        '"x"',
        "[]",
        "[" * 50_000,
        '{"optimizer": {"current_iter": 1}}',
        '{"optimizer": [], "step": 3}',
    ):
        (tmp_path / "c" / "state.json").write_text(damage)
        assert checkpoint.load(other, fresh, lambda state: state["step"] + 1) == {"step": 2}
        assert re.search("the checkpoint .*c cannot be read .*: resuming from the previous one", said.pop())
    (tmp_path / "c" / "state.json").unlink()
    assert checkpoint.load(other, fresh) == {"step": 2}
    checkpoint.save(net, optimizer, {"step": 3})  # the whole one before it stays
    (tmp_path / "c" / "weights.h5").write_bytes(b"")
    assert checkpoint.load(other, fresh) == {"step": 2}
    (tmp_path / "c.old" / "optim_train.h5").write_bytes(b"")
    with pytest.raises(UserError, match="c cannot be read .*c.old cannot be read .*; remove .*c and .*c.old to start this"):
        checkpoint.load(other, fresh)


def test_results_that_a_run_goes_on_with_are_checked_at_its_start(config, unbroken, tmp_path, capsys):
    folder = shutil.copytree(unbroken, tmp_path / "run")
    (folder / "summary.json").unlink()
    results = {name: json.loads((folder / name).read_text()) for name in ("search.json", "subnet_1.json")}
    key = next(iter(results["search.json"]))
    for name, content, message in (
        ("seconds.json", "", "Expecting value"),
        ("ledger.json", "[]", "it must be a mapping, got a list"),
        ("search.json", json.dumps({key: {"d": [0]}}), r"is not a path \(d of a path"),
        ("subnet_1.json", "[]", "it must be a mapping, got a list"),
        ("fullnet.json", json.dumps(results["subnet_1.json"]), "path differs from that of this run"),
    ):
        before = (folder / name).read_text()
        (folder / name).write_text(content)
        assert main(["-f", str(config), "-o", str(folder)]) == 2
        error = the_error(capsys.readouterr().err)
        assert re.search(
            rf"run/{name} is damaged \(.*{message}.*\): remove it to (compute it again|restart the measurement of costs)", error
        ), error
        assert (folder / name).read_text() == content
        (folder / name).write_text(before)
    for name in ("seconds.json", "ledger.json", "search.json", "subnet_1.json"):
        (folder / name).unlink()
    assert main(["-f", str(config), "-o", str(folder)]) == 0
    assert differing(unbroken, folder) == []


def test_a_ledger_of_another_device_begins_anew(config, unbroken_short, tmp_path, capsys):
    """Core seconds are not added to GPU seconds."""
    folder = shutil.copytree(unbroken_short, tmp_path / "run")
    (folder / "summary.json").unlink()
    ledger = json.loads((folder / "ledger.json").read_text()) | {"unit": "GPU seconds"}
    (folder / "ledger.json").write_text(json.dumps(ledger))
    assert main(["-f", str(config), "-o", str(folder), *SHORT]) == 0
    assert "ledger.json counts GPU seconds and this device core seconds; it is started over" in capsys.readouterr().out
    after = json.loads((folder / "ledger.json").read_text())
    assert after["unit"] == "core seconds"
    assert after["phases"].get("fullnet", {"seconds": 0})["seconds"] < ledger["phases"]["fullnet"]["seconds"]


def test_a_damaged_checkpoint_of_a_phase_without_hashes_falls_back(config, unbroken_short, tmp_path, capsys):
    """As those of older runs are: nothing but what is read tells of the damage."""
    folder = shutil.copytree(unbroken_short, tmp_path / "run")
    for name in ("summary.json", "fullnet.json"):
        (folder / name).unlink()
    shutil.copytree(folder / "fullnet", folder / "fullnet.old")
    state = json.loads((folder / "fullnet" / "state.json").read_text())
    old = {name: value for name, value in state.items() if name not in ("digest", "digests")}
    for change in ({"step": ...}, {"step": "x"}, {"step": 10**6}, {"paths": ...}):
        damaged = {name: value for name, value in (old | change).items() if value is not ...}
        (folder / "fullnet" / "state.json").write_text(json.dumps(damaged))
        assert main(["-f", str(config), "-o", str(folder), *SHORT]) == 0
        assert re.search("the checkpoint .*fullnet cannot be read .*: resuming from the previous one", capsys.readouterr().out)
        assert [file for file in differing(unbroken_short, folder) if "fullnet.old" not in file] == ["fullnet/state.json"]
        (folder / "summary.json").unlink()
    (folder / "fullnet" / "state.json").write_text(json.dumps(old))
    assert main(["-f", str(config), "-o", str(folder), *SHORT]) == 0 and "resuming from" not in capsys.readouterr().out


def test_the_moments_are_written_as_nnabla_does(tmp_path):
    net, optimizer, loader = parts()
    train(net, optimizer, Uniform(), loader, inputs(), range(2))
    write_moments(tmp_path / "ours.h5", optimizer)
    optimizer.save_checkpoint(str(tmp_path), "theirs")
    with h5py.File(tmp_path / "ours.h5") as ours, h5py.File(tmp_path / "optim_theirs.h5") as theirs:
        names: list[str] = []
        theirs.visit(names.append)
        for name in names:
            assert dict(ours[name].attrs) == dict(theirs[name].attrs)
            if isinstance(theirs[name], h5py.Dataset):
                assert ours[name].dtype == theirs[name].dtype
                np.testing.assert_array_equal(ours[name][...], theirs[name][...])


# --- Faults of training -----------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_names_the_step_the_path_and_the_checkpoint(config, tmp_path, monkeypatch, capsys):
    load, calls = training.load, []

    def poisoned(graph, batch):
        calls.append(batch)
        heatmap = np.full_like(batch[1], np.nan) if len(calls) == 6 else batch[1]  # a ReLU makes 0 of a NaN of the images
        load(graph, [batch[0], heatmap, *batch[2:]])

    monkeypatch.setattr(training, "load", poisoned)
    arguments = ["-f", str(config), "-o", str(tmp_path / "run"), *SHORT]
    assert main(arguments) == 2
    error = the_error(capsys.readouterr().err)
    assert re.search(r"fullnet: the loss became nan at step 5, .* on the path \{.*checkpoint, of step 4, is .*fullnet", error)


def test_a_photograph_that_vanishes_is_named_and_no_step_is_lost(config, data, tmp_path, monkeypatch, capsys):
    root = shutil.copytree(data, tmp_path / "data")
    arguments = ["-f", str(config), *SHORT, "hparams.batch_size=2", f"dataloader.voc.root={root}"]
    assert main([*arguments, "-o", str(tmp_path / "whole")]) == 0
    step, hidden = training.step, tmp_path / "hidden"

    def hide(graph):
        if (root / "JPEGImages").exists():
            os.replace(root / "JPEGImages", hidden)
        step(graph)

    monkeypatch.setattr(training, "step", hide)
    capsys.readouterr()
    assert main([*arguments, "-o", str(tmp_path / "run")]) == 2
    monkeypatch.undo()
    assert re.search(r"cannot read the image .*JPEGImages.*: No such file", the_error(capsys.readouterr().err))
    state = json.loads((tmp_path / "run" / "checkpoint" / "fullnet" / "state.json").read_text())
    assert 0 < state["step"] < 8 and state["phase"] == "fullnet" and state["line"] == "2" and state["epoch"] == 0
    os.replace(hidden, root / "JPEGImages")
    assert main([*arguments, "-o", str(tmp_path / "run")]) == 0
    assert f"resumes at step {state['step']}" in capsys.readouterr().out
    assert differing(tmp_path / "whole", tmp_path / "run") == []


# --- No room ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "named"), [(0, "run"), (9000, r"checkpoint/fullnet.new/weights.h5")])
def test_a_full_disk_is_one_sentence_and_the_run_goes_on(limit, named, config, unbroken_short, tmp_path):
    """Without any room the log fails; with a little, the first checkpoint does."""
    arguments = ["-f", str(config), "-o", str(tmp_path / "run"), *SHORT]
    failed = with_fault(f"limit:{limit}", *arguments)
    assert failed.returncode == 2, failed.stderr
    assert re.search(f"{named} cannot be written .File too large.: earlier results are kept", the_error(failed.stderr))
    assert main(arguments) == 0
    assert differing(unbroken_short, tmp_path / "run") == []


def no_room(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_tensorboard_without_room_is_one_sentence(config, tmp_path, monkeypatch, capfd):
    from tensorboard.summary.writer.record_writer import RecordWriter

    write, step = RecordWriter.write, training.step

    def full_from_now_on(graph):
        monkeypatch.setattr(RecordWriter, "write", no_room)
        step(graph)

    monkeypatch.setattr(training, "step", full_from_now_on)
    assert main(["-f", str(config), "-o", str(tmp_path / "run"), *SHORT]) == 2
    assert "cannot be written (No space left on device)" in the_error(capfd.readouterr().err)
    monkeypatch.setattr(RecordWriter, "write", write)


def test_a_file_where_a_folder_should_be_is_one_sentence(config, tmp_path, capsys):
    assert main(["-f", str(config), "-o", str(tmp_path / "run"), *SHORT, "hparams.fullnet_epochs=0"]) == 0
    shutil.rmtree(tmp_path / "run" / "fullnet")
    shutil.rmtree(tmp_path / "run" / "checkpoint", ignore_errors=True)
    (tmp_path / "run" / "fullnet.new").write_text("a file")
    capsys.readouterr()
    assert main(["-f", str(config), "-o", str(tmp_path / "run"), *SHORT, "hparams.fullnet_epochs=0"]) == 2
    assert "fullnet.new cannot be written (File exists)" in the_error(capsys.readouterr().err)


def test_evaluated_paths_without_room_are_named_and_healed(tmp_path, monkeypatch):
    space = ofa_resnet50(GEOMETRY)
    few = list(space.sample_many(np.random.default_rng(0), 3))
    file = tmp_path / "paths.jsonl"
    kept = EvaluatedPaths.open(file, "w", {}, GEOMETRY)
    kept.append(EvaluatedPath(few[0], 0, 1, 1, 0.5))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 10, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            kept.append(EvaluatedPath(few[1], 0, 1, 1, 0.5))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error.value.filename == str(file)
    again = EvaluatedPaths.open(file, "w", {}, GEOMETRY)
    assert again.items == kept.items and len(again) == 1
    again.append(EvaluatedPath(few[1], 0, 1, 1, 0.5))
    assert len(EvaluatedPaths.read(file)) == 2
