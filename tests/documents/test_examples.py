"""The programs in examples/ and the code in docs/extend/extending.md: what they return is right, not only that they run."""

import importlib
import json
import re
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import nnabla as nn
import nnabla.functions as F
import numpy as np
import pytest
from visit import count_macs, peak_memory

from nnabla_detofa.common.errors import UserError
from nnabla_detofa.data.digits import write_digits
from nnabla_detofa.evaluation.reestimation import reestimate
from nnabla_detofa.evolution import mutate_many, search
from nnabla_detofa.networks.layers import STORED
from nnabla_detofa.networks.supernet import take_over
from nnabla_detofa.path_filter.model import PathFilter
from nnabla_detofa.space.counting import Buckets, count_within
from nnabla_detofa.space.paths import Path as ArchPath
from nnabla_detofa.space.paths import PathBatch
from nnabla_detofa.space.search_space import SearchSpace, ofa_resnet50

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PROGRAMS = [file for file in EXAMPLES if file.stem not in ("on_digits", "onnx_detect")]  # a library; needs onnxruntime
sys.path.insert(0, str(ROOT / "examples"))
energy_budget, fcos_head, kernel_choice, mobilenet_backbone, on_digits, quick_start = map(
    importlib.import_module,
    ("energy_budget", "fcos_head", "kernel_choice", "mobilenet_backbone", "on_digits", "quick_start"),
)


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory):
    """A small data set in the place of data/digits, whether that is there or not."""
    root = tmp_path_factory.mktemp("data") / "digits"
    write_digits(root, train=24, val=16, test=8, image_size=64, crops_train=30, crops_val=10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(on_digits, "MADE", root)
        yield root


def squeezed(text):
    return "".join(text.split())


def falls(losses, window=5):
    return np.mean(losses[-window:]) < np.mean(losses[:window])


def macs_of(net, path, size):
    return count_macs(F.sink(*net(nn.Variable((1, 3, size, size)), path, STORED)))


def run(net, path, images):
    outputs = net(nn.Variable.from_numpy_array(images), path, STORED)
    nn.forward_all(outputs)
    return [output.d.copy() for output in outputs]


@pytest.mark.parametrize("file", PROGRAMS, ids=lambda file: file.stem)
def test_a_program_says_what_it_does(file, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(file), "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(file), run_name="__main__")
    text = file.read_text(encoding="utf-8")
    assert end.value.code == 0 and squeezed(text.split('"""')[1].splitlines()[0]) in squeezed(capsys.readouterr().out)
    assert len(text.splitlines()) < 180


def test_without_the_data_a_small_set_is_made_and_removed(monkeypatch, tmp_path):
    monkeypatch.setattr(on_digits, "MADE", tmp_path / "missing")
    with on_digits.digits(64) as sets:
        files = sets.train.files
        assert len(files) == 32 and files[0].exists()
        assert sets.train.load(0).image.shape == (64, 64, 3)
    assert not files[0].exists()


# --- A new choice of each layer ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kernels(data):
    return kernel_choice.main(steps=15)


def with_choice(path, stage, place, choice):
    """The path with another choice in one layer."""
    stages = [list(choices) for choices in path.expand_ratios]
    stages[stage][place] = choice
    return replace(path, expand_ratios=tuple(map(tuple, stages)))


def test_training_the_kernel_choice_lowers_the_loss(kernels):
    assert falls(kernels["losses"])


def test_a_larger_kernel_costs_what_it_does_by_hand(kernels):
    path, net = kernels["space"].largest, kernel_choice.GEOMETRY
    smaller = with_choice(path, 2, 1, kernel_choice.Choice(0.35, 3))
    middle = 22  # of 64 channels (1024 / 16), times 0.35, the divisor is 1
    assert net.middle(net.stage_out(2, 1.0), path.expand_ratios[2][1]) == middle
    large, small = kernels["cost"].flops([path, smaller])
    assert large - small == (25 - 9) * middle**2 * 4**2  # stage 3 of 64 pixels is at stride 16
    large, small = kernels["cost"].params([path, smaller])
    assert large - small == (25 - 9) * middle**2
    assert kernels["cost"].memory([path]) == kernels["cost"].memory([smaller])


def test_the_cost_of_kernels_is_that_of_the_built_graph(kernels):
    paths = kernels["space"].sample_many(np.random.default_rng(3), 3)
    assert [macs_of(kernels["net"], path, kernel_choice.SIZE) for path in paths] == kernels["cost"].flops(paths).tolist()


def test_a_small_kernel_is_the_middle_of_the_large_one():
    conv = kernel_choice.KernelConv("conv", 4, 6, 5, np.random.default_rng(0), relu=False)
    x = nn.Variable.from_numpy_array(np.random.default_rng(1).normal(size=(2, 3, 8, 8)))
    ours = conv(x, 5, 3, STORED)
    by_hand = nn.Variable.from_numpy_array(conv.parameters["conv/conv/_W"].d[:5, :3, 1:4, 1:4])
    theirs = F.convolution(x, by_hand, pad=(1, 1))
    nn.forward_all([ours, theirs])
    np.testing.assert_allclose(ours.d, theirs.d / np.sqrt(1 + 1e-5), rtol=1e-5, atol=1e-6)


def test_a_path_with_kernels_equals_its_own_network(kernels):
    path = kernels["space"].sample(np.random.default_rng(5))
    assert {choice.kernel for stage in path.expand_ratios for choice in stage} == {3, 5}
    static = kernel_choice.detector(path, seed=1)
    take_over(static, kernels["net"])
    images = np.random.default_rng(0).normal(size=(1, 3, 64, 64))
    for ours, theirs in zip(run(kernels["net"], path, images), run(static, path, images)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_space_of_kernels_is_counted_by_hand(kernels):
    space, cost = kernels["space"], kernels["cost"].flops
    by_hand = np.prod([3 * sum(4 ** (base + depth) for depth in range(3)) for base in (2, 2, 4, 2)], dtype=object)
    assert space.size() == by_hand == count_within(space, cost, -np.inf, np.inf)
    assert len(space.operations) == 4 * 3 * 3 * 4


def test_tokens_tell_kernels_apart(kernels):
    tokenizer, path = kernels["scorer"].filter.tokenizer, kernels["space"].largest
    smaller = with_choice(path, 0, 1, kernel_choice.Choice(0.35, 3))
    assert tokenizer.words(path)[3:5] == ["W1.0_E0.35_K5", "W1.0_E0.35_K5"]
    assert tokenizer.words(smaller)[3:5] == ["W1.0_E0.35_K5", "W1.0_E0.35_K3"]
    assert len(tokenizer.vocabulary) == 3 * 4 + 1 + 3 + 1 + 3


def test_pruning_and_search_keep_what_they_promise(kernels):
    space, pruned, found = (kernels[key] for key in ("space", "pruned", "found"))
    assert space.largest in pruned and len(pruned.operations) < len(space.operations)
    assert found.path in pruned and found.cost <= kernels["budget"]
    assert found.cost == kernels["cost"].flops([found.path])[0]
    drawn = pruned.sample_many(np.random.default_rng(0), 200)
    assert pruned.contains_many(drawn).all() and all(path in pruned for path in drawn[:20])
    assert "E0.2_K3" in str(pruned) + " ".join(map(str, pruned.removed))


def test_mutation_changes_kernels(kernels):
    paths = PathBatch.from_paths([kernels["space"].largest] * 300, kernel_choice.GEOMETRY)
    mutants = mutate_many(kernels["space"], paths, 0.1, np.random.default_rng(0))
    seen = {choice for path in mutants for stage in path.expand_ratios for choice in stage}
    assert seen == set(kernel_choice.GEOMETRY.ratios)


def test_files_bring_the_choices_back(kernels, tmp_path):
    pruned, geometry = kernels["pruned"], kernel_choice.GEOMETRY
    read = SearchSpace.from_json(json.loads(json.dumps(pruned.to_json())), kernel_choice.KernelGeometry)
    assert read == pruned and read.geometry == geometry and read.removed == pruned.removed
    arch = json.loads(json.dumps(kernels["found"].path.to_ofa(geometry)))
    assert ArchPath.from_ofa(arch, geometry) == kernels["found"].path
    with pytest.raises(UserError, match=r"e of a path must hold only .*, got \(0.2, 7\)"):
        ArchPath.from_ofa({**arch, "e": [[0.2, 7]] * geometry.layers}, geometry)
    scorer, paths = kernels["scorer"], pruned.sample_many(np.random.default_rng(0), 5)
    scorer.filter.save(tmp_path / "filter.h5")
    loaded = PathFilter.load(tmp_path / "filter.h5", geometry=geometry)
    np.testing.assert_array_equal(replace(scorer, filter=loaded)(paths), scorer(paths))


def test_too_many_choices_for_exact_counts_are_refused_and_still_searched():
    six = tuple(kernel_choice.Choice(ratio, kernel) for ratio in (0.2, 0.25, 0.35) for kernel in (3, 5))
    space = ofa_resnet50(kernel_choice.KernelGeometry(ratios=six), elastic_stem=False)
    cost = kernel_choice.KernelCost(64, 10, "backbone", space.geometry)
    with pytest.raises(UserError, match="plain function"):
        Buckets(space, cost.flops).share(0)
    budget = np.mean(cost.flops.extremes(space))
    rng = np.random.default_rng(0)
    found = search(space, energy_budget.width, lambda paths: cost.flops(paths), budget, rng, 3, 10)
    assert found.path in space and found.cost <= budget


# --- Another backbone -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mobile(data):
    return mobilenet_backbone.main(steps=12)


def test_the_mobile_backbone_learns(mobile):
    assert falls(mobile["losses"], 3)


def test_the_table_of_the_mobile_backbone_is_what_the_graph_has(mobile):
    some = ofa_resnet50(mobilenet_backbone.GEOMETRY, elastic_stem=False).sample_many(np.random.default_rng(0), 3)
    # A 9x9 matrix makes each 3x3 kernel of the 5x5 one's middle: work on weights, which is no layer's.
    made = [81 * sum(choice.kernel == 3 for stage in path.expand_ratios for choice in stage) for path in some]
    counted = [macs_of(mobile["net"], path, mobilenet_backbone.SIZE) for path in some]
    assert (np.array(counted) - made == mobile["cost"](some)).all()


def test_the_mobile_backbone_is_scored_and_searched(mobile):
    found, geometry = mobile["found"], mobilenet_backbone.GEOMETRY
    space = ofa_resnet50(geometry, elastic_stem=False)
    assert found.path in space and found.cost <= mobile["budget"]
    assert all(2 <= len(choices) <= 4 for choices in found.path.expand_ratios)
    scores = mobile["scorer"](space.sample_many(np.random.default_rng(0), 50))
    assert len(np.unique(scores)) > 10 and ((scores > 0) & (scores < 1)).all()
    assert found.history[-1] > found.history[0]


def test_every_batch_normalization_of_the_mobile_backbone_is_reestimated(mobile):
    path = mobile["found"].path
    found = reestimate(mobile["net"], path, [np.random.default_rng(0).normal(size=(4, 3, 64, 64))])
    assert len(found) == 1 + 3 * sum(map(len, path.expand_ratios)) + 2  # stem, layers, up-convolutions


# --- Other constraints ------------------------------------------------------------------------------------------------


def test_energy_and_joint_bounds_hold():
    result = energy_budget.main(millijoules=80.0, generations=15)
    joules, joint, model = result["joules"], result["joint"], result["model"]
    for found in (result["energy"], result["energy and joint bound"], result["plain"]):
        assert joules([found.path])[0] <= 80e9
        by_hand = 4.6 * model.flops([found.path])[0] + 640 * model.params([found.path])[0]
        assert abs(joules([found.path])[0] - by_hand) <= 20  # each layer's is rounded to a pJ
    alone, both = (joint.cost(PathBatch.from_paths([result[name].path]))[0] for name in ("energy", "energy and joint bound"))
    assert both <= joint.budget < alone


# --- Another head -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fcos(data):
    return fcos_head.main(steps=25)


BOXES, LABELS = np.array([[2.0, 3.0, 8.0, 12.0], [5.0, 4.0, 7.0, 6.0]], np.float32), np.array([4, 7])


@pytest.fixture
def fcos_sets():
    return fcos_head.FcosSets(tuple("0123456789"), None, None, None, (64, 64), 4, 8)


def test_the_fcos_head_learns(fcos):
    assert falls(fcos["losses"])
    assert all(len(boxes) == len(scores) == len(labels) for boxes, scores, labels in fcos["detections"])


def test_the_targets_of_fcos_by_hand(fcos_sets):
    classes, edges, centreness = fcos_sets.targets(BOXES, LABELS)
    np.testing.assert_allclose(edges[:, 8, 3], [1.5, 5.5, 4.5, 3.5])  # cell (3, 8), whose middle is (3.5, 8.5)
    assert classes[4, 8, 3] == 1 and classes[:, 8, 3].sum() == 1
    assert centreness[0, 8, 3] == pytest.approx(np.sqrt(1.5 / 4.5 * 3.5 / 5.5))
    assert classes[7, 5, 5] == 1 and classes[4, 5, 5] == 0  # in both: the smaller one's
    assert classes.sum() == 6 * 9 and edges[:, 0, 0].sum() == 0


def test_decoding_perfect_maps_gives_the_boxes_back(fcos, fcos_sets):
    classes, edges, centreness = fcos_sets.targets(BOXES, LABELS)
    maps = (classes * centreness)[None] ** 0.5, edges[None]
    boxes, scores, labels = (values[0] for values in fcos["net"].decode(maps))
    first = [np.flatnonzero(labels == label)[0] for label in LABELS]
    np.testing.assert_allclose(boxes[first], BOXES, atol=1e-5)
    both = fcos["net"].with_mirrored(maps, [maps[0][..., ::-1], maps[1][..., ::-1][:, [2, 1, 0, 3]]])
    for one, other in zip(both, maps):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_the_loss_of_perfect_fcos_outputs_is_small(fcos, fcos_sets):
    classes, edges, centreness = fcos_sets.targets(BOXES, LABELS)
    logits = np.where(classes > 0, 20.0, -20.0)
    distances = np.concatenate([np.log(np.maximum(edges, 1e-3)), np.full((1, 16, 16), 3.0)])
    variables = [nn.Variable.from_numpy_array(array[None]) for array in (logits, distances, classes, edges, centreness)]
    losses = fcos["net"].losses(fcos_head.Outputs(*variables[:2]), variables[2:])
    nn.forward_all(losses)
    assert losses.classes.d < 1e-5 and abs(losses.edges.d) < 1e-5
    assert losses.total.d == pytest.approx(losses.centreness.d + losses.classes.d + losses.edges.d, rel=1e-6)
    p = 1 / (1 + np.exp(-3.0))
    wanted = centreness[classes.any(0, keepdims=True)]
    assert losses.centreness.d == pytest.approx(-np.mean(wanted * np.log(p) + (1 - wanted) * np.log(1 - p)), rel=1e-5)


def test_the_cost_of_the_fcos_head_is_that_of_the_built_graph(fcos):
    path, cost = fcos["space"].largest, fcos["cost"]
    image = nn.Variable((1, 3, fcos_head.SIZE, fcos_head.SIZE))
    output = F.sink(*fcos["net"](image, path, STORED))
    assert count_macs(output) == cost.flops([path])[0]
    assert peak_memory(output, image) == cost.memory([path])[0]


@pytest.mark.slow
def test_the_fcos_head_detects(monkeypatch, tmp_path):
    monkeypatch.setattr(on_digits, "MADE", write_digits(tmp_path / "digits"))
    assert fcos_head.main(steps=300)["ap50"] > 0.5


# --- The quick start, and the page ------------------------------------------------------------------------------------


def test_the_quick_start(data, tmp_path, capsys):
    result = quick_start.main(tmp_path / "no run", data)
    assert result["path"] in result["net"].space
    assert macs_of_backbone(result["net"], result["path"]) == result["flops"]
    assert 0 < result["score"] < 1 and result["others"].shape == (200,)
    assert re.search(r"0/00000.jpg shows a \d$", capsys.readouterr().out.strip())
    assert "shows" not in (quick_start.main(tmp_path, tmp_path), capsys.readouterr().out)[1]


def macs_of_backbone(net, path):
    return count_macs(net.trunk(nn.Variable((1, 3, 64, 64)), path))


PAGE = (ROOT / "docs" / "extend" / "extending.md").read_text(encoding="utf-8")


def test_the_code_of_the_page_runs():
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) >= 5
    names: dict = {"__name__": "docs.extending"}
    for block in blocks:
        exec(compile(block, "docs/extend/extending.md", "exec"), names)


def test_the_page_names_every_example_and_only_files_that_are_there():
    for file in (*PROGRAMS, ROOT / "examples" / "on_digits.py"):
        assert f"examples/{file.name}" in PAGE
    for name in re.findall(r"\b((?:examples|docs|tests)/\w+\.\w+)", PAGE):
        assert (ROOT / name).exists(), name
