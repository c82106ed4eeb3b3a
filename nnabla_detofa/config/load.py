"""JSON or YAML -> checked values; every error names the key, the value and what is allowed.

A config has NNablaNAS' sections: args, network, dataloader, optimizer, hparams. It states only what differs from its
`base`, another config, and from the defaults here, which are the paper's values where the paper gives them. `about` is
for people: the command, its duration on stated hardware, the result to expect.

The dataclasses below are the schema; `checked.py` says what their annotations mean.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from ..common.checked import check_keys, kind_of, listed, read
from ..common.errors import UserError
from ..common.normalization import COCO, IMAGENET, Normalization
from ..common.reading import check_depth, parse_json, read_text, short, shown, too_deep
from ..common.shipped import beside, find_config
from ..space.geometry import OFA_RESNET50, Geometry, HeadGeometry
from . import older


def flops(value: Any) -> Any:
    """A number of multiply-accumulates: 3e9, or a string with a unit, "3G" or "250M"."""
    units = {"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
    match = re.fullmatch(r"\s*([0-9.]+(?:[eE][-+]?[0-9]+)?)\s*([KMGT]?)\s*", value) if isinstance(value, str) else None
    try:
        return float(match[1]) * units.get(match[2], 1.0) if match else value
    except ValueError:
        return value


def text(value: Any) -> Any:
    """A string; a bare integer is taken as its text (`args.device_id=1` on the command line)."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def place(value: Any) -> Any:
    """A file or a folder: a text in which ~ at the beginning is the home folder, since no shell expands it in a config."""
    if not isinstance(value, str) or not (value == "~" or value.startswith("~/")):
        return value
    try:
        return str(Path(value).expanduser())
    except RuntimeError as error:
        raise UserError(f"{short(value)} needs a home folder, and there is none: set HOME, or write the whole path") from error


Count = Annotated[int, "[1, inf)"]
Natural = Annotated[int, "[0, inf)"]
Share = Annotated[float, "[0, 1)"]
UpToOne = Annotated[float, "(0, 1]"]
Positive = Annotated[float, "(0, inf)"]
NonNegative = Annotated[float, "[0, inf)"]
# What memory depends on has an upper end, far above any sensible value: a slip of the keyboard is refused, not tried.
Side = Annotated[int, "[32, 16384]"]
Channels = Annotated[int, "[1, 8192]"]
Classes = Annotated[int, "[1, 100000]"]
Paths = Annotated[int, "[1, 1000000]"]
Scale = Annotated[float, "(0, 8]"]


# ---------------------------------------------------------------------------------------------------------------- args


@dataclass(frozen=True)
class Args:
    """What is run, where, and where to.

    Attributes:
        runner: the program: "detofa" is Algorithm 1, "pretrain" the supernet and the path filter before it; the baselines are
            "fullnet", the largest path alone, "ofa" and "ofa_ps", OFA without and with progressive shrinking, and "compofa".
        seed: of everything random in the run.
        context: "cpu", "cudnn", or "auto": a GPU where there is one.
        device_id: the GPU, or a comma-separated list, one for each rank; with "auto", "0" is the first GPU for each rank.
        type_config: "float", 32-bit precision. Without mixed precision NNablaNAS' "half" would overflow in the losses.
        output_path: folder of the run; None is runs/<name of the config>.
        workers: threads that load data; 0 loads between the steps.
        evaluation_processes: processes that share the evaluation of many paths on the CPU; None is one for each core.
        print_frequency: training steps between two lines of the log.
    """

    runner: Literal["detofa", "pretrain", "fullnet", "ofa", "ofa_ps", "compofa"] = "detofa"
    seed: Natural = 0
    context: Literal["auto", "cpu", "cudnn"] = "auto"
    device_id: Annotated[str, text] = "0"
    type_config: Literal["float"] = "float"
    output_path: Annotated[str, text, place] | None = None
    workers: Annotated[int, "[0, 256]"] = 2
    evaluation_processes: Annotated[int, "[1, 256]"] | None = None
    print_frequency: Count = 50


# ------------------------------------------------------------------------------------------------------------- network


