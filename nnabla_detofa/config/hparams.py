"""Section `hparams` of a config: Algorithm 1, the baselines, pre-training, and the path filter."""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from ..common.checked import listed
from ..common.errors import UserError
from ..space.geometry import OFA_RESNET50
from .values import Count, Epochs, NonNegative, Paths, PathStr, Positive, Rounds, Scale, Share, UpToOne, flops


@dataclass(frozen=True)
class Filter:
    """The path filter g(a) and its training.

    Attributes:
        weights: file (.h5) of a pre-trained path filter.
        dim: dimensions of a token's embedding.
        heads: attention heads of a layer.
        layers: encoder layers of the transformer.
        feed_forward: dimensions of a layer's hidden feed-forward units.
        stem_tokens: the input contains three tokens of the stem in addition to those of the 18 layers.
        block_encoding: encode the index of the block in addition to the index of the layer.
        encoding: exponent of the positional encoding: 2i / max_l with "paper", 2i / dim with "transformer".
        pooling: how the tokens are reduced to one vector: "mean" or "concat" (paper is silent).
        linear_skip: add a linear function of the one-hot tokens to the logit, initialized by ridge regression (ours).
        ensemble: number of members, which differ in their split and mini-batches and, without pre-training, in their initial
            weights. The score is the mean of their logits, standardized inside each FLOPs bucket (ours; the paper has one).
        margin: the ranking loss compares "score"s, which are sigmoids (paper), or "logit"s (ours).
        pairs: pairs in the ranking loss: "bounded": both paths are in the same FLOPs bucket (paper); "all": the paper's loss
            that is not FLOPs-bounded; "both": each of these with half the weight (ours).
        regression: weight of the squared error between the logit and the standardized loss, in addition to the ranking loss
            (ours; paper: 0).
        lr: learning rate of Adam (paper is silent).
        epochs: maximum number of epochs (paper is silent).
        batch_size: number of paths in a mini-batch (paper is silent).
        patience: number of epochs without a better validation loss after which training stops.
        weight_decay: share of each weight that every update subtracts (paper is silent).
        dropout: dropout rate of the pooled vector (paper is silent).
    """

    weights: PathStr | None = None
    dim: Annotated[int, "[1, 4096]"] = 128
    heads: Count = 4
    layers: Annotated[int, "[1, 64]"] = 3
    feed_forward: Annotated[int, "[1, 16384]"] = 128
    stem_tokens: bool = True
    block_encoding: bool = True
    encoding: Literal["paper", "transformer"] = "paper"
    pooling: Literal["mean", "concat"] = "mean"
    linear_skip: bool = False
    ensemble: Annotated[int, "[1, 64]"] = 1
    margin: Literal["score", "logit"] = "score"
    pairs: Literal["bounded", "all", "both"] = "bounded"
    regression: Annotated[float, "[0, 1000000]"] = 0.0
    lr: UpToOne = 3e-4
    epochs: Rounds = 200
    batch_size: Annotated[int, "[1, 65536]"] = 32
    patience: Count = 30
    weight_decay: Share = 0.0
    dropout: Share = 0.0

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise UserError(f"dim must be a multiple of heads ({self.heads}), got {self.dim}")


@dataclass(frozen=True)
class OperationPruning:
    """Pruning of operations (section 3.2).

    Attributes:
        strategy: "flops", "flops_score_bucket" or "flops_score_all", as in the paper; or "none".
        r_op: share of the operations of each FLOPs bucket that "flops" and "flops_score_bucket" prune.
        r_op1: share of all operations that "flops_score_all" prunes first.
        r_op2: share of the remaining operations of each FLOPs bucket that "flops_score_all" prunes then.
    """

    strategy: Literal["flops", "flops_score_bucket", "flops_score_all", "none"] = "flops_score_all"
    r_op: Share = 0.3
    r_op1: Share = 0.1
    r_op2: Share = 0.3


