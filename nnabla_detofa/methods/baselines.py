"""The paper's baselines (section 4.2): fullnet, OFA with and without progressive shrinking, and CompOFA*.

Each baseline trains uniformly sampled paths of its search spaces with the training loop of Algorithm 1. It ends with the same
search, for which a path filter is fitted to paths of the final supernet only (section 3.3: the filter "can also be used for
standard supernet-based NAS"). The fullnet is only trained and evaluated.
"""

from __future__ import annotations

from functools import partial

from ..networks.resnet50 import check_sortable, sort_middle_channels
from ..space.pruning import UniformPaths
from . import algorithm1
from .algorithm1 import DetOFASearcher


class BaselineSearcher(DetOFASearcher):
    """Trains the fullnet, then the phases that `phases.training_phases` returns for the config's runner."""

    method = "ofa"

    def run(self) -> dict:
        """Train and search; write the results to summary.json, and return them."""
        _, *supernet = self.training.values()
        if any(phase.sorted_ratios for phase in supernet):
            check_sortable(self.model)
        self.train_fullnet(self.space)
        if not supernet:
            return self.evaluate_subnets([])
        for phase in supernet:
            if not phase.continues:
                self.optimizer["train"] = self.new_optimizer(phase)
            optimizer = self.optimizer["train"]
            with self.phase(phase.name):
                if phase.sorted_ratios:  # harmless on resumption: the checkpoint overwrites weights and moments
                    sort_middle_channels(self.model, phase.sorted_ratios, phase.sorted_widths, optimizer)
                self.train_phase(phase, UniformPaths(phase.space, self.rng(phase.name)), optimizer)
        return self.find_subnets(supernet[-1].space, self.new_filter())


run = partial(algorithm1.run, searcher=BaselineSearcher)