@dataclass(frozen=True)
class OfaResnet50:
    """The classification supernet.

    Attributes:
        num_classes: None takes it from the data set.
        width_scale: scales every base width, for small experiments.
        strides: stride of each stage's first layer.
        elastic_stem: the stem's depth and widths are choices too; otherwise they are the largest.
        zero_init_residual: the last BatchNorm of every residual branch starts at gamma 0 (as OFA does).
        weights: file (.h5) of a pre-trained supernet.
    """

    num_classes: Classes | None = None
    width_scale: UpToOne = 1.0
    strides: tuple[Annotated[int, "[1, 2]"], ...] = (1, 2, 2, 2)
    elastic_stem: bool = True
    zero_init_residual: bool = True
    weights: Annotated[str, place] | None = None

    def __post_init__(self):
        if len(self.strides) != 4:
            raise UserError(f"strides must be 4 numbers, one for each stage, got {len(self.strides)}")

    @property
    def geometry(self) -> Geometry:
        return Geometry(strides=self.strides, width_scale=self.width_scale)


@dataclass(frozen=True)
class CenternetOfaResnet50(OfaResnet50):
    """The detection supernet: CenterNet on the elastic backbone.

    Attributes:
        deconv_channels: filters of each transposed convolution; each doubles the resolution.
        head_channels: filters of the 3x3 convolution in each head.
        heat_map_std: standard deviation of the first weights of the heat map's last convolution.
    """

    deconv_channels: tuple[Channels, ...] = (256, 256, 256)
    head_channels: Channels = 64
    heat_map_std: NonNegative = 0.001

    def __post_init__(self):
        super().__post_init__()
        stride, doublings = self.geometry.total_stride, len(self.deconv_channels)
        if stride % 2**doublings:
            raise UserError(f"deconv_channels must be no more than bring stride {stride} back to 1, got {doublings} of them")

    def head_geometry(self, num_classes: int) -> HeadGeometry:
        """The heads for a data set with `num_classes` classes, unless the config gives their number."""
        return HeadGeometry(self.num_classes or num_classes, self.deconv_channels, self.head_channels)


# ---------------------------------------------------------------------------------------------------------- dataloader


@dataclass(frozen=True)
class DetectionData:
    """What the detection data sets have in common.

    Attributes:
        holdout: images set aside from the training split, on which paths are evaluated; 0 where `val` names a split.
        classes: names, in the order of their indices; None takes them from the data set.
        ignore_other_classes: objects of other classes than `classes` are left out; otherwise they are an error.
        image_size: side of the square input, in pixels.
        flip: mirror half of the training images; not where left and right matter, as in digits.
        crop: move the window over a training image; otherwise it is centered.
        scale_range: smallest and largest size of that window, of the image's longer side, in steps of 0.1.
        color: change brightness, contrast, saturation and lighting of training images.
        max_objects: objects of an image that become targets.
        normalization: mean and std of its images in [0, 1], each of blue, green, red; see `normalization.Normalization`.
    """

    holdout: Natural = 0
    classes: tuple[str, ...] | None = None
    ignore_other_classes: bool = False
    image_size: Side = 384
    flip: bool = True
    crop: bool = True
    scale_range: tuple[Scale, Scale] = (0.6, 1.3)
    color: bool = True
    max_objects: Annotated[int, "[1, 10000]"] = 128
    normalization: Normalization = IMAGENET

    def __post_init__(self):
        if self.scale_range[0] > self.scale_range[1]:
            raise UserError(f"scale_range must be the smallest and the largest scale, got {list(self.scale_range)}")
        if self.classes is not None and not 0 < len(self.classes) == len(set(self.classes)):
            names = ", ".join(map(short, self.classes[:20])) or "none"
            raise UserError(f"classes must name at least one class, and each once, got {names}")
        if self.ignore_other_classes and self.classes is None:
            raise UserError("ignore_other_classes needs classes: the names of those that are not ignored")
        if bool(self.val) == bool(self.holdout):
            raise UserError(f"val must say where paths are evaluated, or else holdout; got {self.val!r} and {self.holdout}")


@dataclass(frozen=True)
class VocData(DetectionData):
    """Pascal VOC's layout: Annotations, ImageSets/Main and JPEGImages, under `root` or under its VOC<year> folders.

    Attributes:
        train, val, test: splits such as "trainval", or "VOC2007/trainval" in a folder of years.
        train_difficult: objects marked difficult are trained on (evaluation always ignores them).
        ap_metric: the main metric: "11point" is VOC 2007's average precision, "area" that of the later years. Results
            have the other one too.
    """

    root: Annotated[str, place] = "data/VOCdevkit"
    train: tuple[str, ...] = ("VOC2007/trainval", "VOC2012/trainval")
    val: tuple[str, ...] = ()
    test: tuple[str, ...] = ("VOC2007/test",)
    train_difficult: bool = True
    ap_metric: Literal["11point", "area"] = "11point"


