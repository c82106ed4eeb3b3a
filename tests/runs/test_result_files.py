"""What a run's JSON files must hold: whole ones pass as they are, and each kind of damage is named."""

import copy
import json
from dataclasses import astuple

import numpy as np
import pytest
from small import GEOMETRY, SPACE

from nnabla_detofa.common.errors import UserError
from nnabla_detofa.runs import result_files
from nnabla_detofa.runs.run_folder import read_result

PATHS = [path.to_ofa(GEOMETRY) for path in SPACE.sample_many(np.random.default_rng(0), 2)]
DETECTOR = {"flops": 10, "params": 10, "loss": 1.0, "ap50": 0.5, "ap50_per_class": {"cat": None}, "path": PATHS[0]}
SUMMARY = {"fullnet": DETECTOR, "subnets": [DETECTOR | {"budget": 20.0}], "thresholds": [None, 0.5]}
EVERY = sorted(list(astuple(operation)) for operation in SPACE.operations)
OPERATIONS = {"operations": EVERY, "removed": EVERY[:1], "spared": ["it: a rule"]}
OPERATIONS |= dict.fromkeys(("scores", "flops"), [1.0] * len(EVERY))
GONE = object()


def ledger(content):
    return result_files.ledger(content)


def detector(content):
    return result_files.detector(content, GEOMETRY)


def measured(content):
    return result_files.measured(content, GEOMETRY)


def scores(content):
    return content if result_files.scores(content) else None


def summary(content):
    return result_files.summary(content, GEOMETRY, 1)


def thresholds(content):
    return content if result_files.thresholds(content, 2) else None


def operations(content):
    return result_files.operations(content, GEOMETRY)


WHOLE = {
    result_files.seconds: {"fullnet": 1, "search": 2.5},
    ledger: {"unit": "core seconds", "phases": {"fullnet": {"kind": "fullnet", "seconds": 1.5}}},
    detector: DETECTOR,
    measured: DETECTOR,
    scores: {"scores": [0.5, 1]},
    summary: SUMMARY,
    thresholds: SUMMARY,
    operations: OPERATIONS,
    result_files.mini_batch: {"mini_batch": 2, "processes": 2},
}


OLDER = {
    "fullnet": {"flops": 10, "params": 10, "loss": float("nan"), "ap50": 0.5, "ap50_per_class": {"loss": 0.5, "flops": None}},
    "subnets": [{"flops": 10, "params": 10, "loss": 1, "ap50": None, "budget": 3e9, "coco": {"AP": 0.25, "APs": None}}],
    "seconds": {"fullnet": 1},
    "thresholds": [None, 0.5],
    "kendall_tau_of_baselines": {"flops": [0.5, None]},
    "a later key": 1e300,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: None, None),
        (lambda s: s["fullnet"].update(loss=float("inf")), None),
        (lambda s: s["fullnet"].update(flops=1e300), r"fullnet.flops must be in \[0, 1e18\], got 1e\+300"),
        (lambda s: s["fullnet"]["ap50_per_class"].update(loss=1e300), "fullnet.ap50_per_class.loss must be in"),
        (lambda s: s["fullnet"]["ap50_per_class"].update(flops=float("nan")), "ap50_per_class.flops must be in .* got nan"),
        (lambda s: s["subnets"][0].update(budget=10**400), r"subnets\[0\].budget must be in \[0, 1e18\], got 1000"),
        (lambda s: s["subnets"][0].update(params=-1), r"subnets\[0\].params must be in"),
        (lambda s: s["subnets"][0]["coco"].update(APs="high"), r"coco.APs must be a number in .*, got 'high'"),
        (lambda s: s["seconds"].update(fullnet=1e300), "seconds.fullnet must be in"),
        (lambda s: s.update(thresholds=[float("inf")]), r"thresholds\[0\] must be in"),
        (lambda s: s["kendall_tau_of_baselines"].update(flops=[-2]), r"kendall_tau_of_baselines.flops\[0\] must be in"),
    ],
)
def test_numbers_of_a_summary_of_any_version_are_bounded(change, message):
    content = copy.deepcopy(OLDER)
    change(content)
    if message is None:
        assert result_files.bounded(content) is content
    else:
        with pytest.raises(UserError, match=message):
            result_files.bounded(content)


def test_the_rejected_share_of_an_older_run_is_read_by_its_older_name():
    shares = [result_files.rejected_share(content) for content in ({"rejected_share": 0.2}, {"refused_share": 0.3}, {})]
    assert shares == [0.2, 0.3, None]


@pytest.mark.parametrize("check", WHOLE)
def test_a_whole_file_passes_as_it_is_and_another_kind_of_value_does_not(check):
    before = copy.deepcopy(WHOLE[check])
    assert check(WHOLE[check]) is WHOLE[check] and WHOLE[check] == before
    for other in ([], 3, None, "x"):
        with pytest.raises(UserError, match="it must be a mapping, got"):
            check(other)


