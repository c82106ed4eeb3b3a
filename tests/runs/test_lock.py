"""Exclusive locking of run folders, and restarts that are cut short."""

import json
import os
import signal
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from faulty import no_room, the_error
from small import detofa_config

from nnabla_detofa import config as configs
from nnabla_detofa.cli.program import main
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.runs import lock
from nnabla_detofa.training import mini_batch

pytestmark = pytest.mark.thorough


def test_a_second_run_in_a_folder_is_refused_and_a_dead_one_holds_nothing(tmp_path, capsys):
    folder, settings = tmp_path / "run", configs.load(tiny.config_file(), tiny.SHORT)
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


def test_a_restart_that_is_cut_short_anywhere_loses_nothing(tmp_path, monkeypatch):
    settings, replace = configs.load(tiny.config_file()), os.replace
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


def test_a_run_that_cannot_be_done_leaves_its_folder_as_it_was(tmp_path):
    settings = configs.load(tiny.config_file())
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


@pytest.mark.parametrize(
    "args", [None, {}, {"context": "cpu"}, {"runner": "detofa", "seed": 3, "context": "cpu", "device_id": 0}]
)
def test_a_config_of_the_users_own_is_no_run(tmp_path, args):
    """A user who keeps config.json beside the data, and gives this folder for the output, keeps both."""
    settings, content = configs.load(tiny.config_file()), detofa_config("data")
    (tmp_path / "config.json").write_text(json.dumps(content | {"args": args} if args is not None else content))
    (tmp_path / "data.zip").write_text("all I have")
    before = {file.name: file.read_text() for file in tmp_path.iterdir()}
    for restart in (False, True):
        with (
            pytest.raises(UserError, match="holds a config.json that is not a run's: choose another folder"),
            lock.locked_run(tmp_path, settings, restart) as held,
        ):
            held.commit()
        assert {file.name: file.read_text() for file in tmp_path.iterdir()} == before


def test_where_only_places_differ_the_folder_of_the_start_is_meant(tmp_path):
    settings = configs.load(tiny.config_file())
    with lock.locked_run(tmp_path / "run", settings) as held:
        held.commit()
    for change, hint in (
        (replace(settings.dataloader, root="elsewhere"), True),
        (replace(settings.dataloader, val="a"), False),
    ):
        with pytest.raises(UserError, match="holds a run with another config") as raised:
            lock.check(tmp_path / "run", replace(settings, dataloader=change), restart=False)
        assert ("start it from the folder where it was started" in str(raised.value)) is hint


@pytest.mark.parametrize("folder", [b"caf\xe9", b"runs/\xff/a", b"caf\xe9/run"])
def test_a_folder_whose_path_is_not_text_is_rejected(tmp_path, monkeypatch, folder):
    settings, place = configs.load(tiny.config_file()), tmp_path / os.fsdecode(folder)
    for output in (place, Path("run")):
        if not output.is_absolute():
            place.mkdir(parents=True)
            monkeypatch.chdir(place)
        with (
            pytest.raises(UserError, match="args.output_path must be a folder whose path is utf-8 text"),
            lock.locked_run(output, settings),
        ):
            pass
    assert list(place.iterdir()) == []


def test_what_cannot_be_withdrawn_does_not_hide_why(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lock, "_empty", no_room)
    assert main(["-f", str(tiny.config_file()), "-o", str(tmp_path / "run"), "hparams.search.budgets=[1.0]"]) == 2
    assert "which is below the smallest path" in the_error(capsys.readouterr().err)


def test_a_run_killed_anywhere_at_its_start_has_its_mini_batch_if_it_has_its_config(tmp_path, monkeypatch):
    settings, replace, seen = configs.load(tiny.config_file()), os.replace, set()
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