@dataclass(frozen=True)
class CocoSplit:
    """One split of a data set in COCO's format: an annotation file and a folder of images, both under `root`."""

    annotations: str
    images: str


@dataclass(frozen=True)
class CocoData(DetectionData):
    """A data set in COCO's format. Crowds are never trained on, and its figures are COCO's."""

    root: Annotated[str, place] = "data/coco"
    train: CocoSplit = CocoSplit("annotations/instances_train2017.json", "train2017")
    val: CocoSplit | None = None
    test: CocoSplit = CocoSplit("annotations/instances_val2017.json", "val2017")
    ap_metric: Literal["coco"] = "coco"
    normalization: Normalization = COCO


@dataclass(frozen=True)
class ImageFolderData:
    """Classification: one folder of images for each class, under `root`/`train` and `root`/`val`.

    Attributes:
        image_size: side of the square input, in pixels.
        flip: mirror half of the training images; not where left and right matter, as in digits.
        crop_area: smallest and largest share of a training image's area that is cut out of it.
        center_share: side of the central square that is evaluated, as a share of an image's shorter side.
        train_sizes: sides of the training input: each step draws one, from the seed and its number. Empty: `image_size`.
        normalization: as `DetectionData`'s.
    """

    root: Annotated[str, place]
    train: str = "train"
    val: str = "val"
    image_size: Side = 224
    flip: bool = True
    crop_area: tuple[UpToOne, UpToOne] = (0.35, 1.0)
    center_share: UpToOne = 0.875
    train_sizes: tuple[Side, ...] = ()
    normalization: Normalization = IMAGENET

    def __post_init__(self):
        if self.crop_area[0] > self.crop_area[1]:
            raise UserError(f"crop_area must be the smallest and the largest share, got {list(self.crop_area)}")


# ----------------------------------------------------------------------------------------------------------- optimizer


@dataclass(frozen=True)
class Solver:
    """An update rule and its learning rate.

    Attributes:
        name: a solver of nnabla.
        lr: the learning rate at the start.
        schedule: "step" multiplies by `gamma` at each of the `milestones`, "cosine" falls to 0 over the epochs.
        milestones: epochs.
        warmup_steps: steps over which the rate first rises from 0.
        weight_decay: added to the gradient, times the weight; AdamW takes it from the weight instead.
    """

    name: Literal["Adam", "AdamW", "Momentum", "Nesterov", "Sgd"] = "Adam"
    lr: Positive = 5e-4
    schedule: Literal["step", "cosine", "constant"] = "step"
    milestones: tuple[Count, ...] = (45, 60)
    gamma: UpToOne = 0.1
    warmup_steps: Natural = 0
    weight_decay: NonNegative = 0.0

    def __post_init__(self):
        if list(self.milestones) != sorted(set(self.milestones)):
            raise UserError(f"milestones must rise, got {list(self.milestones)}")


@dataclass(frozen=True)
class Solvers:
    """The section `optimizer`."""

    train: Solver = Solver()


# ------------------------------------------------------------------------------------------------------------- hparams


@dataclass(frozen=True)
class Filter:
    """The path filter g(a), and how it is fitted.

    Attributes:
        weights: file (.h5) of a pre-trained filter.
        dim, heads, layers, feed_forward: of the transformer.
        stem_tokens: the stem is part of the input (three tokens), not only the 18 layers.
        block_encoding: the block's index is encoded beside the layer's.
        encoding: "paper" has the exponent 2i / max_l, "transformer" the usual 2i / dim.
        pooling: how tokens become one vector, see `path_filter.PathFilter`: "mean" or "concat" (paper is silent).
        linear_skip: add a linear function of the one-hot tokens to the logit, which a ridge regression starts (ours).
        ensemble: members that differ by their first weights, their split and their minibatches; the score is the mean of
            their logits, standardized inside the FLOPs bucket (ours; the paper has one).
        margin: the loss compares "score"s, which are sigmoids (paper), or "logit"s (ours).
        pairs: the loss compares paths of one FLOPs bucket, "bounded" (paper); "all" paths, the paper's loss that is not
            FLOPs-bounded; or "both", each with half the weight (ours).
        regression: weight of the squared error between logit and standardized loss, beside the pairs (ours; paper: 0).
        lr, epochs, batch_size: of Adam (paper is silent).
        patience: epochs without a better validation loss before fitting stops.
        weight_decay: the share of every weight that an update takes away (paper is silent).
        dropout: of the pooled vector in training (paper is silent).
    """

    weights: Annotated[str, place] | None = None
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
    regression: Annotated[float, "[0, inf)"] = 0.0
    lr: Positive = 3e-4
    epochs: Count = 200
    batch_size: Annotated[int, "[1, 65536]"] = 32
    patience: Count = 30
    weight_decay: Share = 0.0
    dropout: Share = 0.0

    def __post_init__(self):
        if self.dim % self.heads:
            raise UserError(f"dim must be a multiple of heads ({self.heads}), got {self.dim}")


