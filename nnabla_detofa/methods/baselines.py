"""The paper's baselines (section 4.2): fullnet, OFA with and without progressive shrinking, and CompOFA*.

Each is Algorithm 1's training loop on uniform paths of its spaces, and the same search afterwards, with a path filter that is
trained on its final supernet alone (section 3.3: the filter "can also be used for standard supernet-based NAS").
"""

from __future__ import annotations

from functools import partial

from ..space.pruning import UniformPaths
from . import algorithm1
from .algorithm1 import DetOFASearcher


class BaselineSearcher(DetOFASearcher):
    """The fullnet, and then the phases that `phases.training_phases` has for the config's runner."""

    def run(self) -> dict:
        """Train and search; what was found is in summary.json, and returned."""
        _, *supernet = self.training.values()
        self.train_fullnet(self.space)
        if not supernet:
            return self.evaluate([])
        for phase in supernet:
            if phase.epochs.start == 0:
                self.optimizer["train"] = self.new_optimizer(phase)
            with self.phase(phase.name):
                self.train_phase(phase, UniformPaths(phase.space, self.rng(phase.name)), self.optimizer["train"])
        return self.find_subnets(supernet[-1].space, self.new_filter())


run = partial(algorithm1.run, searcher=BaselineSearcher)
