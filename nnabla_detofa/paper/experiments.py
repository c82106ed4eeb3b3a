"""The experiments of the paper: Algorithm 1, the methods it is compared with, and its ablations.

Each experiment is a set of changes to the config of a data set. In titles, PS is OFA's progressive shrinking.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..config import DetofaHparams
from .profiles import RATIOS, Profile

FULLNET, LONGER = "{fullnet}", "{longer}"
"""Placeholders in `Experiment.overrides`."""


@dataclass(frozen=True)
class Experiment:
    """One method or ablation, which is one curve of a figure.

    Attributes:
        name: part of the names of its run folders.
        title: label in tables and figures.
        overrides: "key=value" strings that change the data set's config. `FULLNET` stands for the weights file
            `profiles.Pretraining.fullnet`, and `LONGER` for the overrides that `longer` returns.
    """

    name: str
    title: str
    overrides: tuple[str, ...] = ()

    @property
    def needs_fullnet(self) -> bool:
        """Whether the runs start from the weights of a classifier of which only the largest path was trained."""
        return any(FULLNET in override for override in self.overrides)


def _pruning(strategy: str, path_pruning: str = "score", **ratios: float) -> tuple[str, ...]:
    prefix = "hparams.operation_pruning."
    return (
        f"{prefix}strategy={strategy}",
        f"hparams.path_pruning={path_pruning}",
        *(f"{'hparams.' if name == 'r_path' else prefix}{name}={ratio}" for name, ratio in ratios.items()),
    )


DETOFA = Experiment("detofa", "DetOFA")
OFA = Experiment("ofa", "OFA (w/o PS)", ("args.runner=ofa",))
OFA_PS = Experiment("ofa-ps", "OFA (w/ PS)", ("args.runner=ofa_ps",))
COMPOFA = Experiment("compofa", "CompOFA*", ("args.runner=compofa",))
METHODS = (OFA_PS, OFA, COMPOFA, DETOFA)
"""Methods of Table 2 and Figure 5."""


def methods_of(profile: Profile) -> tuple[Experiment, ...]:
    """Return the methods that a profile compares, in the order of `METHODS`."""
    return tuple(method for method in METHODS if method.name in profile.methods)


def left_out(profile: Profile) -> str:
    """Return a sentence that names the paper's methods that a profile does not compare; empty if there are none."""
    titles = [method.title for method in METHODS if method.name not in profile.methods]
    return f"Not compared here: {', '.join(titles)}." if titles else ""


def _start(weights: str) -> tuple[str, str]:
    """Return overrides that set the initial weights; no pre-trained path filter fits them."""
    return f"network.centernet_ofa_resnet50.weights={weights}", "hparams.filter.weights=null"


def _pretrained(name: str, title: str, weights: str) -> tuple[Experiment, Experiment]:
    """Return OFA without and with progressive shrinking from other initial weights."""
    return (
        Experiment(f"{name}-ofa", f"{title} (w/o PS)", ("args.runner=ofa", *_start(weights))),
        Experiment(f"{name}-ofa-ps", f"{title} (w/ PS)", ("args.runner=ofa_ps", *_start(weights))),
    )


PRETRAININGS = (
    replace(OFA, title="Supernet (w/o PS)"),
    replace(OFA_PS, title="Supernet (w/ PS)"),
    *_pretrained("fullnet", "Fullnet", FULLNET),
    *_pretrained("scratch", "Scratch", "null"),
)
"""Initial weights of the backbone that Figures 7 and A1 compare."""
STRATEGIES = (
    Experiment("operations-flops", "FLOPs", _pruning("flops")),
    Experiment("operations-flops-score-bucket", "FLOPs & score (per bucket)", _pruning("flops_score_bucket")),
    replace(DETOFA, title="FLOPs & score (all)"),
)
"""Strategies of operation pruning that Figure 9 compares; path pruning is unchanged."""


def path_ratios(ratios: Sequence[float]) -> tuple[Experiment, ...]:
    """Return the experiments of Figure 10, left: the share of paths that is pruned in each FLOPs bucket.

    The paper's own ratio is the run of Algorithm 1 itself.
    """

    def of(ratio: float) -> Experiment:
        if ratio == RATIOS["path_ratios"]:
            return replace(DETOFA, title=f"r = {ratio:g}")
        pruning = _pruning("flops_score_all", r_path=ratio) if ratio else _pruning("flops_score_all", "none")
        return Experiment(f"paths-{ratio:g}", f"r = {ratio:g}", pruning)

    return tuple(map(of, ratios))


def operation_ratios(ratios: Sequence[float]) -> tuple[Experiment, ...]:
    """Return the experiments of Figure 10, right: the share of operations that is pruned in each FLOPs bucket.

    The worst 10% of all operations are pruned first, except for ratio 0, which prunes none.
    """

    def of(ratio: float) -> Experiment:
        if ratio == RATIOS["operation_ratios"]:
            return replace(DETOFA, title=f"r = {ratio:g}")
        pruning = _pruning("flops_score_all", r_op2=ratio) if ratio else _pruning("none")
        return Experiment(f"operations-{ratio:g}", f"r = {ratio:g}", pruning)

    return tuple(map(of, ratios))


PATH_PRUNINGS = (
    replace(OFA, title="None"),
    Experiment("paths-uniform", "Prune (Uniform)", _pruning("none", "uniform")),
    replace(operation_ratios([0])[0], title="Prune (Score)"),
)
"""Kinds of path pruning that Figure A2 compares, all without operation pruning."""


def longer(hparams: DetofaHparams) -> tuple[str, ...]:
    """Return overrides that give a method with one schedule as many steps as OFA with progressive shrinking.

    Warm-up and fine-tuning keep their proportions.
    """
    schedules = 3  # of progressive shrinking, each as long as warm-up and fine-tuning together
    return f"hparams.warmup_epochs={schedules * hparams.warmup_epochs}", f"hparams.epochs={schedules * hparams.epochs}"


UNIFORM_RESTARTS = Experiment(
    "uniform-restarts", "uniform paths, steps and restarts of PS", ("args.runner=ofa_ps", "hparams.shrinking_spaces=false")
)
UNIFORM_LONG = Experiment("uniform-long", "uniform paths, steps of PS, one schedule", ("args.runner=ofa", LONGER))
DETOFA_LONG = Experiment("detofa-long", "DetOFA, steps of PS", (LONGER,))
CONTROLS = (UNIFORM_RESTARTS, UNIFORM_LONG, DETOFA_LONG)
"""Controls that are not in the paper: they measure the gain from the additional steps of progressive shrinking."""
SCRATCH_LONG = Experiment(
    "scratch-ofa-long", "Scratch, uniform paths, steps of PS", ("args.runner=ofa", LONGER, *_start("null"))
)
FROM_SCRATCH = (*PRETRAININGS[4:], SCRATCH_LONG)
"""Training from scratch without and with progressive shrinking, and the control that has its additional steps."""