@dataclass(frozen=True)
class OperationPruning:
    """Which operations leave the space (section 3.2).

    Attributes:
        strategy: "flops", "flops_score_bucket", "flops_score_all" as in the paper, or "none".
        r_op: the share dropped in each FLOPs bucket by the first two.
        r_op1, r_op2: of "flops_score_all": the share dropped of all, then in each bucket.
    """

    strategy: Literal["flops", "flops_score_bucket", "flops_score_all", "none"] = "flops_score_all"
    r_op: Share = 0.3
    r_op1: Share = 0.1
    r_op2: Share = 0.3


@dataclass(frozen=True)
class Search:
    """Evolutionary search (section 3.3).

    Attributes:
        budgets: the most FLOPs (multiply-accumulates) a path may cost, one search for each: numbers, or "3G", "250M".
            Empty: the upper edges of the FLOPs buckets.
        parent_ratio: the share of the population that survives and breeds.
        mutate_prob: how likely a choice of a mutant changes.
        mutation_ratio: the share of the children that are mutants; the others are crossovers.
        across_buckets: scores rank paths of one FLOPs bucket only (Eq. 5), and a budget admits paths of several. "loss"
            searches each bucket by score and takes the winner with the least validation loss (paper is silent); "score"
            is Eq. 3 to the letter, one search over all of them.
    """

    budgets: tuple[Annotated[float, flops, "(0, inf)"], ...] = ()
    generations: Count = 500
    population: Annotated[int, "[1, 100000]"] = 100
    parent_ratio: UpToOne = 0.25
    mutate_prob: Annotated[float, "[0, 1]"] = 0.1
    mutation_ratio: Annotated[float, "[0, 1]"] = 0.5
    across_buckets: Literal["loss", "score"] = "loss"

    @property
    def evolution(self) -> dict[str, Any]:
        """The arguments of `evolution.search`."""
        names = ("generations", "population", "parent_ratio", "mutate_prob", "mutation_ratio")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class CommonHparams:
    """Training, evaluating a path, and the filter that learns from it: shared by all runners.

    Attributes:
        batch_size: images of one training step, over all ranks.
        mini_batch: images of one pass through the network, on one rank; None is all of a step's.
        steps_per_epoch: training steps of what configs call an epoch, whose batches go on through the images; None is as many
            as the images fill (ours: so epochs in the paper's proportions make any number of steps).
        buckets: intervals of FLOPs.
        bn_images: images from which BatchNorm statistics are re-estimated for a path.
        bn_batch: images of one step of that.
        val_images: images on which its loss is taken; None is all.
        checkpoint_every_epochs: epochs between two checkpoints.
    """

    batch_size: Count = 32
    mini_batch: Count | None = None
    steps_per_epoch: Count | None = None
    buckets: Annotated[int, "[1, 1000]"] = 5
    bn_images: Count = 256
    bn_batch: Count = 32
    val_images: Count | None = None
    filter: Filter = Filter()
    checkpoint_every_epochs: Count = 1

    def __post_init__(self):
        if self.mini_batch and self.batch_size % self.mini_batch:
            raise UserError(f"mini_batch must divide batch_size ({self.batch_size}), got {self.mini_batch}")


