"""Searching a finished run under any mix of bounds: units, hard bounds, impossible mixes, fronts, and files."""

import json
import re
from dataclasses import replace
from pathlib import Path as FilePath

import numpy as np
import pytest
import tiny
from small import pretrain_config

import nnabla_detofa
from nnabla_detofa import config as configs
from nnabla_detofa.cli.program import main
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.evolution import NoPath
from nnabla_detofa.path_filter.model import PathFilter
from nnabla_detofa.space.costs import CostModel, cost_range
from nnabla_detofa.space.geometry import HeadGeometry
from nnabla_detofa.space.paths import Path, PathBatch
from nnabla_detofa.space.search_space import Operation, ofa_resnet50
from nnabla_detofa.tools.bounds import EXAMPLES, UNITS, parse_bound, result_name
from nnabla_detofa.tools.evaluate import find_path
from nnabla_detofa.tools.measure_latency import Latency, write
from nnabla_detofa.tools.search import find, load_run, table

CONTENT = {
    "network": {"centernet_ofa_resnet50": {"width_scale": 0.0625, "strides": [1, 2, 2, 1], "deconv_channels": [8, 8]}},
    "dataloader": {"voc": {"holdout": 10, "image_size": 64, "root": "nowhere"}},
    "hparams": {"search": {"generations": 4, "population": 12}},
}


@pytest.fixture(scope="module")
def model():
    geometry = configs.from_dict(CONTENT, "tiny").network.geometry
    return CostModel((64, 64), 3, "detector", geometry, HeadGeometry(3, (8, 8), 64))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model):
    """What a search reads of a run's folder: without weights, its data are nowhere."""
    return write_run(tmp_path_factory.mktemp("runs") / "tiny", model)