@dataclass(frozen=True)
class Search:
    """Evolutionary search (section 3.3).

    Attributes:
        budgets: maximum FLOPs (multiply-accumulates) of a path, one search for each: numbers, or strings such as "3G" and
            "250M". Empty: the upper edges of the FLOPs buckets.
        generations: number of generations.
        population: size of the population.
        parent_ratio: share of the population that survives as parents.
        mutate_prob: probability with which a mutant resamples each choice.
        mutation_ratio: share of mutants among the children; the others are crossovers.
        across_buckets: how paths of different FLOPs buckets compete, since scores rank only paths of one bucket (Eq. 5). With
            "loss", each bucket is searched by score, and the winner with the lowest validation loss is chosen (paper is
            silent); with "score", one search by score covers all buckets (Eq. 3).
    """

    budgets: tuple[Annotated[float, flops, "(0, inf)"], ...] = ()
    generations: Rounds = 500
    population: Annotated[int, "[1, 100000]"] = 100
    parent_ratio: UpToOne = 0.25
    mutate_prob: Annotated[float, "[0, 1]"] = 0.1
    mutation_ratio: Annotated[float, "[0, 1]"] = 0.5
    across_buckets: Literal["loss", "score"] = "loss"

    def __post_init__(self) -> None:
        if self.mutation_ratio == 1 and not self.mutate_prob:
            raise UserError("mutate_prob must be above 0 if all children are mutants (mutation_ratio 1), got 0")

    @property
    def evolution(self) -> dict[str, Any]:
        """Keyword arguments of `evolution.search`."""
        names = ("generations", "population", "parent_ratio", "mutate_prob", "mutation_ratio")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class CommonHparams:
    """Keys of all methods: training, evaluation of paths, and the path filter.

    Attributes:
        batch_size: number of images per training step, over all ranks.
        mini_batch: number of images per forward pass of a rank, over which batch normalization computes its statistics; null:
            batch_size divided by the number of ranks.
        steps_per_epoch: number of training steps that count as an epoch; batches still cover all images in turn. null: the
            number of batches in the dataset (ours: keeps the paper's ratios of epochs with any number of steps).
        buckets: number of FLOPs buckets.
        bn_images: number of images for re-estimating the batch normalization statistics of a path.
        bn_batch: number of these images per batch.
        val_images: number of images for the validation loss of a path; null: all.
        checkpoint_every_epochs: number of epochs between two checkpoints.
    """

    batch_size: Count = 32
    mini_batch: Count | None = None
    steps_per_epoch: Annotated[int, "[1, 1000000000]"] | None = None
    buckets: Annotated[int, "[1, 1000]"] = 5
    bn_images: Count = 256
    bn_batch: Count = 32
    val_images: Count | None = None
    filter: Filter = Filter()
    checkpoint_every_epochs: Count = 1

    def __post_init__(self) -> None:
        if self.mini_batch and self.batch_size % self.mini_batch:
            raise UserError(f"mini_batch must divide batch_size ({self.batch_size}), got {self.mini_batch}")


@dataclass(frozen=True)
class DetofaHparams(CommonHparams):
    """Algorithm 1 and the baselines, on detection data.

    Attributes:
        fullnet_epochs: epochs of the fullnet (line 2).
        warmup_epochs: epochs of the warm-up on uniformly sampled paths (line 3).
        epochs: epochs of fine-tuning on the paths that path pruning keeps (lines 8 to 17).
        paths_per_bucket: m, the number of evaluated paths per FLOPs bucket (line 4); at least 8, since the fifth of them that
            validates the path filter must contain a pair.
        paths_per_operation: n, the number of paths over which the score of an operation is averaged (paper is silent).
        path_pruning: lines 7 and 12: prune paths by "score", at random with "uniform" (Figure A2), or "none".
        r_path: share of the paths of each FLOPs bucket that path pruning rejects; at most 0.99, since training samples until
            a path is kept.
        threshold_paths: number of paths per FLOPs bucket whose scores determine its threshold (paper is silent).
        cost_scope: FLOPs of the whole "detector", or only of the "backbone".
        shrinking_sort: the baseline ofa_ps sorts the middle channels of the bottlenecks by importance before it trains
            smaller E or W, as OFA does.
        shrinking_spaces: the baseline ofa_ps trains the growing spaces of Table A1. false: uniformly sampled paths of A, for
            the same steps with the same restarts of the learning rate (ours: separates the effect of shrinking from that of
            more steps).
        flip_test: average the heatmaps and sizes of each test image and its mirror image, as CenterNet's flip test.
        test_scales: sizes of the test input relative to `image_size`; detections of several sizes are merged by soft-NMS.
        heldout_paths_per_bucket: number of additional paths per FLOPs bucket on which Kendall's tau of the path filter and of
            simple baselines is reported.
    """

    fullnet_epochs: Epochs = 70
    warmup_epochs: Epochs = 5
    epochs: Epochs = 65
    paths_per_bucket: Annotated[int, "[8, 1000000]"] = 100
    paths_per_operation: Paths = 100
    operation_pruning: OperationPruning = OperationPruning()
    path_pruning: Literal["score", "uniform", "none"] = "score"
    r_path: Annotated[float, "[0, 0.99]"] = 0.25
    threshold_paths: Paths = 1000
    cost_scope: Literal["detector", "backbone"] = "detector"
    shrinking_sort: bool = True
    shrinking_spaces: bool = True
    flip_test: bool = False
    test_scales: tuple[Scale, ...] = (1.0,)
    heldout_paths_per_bucket: Annotated[int, "[0, 1000000]"] = 20
    search: Search = Search()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.test_scales:
            raise UserError("test_scales must hold at least one scale, got none")