@dataclass(frozen=True)
class DetofaHparams(CommonHparams):
    """Algorithm 1, on Pascal VOC.

    Attributes:
        fullnet_epochs: line 2.
        warmup_epochs: line 3.
        epochs: lines 8 to 17.
        paths_per_bucket: m of line 4; of fewer than 8 the fifth that validates the filter would make no pair.
        paths_per_operation: n, paths over which an operation's score is averaged (paper is silent).
        path_pruning: lines 7 and 12 by "score", "uniform"ly at random (Fig. A2), or "none".
        r_path: the share of paths dropped in each bucket.
        threshold_paths: paths of each bucket whose scores give its threshold (paper is silent).
        cost_scope: FLOPs of the whole "detector", or of the "backbone".
        shrinking_sort: the baseline ofa_ps sorts the bottlenecks' middle channels by importance before it trains a smaller E or
            W, so that these take the important ones, as OFA does.
        shrinking_spaces: the baseline ofa_ps trains the growing spaces of Table A1; false is uniform paths of A for the same
            steps with the same restarts of the rate (ours: it tells what shrinking gains from what more steps gain).
        flip_test: average the heat maps and sizes of each test image and its mirror image, as CenterNet's flip test.
        test_scales: sizes of the test input over `image_size`; the detections of several are merged by soft-NMS.
        heldout_paths_per_bucket: fresh paths on which Kendall's tau of the filter and of simple baselines is reported.
    """

    fullnet_epochs: Natural = 70
    warmup_epochs: Natural = 5
    epochs: Natural = 65
    paths_per_bucket: Annotated[int, "[8, 1000000]"] = 100
    paths_per_operation: Paths = 100
    operation_pruning: OperationPruning = OperationPruning()
    path_pruning: Literal["score", "uniform", "none"] = "score"
    r_path: Share = 0.25
    threshold_paths: Paths = 1000
    cost_scope: Literal["detector", "backbone"] = "detector"
    shrinking_sort: bool = True
    shrinking_spaces: bool = True
    flip_test: bool = False
    test_scales: tuple[Scale, ...] = (1.0,)
    heldout_paths_per_bucket: Annotated[int, "[0, 1000000]"] = 20
    search: Search = Search()

    def __post_init__(self):
        super().__post_init__()
        if not self.test_scales:
            raise UserError("test_scales must hold at least one scale, got none")


@dataclass(frozen=True)
class Shrinking:
    """One phase of progressive shrinking: the supernet is trained on a space that grows from phase to phase.

    Attributes:
        name: what logs and folders call it.
        depths, widths, ratios: the choices of D, W and E in every stage; the stem chooses among the same depths and widths.
        epochs: of this phase, with a schedule of its own.
        lr: the rate at the start of it; None is `optimizer.train.lr`.
        warmup_epochs: epochs over which the rate first rises from 0 (`optimizer.train.warmup_steps` is the fullnet's).
        batch_size: images of one step; None is `hparams.batch_size`.
        paths_per_step: paths trained on each batch; their gradients are added, as OFA's dynamic batch size does.
        sort_channels: before the phase, sort the bottlenecks' middle channels by importance, the network's function
            unchanged, so that a smaller E takes the important ones.
    """

    name: str
    depths: tuple[int, ...]
    widths: tuple[float, ...]
    ratios: tuple[float, ...]
    epochs: Natural
    lr: Positive | None = None
    warmup_epochs: Natural = 0
    batch_size: Count | None = None
    paths_per_step: Count = 1
    sort_channels: bool = False

    def __post_init__(self):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 _-]*", self.name) or self.name in RESERVED_PHASES:
            raise UserError(
                f"name must be letters, digits, spaces, - or _, and not {listed(RESERVED_PHASES, 'or')}, got {self.name!r}"
            )
        for key, allowed in {
            "depths": OFA_RESNET50.depths,
            "widths": OFA_RESNET50.widths,
            "ratios": OFA_RESNET50.ratios,
        }.items():
            values = getattr(self, key)
            if not values or len(set(values)) < len(values) or set(values) - set(allowed):
                raise UserError(f"{key} must be one or more of {', '.join(map(str, allowed))}, each once, got {list(values)}")


RESERVED_PHASES = ("fullnet", "start", "supernet", "paths", "path filter", "checkpoint", "tensorboard")


@dataclass(frozen=True)
class PretrainHparams(CommonHparams):
    """The classification supernet, then the path filter on paths of it.

    Attributes:
        fullnet_epochs: of the largest path, before the supernet.
        epochs: of the supernet, one uniformly drawn path for each step; not used where there is `shrinking`.
        shrinking: phases of progressive shrinking, in their order, instead of `epochs` of all paths.
        kd_ratio: weight of the distillation from the fullnet in the supernet's loss; 0 is none, OFA's is 1.
        label_smoothing: share of the target spread over all classes.
        paths: evaluated to pre-train the filter, over all buckets.
    """

    fullnet_epochs: Natural = 0
    epochs: Natural = 90
    shrinking: tuple[Shrinking, ...] = ()
    kd_ratio: NonNegative = 0.0
    label_smoothing: Share = 0.1
    paths: Annotated[int, "[0, 10000000]"] = 10000

    def __post_init__(self):
        super().__post_init__()
        if self.paths and self.paths < 8 * self.buckets:
            raise UserError(f"paths must be 0, or 8 for each of the {self.buckets} buckets, got {self.paths}")
        seen: set[float] = {1.0}
        for phase in self.shrinking:
            if phase.sort_channels and seen != {1.0}:
                raise UserError(
                    f"shrinking must sort channels before smaller widths than 1.0 are trained, got it in {phase.name}"
                )
            seen |= set(phase.widths)
        names = [phase.name.lower().replace("-", " ").replace("_", " ") for phase in self.shrinking]
        if len(set(names)) < len(names):
            raise UserError(f"shrinking must have a name of its own for each phase, got {', '.join(names)}")
        for phase in self.shrinking:
            if self.mini_batch and phase.batch_size and phase.batch_size % self.mini_batch:
                raise UserError(
                    f"mini_batch must divide the {phase.batch_size} images of a step of {phase.name}, got {self.mini_batch}"
                )