@pytest.mark.parametrize(
    ("check", "where", "value", "message"),
    [
        (result_files.seconds, ["fullnet"], "1", "the time of fullnet must be a number in [-1e12, 1e12], got '1'"),
        (result_files.seconds, ["fullnet"], float("nan"), "the time of fullnet must be in [-1e12, 1e12], got nan"),
        (ledger, ["unit"], GONE, "unit is missing"),
        (ledger, ["unit"], 3, "unit must be a string, got 3"),
        (ledger, ["phases", "fullnet"], [], "phases.fullnet must be a mapping, got a list"),
        (ledger, ["phases", "fullnet", "seconds"], True, "phases.fullnet.seconds must be a number in [-1e12, 1e12], got"),
        (ledger, ["phases", "fullnet", "seconds"], 1e308, "phases.fullnet.seconds must be in [-1e12, 1e12], got 1e+308"),
        (detector, ["flops"], -1, "flops must be in [0, 1e18], got -1"),
        (detector, ["params"], 10**400, "params must be in [0, 1e18], got 1000"),
        (detector, ["ap50"], 2.0, "ap50 must be in [0, 1.001], got 2.0"),
        (measured, ["path", "w", 0], float("nan"), "path is not a path"),
        (measured, ["flops"], 1e308, "flops must be in [0, 1e18], got 1e+308"),
        (scores, ["scores", 1], -1e308, "scores[1] must be in [-1e6, 1e6], got -1e+308"),
        (scores, ["scores", 0], "x", "scores[0] must be a number in [-1e6, 1e6], got 'x'"),
        (detector, ["loss"], None, "loss must be a number, got None"),
        (detector, ["ap50_per_class"], [], "ap50_per_class must be a mapping, got a list"),
        (detector, ["coco"], {}, "coco.AP is missing"),
        (detector, ["path"], GONE, "path is missing"),
        (detector, ["path", "d"], [0], "path is not a path (d of a path must be a list of 3 values"),
        (detector, ["path", "w", 0], [], "path is not a path"),
        (summary, ["fullnet", "ap50"], "x", "fullnet.ap50 must be a number in [0, 1.001], got 'x'"),
        (summary, ["subnets"], [], "subnets must be a list of 1 values, got 0"),
        (summary, ["subnets", 0], 3, "subnets[0] must be a mapping, got 3"),
        (summary, ["subnets", 0, "budget"], GONE, "subnets[0].budget is missing"),
        (summary, ["subnets", 0, "flops"], None, "subnets[0].flops must be a number in [0, 1e18], got None"),
        (thresholds, ["thresholds"], {}, "thresholds must be a list, got a mapping"),
        (thresholds, ["thresholds", 1], "x", "thresholds[1] must be a number, got 'x'"),
        (operations, ["removed", 0], 3, "removed must hold lists of numbers, got 3"),
        (operations, ["operations", 0], [0, 7, 1.0, 0.2], "operations holds [0, 7, 1.0, 0.2], which is not an operation of A"),
        (operations, ["operations"], EVERY[1:], f"operations must be the {len(EVERY)} of A, got {len(EVERY) - 1}"),
        (operations, ["scores", 0], "x", "scores[0] must be a number, got 'x'"),
        (operations, ["spared", 0], 3, "spared[0] must be a string, got 3"),
        (result_files.mini_batch, ["mini_batch"], 0, "mini_batch must be in [1, inf), got 0"),
    ],
)
def test_damage_is_named(check, where, value, message, tmp_path):
    content = copy.deepcopy(WHOLE[check])
    *outer, last = where
    inner = content
    for key in outer:
        inner = inner[key]
    if value is GONE:
        del inner[last]
    else:
        inner[last] = value
    with pytest.raises(UserError) as error:
        check(content)
    assert str(error.value).startswith(message)
    (tmp_path / "it.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"it\.json is damaged: its content is not that of a finished run \("):
        read_result(tmp_path, "it", check)


def test_a_loss_may_be_none_and_a_path_must_be_the_requested_one():
    content, other = DETECTOR | {"loss": float("inf")}, list(SPACE.sample_many(np.random.default_rng(0), 2))[1]
    assert detector(content) is content
    with pytest.raises(UserError, match="^path differs from that of this run"):
        result_files.detector(content, GEOMETRY, other)
    found = {"0 20": PATHS[0]}
    assert result_files.found_paths(found, GEOMETRY) is found
    with pytest.raises(UserError, match="^0 20 is not a path .0 20 must be a mapping, got nothing"):
        result_files.found_paths({"0 20": None}, GEOMETRY)
