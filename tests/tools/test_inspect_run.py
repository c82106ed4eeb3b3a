"""What a run's folder says: finished runs, runs that are under way in each phase, other runners, damaged folders."""

import json
import re
import shutil

import pytest
import tiny
from small import pretrain_config

from nnabla_detofa import config as configs
from nnabla_detofa.cli.program import main
from nnabla_detofa.cli.runs import strict_json
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.tools.inspect import describe
from nnabla_detofa.tools.inspect_text import duration, text


@pytest.fixture
def cut(tmp_path):
    """A copy of the finished run as it was when it came to a phase: the log up to a line, and these files only."""

    def made(last_line: str, files=()):
        run, folder = tiny.detofa_run(), tmp_path / "cut"
        folder.mkdir()
        for name in ("config.json", *files):
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copy(run / name, folder / name)
        lines = (run / "log.txt").read_text().splitlines()
        last = next(index for index, line in enumerate(lines) if line.startswith(last_line))
        (folder / "log.txt").write_text("\n".join(lines[: last + 1]) + "\n")
        return folder

    return made


def states(found) -> dict:
    return {phase["name"]: phase["state"] for phase in found["phases"]}


def under_way(found) -> dict:
    (phase,) = [phase for phase in found["phases"] if phase["state"] == "under way"]
    return phase


@pytest.mark.parametrize("run", [tiny.detofa_run, tiny.fullnet_run])
def test_a_finished_run(run):
    found, summary = describe(run()), json.loads((run() / "summary.json").read_text())
    announced = re.findall(r"^\[\d+/\d+\] (.+)$", (run() / "log.txt").read_text(), re.MULTILINE)
    assert [phase["name"] for phase in found["phases"]] == announced
    assert found["finished"] and set(states(found).values()) == {"done"}
    assert {phase["name"]: phase["seconds"] for phase in found["phases"]} == summary["seconds"]
    assert found["device_time"]["total"] == pytest.approx(sum(phase["device_seconds"] for phase in found["phases"]))
    results = [summary["fullnet"], *summary["subnets"]]
    assert [row["name"] for row in found["detectors"]] == ["fullnet", "subnet_1", "subnet_2"][: len(results)]
    for row, result in zip(found["detectors"], results):
        assert row == {"name": row["name"], "budget": result.get("budget")} | {key: result[key] for key in list(row)[2:]}
    for key in ("thresholds", "rejected_share", "kendall_tau"):
        assert found[key] == summary.get(key)
    assert all((run() / place).exists() or place.startswith(str(run())) for place in found["files"].values())


def test_what_was_pruned_is_in_the_notation_of_figure_3():
    found, summary = describe(tiny.detofa_run()), json.loads((tiny.detofa_run() / "summary.json").read_text())
    pruned = found["pruned"]
    assert (pruned["removed"], pruned["total"]) == (summary["pruned_operations"], 108)
    assert 0 < pruned["paths"] < pruned["paths_of_a"]
    log = (tiny.detofa_run() / "log.txt").read_text()
    assert len(pruned["space"]) == 4 and all(line in log for line in pruned["space"])


def test_text_fits_the_terminal_and_breaks_no_bracket():
    shown = text(describe(tiny.detofa_run()), 70)
    lines = shown.splitlines()
    assert all(len(line) <= 70 for line in lines if "/" not in line)
    assert all(line.count("(") == line.count(")") for line in lines if line.strip().startswith(("stage", "(D")))
    assert "fullnet" in shown and "budget [G]" in shown and "finished" in lines[0] + lines[1]


def test_under_way_in_training(cut):
    # Four steps an epoch: warm-up is steps 1 to 4 of the schedule, fine-tuning 5 to 12.
    folder = cut("fine-tuning step 8:", ["fullnet/state.json", "fullnet.json", "warm_up/state.json", "operations.json"])
    found = describe(folder)
    names = list(states(found))
    at = names.index("fine-tuning")
    assert list(states(found).values()) == ["done"] * at + ["under way"] + ["to come"] * (len(names) - at - 1)
    assert under_way(found)["share"] == 0.5 and under_way(found)["detail"] == "step 8 of 12"
    assert not found["finished"] and found["kendall_tau"] is None and found["rejected_share"] is None
    summary = json.loads((tiny.detofa_run() / "summary.json").read_text())
    assert found["thresholds"] == pytest.approx(summary["thresholds"], abs=1e-4)  # from the log, which has four digits
    assert [row["name"] for row in found["detectors"]] == ["fullnet"]
    shown = " ".join(text(found, 100).split())
    assert "under way 50%" in shown and "step 8 of 12" in shown
    assert f"resume it with detofa train {folder}/config.json -o {folder}" in shown


@pytest.mark.parametrize("words", ["resumes", "goes on"])  # the second in logs of older versions
def test_a_run_that_was_resumed_counts_from_its_checkpoint(cut, words):
    folder = cut("fine-tuning step 8:", ["warm_up/state.json"])
    checkpoint = folder / "checkpoint" / "fine_tuning"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text('{"step": 6}')
    (folder / "log.1.txt").write_text(f"fine-tuning {words} at step 6 of 12\n")  # each start has its own log
    assert under_way(describe(folder))["share"] == 0.25
    assert describe(folder)["files"]["log after it was resumed, 1"] == str(folder / "log.1.txt")
    assert "step 6 of 12; checkpoint at step 6" in under_way(describe(folder))["detail"]