# ------------------------------------------------------------------------------------------------------------ the whole

NETWORKS = {"ofa_resnet50": OfaResnet50, "centernet_ofa_resnet50": CenternetOfaResnet50}
DATALOADERS = {"voc": VocData, "coco": CocoData, "image_folder": ImageFolderData}


@dataclass(frozen=True)
class Runner:
    """What one runner asks of a config: its hparams, and the networks and data sets it can work with."""

    hparams: type
    networks: tuple[str, ...]
    dataloaders: tuple[str, ...]


BASELINES = ("fullnet", "ofa", "ofa_ps", "compofa")
RUNNERS = {name: Runner(DetofaHparams, ("centernet_ofa_resnet50",), ("voc", "coco")) for name in ("detofa", *BASELINES)} | {
    "pretrain": Runner(PretrainHparams, ("ofa_resnet50",), ("image_folder",))
}

# Entries that change where, how fast or how talkatively a run goes, but not its result.
WITHOUT_EFFECT = {
    "args": ("output_path", "workers", "evaluation_processes", "print_frequency", "context", "device_id"),
    "hparams": ("checkpoint_every_epochs",),
}


def without_effect(key: str) -> bool:
    """Whether a dotted key does not change a run's result."""
    section, _, rest = key.partition(".")
    return section == "about" or rest in WITHOUT_EFFECT.get(section, ())


