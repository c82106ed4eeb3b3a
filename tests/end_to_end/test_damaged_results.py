"""Runs that are resumed from damaged files: they say what is wrong, and continue where that can be fixed."""

import json
import re
import shutil

import pytest
import tiny
from faults_by_kill import differing
from faulty import the_error

from nnabla_detofa.cli.program import main

pytestmark = pytest.mark.thorough


def test_results_that_a_run_goes_on_with_are_checked_at_its_start(tmp_path, capsys):
    folder = shutil.copytree(tiny.detofa_run(), tmp_path / "run")
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
        assert main(["-f", str(tiny.config_file()), "-o", str(folder)]) == 2
        error = the_error(capsys.readouterr().err)
        assert re.search(
            rf"run/{name} is damaged \(.*{message}.*\): remove it to (compute it again|restart the measurement of costs)", error
        ), error
        assert (folder / name).read_text() == content
        (folder / name).write_text(before)
    for name in ("seconds.json", "ledger.json", "search.json", "subnet_1.json"):
        (folder / name).unlink()
    assert main(["-f", str(tiny.config_file()), "-o", str(folder)]) == 0
    assert differing(tiny.detofa_run(), folder) == []


def test_a_report_names_the_file_of_an_incomplete_copy(tmp_path, capsys):
    folder = shutil.copytree(tiny.detofa_run(), tmp_path / "run")
    lines = (folder / "held_out_paths.jsonl").read_text().splitlines(keepends=True)
    (folder / "held_out_paths.jsonl").write_text("".join(lines[:-1]))
    assert main(["report", str(folder)]) == 2
    error = the_error(capsys.readouterr().err)
    assert re.search(r"held_out_paths.jsonl has \d+ paths, but scores.json has \d+ scores: one of them is", error), error


def test_a_ledger_of_another_device_begins_anew(tmp_path, capsys):
    """Core seconds are not added to GPU seconds."""
    folder = shutil.copytree(tiny.short_run(), tmp_path / "run")
    (folder / "summary.json").unlink()
    ledger = json.loads((folder / "ledger.json").read_text()) | {"unit": "GPU seconds"}
    (folder / "ledger.json").write_text(json.dumps(ledger))
    assert main(["-f", str(tiny.config_file()), "-o", str(folder), *tiny.SHORT]) == 0
    assert "ledger.json counts GPU seconds and this device core seconds; it is started over" in capsys.readouterr().out
    after = json.loads((folder / "ledger.json").read_text())
    assert after["unit"] == "core seconds"
    assert after["phases"].get("fullnet", {"seconds": 0})["seconds"] < ledger["phases"]["fullnet"]["seconds"]


def test_a_damaged_checkpoint_of_a_phase_without_hashes_falls_back(tmp_path, capsys):
    """As those of older runs are: nothing but what is read tells of the damage."""
    folder = shutil.copytree(tiny.short_run(), tmp_path / "run")
    for name in ("summary.json", "fullnet.json"):
        (folder / name).unlink()
    shutil.copytree(folder / "fullnet", folder / "fullnet.old")
    state = json.loads((folder / "fullnet" / "state.json").read_text())
    old = {name: value for name, value in state.items() if name not in ("digest", "digests")}
    for change in ({"step": ...}, {"step": "x"}, {"step": 10**6}, {"paths": ...}):
        damaged = {name: value for name, value in (old | change).items() if value is not ...}
        (folder / "fullnet" / "state.json").write_text(json.dumps(damaged))
        assert main(["-f", str(tiny.config_file()), "-o", str(folder), *tiny.SHORT]) == 0
        assert re.search("the checkpoint .*fullnet cannot be read .*: resuming from the previous one", capsys.readouterr().out)
        assert [file for file in differing(tiny.short_run(), folder) if "fullnet.old" not in file] == ["fullnet/state.json"]
        (folder / "summary.json").unlink()
    (folder / "fullnet" / "state.json").write_text(json.dumps(old))
    assert (
        main(["-f", str(tiny.config_file()), "-o", str(folder), *tiny.SHORT]) == 0
        and "resuming from" not in capsys.readouterr().out
    )