def test_under_way_in_its_first_phase(cut):
    folder = cut("fullnet step 2:")
    assert under_way(describe(folder)) | {"share": 0.5, "detail": "step 2 of 4"} == under_way(describe(folder))
    content = json.loads((folder / "config.json").read_text())
    content["dataloader"]["voc"]["root"] = "nowhere"
    (folder / "config.json").write_text(json.dumps(content))
    assert under_way(describe(folder))["share"] is None, "without the data set nobody knows how many steps there are"
    assert "under way" in text(describe(folder), 80)


def test_under_way_in_evaluating_paths(cut):
    folder = cut("[3/12] paths", ["warm_up/state.json"])
    assert under_way(describe(folder))["share"] == 0
    lines = (tiny.detofa_run() / "paths.jsonl").read_text().splitlines(keepends=True)
    (folder / "paths.jsonl").write_text("".join(lines[:5]))
    assert under_way(describe(folder))["detail"] == "4 of at most 16 paths"
    assert under_way(describe(folder))["share"] == 0.25


def test_under_way_in_the_last_evaluation(cut):
    folder = cut("[12/12] evaluation", ["subnet_1.json", "fullnet.json"])
    assert under_way(describe(folder))["detail"] == "1 of 2 subnets"
    assert [(row["name"], row["budget"]) for row in describe(folder)["detectors"]] == [("fullnet", None), ("subnet_1", 3e6)]


def test_a_pre_training(tmp_path):
    run = tmp_path / "pretrained"
    run.mkdir()
    (run / "config.json").write_text(json.dumps(configs.from_dict(pretrain_config("crops"), "pretrained").to_dict()))
    assert list(states(describe(run)).items()) == [(name, "to come") for name in ("start", "supernet", "paths", "path filter")]
    (run / "log.txt").write_text("[1/4] start\n[2/4] supernet\n[3/4] paths\n")
    assert under_way(describe(run))["name"] == "paths" and under_way(describe(run))["detail"] == "0 of at most 40 paths"
    assert describe(run)["code"] == [] and "computed by" not in text(describe(run))
    (run / "provenance.json").write_text(json.dumps({"code": ["commit a", "commit b"], "weights": {}}))
    assert "computed by commit a, then commit b" in text(describe(run))
    (run / "summary.json").write_text(json.dumps({"accuracy": [0.9, 0.75], "seconds": {}}))
    found = describe(run)
    assert found["finished"] and found["detectors"] == [] and "0.900, 0.750" in text(found, 80)


def test_the_command_as_json(capsys):
    assert main(["inspect", str(tiny.detofa_run()), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["phases"] == describe(tiny.detofa_run())["phases"]


def test_the_json_of_a_diverged_run_is_json(tmp_path, capsys):
    shutil.copytree(tiny.detofa_run(), tmp_path / "run")
    file = tmp_path / "run" / "fullnet.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"loss": float("nan")}))
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "run"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert printed["detectors"][0]["loss"] is None


def test_json_has_no_word_for_a_diverged_loss():
    assert json.loads(strict_json({"loss": [float("nan"), 1.5], "ap": (float("inf"), None)})) == {
        "loss": [None, 1.5],
        "ap": [None, None],
    }


def test_files_that_vanish_do_not_matter(cut):
    folder = cut("[1/12]")
    (folder / "state.json.new").symlink_to(folder / "renamed")
    assert 0 <= describe(folder)["written"] < 60


@pytest.mark.parametrize("content", ["[]", '"x"', "null", "3", "NaN", "{}", '{"a": 1}', '{"a": NaN}'])
@pytest.mark.parametrize("name", ["summary", "seconds", "ledger", "fullnet"])
def test_damaged_files_are_named(name, content, cut, capsys):
    folder = cut("[1/12]")
    (folder / f"{name}.json").write_text(content)
    if name == "seconds" and content in ("{}", '{"a": 1}'):
        assert main(["inspect", str(folder)]) == 0
        return
    for more in ([], ["--json"]):
        assert main(["inspect", str(folder), *more]) == 2
        assert capsys.readouterr().err.startswith(f"error: {folder}/{name}.json is damaged: ")


def test_other_folders_are_refused(tmp_path, cut):
    with pytest.raises(UserError, match="config.json is missing"):
        describe(tmp_path)
    folder = cut("[1/12]")
    (folder / "seconds.json").write_text("{")
    with pytest.raises(UserError, match="seconds.json is not JSON"):
        describe(folder)


@pytest.mark.parametrize(
    "seconds, said",
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (59.6, "60 s"),
        (100, "1 min 40 s"),
        (5999, "99 min 59 s"),
        (6000, "1 h 40 min"),
        (400000, "4 d 15 h"),
    ],
)
def test_durations(seconds, said):
    assert duration(seconds) == said