@dataclass(frozen=True)
class Config:
    """A whole, checked config.

    Attributes:
        name: stem of its file's name.
        about: what its author says of it, line by line.
        network_name, dataloader_name: which entry of the section it has.
        network, dataloader, hparams: of the types that the names and the runner stand for.
    """

    name: str
    about: tuple[str, ...]
    args: Args
    network_name: str
    network: OfaResnet50 | CenternetOfaResnet50
    dataloader_name: str
    dataloader: VocData | CocoData | ImageFolderData
    optimizer: Solvers
    hparams: DetofaHparams | PretrainHparams

    @property
    def output_path(self) -> Path:
        return Path(self.args.output_path or Path("runs", self.name))

    def to_dict(self) -> dict[str, Any]:
        """A config file's content that loads into this config again, every default written out."""
        sections = {
            "about": self.about,
            "args": dataclasses.asdict(self.args),
            "network": {self.network_name: dataclasses.asdict(self.network)},
            "dataloader": {self.dataloader_name: dataclasses.asdict(self.dataloader)},
            "optimizer": dataclasses.asdict(self.optimizer),
            "hparams": dataclasses.asdict(self.hparams),
        }
        return json.loads(json.dumps(sections))

    @property
    def config_hash(self) -> str:
        """Equal for two configs whose runs have the same result; see `WITHOUT_EFFECT`."""
        content = older.hashed(self.to_dict())
        del content["about"]
        for section, keys in WITHOUT_EFFECT.items():
            for key in keys:
                del content[section][key]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def load(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read and check a config file.

    Args:
        path: a .json, .yaml or .yml file, or the name of a shipped config. Data and weights that it names and that do not
            exist are looked for from its folder and the folders above, and among the shipped files.
        overrides: "key.sub=value", applied after the file; a value that is JSON is read as JSON, another is a string.

    Raises:
        UserError: the file, an override or a value is not what it must be.
    """
    path = find_config(path)
    content = _with_base(path)
    for override in overrides:
        content = overridden(content, override)
    return from_dict(_with_files_found(content, path.parent), path.stem)


def _with_files_found(content: Any, folder: Path, key: str = "") -> Any:
    """Replace paths of data and weights that do not exist by those found from `folder`; see `shipped.beside`."""
    if isinstance(content, Mapping):
        return {name: _with_files_found(value, folder, f"{key}.{name}" if key else name) for name, value in content.items()}
    named = isinstance(content, str) and re.fullmatch(r"(network\.\w+|hparams\.filter)\.weights|dataloader\.\w+\.root", key)
    return beside(content, folder) if named else content


def from_dict(content: Mapping[str, Any], name: str) -> Config:
    """Check what a config file holds; `name` is what its output folder is called.

    Raises:
        UserError: a key is unknown or missing, or a value is not allowed.
    """
    content = older.current(content)
    check_keys("", content, ("about", "args", "network", "dataloader", "optimizer", "hparams"))
    about = content.get("about", ())
    args = read(Args, content.get("args", {}), "args")
    runner = RUNNERS[args.runner]
    network_name, network = _one_entry(content, "network", NETWORKS, runner.networks, args.runner)
    data_name, data = _one_entry(content, "dataloader", DATALOADERS, runner.dataloaders, args.runner)
    stride = network.geometry.total_stride
    if isinstance(network, CenternetOfaResnet50) and data.image_size % stride:
        raise UserError(f"dataloader.{data_name}.image_size must be a multiple of {stride} (strides), got {data.image_size}")
    hparams = read(runner.hparams, content.get("hparams", {}), "hparams")
    check_batch_norm(network, data, "hparams.bn_batch", hparams.bn_batch)
    steps = [hparams.batch_size, *(phase.batch_size or hparams.batch_size for phase in getattr(hparams, "shrinking", ()))]
    key = "hparams.mini_batch" if hparams.mini_batch else "batch_size"
    check_batch_norm(network, data, key, hparams.mini_batch or min(steps))
    if isinstance(hparams, PretrainHparams) and hparams.kd_ratio and not (hparams.fullnet_epochs or network.weights):
        raise UserError(
            f"hparams.kd_ratio must be 0 without a trained teacher (hparams.fullnet_epochs above 0, or "
            f"network.{network_name}.weights), got {hparams.kd_ratio:g}"
        )
    return Config(
        name=name,
        about=read(tuple[str, ...], [about] if isinstance(about, str) else about, "about"),
        args=args,
        network_name=network_name,
        network=network,
        dataloader_name=data_name,
        dataloader=data,
        optimizer=read(Solvers, content.get("optimizer", {}), "optimizer"),
        hparams=hparams,
    )


def from_run(content: Mapping[str, Any], name: str, overrides: Iterable[str] = ()) -> Config:
    """Check the content of a run's config.json, with some of its entries replaced; see `from_dict` and `older.completed`."""
    content = older.completed(content)
    for override in overrides:
        content = overridden(content, override)
    return from_dict(content, name)


def check_batch_norm(network: OfaResnet50, data: DetectionData | ImageFolderData, key: str, images: int) -> None:
    """Raise UserError if batch normalization would take the statistics of a channel of the last feature map from one value.

    Args:
        key: what sets the number of `images` of one pass through the network.
    """
    side = -(-min((data.image_size, *getattr(data, "train_sizes", ()))) // network.geometry.total_stride)
    if images * side * side == 1:
        raise UserError(
            f"{key} must be at least 2 for a last feature map of 1 x 1 (image_size {data.image_size} over the stride "
            f"{network.geometry.total_stride}), or batch normalization gets one value per channel, got {images}"
        )


def _one_entry(content: Mapping, section: str, known: Mapping[str, type], usable: tuple[str, ...], runner: str) -> tuple:
    """The name and the settings of the one entry of `section`."""
    entries = content.get(section)
    if not isinstance(entries, Mapping) or len(entries) != 1:
        got = (
            listed(entries, "and") if isinstance(entries, Mapping) and entries else "none" if not entries else kind_of(entries)
        )
        raise UserError(f"{section} must have exactly one entry, {listed(usable, 'or')}, got {got}")
    check_keys(section, entries, known)
    ((name, settings),) = entries.items()
    if name not in usable:
        raise UserError(f"{section} must be {listed(usable, 'or')} for the runner {runner}, got {name}")
    return name, read(known[name], settings, f"{section}.{name}")


# ----------------------------------------------------------------------------------------------------------- the files


class _YamlLoader(yaml.SafeLoader):
    """Plain values mean what they mean in JSON, and a key stands once.

    YAML 1.1 takes 5e-4 for a string, 010 for 8, 1:30 for 90, no for false and 2026-01-02 for a date. Here such values are
    what is written: numbers have JSON's form, true, false and null are the only words, and all else is a string.
    """

    yaml_implicit_resolvers: dict = {}

    def construct_mapping(self, node, deep=False):
        if odd := [key for key, _ in node.value if not isinstance(key, yaml.ScalarNode)]:
            raise ValueError(f"line {odd[0].start_mark.line + 1}: a key must be a word or a number")
        without_duplicates([(key.value, None) for key, _ in node.value])
        return super().construct_mapping(node, deep)

    def compose_node(self, parent, index):
        # A few lines of aliases of aliases are a value of billions of entries, and one of itself has no end.
        if self.check_event(yaml.AliasEvent):
            alias = self.peek_event()
            raise ValueError(f"line {alias.start_mark.line + 1}: the alias *{alias.anchor} is not allowed: write it out")
        return super().compose_node(parent, index)


for _tag, _form, _first in (
    ("bool", r"(true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("null", r"(~|null|Null|NULL|)$", ("~", "n", "N", "")),
    ("int", r"[-+]?(0|[1-9][0-9]*)$", "-+0123456789"),
    ("float", r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?$", "-+.0123456789"),
):
    _YamlLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_form), list(_first))


def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping of these pairs, for a parser of JSON or YAML; ValueError where a key stands twice."""
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return content


MAX_BASES = 16


def _parse(path: Path) -> dict[str, Any]:
    if path.suffix not in (".json", ".yaml", ".yml"):
        raise UserError(f"a config's name must end in .json, .yaml or .yml, got {path}")
    source = read_text(path, "the config")
    try:
        content = parse_json(source, without_duplicates) if path.suffix == ".json" else _parse_yaml(source)
    except json.JSONDecodeError as error:
        raise UserError(f"the config {path} does not parse: line {error.lineno}: {error.msg}") from error
    except ValueError as error:
        raise UserError(f"the config {path} does not parse: {short(' '.join(str(error).split()), 400)}") from error
    if not isinstance(content, dict):
        raise UserError(f"the config {path} must hold a mapping of sections, got {kind_of(content)}")
    return older.current(content)


def _parse_yaml(source: str) -> Any:
    """The value of a YAML text, of plain values alone.

    Raises:
        ValueError: it is no YAML, holds an alias or a tag of another kind, or is nested too deeply.
    """
    try:
        value = yaml.load(source, _YamlLoader)
    except RecursionError:
        raise too_deep() from None
    except (
        yaml.YAMLError,
        LookupError,
        AttributeError,
        TypeError,
    ) as error:  # "!!bool x" is a KeyError
        raise ValueError(f"{'' if isinstance(error, yaml.YAMLError) else 'a value does not suit its tag: '}{error}") from error
    check_depth(value)
    return value


def _with_base(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The content of `path` merged over that of its base, and of the base's base."""
    content = _parse(path)
    content.pop("$schema", None)  # for editors
    if path.resolve() in above:
        raise UserError(f"the config {path} is based on itself, by way of {above[-1]}")
    if len(above) > MAX_BASES:
        raise UserError(f"the config {above[0]} must have at most {MAX_BASES} bases, one below the other")
    base = content.pop("base", None)
    if base is None:
        return content
    if not isinstance(base, str):
        raise UserError(f"base must be the path of a config, beside {path.name}, got {shown(base)}")
    below = _with_base(path.parent / base, (*above, path.resolve()))
    below.pop("about", None)  # it speaks of the base
    for section in ("network", "dataloader"):
        entries, based = content.get(section), below.get(section)
        if isinstance(entries, dict) and isinstance(based, dict) and based.keys().isdisjoint(entries):
            del below[section]  # another network instead, not a second one
    return _merged(below, content)


def _merged(base: Any, content: Any) -> Any:
    """`content` over `base`: mappings key by key, anything else replaced."""
    if not isinstance(base, dict) or not isinstance(content, dict):
        return content
    return base | {key: _merged(base.get(key), value) for key, value in content.items()}


def overridden(content: dict[str, Any], override: str) -> dict[str, Any]:
    """`content` with one "key.sub=value" set in it."""
    key, equals, source = override.partition("=")
    names = key.split(".")
    if not equals or not all(names):
        raise UserError(f"an override must look like hparams.epochs=3, got {shown(override)}")
    try:
        value = parse_json(source)
    except ValueError:
        value = source
    for name in reversed(names):
        value = {name: value}
    return _merged(older.current(content), older.current(value))
