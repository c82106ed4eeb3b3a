"""The checks of a network of one's own find wrong costs and wrong slices."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from nnabla_detofa.config import OwnClassifier
from nnabla_detofa.space.costs import CostModel
from nnabla_detofa.tools.own_network import network_checks

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


def test_a_path_that_runs_other_weights_is_found(monkeypatch):
    monkeypatch.setattr(
        kernel_choice.KernelBottleneck, "middle", lambda self, y, plan, statistics: self.conv2(y, plan.middle, statistics)
    )
    flops, params, outputs = checks()
    assert flops == "FLOPs of 3 paths: as in their graphs"
    assert outputs.startswith("WRONG: the outputs of a path in the supernet differ by ")
