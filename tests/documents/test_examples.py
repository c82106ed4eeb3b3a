"""The networks in examples/: costs equal the built graphs, paths equal static networks, and each trains from its config."""

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
from small import detofa_config
from visit import count_macs, peak_memory

import nnabla_detofa
from nnabla_detofa import config as configs
from nnabla_detofa.cli.program import main
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.data.digits import write_digits
from nnabla_detofa.evaluation.reestimation import reestimate
from nnabla_detofa.evolution import mutate_many
from nnabla_detofa.methods.algorithm1 import DetOFASearcher
from nnabla_detofa.methods.build import make_cost, make_model
from nnabla_detofa.networks.layers import STORED
from nnabla_detofa.networks.supernet import take_over
from nnabla_detofa.path_filter.model import PathFilter
from nnabla_detofa.path_filter.tokens import Tokenizer
from nnabla_detofa.runs.run_folder import searched_space
from nnabla_detofa.space.counting import count_within
from nnabla_detofa.space.paths import Path as ArchPath
from nnabla_detofa.space.paths import PathBatch
from nnabla_detofa.space.search_space import Operation, SearchSpace
from nnabla_detofa.tools import measure_latency

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[2]
PROGRAMS = [ROOT / "examples" / f"{name}.py" for name in ("energy_budget", "quick_start")]
sys.path.insert(0, str(ROOT / "examples"))
energy_budget, fcos_head, kernel_choice, mobilenet_backbone, quick_start = map(
    importlib.import_module, ("energy_budget", "fcos_head", "kernel_choice", "mobilenet_backbone", "quick_start")
)
NETWORKS = ("kernel_choice", "mobilenet_backbone", "fcos_head")
SIZE = 64


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "digits"
    return write_digits(root, train=12, val=4, test=4, image_size=SIZE, crops_train=30, crops_val=10)


def config_of(name: str, data="data", **section) -> configs.Config:
    """The config of an example, of the sizes of `small.detofa_config`."""
    return configs.from_dict(content_of(name, data, **section), name)


def content_of(name: str, data="data", **section) -> dict:
    content = json.loads((ROOT / "examples" / f"{name}.json").read_text())
    ((network, settings),) = content["network"].items()
    small = detofa_config(data)
    ours = small["network"]["centernet_ofa_resnet50"] | {"width_scale": 0.25 if name == "mobilenet_backbone" else 0.0625}
    kept = {key: ours[key] for key in settings if key in ours}
    return small | {"network": {network: {key: value for key, value in settings.items() if key != "weights"} | kept | section}}


def run(net, path, images):
    outputs = net(nn.Variable.from_numpy_array(images), path, STORED)
    nn.forward_all(outputs)
    return [output.d.copy() for output in outputs]