def write_run(folder, model, **hparams):
    """Write what a search reads of the folder of a run with these hparams."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    a = ofa_resnet50(model.backbone)
    space = a.without([*(Operation(0, 0, 0.65, e) for e in (0.2, 0.25, 0.35)), Operation(3, 1, 0.8, 0.35)])
    contents = {
        "config": configs.from_dict(CONTENT | {"hparams": CONTENT["hparams"] | hparams}, "tiny").to_dict(),
        "operations": {"space": space.to_json()},
        "fullnet": {"ap50_per_class": dict.fromkeys("abc")},
    }
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    PathFilter(model.backbone, 5, 8, 2, 1, 8, rng=rng).save(folder / "path_filter_again.h5")
    flops = model.flops
    tables = Latency("latency", "ms", 1e6, model.backbone, flops.stem, flops.first, flops.other, flops.head)
    write(folder / "latency.json", tables, model, "a clock that shows FLOPs", 1, {})
    return folder


@pytest.mark.parametrize(
    "name, text, value",
    [
        ("flops", "3G", 3e9),
        ("flops", "2.5e8", 2.5e8),
        ("params", "20m", 20e6),
        ("latency", "40ms", 40e6),
        ("latency", ".5 us", 500),
        ("params", "0.00203M", 2030),  # 0.00203 * 1e6 is 2030.0000000000002
        ("flops", "0.00391G", 3910000),
        ("memory", "200MB", 200e6),
        ("memory", "3gb", 3e9),
    ],
)
def test_bounds_have_units(name, text, value):
    assert parse_bound(name, text) == value


@pytest.mark.parametrize(
    "name, text",
    [("latency", "40"), ("latency", "3G"), ("flops", "3GB"), ("memory", "2M"), ("params", "-3M"), ("flops", "1e308T")],
)
def test_a_wrong_unit_is_one_sentence(name, text):
    with pytest.raises(UserError, match=rf"--{name} must be a positive number with a unit \(.*\), such as .*, got {text}"):
        parse_bound(name, text)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "wanted", [{}, {"flops": 0.5}, {"params": 0.3, "memory": 0.4}, dict.fromkeys(("flops", "latency", "params"), 0.6)]
)
def test_every_bound_is_hard(folder, model, wanted):
    run = load_run(folder)
    costs = {name: run.costs[name](run.space.sample_many(np.random.default_rng(0), 2000)) for name in run.costs}
    bounds = {name: float(np.quantile(costs[name], share)) for name, share in wanted.items()}
    found = find(run, bounds, by_score=True)
    assert {row["bucket"] for row in found["rows"]} and found["compared_by"] == "score"
    for row in found["rows"]:
        path = Path.from_ofa(row["path"], run.space.geometry)
        assert path in run.space and row["score"] <= found["score"]
        assert all(row[name] <= most for name, most in bounds.items())
        assert (row["flops"], row["memory"]) == (model.flops([path])[0], model.memory([path])[0])
    assert 0 < found["scoring_share"] < 1 and found["scored"] > 0


def test_each_bucket_has_a_winner_of_its_own(folder):
    run = load_run(folder)
    rows = find(run, {}, by_score=True)["rows"]
    assert [row["bucket"] for row in rows] == [0, 1, 2, 3, 4]
    batch = PathBatch.from_paths([Path.from_ofa(row["path"], run.space.geometry) for row in rows], run.space.geometry)
    np.testing.assert_allclose(run.scorer(batch), [row["score"] for row in rows], atol=1e-6)


def test_a_front_for_each_bucket(folder):
    found = find(load_run(folder), {"memory": 120e3}, whole_front=True)
    assert "path" not in found
    for bucket in {row["bucket"] for row in found["rows"]}:
        rows = [row for row in found["rows"] if row["bucket"] == bucket]
        assert (np.diff([row["flops"] for row in rows]) > 0).all() and (np.diff([row["score"] for row in rows]) > 0).all()
    assert all(row["memory"] <= 120e3 for row in found["rows"])


@pytest.mark.parametrize(
    "flags", [["--memory", "1KB"], ["--flops", "1K", "--params", "9M"], ["--latency", "1us", "--flops", "9G"]]
)
def test_an_impossible_mix_names_what_is_reachable(folder, flags, capsys):
    assert main(["search", str(folder), "-c", "cpu", *flags]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: no path of ") and "the reachable range of each cost alone is FLOPs " in message
    assert all(unit in message for unit in ("GFLOPs", "M parameters", "MB", "ms"))


@pytest.mark.thorough
def test_a_reachable_bound_can_be_given_as_it_is_printed(folder, capsys):
    line = ["search", str(folder), "-c", "cpu", "--generations", "0", "--by-score"]
    assert main([*line, "--flops", "1K"]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    for name, unit in (("flops", "GFLOPs"), ("params", "M parameters"), ("memory", "MB"), ("latency", "ms")):
        least, most = re.search(rf"([0-9.]+) to ([0-9.]+) {unit}", message).groups()
        for bound in (least, most):
            assert main([*line, f"--{name}", bound + {"flops": "G", "params": "M"}.get(name, unit)]) == 0
    assert "no path" not in capsys.readouterr().err


@pytest.mark.thorough
def test_bounds_possible_alone_but_not_together(folder):
    """A device on which layers take the longer the fewer FLOPs they have: the fastest path is not the cheapest."""
    run = load_run(folder)
    flops = run.costs["flops"]
    stem, *tables = (table.max() - table for table in (flops.stem, *flops.first, *flops.other, flops.head))
    first, other, head = tuple(tables[:4]), tuple(tables[4:8]), tables[8]
    odd = replace(
        run, costs={**run.costs, "latency": Latency("latency", "ms", 1e6, run.space.geometry, stem, first, other, head)}
    )
    bounds = {name: odd.costs[name].extremes(run.space)[0] for name in ("flops", "latency")}
    for name, most in bounds.items():
        assert find(odd, {name: most}, by_score=True)[name] == most
    with pytest.raises(
        NoPath, match="FLOPs <= .* GFLOPs and latency <= .* ms; the reachable range of each cost alone is FLOPs"
    ):
        find(odd, bounds, by_score=True)


def layers_of_stage_1(run):
    """A cost of 1 for each layer of the first stage after its first."""
    flops = run.costs["flops"]
    first, other = ([np.zeros_like(table) for table in tables] for tables in (flops.first, flops.other))
    other[0][:, :-1] = 1  # the last column is that of no layer
    zero = {"stem": np.zeros_like(flops.stem), "head": np.zeros_like(flops.head)}
    return replace(flops, name="depth", unit="layers", scale=1.0, first=tuple(first), other=tuple(other), **zero)


@pytest.mark.parametrize("whole_front", [False, True])
def test_a_mix_that_no_pruned_path_meets_is_searched_in_a(folder, whole_front):
    """The cheapest path left has more layers in stage 1 than the shallowest left: D0 of the smallest width was pruned there."""
    run, heard = load_run(folder), []
    run = replace(run, costs={**run.costs, "depth": layers_of_stage_1(run)})
    bounds = {name: run.costs[name].extremes(run.space)[0] for name in ("flops", "depth")}
    found = find(run, bounds, by_score=True, whole_front=whole_front, note=heard.append)
    assert found["space"] == "A" and all(row[name] <= most for row in found["rows"] for name, most in bounds.items())
    assert re.match("no path of A pruned was found with FLOPs <= .* and depth <= 1 layers; searching A instead", heard[-1])


def test_a_cost_of_ones_own(folder):
    """The code that docs/extend/costs.md shows."""
    page = (FilePath(__file__).parents[2] / "docs/extend/costs.md").read_text(encoding="utf-8")
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "def with_energy" in block]
    names = {"replace": replace}
    exec(block, names)
    run = load_run(folder)
    most = 3 * float(np.quantile(run.costs["flops"](run.space.sample_many(np.random.default_rng(0), 500)), 0.25))
    found = names["frugal"](run, most)
    assert found["energy"] == 3 * found["flops"] <= most and found["bounds"] == {"energy": most}
    assert "| energy |" in table(found)
    with pytest.raises(NoPath, match="energy <= 1e-09 mJ; the reachable range of each cost alone is .* energy .* mJ"):
        names["frugal"](run, 1.0)
    with pytest.raises(UserError, match="a bound must be on flops, params, memory or latency, got energy"):
        find(run, {"energy": most})


@pytest.mark.thorough
@pytest.mark.parametrize("kind", [int, float, np.float32, np.int64])
def test_a_program_gives_plain_numbers(folder, model, kind):
    paths = load_run(folder).space.sample_many(np.random.default_rng(0), 500)
    most = {name: kind(np.median(getattr(model, name)(paths))) for name in ("flops", "params", "memory")}
    found = nnabla_detofa.search(folder, **most, latency=most["flops"], by_score=True, generations=1)
    assert found["bounds"] == most | {"latency": most["flops"]}
    assert all(found[name] <= bound for name, bound in found["bounds"].items())


@pytest.mark.parametrize("name", UNITS)
@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), 10**400, True, [3], b"3", np.float32(-2)])
def test_a_programs_wrong_number_is_named(folder, name, value):
    with pytest.raises(UserError, match=f"^{name} must be a positive number, or a string such as {EXAMPLES[name]!r}, got "):
        nnabla_detofa.search(folder, **{name: value})


def test_a_program_names_its_table_and_its_own_arguments(folder, tmp_path):
    (tmp_path / "other.json").write_text((folder / "latency.json").read_text())
    found = nnabla_detofa.search(folder, latency="9ms", latency_table=tmp_path / "other.json", by_score=True, generations=0)
    assert found["latency"] <= 9e6
    with pytest.raises(UserError, match="nothing.json"):
        nnabla_detofa.search(folder, latency="9ms", latency_table="nothing.json")
    with pytest.raises(UserError, match="^memory must be a positive number with a unit"):
        nnabla_detofa.search(folder, memory="300000")
    with pytest.raises(TypeError, match=r"^search\(\) got an unexpected keyword argument 'foo'"):
        nnabla_detofa.search(folder, foo=1)


@pytest.mark.parametrize(
    "line",
    [
        ["search", "-c", "cpu"],
        ["evaluate", "-c", "cpu"],
        ["detect", str(tiny.digits() / "JPEGImages/test_00000.jpg"), "-c", "cpu"],
        ["export", "--detector", "fullnet", "-o", "x.nnp", "-c", "cpu"],
        ["report", "-o", "out"],
        ["compare", "other"],
    ],
)
def test_a_pre_training_is_called_so(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("run", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(configs.from_dict(pretrain_config("crops"), "x").to_dict()))
        (tmp_path / name / "summary.json").write_text(json.dumps({"accuracy": [0.5], "seconds": {}}))
    command, *more = line
    assert main([command, "run", *more]) == 2
    assert re.match("error: run is a pre-training's folder: a .* needs a run that trains detectors", capsys.readouterr().err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "run"]


@pytest.mark.thorough
def test_results_are_named_by_their_bounds(folder, tmp_path, capsys):
    """Two searches of a run do not overwrite each other."""
    line = ["search", str(folder), "-c", "cpu", "--by-score", "--generations", "1", "-o", str(tmp_path)]
    assert main([*line, "--params", "1M", "--memory", "1 MB"]) == 0 and main([*line, "--params", "2M"]) == 0 and main(line) == 0
    names = ["found.json", "found_params_1M_memory_1MB.json", "found_params_2M.json"]
    assert sorted(file.name for file in tmp_path.iterdir()) == names
    assert f"written: {tmp_path / names[1]}" in capsys.readouterr().out
    assert result_name({"flops": "3G"}, front=True) == "front_flops_3G.json"


@pytest.mark.thorough
def test_the_command_writes_a_path_that_evaluate_reads(folder, tmp_path, capsys):
    """Without weights and data the winners are compared by score, and that is said."""
    file = tmp_path / "found.json"
    assert main(["search", str(folder), "-c", "cpu", "--params", "1M", "--memory", "1MB", "-o", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "comparing winners by score instead of validation loss: " in printed and "| best |" in printed
    found, run = json.loads(file.read_text()), load_run(folder)
    assert found["bounds"] == {"params": 1e6, "memory": 1e6} and found["latency"] == found["flops"]
    (folder / "summary.json").write_text(json.dumps({"subnets": []}))
    assert find_path(folder, str(file), run.space) == Path.from_ofa(found["path"], run.space.geometry)


def test_a_bound_on_latency_needs_a_table(folder):
    run = load_run(folder)
    run = replace(run, costs={name: cost for name, cost in run.costs.items() if name != "latency"})
    with pytest.raises(UserError, match="needs a latency table of this device"):
        find(run, {"latency": 1e9})


def test_a_folder_that_is_not_a_finished_run(tmp_path, capsys):
    assert main(["search", str(tmp_path), "-c", "cpu", "--flops", "3G"]) == 2
    assert capsys.readouterr().err.endswith("is not the folder of a run: config.json is missing\n")


@pytest.mark.parametrize("value", ["-3M", "-.5G", "-3"])
def test_a_negative_budget_is_named(folder, value, capsys):
    assert main(["search", str(folder), "-c", "cpu", "--flops", value]) == 2
    assert value in capsys.readouterr().err


def test_parameters_and_memory_are_the_detectors_whatever_the_flops_are_of(tmp_path, model):
    run = load_run(write_run(tmp_path / "run", model, cost_scope="backbone"))
    found = find(run, {"flops": 0.5e6}, by_score=True, generations=0)
    path = Path.from_ofa(found["path"], run.space.geometry)
    assert found["flops_of"] == "backbone" and found["flops"] == replace(model, scope="backbone").flops([path])[0]
    assert (found["params"], found["memory"]) == (model.params([path])[0], model.memory([path])[0])
    assert found["latency"] == model.flops([path])[0]
    assert "GFLOPs of the backbone" in table(found) and "all costs but FLOPs are of the whole detector" in table(found)
    with pytest.raises(NoPath, match="with FLOPs of the backbone <= .* each cost alone is FLOPs of the backbone"):
        find(run, {"flops": 10.0})
    with pytest.raises(UserError, match="hparams.cost_scope must be backbone, for which"):
        load_run(run.folder, ["hparams.cost_scope=detector"])


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["flops", "params"])
def test_a_bound_below_the_pruned_space_is_searched_in_a(folder, name):
    run, heard = load_run(folder), []
    least, least_of_all = (cost_range(space, run.costs[name])[0] for space in (run.space, run.buckets.space))
    assert least_of_all < least
    found = find(run, {name: least - 1}, by_score=True, note=heard.append)
    assert found["space"] == "A" and found[name] < least
    assert any("was pruned; searching A instead" in line for line in heard)
    assert find(run, {name: least}, by_score=True, note=heard.append)["space"] == "A pruned"
    heard.clear()
    with pytest.raises(NoPath):
        find(run, {name: least_of_all - 1}, note=heard.append)
    assert not heard


def test_the_config_may_ask_to_compare_by_score(tmp_path, model):
    run = load_run(write_run(tmp_path / "run", model, search={"generations": 1, "population": 4, "across_buckets": "score"}))
    heard = []
    assert find(run, {}, note=heard.append)["compared_by"] == "score" and not heard  # data and weights were not asked for


def test_a_config_that_is_no_mapping_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match="damaged config.json: it is a list, not a mapping"):
        load_run(tmp_path)