RESERVED_PHASES = ("fullnet", "start", "supernet", "paths", "path filter", "checkpoint", "tensorboard")


@dataclass(frozen=True)
class Shrinking:
    """One phase of progressive shrinking, which trains the supernet on a space that grows from phase to phase.

    Attributes:
        name: name of the phase in logs and folders.
        depths, widths, ratios: choices of D, W and E in every stage; the stem chooses among the same depths and widths.
        epochs: epochs of this phase, which has its own learning-rate schedule.
        lr: initial learning rate; null: `optimizer.train.lr`.
        warmup_epochs: number of epochs over which the rate rises linearly from 0 (`optimizer.train.warmup_steps` applies to
            the fullnet).
        batch_size: number of images per step; null: `hparams.batch_size`.
        paths_per_step: number of paths trained on each batch, whose gradients are summed, like OFA's dynamic batch size.
        sort_channels: before this phase, sort the middle channels of the bottlenecks by importance, so that smaller E use the
            important ones; the function of the largest path does not change.
    """

    name: str
    depths: tuple[int, ...]
    widths: tuple[float, ...]
    ratios: tuple[float, ...]
    epochs: Epochs
    lr: Positive | None = None
    warmup_epochs: Epochs = 0
    batch_size: Count | None = None
    paths_per_step: Annotated[int, "[1, 10000]"] = 1
    sort_channels: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 _-]*", self.name) or self.name in RESERVED_PHASES:
            raise UserError(
                f"name must be letters, digits, spaces, - or _, and not {listed(RESERVED_PHASES, 'or')}, got {self.name!r}"
            )
        choices = {
            "depths": (self.depths, OFA_RESNET50.depths),
            "widths": (self.widths, OFA_RESNET50.widths),
            "ratios": (self.ratios, OFA_RESNET50.ratios),
        }
        for key, (values, allowed) in choices.items():
            if not values or len(set(values)) < len(values) or set(values) - set(allowed):
                raise UserError(f"{key} must be one or more of {', '.join(map(str, allowed))}, each once, got {list(values)}")
        if 0 < self.epochs < self.warmup_epochs:
            raise UserError(f"warmup_epochs must be at most the {self.epochs} epochs of the phase, got {self.warmup_epochs}")


@dataclass(frozen=True)
class PretrainHparams(CommonHparams):
    """Pre-training of the classification supernet, and of the path filter on paths of it.

    Attributes:
        fullnet_epochs: epochs of the largest path, before the supernet.
        epochs: epochs of the supernet, with one uniformly sampled path per step; ignored if there is `shrinking`.
        shrinking: phases of progressive shrinking in order, which replace `epochs` of all paths.
        kd_ratio: weight of the distillation from the fullnet in the loss of the supernet; 0: no distillation; OFA uses 1.
        label_smoothing: share of the target that is distributed over all classes.
        paths: number of paths over all FLOPs buckets that are evaluated to pre-train the path filter.
    """

    fullnet_epochs: Epochs = 0
    epochs: Epochs = 90
    shrinking: tuple[Shrinking, ...] = ()
    kd_ratio: NonNegative = 0.0
    label_smoothing: Share = 0.1
    paths: Annotated[int, "[0, 10000000]"] = 10000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.paths and self.paths < 8 * self.buckets:
            raise UserError(f"paths must be 0, or at least 8 for each of the {self.buckets} buckets, got {self.paths}")
        trained: set[float] = {1.0}
        for phase in self.shrinking:
            if phase.sort_channels and trained != {1.0}:
                raise UserError(
                    f"shrinking must sort channels before smaller widths than 1.0 are trained, got it in {phase.name}"
                )
            trained |= set(phase.widths)
        names = [phase.name.lower().replace("-", " ").replace("_", " ") for phase in self.shrinking]
        if len(set(names)) < len(names):
            raise UserError(f"shrinking must have a different name for each phase, got {', '.join(names)}")
        mini = self.mini_batch or self.batch_size
        for phase in self.shrinking:
            if phase.batch_size and phase.batch_size % mini:
                how = "mini_batch" if self.mini_batch else "mini_batch, which is batch_size if it is null,"
                raise UserError(f"{how} must divide the {phase.batch_size} images of a step of {phase.name}, got {mini}")