@pytest.mark.parametrize("file", PROGRAMS, ids=lambda file: file.stem)
def test_a_program_says_what_it_does(file, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(file), "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(file), run_name="__main__")
    first = file.read_text(encoding="utf-8").split('"""')[1].splitlines()[0]
    assert end.value.code == 0 and "".join(first.split()) in "".join(capsys.readouterr().out.split())


# --- What holds for each network --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_short_and_its_config_loads(name, monkeypatch):
    assert (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8").count("\n") < 120
    config = configs.load(ROOT / "examples" / f"{name}.json")
    assert config.network_name.startswith(f"{name}:")
    model, cost = make_model(config, 10), make_cost(config, 10, config.dataloader.image_size)
    assert cost.flops.extremes(model.space)[1] < 250e6  # small enough for two cores


@pytest.mark.parametrize("name", NETWORKS)
def test_costs_are_those_of_the_built_graph_and_paths_equal_their_own_networks(name):
    config = config_of(name)
    net, model = make_model(config, 10), config.network.cost_model(SIZE, 10, "detector")
    for path in net.space.sample_many(np.random.default_rng(3), 3):
        static, image = config.network.detector(10, path), nn.Variable((1, 3, SIZE, SIZE))
        take_over(static, net)
        output = F.sink(*static(image, path, STORED))
        assert count_macs(output) == model.flops([path])[0]
        assert peak_memory(output, image) == model.memory([path])[0]
        trained = static.get_parameters(grad_only=True).values()
        assert sum(parameter.d.size for parameter in trained) == model.params([path])[0]
        images = np.random.default_rng(0).normal(size=(1, 3, SIZE, SIZE))
        for ours, theirs in zip(run(net, path, images), run(static, path, images)):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_latency_table_holds_every_layer_at_every_resolution(name, monkeypatch):
    """With a layer's multiply-accumulates for its time, the latency of a path is its FLOPs."""
    config = config_of(name, resolutions=[32, 64])
    model = measure_latency.model_of(config, num_classes=10)
    monkeypatch.setattr(measure_latency, "forward_time", lambda output, repeats, synchronize: count_macs(output))
    table = measure_latency.measure(model, 1, lambda: None, make=measure_latency.maker_of(config, model))
    paths = config.network.space.sample_many(np.random.default_rng(0), 50)
    assert (table(paths) == model.flops(paths)).all() and {path.resolution for path in paths} == {32, 64}
    again = measure_latency.Latency.from_json(json.loads(json.dumps(table.to_json())), type(model.backbone))
    assert (again(paths) == table(paths)).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_it_runs_from_its_config_to_an_exported_detector(name, data, tmp_path, monkeypatch, capsys):
    """`nnabla_nas -f`, stopped and resumed, then what a user does with the run."""
    monkeypatch.chdir(tmp_path)
    content = content_of(name, data)
    few = {"buckets": 2, "heldout_paths_per_bucket": 2, "paths_per_operation": 1}
    content["hparams"] |= few | {"epochs": 1, "mini_batch": 2}
    Path("own.json").write_text(json.dumps(content))

    def stop(self, *arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(DetOFASearcher, "path_thresholds", stop)
        assert main(["-f", "own.json", "-o", "run"]) == 130
    assert main(["-f", "own.json", "-o", "run"]) == 0
    space = searched_space(Path("run"), configs.load("own.json"))
    assert space.removed and type(space.geometry) is type(config_of(name).network.geometry)
    image = next(data.glob("JPEGImages/test_*"))
    for command in (
        ["inspect", "run"],
        ["report", "run"],
        ["search", "run", "--memory", "1GB"],
        ["finetune", "run", "--detector", "subnet_1", "--epochs", "1", "-o", "tuned"],
        ["evaluate", "tuned"],
        ["export", "run", "--detector", "subnet_1", "-o", "subnet.nnp", "--fold"],
        ["detect", "subnet.nnp", str(image), "-o", "of_file", "--threshold", "0"],
        ["detect", "run", str(image), "--detector", "subnet_1", "-o", "of_run", "--threshold", "0"],
        ["evaluate-paths", "run", "--per-bucket", "1", "--ap", "-o", "paths.jsonl"],
        ["train", "own.json", "--dry-run"],
        ["measure-latency", "-f", "own.json", "--classes", "10", "--repeats", "1", "--paths", "2", "-o", "latency.json"],
        ["search", "run", "--latency", "10s", "--latency-table", "latency.json"],
    ):
        assert main(command) == 0, (command, capsys.readouterr().err)
    found = [json.loads(Path(folder, "detections.json").read_text())["images"][0] for folder in ("of_file", "of_run")]
    scores = [[item["score"] for item in one["objects"][:20]] for one in found]
    np.testing.assert_allclose(*scores, atol=2e-4)
    assert len(scores[0]) == 20


# --- A new choice of each layer ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kernels():
    """The config of the kernel example, its space and its cost model."""
    config = config_of("kernel_choice", elastic_stem=False)
    return config.network, config.network.space, config.network.cost_model(SIZE, 10, "detector")


def with_choice(path, stage, place, choice):
    """The path with another choice in one layer."""
    stages = [list(choices) for choices in path.expand_ratios]
    stages[stage][place] = choice
    return replace(path, expand_ratios=tuple(map(tuple, stages)))


def test_a_larger_kernel_costs_what_it_does_by_hand(kernels):
    network, space, cost = kernels
    path, net = space.largest, network.geometry
    smaller = with_choice(path, 2, 1, kernel_choice.Choice(0.35, 3))
    middle = 22  # of 64 channels (1024 / 16), times 0.35, the divisor is 1
    assert net.middle(net.stage_out(2, 1.0), path.expand_ratios[2][1]) == middle
    large, small = cost.flops([path, smaller])
    assert large - small == (25 - 9) * middle**2 * 4**2  # stage 3 of 64 pixels is at stride 16
    large, small = cost.params([path, smaller])
    assert large - small == (25 - 9) * middle**2
    assert cost.memory([path]) == cost.memory([smaller])


def test_the_space_of_kernels_is_counted_by_hand(kernels):
    _, space, cost = kernels
    by_hand = np.prod([3 * sum(4 ** (base + depth) for depth in range(3)) for base in (2, 2, 4, 2)], dtype=object)
    assert space.size() == by_hand == count_within(space, cost.flops, -np.inf, np.inf)
    assert len(space.operations) == 4 * 3 * 3 * 4


def test_tokens_tell_kernels_apart(kernels):
    network, space, _ = kernels
    tokenizer, path = Tokenizer(network.geometry), space.largest
    smaller = with_choice(path, 0, 1, kernel_choice.Choice(0.35, 3))
    assert tokenizer.words(path)[3:5] == ["W1.0_E0.35_K5", "W1.0_E0.35_K5"]
    assert tokenizer.words(smaller)[3:5] == ["W1.0_E0.35_K5", "W1.0_E0.35_K3"]
    assert len(tokenizer.vocabulary) == 3 * 4 + 1 + 3 + 1 + 3


def test_mutation_changes_kernels(kernels):
    network, space, _ = kernels
    paths = PathBatch.from_paths([space.largest] * 300, network.geometry)
    mutants = mutate_many(space, paths, 0.1, np.random.default_rng(0))
    seen = {choice for path in mutants for stage in path.expand_ratios for choice in stage}
    assert seen == set(network.geometry.ratios)


def test_files_bring_the_choices_back(kernels, tmp_path):
    network, space, _ = kernels
    geometry, choice = network.geometry, kernel_choice.Choice(0.2, 3)
    pruned = space.without([Operation(0, 1, 1.0, choice)])
    assert "E0.2_K3" in " ".join(map(str, pruned.removed))
    read = SearchSpace.from_json(json.loads(json.dumps(pruned.to_json())), kernel_choice.KernelGeometry)
    assert read == pruned and read.geometry == geometry and read.removed == pruned.removed
    path = pruned.sample(np.random.default_rng(0))
    arch = json.loads(json.dumps(path.to_ofa(geometry)))
    assert ArchPath.from_ofa(arch, geometry) == path
    with pytest.raises(UserError, match=r"e of a path must hold only .*, got \(0.2, 7\)"):
        ArchPath.from_ofa({**arch, "e": [[0.2, 7]] * geometry.layers}, geometry)
    path_filter = PathFilter(geometry, 3, dim=16, heads=2, layers=1, feed_forward=16, rng=np.random.default_rng(0))
    path_filter.save(tmp_path / "filter.h5")
    loaded = PathFilter.load(tmp_path / "filter.h5", geometry=geometry)
    assert loaded.settings == path_filter.settings


# --- Another backbone -------------------------------------------------------------------------------------------------


def test_every_batch_normalization_of_the_mobile_backbone_is_reestimated():
    net = make_model(config_of("mobilenet_backbone"), 10)
    path = net.space.sample(np.random.default_rng(1))
    found = reestimate(net, path, [np.random.default_rng(0).normal(size=(4, 3, SIZE, SIZE))])
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


BOXES, LABELS = np.array([[2.0, 3.0, 8.0, 12.0], [5.0, 4.0, 7.0, 6.0]], np.float32), np.array([4, 7])


@pytest.fixture
def fcos_sets():
    return fcos_head.FcosSets(tuple("0123456789"), None, None, None, (64, 64), 4, 8)


@pytest.fixture(scope="module")
def fcos():
    return make_model(config_of("fcos_head"), 10)


def test_the_targets_of_fcos_by_hand(fcos_sets):
    classes, edges, centerness = fcos_sets.targets(BOXES, LABELS)
    np.testing.assert_allclose(edges[:, 8, 3], [1.5, 5.5, 4.5, 3.5])  # cell (3, 8), whose middle is (3.5, 8.5)
    assert classes[4, 8, 3] == 1 and classes[:, 8, 3].sum() == 1
    assert centerness[0, 8, 3] == pytest.approx(np.sqrt(1.5 / 4.5 * 3.5 / 5.5))
    assert classes[7, 5, 5] == 1 and classes[4, 5, 5] == 0  # in both: the smaller one's
    assert classes.sum() == 6 * 9 and edges[:, 0, 0].sum() == 0


def test_decoding_perfect_maps_gives_the_boxes_back(fcos, fcos_sets):
    classes, edges, centerness = fcos_sets.targets(BOXES, LABELS)
    maps = (classes * centerness)[None] ** 0.5, edges[None]
    boxes, scores, labels = (values[0] for values in fcos.decode(maps))
    first = [np.flatnonzero(labels == label)[0] for label in LABELS]
    np.testing.assert_allclose(boxes[first], BOXES, atol=1e-5)
    both = fcos.with_mirrored(maps, [maps[0][..., ::-1], maps[1][..., ::-1][:, [2, 1, 0, 3]]])
    for one, other in zip(both, maps):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_the_loss_of_perfect_fcos_outputs_is_small(fcos, fcos_sets):
    classes, edges, centerness = fcos_sets.targets(BOXES, LABELS)
    logits = np.where(classes > 0, 20.0, -20.0)
    distances = np.concatenate([np.log(np.maximum(edges, 1e-3)), np.full((1, 16, 16), 3.0)])
    variables = [nn.Variable.from_numpy_array(array[None]) for array in (logits, distances, classes, edges, centerness)]
    losses = fcos.losses(variables[:2], variables[2:])
    nn.forward_all(losses)
    total, of_classes, of_edges, of_centerness = (float(loss.d) for loss in losses)
    assert of_classes < 1e-5 and abs(of_edges) < 1e-5
    assert total == pytest.approx(of_centerness + fcos_head.CLASSES * of_classes + of_edges, rel=1e-6)
    p = 1 / (1 + np.exp(-3.0))
    wanted = centerness[classes.any(0, keepdims=True)]
    assert of_centerness == pytest.approx(-np.mean(wanted * np.log(p) + (1 - wanted) * np.log(1 - p)), rel=1e-5)


@pytest.mark.slow
def test_the_fcos_head_detects(tmp_path, monkeypatch):
    """The fullnet of the shipped config, as in `nnabla_nas -f examples/fcos_head.json`."""
    write_digits(tmp_path / "data/digits")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    assert main(["-f", str(ROOT / "examples/fcos_head.json"), "-o", "run", "args.runner=fullnet"]) == 0
    assert json.loads(Path("run/fullnet.json").read_text())["ap50"] > 0.4


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


PAGES = sorted((ROOT / "docs/extend").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(page):
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    names: dict = {"__name__": "docs"}
    for block in blocks:
        exec(compile(block, page.name, "exec", dont_inherit=True), names)


def test_the_pages_name_every_example():
    text = "".join(page.read_text(encoding="utf-8") for page in (*PAGES, ROOT / "docs/guide/nnablanas.md"))
    for name in (*NETWORKS, "energy_budget", "quick_start", "in_nnablanas"):
        assert f"examples/{name}.py" in text


def test_the_method_of_the_page_gets_what_algorithm_1_gets(monkeypatch, data, tmp_path):
    from nnabla_detofa.methods import algorithm1

    page = (ROOT / "docs/extend/method.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (runner,) = re.findall(r'runner: "(.*?)"', page)
    (tmp_path / "my_methods.py").write_text(block)
    monkeypatch.syspath_prepend(str(tmp_path))
    content = detofa_config(data)
    content["args"]["runner"] = runner
    (tmp_path / "own.json").write_text(json.dumps(content))
    monkeypatch.setattr(algorithm1, "start", lambda *arguments: arguments)
    searcher, *_, training, device, output, restart = nnabla_detofa.train(tmp_path / "own.json", "out")
    assert (searcher.__name__, device.name, output, restart) == ("SandwichSearcher", "cpu", Path("out"), False)
    assert [phase.name for phase in training] == ["fullnet", "warm-up", "fine-tuning"]
