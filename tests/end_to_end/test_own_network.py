"""A network that a config names by its import path is checked as ours, and is not mixed up with another."""

import json
import sys
from pathlib import Path

import nnabla as nn
import pytest
from small import detofa_config

from nnabla_detofa import config as configs
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.methods.build import make_cost, make_model
from nnabla_detofa.networks import weights
from nnabla_detofa.training.loop import build

NAME = "kernel_choice:KernelCenterNet"
INPUTS = ((3, 64, 64), (10, 16, 16), (5, 2), (5, 2), (5,), (5,))
"""Shapes of an image and its targets, see `TargetVariables`."""


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    yield
    sys.modules.pop("kernel_choice", None)


def content(root, name: str = NAME, **settings) -> dict:
    config = detofa_config(root)
    config["network"] = {name: config["network"]["centernet_ofa_resnet50"] | settings}
    return config


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("no_such_module:Net", {}, "no_such_module cannot be imported .ModuleNotFoundError: .*; install its package or add"),
        ("kernel_choice:KernelCentreNet", {}, "kernel_choice has no class KernelCentreNet; did you mean KernelCenterNet"),
        ("kernel_choice:KernelCost", {}, "KernelCost must be a frozen dataclass based on nnabla_detofa.config.OwnDetector"),
        (NAME, {"kernal": [3]}, "kernal.*did you mean kernels"),
        (NAME, {"kernels": "3"}, "kernels"),
        (NAME, {"deconv_channels": [8] * 9}, "deconv_channels must have at most"),
    ],
)
def test_a_wrong_name_or_key_is_one_sentence(name, settings, words):
    with pytest.raises(UserError, match=words):
        configs.from_dict(content("digits", name, **settings), "own")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import no_such_package", "own_fault cannot be imported .ModuleNotFoundError: .*no_such_package.*; the fault is in"),
        ("def x(:", "own_fault cannot be imported .SyntaxError: .*; the fault is in the module"),
        ("raise ValueError(3)", "own_fault cannot be imported .ValueError: 3.; the fault is in the module"),
    ],
)
def test_a_module_with_a_fault_is_not_called_missing(text, words, tmp_path, monkeypatch):
    (tmp_path / "own_fault.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=words):
        configs.from_dict(content("digits", "own_fault:Net"), "own")


@pytest.mark.parametrize(
    ("member", "found", "words"),
    [
        ("geometry", lambda self: 3, "geometry of KernelCenterNet must be a property that returns a Geometry, got a method"),
        ("geometry", property(lambda self: None), "geometry of .* must be a property that returns a Geometry, got a NoneType"),
        ("space", property(lambda self: []), "space of the network kernel_choice:.* must return a SearchSpace, got list"),
        ("cost_model", lambda self, *arguments: None, "cost_model of the network .* must return a CostModel, got NoneType"),
    ],
)
def test_a_member_that_returns_something_else_is_named(member, found, words, monkeypatch):
    configs.from_dict(content("digits"), "own")  # imports the module
    monkeypatch.setattr(sys.modules["kernel_choice"].KernelCenterNet, member, found)
    with pytest.raises(UserError, match=words):
        make_cost(configs.from_dict(content("digits"), "own"), 10, 64)


@pytest.mark.parametrize("wrong", [lambda y: None, lambda y: y[:, :1], lambda y: y[:, :, 1:]])
def test_a_middle_layer_of_another_shape_is_named(wrong, monkeypatch):
    config = configs.from_dict(content("digits"), "own")
    layers = sys.modules["kernel_choice"].KernelBottleneck
    right = layers.middle
    monkeypatch.setattr(layers, "middle", lambda self, *arguments: wrong(right(self, *arguments)))
    net = make_model(config, 10)
    with pytest.raises(UserError, match=r"middle of KernelBottleneck must return the shape \(1, .*, got "):
        net(nn.Variable((1, 3, 64, 64)), net.space.largest)


@pytest.mark.parametrize(
    ("wrong", "got"),
    [
        (lambda found: None, "NoneType"),
        (lambda found: found[0], "Variable"),
        (lambda found: found[:2], r"\(\), \(\)$"),
        (lambda found: (*found[:3], 0.5), "float"),
        (lambda found: (*found[:3], nn.Variable((2, 1))), r"\(2, 1\)"),
    ],
)
def test_other_losses_than_loss_names_are_named(wrong, got, monkeypatch):
    net = make_model(configs.from_dict(content("digits"), "own"), 10)
    right = type(net).losses
    monkeypatch.setattr(type(net), "losses", lambda self, *arguments: wrong(right(self, *arguments)))
    inputs = [nn.Variable((1, *shape)) for shape in INPUTS]
    with pytest.raises(UserError, match=rf"losses of \w+ must return one scalar .* of loss_names .*, got .*{got}"):
        build(net, net.space.largest, inputs)


@pytest.mark.parametrize("wrong", [lambda found: None, lambda found: found[0], tuple])
def test_other_heads_without_losses_are_named(wrong, monkeypatch):
    net = make_model(configs.from_dict(content("digits"), "own"), 10)
    right = type(net).heads
    monkeypatch.setattr(type(net), "heads", lambda self, *arguments: wrong(right(self, *arguments)))
    with pytest.raises(UserError, match=r"heads of \w+ must return an Outputs for .*, got .*; other heads also"):
        build(net, net.space.largest, [nn.Variable((1, *shape)) for shape in INPUTS])


def test_its_keys_are_overridden_although_its_name_has_dots():
    before = json.loads(json.dumps(content("digits")))
    after = configs.overridden(before, f"network.{NAME}.kernels=[5]")
    assert after["network"][NAME]["kernels"] == [5] and list(after["network"]) == [NAME]
    config = configs.from_dict(after, "own")
    assert {choice.kernel for choice in config.network.geometry.ratios} == {5}
    assert configs.from_dict(config.to_dict(), "own") == config


def test_weights_of_another_network_are_rejected(tmp_path):
    ours, theirs = (configs.from_dict(some, "own") for some in (detofa_config("digits"), content("digits", kernels=[3])))
    nets = [make_model(config, 10) for config in (ours, theirs)]
    for number, net in enumerate(nets):
        weights.save(net, tmp_path / f"{number}.h5")
        weights.load(net, tmp_path / f"{number}.h5")
    for number, net in enumerate(reversed(nets)):
        with pytest.raises(UserError, match="holds weights of the network .* but the config's network is"):
            weights.load(net, tmp_path / f"{number}.h5")
