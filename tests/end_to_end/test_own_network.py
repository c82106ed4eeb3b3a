"""A network that a config names by its import path runs the whole pipeline, and is not mixed up with another."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from small import detofa_config

from nnabla_detofa import config as configs
from nnabla_detofa.cli.program import main
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.data.digits import write_digits
from nnabla_detofa.methods.algorithm1 import DetOFASearcher
from nnabla_detofa.methods.build import make_model
from nnabla_detofa.networks import weights
from nnabla_detofa.runs.run_folder import searched_space

NAME = "kernel_choice:KernelCenterNet"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    yield
    for module in ("kernel_choice", "on_digits"):
        sys.modules.pop(module, None)


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


def test_it_runs_the_whole_pipeline(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_digits("digits", train=24, val=8, test=8, image_size=64, crops_train=0, crops_val=0)
    config = content("digits")
    config["hparams"] |= {"epochs": 1, "paths_per_operation": 1, "heldout_paths_per_bucket": 2}
    Path("own.json").write_text(json.dumps(config))

    def stop(self, *arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(DetOFASearcher, "path_thresholds", stop)
        assert main(["train", "own.json", "-o", "run"]) == 130
    assert main(["train", "own.json", "-o", "run"]) == 0
    space = searched_space(Path("run"), configs.load("own.json"))
    assert space.removed and {choice.kernel for choice in space.geometry.ratios} == {3, 5}
    (image, *_) = Path("digits/JPEGImages").glob("test_*")
    for command in (
        ["inspect", "run"],
        ["report", "run"],
        ["search", "run", "--flops", "5M"],
        ["evaluate", "run", "--detector", "subnet_1"],
        ["finetune", "run", "--detector", "subnet_1", "--epochs", "1", "-o", "tuned"],
        ["export", "run", "--detector", "subnet_1", "-o", "subnet.nnp"],
        ["detect", "subnet.nnp", str(image), "-o", "detections"],
        ["measure-latency", "-f", "own.json", "--classes", "10", "--repeats", "1", "--paths", "2", "-o", "latency.json"],
        ["search", "run", "--latency", "10s", "--latency-table", "latency.json"],
        ["train", "own.json", "--dry-run"],
    ):
        assert main(command) == 0, (command, capsys.readouterr().err)
    losses = [json.loads(line)["loss"] for line in Path("run/paths.jsonl").read_text().splitlines()[1:]]
    assert len(losses) >= 8 and np.isfinite(losses).all()
