"""The checks of a network of one's own find wrong costs and wrong slices."""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import nnabla as nn
import nnabla.functions as F

from nnabla_detofa.cli.program import main
from nnabla_detofa.config import OwnClassifier
from nnabla_detofa.space.costs import CostModel
from nnabla_detofa.tools.own_network import graph_macs, network_checks

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import kernel_choice  # noqa: E402

NETWORK = kernel_choice.KernelCenterNet(width_scale=0.0625, strides=(1, 2, 2, 1), deconv_channels=(8, 8), head_channels=8)


def checks() -> list[str]:
    return list(network_checks(NETWORK, 3, NETWORK.cost_model(64, 3, "detector")))


def test_a_right_network_passes():
    flops, params, outputs = checks()
    assert flops == "FLOPs of 3 paths: as in their graphs" and params == "parameters of 3 paths: as in their graphs"
    assert outputs.startswith("outputs of 3 paths in the supernet: those of their static networks (difference ")


def test_a_classifier_is_checked_too():
    @dataclass(frozen=True)
    class Wide(OwnClassifier):
        """The paper's, with other expand ratios."""

        @property
        def geometry(self):
            return replace(super().geometry, ratios=(0.5, 1.0))

    network = Wide(width_scale=0.0625)
    lines = list(network_checks(network, 3, network.cost_model(64, 3, "classifier")))
    assert len(lines) == 3 and not any("WRONG" in line for line in lines)


def test_wrong_costs_are_found(monkeypatch):
    monkeypatch.setattr(kernel_choice.KernelCost, "middle_cost", CostModel.middle_cost)
    flops, params, _ = checks()
    assert flops.startswith("WRONG: cost_model counts ") and " FLOPs of a path, its graph has " in flops
    assert params.startswith("WRONG: cost_model counts ")


def test_the_dry_run_ends_with_the_wrong_checks(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "kernel_choice", kernel_choice)
    monkeypatch.setattr(kernel_choice.KernelCost, "middle_cost", CostModel.middle_cost)
    network = {"width_scale": 0.0625, "strides": [1, 2, 2, 1], "deconv_channels": [8, 8], "head_channels": 8}
    config = {
        "network": {"kernel_choice:KernelCenterNet": network},
        "dataloader": {"voc": {"root": "nowhere", "holdout": 551, "image_size": 64}},
    }
    monkeypatch.chdir(tmp_path)
    Path("own.json").write_text(json.dumps(config | {"hparams": {"mini_batch": 1}}))
    assert main(["train", "own.json", "--dry-run"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "checks that are WRONG above: 2; correct your network or its cost_model before you train"


def test_a_path_that_runs_other_weights_is_found(monkeypatch):
    monkeypatch.setattr(
        kernel_choice.KernelBottleneck, "middle", lambda self, y, plan, statistics: self.conv2(y, plan.middle, statistics)
    )
    flops, params, outputs = checks()
    assert flops == "FLOPs of 3 paths: as in their graphs"
    assert outputs.startswith("WRONG: the outputs of a path in the supernet differ by ")


def test_depthwise_functions_count_as_convolutions():
    x = nn.Variable((1, 4, 8, 8))
    kernel = nn.Variable((4, 3, 3))
    assert graph_macs(F.depthwise_convolution(x, kernel, pad=(1, 1), stride=(2, 2))) == 4 * 9 * 16
    assert graph_macs(F.depthwise_convolution(x, kernel, pad=(2, 2), dilation=(2, 2))) == 4 * 9 * 64
    assert graph_macs(F.depthwise_deconvolution(x, kernel)) == 4 * 9 * 64
    assert graph_macs(F.convolution(x, nn.Variable((4, 2, 3, 3)), group=2)) == 4 * 2 * 9 * 36
