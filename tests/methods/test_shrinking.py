"""Progressive shrinking: phases by config, distillation, sorted channels, sizes by step; end to end with a stop in between."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path as FilePath

import forking
import nnabla as nn
import numpy as np
import pytest

from nnabla_detofa import config as configs
from nnabla_detofa.cli.program import main
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.config import Solver
from nnabla_detofa.data.digits import write_digits
from nnabla_detofa.data.loader import Loader
from nnabla_detofa.networks import weights
from nnabla_detofa.networks.distillation import Distillation, distillation_loss
from nnabla_detofa.networks.layers import BATCH, ConvBN
from nnabla_detofa.networks.resnet50 import Bottleneck, ElasticResNet50, sort_middle_channels
from nnabla_detofa.networks.supernet import SearchNet
from nnabla_detofa.path_filter.evaluated_paths import EvaluatedPaths
from nnabla_detofa.path_filter.model import PathFilter
from nnabla_detofa.runs.phases import Schedule, training_phases
from nnabla_detofa.space.search_space import product_space, shrinking_stages
from nnabla_detofa.tools.dry_run import written_files
from nnabla_detofa.training.checkpoint import Checkpoint
from nnabla_detofa.training.loop import OnePath, new_optimizer, train

REPOSITORY = FilePath(__file__).parents[2]
CONFIG = REPOSITORY / "configs" / "digits_pretrain_ps.json"
EVERY_DEPTH = {"depths": [0, 1, 2], "epochs": 1}
PHASES = [
    EVERY_DEPTH | {"name": "depth", "widths": [1.0], "ratios": [0.35]},
    EVERY_DEPTH | {"name": "expand", "widths": [1.0], "ratios": [0.2, 0.25, 0.35], "sort_channels": True},
    EVERY_DEPTH
    | {"name": "width", "widths": [0.65, 0.8, 1.0], "ratios": [0.2, 0.25, 0.35], "paths_per_step": 2, "batch_size": 16},
]


@pytest.fixture(scope="module")
def overrides(tmp_path_factory):
    root = write_digits(
        tmp_path_factory.mktemp("data") / "digits", train=1, val=1, test=1, image_size=64, crops_train=40, crops_val=20
    )
    return [
        f"dataloader.image_folder.root={root / 'classification'}",
        f"hparams.shrinking={json.dumps(PHASES)}",
        "network.ofa_resnet50.width_scale=0.0625",
        "args.context=cpu",
        "args.evaluation_processes=1",
        "args.print_frequency=1",
        "optimizer.train.warmup_steps=0",
        *(f"hparams.{entry}" for entry in ("batch_size=8", "fullnet_epochs=1", "bn_images=8", "bn_batch=8", "paths=0")),
    ]


def final(folder: FilePath) -> dict:
    return weights.read(folder / "supernet.h5")


@pytest.fixture(scope="module")
def finished(overrides, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert main(["-f", str(CONFIG), "-o", str(folder), *overrides]) == 0
    return folder


@pytest.mark.thorough
def test_every_phase_is_run_with_the_teacher(finished):
    log = (finished / "log.txt").read_text()
    assert log.index("[1/4] fullnet") < log.index("[2/4] depth") < log.index("[3/4] expand") < log.index("[4/4] width")
    assert "width step 2: loss " in log and "loss from teacher" in log
    assert "width step 3" not in log  # 40 images in batches of 16
    before, after = weights.read(finished / "fullnet" / "weights.h5"), final(finished)
    assert not np.array_equal(before["classifier/0/linear/linear/_b"], after["classifier/0/linear/linear/_b"])


@pytest.mark.thorough
def test_the_dry_run_knows_the_files(finished, overrides):
    expected = {name.rstrip("/") for name in written_files(configs.load(CONFIG, overrides))}
    assert {file.name for file in finished.iterdir()} == expected


@pytest.mark.thorough
def test_a_run_that_was_stopped_in_a_phase_goes_on_to_the_same_weights(finished, overrides, tmp_path):
    command = [sys.executable, "-m", "nnabla_detofa", "run", "-f", str(CONFIG), "-o", str(tmp_path / "run"), *overrides]
    for wait_for in ("fullnet", "expand"):
        process = forking.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not (tmp_path / "run" / wait_for / "state.json").exists() and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait() in (0, 130)
    assert main(["-f", str(CONFIG), "-o", str(tmp_path / "run"), *overrides]) == 0
    expected, found = final(finished), final(tmp_path / "run")
    assert all(np.array_equal(expected[name], found[name]) for name in expected)


@pytest.mark.thorough
def test_given_weights_are_not_trained_and_a_filter_for_them_is_shipped_with_them(finished, overrides, tmp_path):
    """As README.md has it for the published supernet."""
    given = [f"network.ofa_resnet50.weights={finished / 'supernet.h5'}", "hparams.kd_ratio=0", "hparams.shrinking=[]"]
    untrained = ["hparams.fullnet_epochs=0", "hparams.epochs=0"]
    sizes = ("paths=40", "val_images=8", "filter.dim=16", "filter.feed_forward=16", "filter.layers=1", "filter.epochs=2")
    run, entries = tmp_path / "run", [*overrides, *given, *untrained, *(f"hparams.{size}" for size in sizes)]
    assert main(["-f", str(CONFIG), "-o", str(run), *entries]) == 0
    assert " step " not in (run / "log.txt").read_text()
    assert main(["ship", str(run), str(tmp_path), "--name", "given"]) == 0
    expected, shipped = final(finished), weights.read(tmp_path / "given_supernet.h5")
    assert expected.keys() == shipped.keys()
    assert all(np.array_equal(expected[name], final(run)[name]) for name in expected)
    assert all(np.array_equal(np.float16(expected[name]), shipped[name]) for name in expected)
    geometry = configs.load(CONFIG, entries).network.geometry
    assert len(EvaluatedPaths.read(run / "paths.jsonl", geometry)) == 40
    assert PathFilter.load(tmp_path / "given_path_filter.h5").tokenizer.geometry == geometry


def test_the_distillation_loss_by_hand():
    """Student (1/4, 3/4) and (1/2, 1/2), teacher (1/2, 1/2) and (4/5, 1/5)."""
    student, teacher = (nn.Variable((2, 2), need_grad=True) for _ in range(2))
    student.d = np.log([[0.25, 0.75], [0.5, 0.5]])
    teacher.d = np.log([[0.5, 0.5], [0.8, 0.2]]) + 3.0  # a shift of all logits changes nothing
    student.g = teacher.g = 0.0
    loss = distillation_loss(student, teacher)
    loss.forward()
    loss.backward()
    first, second = -(0.5 * np.log(0.25) + 0.5 * np.log(0.75)), np.log(2)
    assert float(loss.d) == pytest.approx((first + second) / 2, rel=1e-5)
    np.testing.assert_allclose(student.g, np.array([[0.25 - 0.5, 0.75 - 0.5], [0.5 - 0.8, 0.5 - 0.2]]) / 2, rtol=1e-5)
    assert not teacher.g.any()


def small_net(seed=0):
    return SearchNet(3, width_scale=0.0625, zero_init_residual=False, rng=np.random.default_rng(seed))


def logits(net, path, seed=0):
    images = np.random.default_rng(seed).normal(size=(4, 3, 32, 32)).astype(np.float32)
    output = net(nn.Variable.from_numpy_array(images), path, BATCH)
    output.forward()
    return output.d.copy()


def test_the_teacher_computes_what_the_fullnet_does_and_stays():
    net, largest = small_net(), small_net().space.largest
    arrays = {name: p.d.copy() for name, p in net.get_parameters().items()}
    distillation = Distillation(net, largest, arrays, ratio=2.0)
    for parameter in net.get_parameters().values():
        parameter.d = parameter.d * 0.9  # the supernet goes on learning
    assert not np.allclose(logits(net, largest), logits(distillation.teacher, largest))
    np.testing.assert_allclose(logits(distillation.teacher, largest), logits(small_net(), largest), atol=1e-5)
    images, labels = nn.Variable((4, 3, 32, 32)), nn.Variable((4, 1))
    images.d, labels.d = 1.0, 0
    total, hard, soft = distillation(net(images, largest, BATCH), images, [labels])
    nn.forward_all([total, hard, soft])
    assert float(total.d) == pytest.approx(float(hard.d) + 2 * float(soft.d), rel=1e-5)


def test_sorted_channels_change_no_path_that_was_trained():
    net = small_net()
    trained = product_space("before", (0, 1, 2), (1.0,), (0.25, 0.35), net.space.geometry)
    smaller = product_space("after", (2,), (1.0,), (0.2,), net.space.geometry).largest
    paths = [trained.largest, *trained.sample_many(np.random.default_rng(0), 3)]
    before, other = [logits(net, path) for path in paths], logits(net, smaller)
    sort_middle_channels(net, trained.pairs[0][0, 1.0])
    for path, expected in zip(paths, before):
        np.testing.assert_allclose(logits(net, path), expected, atol=2e-3)
    assert np.abs(logits(net, smaller) - other).max() > 0.05
    importance = np.abs(net.blocks[17].conv3.parameters["conv/conv/_W"].d).sum(axis=(0, 2, 3))
    edge = net.space.geometry.middle(128, 0.25)
    assert (np.diff(importance[:edge]) <= 0).all() and (np.diff(importance[edge:]) <= 0).all()


def test_sorted_channels_change_no_path_of_a_smaller_width_that_was_trained():
    """On detection data W shrinks before E: the groups are those of every trained pair of W and E."""
    net = small_net()
    trained = product_space("before", (0, 1, 2), (0.8, 1.0), (0.35,), net.space.geometry)
    paths = [trained.largest, *trained.sample_many(np.random.default_rng(0), 4)]
    assert any(0.8 in path.stage_widths for path in paths)
    before = [logits(net, path) for path in paths]
    sort_middle_channels(net, (0.35,), (0.8, 1.0))
    for path, expected in zip(paths, before):
        np.testing.assert_allclose(logits(net, path), expected, atol=2e-3)


class Depthwise(Bottleneck):
    def middle_layer(self, name, plan, stride, rng):
        return ConvBN(name, plan.middle, plan.middle, 3, rng, stride=stride, depthwise=True)


class Gated(Depthwise):
    def middle_layer(self, name, plan, stride, rng):
        self.gate = ConvBN(f"{name}/gate", plan.middle, plan.middle, 1, rng)
        return super().middle_layer(name, plan, stride, rng)


def with_layers(monkeypatch, layers):
    monkeypatch.setattr(ElasticResNet50, "layer_type", layers)
    return small_net()


def test_depthwise_layers_are_sorted(monkeypatch):
    net = with_layers(monkeypatch, Depthwise)
    largest = net.space.largest
    before, weight = logits(net, largest), net.blocks[17].conv1.parameters["conv/conv/_W"]
    unsorted = weight.d.copy()
    sort_middle_channels(net, (0.35,))
    np.testing.assert_allclose(logits(net, largest), before, atol=2e-3)
    assert not np.array_equal(weight.d, unsorted)
    importance = np.abs(net.blocks[17].conv3.parameters["conv/conv/_W"].d).sum(axis=(0, 2, 3))
    assert (np.diff(importance) <= 0).all()


def test_layers_with_weights_that_sorting_does_not_know_are_not_sorted(monkeypatch):
    net = with_layers(monkeypatch, Gated)
    with pytest.raises(UserError, match="Gated has gate: override sort_middle .* or set hparams.shrinking_sort=false"):
        sort_middle_channels(net, (0.35,))
    monkeypatch.setattr(Gated, "sort_middle", lambda self, edges: [])
    sort_middle_channels(net, (0.35,))


def test_moments_follow_the_channels_that_they_belong_to():
    """Here they equal the weights, and still do."""
    net = small_net()
    optimizer = new_optimizer(net, Solver("Adam", 1e-3), Schedule(1e-3, "constant", 1))
    parameters, states = net.get_parameters(grad_only=True), optimizer._solver.get_states()
    rng = np.random.default_rng(0)
    for name, parameter in parameters.items():
        parameter.d = rng.normal(size=parameter.shape)
        for moments in states[name].pstate.values():
            moments.d = parameter.d
    before = {name: parameter.d.copy() for name, parameter in parameters.items()}
    sort_middle_channels(net, (0.35,), optimizer=optimizer)
    moved = [name for name, parameter in parameters.items() if not np.array_equal(before[name], parameter.d)]
    assert len(moved) == 18 * 7  # of each layer: three convolutions' weights, gamma and beta of two batch normalizations
    for name, parameter in parameters.items():
        assert len(states[name].pstate) == 2
        for moments in states[name].pstate.values():
            np.testing.assert_array_equal(moments.d, parameter.d, err_msg=name)


def test_a_stop_after_channels_were_sorted_changes_no_bit(tmp_path):
    """The optimizer goes on from one stage to the next, as on detection data; both are sorted, then replaced."""

    def item(dataset, index, rng):
        return rng.normal(size=(3, 32, 32)).astype(np.float32), np.array([index % 3])

    def fresh(seed):
        net = small_net(seed)
        return net, new_optimizer(net, Solver("Adam", 1e-3), Schedule(1e-3, "constant", 1))

    def steps(net, optimizer, numbers):
        inputs = [nn.Variable((4, 3, 32, 32)), nn.Variable((4, 1))]
        train(net, optimizer, OnePath(net.space.largest), Loader(range(4), item, 4, 0, workers=0), inputs, numbers)

    whole, optimizer = fresh(0)
    steps(whole, optimizer, range(1))
    Checkpoint(tmp_path / "stage 2").save(whole, optimizer, {"step": 1})
    sort_middle_channels(whole, (0.35,), optimizer=optimizer)
    steps(whole, optimizer, range(1, 2))
    Checkpoint(tmp_path / "stage 3").save(whole, optimizer, {"step": 2})
    steps(whole, optimizer, range(2, 3))

    resumed, other = fresh(1)
    Checkpoint(tmp_path / "stage 2").load(resumed, other)
    sort_middle_channels(resumed, (0.35,), optimizer=other)
    Checkpoint(tmp_path / "stage 3").load(resumed, other)
    steps(resumed, other, range(2, 3))
    states, others = (solver._solver.get_states() for solver in (optimizer, other))
    parameters = resumed.get_parameters()
    for name, parameter in whole.get_parameters(grad_only=True).items():
        np.testing.assert_array_equal(parameter.d, parameters[name].d, err_msg=name)
        one, two = states[name], others[name]
        assert one.t == two.t == 3
        assert all(np.array_equal(one.pstate[key].d, two.pstate[key].d) for key in one.pstate)


def test_the_size_of_a_batch_is_that_of_its_seed_and_step():
    def item(dataset, index, rng, size):
        return (np.zeros((3, size, size), np.float32),)

    def sides(seed):
        loader = Loader(range(8), item, 4, seed, workers=1, sizes=(32, 48, 64))
        with loader.batches() as batches:
            return [next(batches)[0].shape[2:] for _ in range(12)]

    loader = Loader(range(8), item, 4, 0, sizes=(32, 48, 64))
    assert sides(0) == [loader.batch(step)[0].shape[2:] for step in range(12)] != sides(1)
    assert set(sides(0)) == {(32, 32), (48, 48), (64, 64)}


class Gradient:
    """Stands in for an optimizer: keeps the weights, and so shows the gradients of one step."""

    def __init__(self, net):
        self.parameters = net.get_parameters(grad_only=True)

    def get_parameters(self):
        return self.parameters

    def zero_grad(self):
        for parameter in self.parameters.values():
            parameter.g = 0.0

    def get_learning_rate(self):
        return 0.0

    def update(self):
        """Nothing moves."""


def test_the_gradients_of_a_steps_paths_are_added():
    net = small_net()
    name, found = "classifier/0/linear/linear/_b", {}

    def item(dataset, index, rng):
        return rng.normal(size=(3, 32, 32)).astype(np.float32), np.array([index % 3])

    for paths in (1, 2):
        optimizer, inputs = Gradient(net), [nn.Variable((4, 3, 32, 32)), nn.Variable((4, 1))]
        loader = Loader(range(4), item, 4, 0, workers=0)
        train(net, optimizer, OnePath(net.space.largest), loader, inputs, range(1), paths_per_step=paths)
        found[paths] = optimizer.parameters[name].g.copy()
    np.testing.assert_allclose(found[2], 2 * found[1], rtol=1e-4)


def test_imagenets_phases_are_those_of_the_recipe():
    config = configs.load(REPOSITORY / "configs" / "imagenet_pretrain.json")
    phases = training_phases(config)
    assert [phase.name for phase in phases] == ["fullnet", "depth", "expand 1", "expand 2", "width 1", "width 2"]
    assert [phase.schedule_epochs for phase in phases] == [185, 125, 25, 125, 25, 125]
    assert [phase.batch_size for phase in phases] == [512, 512, 1024, 1024, 2048, 2048]
    assert [phase.solver.lr for phase in phases] == [0.65, 0.24, 0.02, 0.06, 0.02, 0.06]
    assert [phase.kd_ratio for phase in phases] == [0, 1, 1, 1, 1, 1]
    assert phases[1].schedule(1281167).warmup_steps == phases[0].schedule(1281167).warmup_steps == 12510
    assert [phase.sorted_ratios for phase in phases[1:4]] == [(), (0.35,), (0.25, 0.35)]
    assert phases[1].space.operations == shrinking_stages()[0].operations
    assert phases[5].space.operations == shrinking_stages()[4].operations


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nme": "x"}, r"hparams.shrinking\[0\].nme is not a key; did you mean name\?"),
        ({"widths": [0.7]}, r"hparams.shrinking\[0\].widths must be one or more of 0.65, 0.8, 1.0, each once, got \[0.7\]"),
        ({"depths": []}, r"hparams.shrinking\[0\].depths must be one or more of 0, 1, 2"),
        ({"name": "../x"}, r"hparams.shrinking\[0\].name must be letters, digits"),
        ({"name": "fullnet"}, r"hparams.shrinking\[0\].name must be .* got 'fullnet'"),
        ({"paths_per_step": 0}, r"hparams.shrinking\[0\].paths_per_step must be in \[1, 10000\], got 0"),
        ({"name": "width"}, "hparams.shrinking must have a different name for each phase, got width, expand, width"),
    ],
)
def test_a_mistake_in_a_phase_is_named(change, message):
    with pytest.raises(UserError, match=message):
        configs.load(CONFIG, [f"hparams.shrinking={json.dumps([PHASES[0] | change, *PHASES[1:]])}"])


def test_a_teacher_must_have_been_trained():
    with pytest.raises(UserError, match="hparams.kd_ratio must be 0 without a trained teacher .*, got 1"):
        configs.load(CONFIG, ["hparams.fullnet_epochs=0"])
    configs.load(CONFIG, ["hparams.fullnet_epochs=0", "network.ofa_resnet50.weights=supernet.h5"])
