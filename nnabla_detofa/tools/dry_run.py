"""Dry run of a config, without its data, its weights or a GPU: `nnabla_nas -f CONFIG --dry-run`.

A dry run builds the full-size networks at the config's input size. Each training phase runs one step of the real training
loop (forward, backward, update) on the CPU, with a batch of one synthetic image. Nothing is written.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import NamedTuple

import numpy as np

from ..backend.compat import Device, nn
from ..common.errors import UserError
from ..common.reading import shown_names
from ..config import Config, DetofaHparams, Solver
from ..data.targets import make_targets
from ..methods.build import make_cost, make_model
from ..methods.subnet_search import check_budgets
from ..networks.distillation import Distillation
from ..networks.layers import BATCH
from ..networks.resnet50 import sort_middle_channels
from ..runs.phases import TrainingPhase, slug, training_phases
from ..space.costs import CostModel
from ..space.counting import Buckets
from ..space.paths import Path, PathBatch
from ..space.pruning import UniformPaths
from ..space.search_space import SearchSpace, ofa_resnet50
from ..training.loop import OnePath, Progress, build, new_optimizer, train
from .data_facts import DataFacts, data_facts
from .graph_memory import peak_bytes

STATES = {"Adam": 2, "AdamW": 2, "Momentum": 1, "Nesterov": 1, "Sgd": 0}
"""Solver -> number of state arrays that it keeps for every trained array."""


def smallest_path(space: SearchSpace) -> Path:
    """Return the path with the smallest depths, widths and expand ratios of the whole search space."""
    geometry = space.geometry
    return Path(
        min(space.stem_depths),
        (min(space.stem_widths[0]), min(space.stem_widths[1])),
        (min(geometry.depths),) * geometry.stages,
        (min(geometry.widths),) * geometry.stages,
        tuple((min(geometry.ratios),) * (base + min(geometry.depths)) for base in geometry.base_depths),
    )


class SyntheticBatch:
    """Substitute for a `data.loader.Loader` that repeats one batch, made by `synthetic`."""

    def __init__(self, arrays: list[np.ndarray]):
        self.arrays = arrays

    def batches(self, start: int) -> Iterator[list[np.ndarray]]:
        """Yield the batch without end."""
        while True:
            yield self.arrays


def synthetic(config: Config, num_classes: int) -> list[np.ndarray]:
    """Make a batch of one image of Gaussian noise, with one object or label, in the format of the config's training batches.

    Returns:
        The image (1, 3, H, W) float32, then the targets: heatmap, size, offset, index and mask of a detector
        (`data.targets.make_targets`), or the label (1, 1) of a classifier.
    """
    side = input_side(config)
    image = np.random.default_rng(0).normal(size=(1, 3, side, side)).astype(np.float32)
    if not isinstance(config.hparams, DetofaHparams):
        return [image, np.zeros((1, 1))]
    cells = side // config.network.head_geometry(num_classes).output_stride(config.network.geometry)
    box = np.array([[0.25, 0.25, 0.75, 0.75]]) * cells
    targets = make_targets(box, np.array([0]), num_classes, (cells, cells), config.dataloader.max_objects)
    return [image, *(array[None] for array in targets)]


def input_side(config: Config) -> int:
    """Return the side of the largest training input, in pixels."""
    return max((*getattr(config.dataloader, "train_sizes", ()), 0)) or config.dataloader.image_size


def written_files(config: Config) -> list[str]:
    """List the files and folders that the run writes to its output folder; names of folders end in "/"."""
    phases = [f"{slug(phase.name)}/" for phase in training_phases(config)]
    files = ["config.json", "provenance.json", "log.txt", "tensorboard/", "seconds.json", "ledger.json", "checkpoint/", *phases]
    if not isinstance(config.hparams, DetofaHparams):
        fitted = ["paths.jsonl", "path_filter.h5"] if config.hparams.paths else []
        return [*files, "supernet.h5", *fitted, "summary.json"]
    files += ["fullnet.json", "fullnet_detections.json"]
    if config.args.runner == "fullnet":
        return [*files, "summary.json"]
    count = len(config.hparams.search.budgets) or config.hparams.buckets
    files += ["paths.jsonl", "path_filter.h5", "operations.json"] if config.args.runner == "detofa" else []
    files += ["paths_again.jsonl", "path_filter_again.h5", "held_out_paths.jsonl", "scores.json", "search.json"]
    files += ["winners.jsonl"] if config.hparams.search.across_buckets == "loss" else []
    subnets = [f"subnet_{number}{end}" for number in range(1, count + 1) for end in (".json", "_detections.json")]
    return [*files, *subnets, "summary.json"]


def dry_run(config: Config) -> Iterator[str]:
    """Run a config dry and yield the lines of the report, each as soon as it is known.

    Raises:
        UserError: the config could not run even with its data, for example because a size does not fit or a loss is not
            finite.
    """
    Device.open("cpu")
    detection = isinstance(config.hparams, DetofaHparams)
    facts = data_facts(config, whole=True)
    model = make_model(config, facts.num_classes)
    cost = make_cost(config, facts.num_classes, config.dataloader.image_size)
    phases = training_phases(config)
    if detection:
        check_budgets(config.hparams.search.budgets, model.space, cost)
    for phase in phases:
        if phase.batch_size > facts.train:
            raise UserError(f"the batch of {phase.name} is {phase.batch_size} images, and there are {facts.train} to train on")

    yield f"dry run of {config.name}: runner {config.args.runner}, network {config.network_name}; nothing is written"
    yield ""
    yield from artifact_lines(config, facts)
    yield from data_lines(config, facts)
    yield from network_lines(config, facts, model, cost)
    yield from memory_lines(config, facts, model, phases)
    yield from phase_lines(config, facts, phases)
    yield from (detofa_lines(config, model.space, cost) if detection else pretrain_lines(config))
    yield from step_lines(config, facts, model, cost, phases)
    yield "the dry run is complete: every phase did its step"


def artifact_lines(config: Config, facts: DataFacts) -> Iterator[str]:
    """Report the files that the run reads and writes."""

    def state(file: str | None) -> str:
        return "none: random weights" if not file else f"{file} ({'found' if FilePath(file).exists() else 'missing'})"

    yield "reads"
    root = config.dataloader.root
    yield f"  data folder: {root} ({'found' if FilePath(root).is_dir() else 'missing'})"
    if facts.problem:
        yield f"  the run would say: {facts.problem}"
    yield f"  supernet weights: {state(config.network.weights)}"
    yield f"  path filter: {state(config.hparams.filter.weights)}"
    yield f"writes to {config.output_path}"
    yield f"  {', '.join(written_files(config))}"
    yield "  each training phase's folder: weights.h5, optim_train.h5, state.json; checkpoint/ only until the phase is over"
    yield ""


def data_lines(config: Config, facts: DataFacts) -> Iterator[str]:
    """Report the dataset and the numbers of images."""
    hparams, data = config.hparams, config.dataloader
    origin = {"voc": "Pascal VOC", "coco": "COCO", "image_folder": "ImageNet"}[config.dataloader_name]
    yield f"data set ({f'assumed: the published sizes of {origin}' if facts.problem else 'as found'})"
    held = f" ({facts.train + data.holdout} less a holdout of {data.holdout})" if getattr(data, "holdout", 0) else ""
    yield f"  {facts.num_classes} classes, {facts.train} training images{held}"
    if facts.classes:
        given = getattr(data, "classes", None) is not None
        yield f"  classes{'' if given else ', as found in the data set'}: {shown_names(facts.classes)}"
    judged = min(hparams.val_images or facts.val, facts.val)
    yield f"  paths: losses on {judged} of {facts.val} images, BatchNorm re-estimated on {min(hparams.bn_images, facts.train)}"
    if facts.test is not None:
        yield f"  {facts.test} test images"
    sizes = getattr(data, "train_sizes", ())
    several = f"; training draws for each step one of {', '.join(map(str, sizes))}" if sizes else ""
    yield f"  input {data.image_size} x {data.image_size} pixels{several}"
    yield ""


def network_lines(config: Config, facts: DataFacts, model, cost: CostModel) -> Iterator[str]:
    """Report shapes, parameters, FLOPs, FLOPs buckets and the size of the search space."""
    space, detection = model.space, isinstance(config.hparams, DetofaHparams)
    arrays = synthetic(config, facts.num_classes)
    images = nn.Variable(arrays[0].shape)
    outputs = model(images, space.largest, BATCH)
    yield "network (shapes of one image)"
    yield f"  input {arrays[0].shape}"
    named = zip(outputs._fields, outputs) if detection else [("logits", outputs)]
    yield "  outputs: " + ", ".join(f"{name} {output.shape}" for name, output in named)
    names = ("heatmap", "size", "offset", "index", "mask") if detection else ("label",)
    yield "  targets: " + ", ".join(f"{name} {array.shape}" for name, array in zip(names, arrays[1:]))
    head = cost.head if detection else None
    whole = CostModel(cost.image_size, facts.num_classes, "detector" if detection else "classifier", cost.backbone, head)
    ends = PathBatch.from_paths([space.largest, smallest_path(space)], space.geometry)
    params, flops = whole.params(ends), cost.flops(ends)
    yield f"  parameters, whole network: {params[0] / 1e6:.4g} M on the largest path, {params[1] / 1e6:.4g} M on the smallest"
    yield (
        f"  GFLOPs (multiply-accumulates, scope {cost.scope}, {cost.image_size} pixels): {flops[0] / 1e9:.4g} on the largest "
        f"path, {flops[1] / 1e9:.4g} on the smallest"
    )
    buckets = Buckets(space, cost.flops, config.hparams.buckets)
    yield f"  {buckets.n} FLOPs buckets, edges in GFLOPs: {', '.join(f'{edge / 1e9:.4g}' for edge in buckets.edges)}"
    shares = ", ".join(f"{buckets.share(bucket):.3g}" for bucket in range(buckets.n))
    yield f"  share of uniformly drawn paths in each bucket: {shares}"
    yield f"  search space {space.name}: {space.size():.4g} paths"
    yield ""


class StepMemory(NamedTuple):
    """Memory of a training step on one device in bytes, estimated from the graph.

    On a null GPU, which only counts allocations, the estimates are 2 to 6% below the peaks (`make test-null-gpu`).

    Attributes:
        image: peak of the largest path's values and gradients for one image.
        batch: number of images in the mini-batch of one process.
        kept: weights, their gradients (and sums of gradients over mini-batches), and the solver's states.
        teacher: weights of the fullnet as the teacher of distillation; 0 without distillation.
    """

    image: int
    batch: int
    kept: int
    teacher: int

    @property
    def total(self) -> int:
        """Sum of all parts for the whole mini-batch, in bytes."""
        return self.batch * self.image + self.kept + self.teacher


def step_memory(config: Config, facts: DataFacts, model, phases: tuple[TrainingPhase, ...]) -> StepMemory:
    """Estimate the memory of a training step in the phase with the largest batch."""
    arrays = synthetic(config, facts.num_classes)
    graph = build(model, model.space.largest, [nn.Variable(array.shape) for array in arrays])
    image = peak_bytes(graph.losses[0], model.get_parameters().values())
    weights = sum(4 * int(np.prod(p.shape)) for p in model.get_parameters(grad_only=True).values())
    batch = config.hparams.mini_batch or max(phase.batch_size for phase in phases)
    kept = weights * (2 + STATES[config.optimizer.train.name] + bool(config.hparams.mini_batch))
    return StepMemory(image, batch, kept, weights * any(phase.kd_ratio for phase in phases))


def memory_lines(config: Config, facts: DataFacts, model, phases: tuple[TrainingPhase, ...]) -> Iterator[str]:
    """Report the estimated memory of a training step."""
    memory = step_memory(config, facts, model, phases)
    image, batch, kept, teacher = memory
    sums = ", their sums over mini-batches" if config.hparams.mini_batch else ""
    yield "memory of a training step (estimate from the graph, 32-bit)"
    yield f"  the largest path's values and gradients for one image, when they are most: {_megabytes(image)}"
    yield f"  times {batch}, the mini-batch on one process: {_megabytes(batch * image)}"
    yield f"  weights, their gradients{sums} and {config.optimizer.train.name}'s states: {_megabytes(kept)}"
    if teacher:
        yield f"  weights of the teacher: {_megabytes(teacher)}"
    yield f"  together {_megabytes(memory.total)}"
    yield "  not counted: workspace of the convolutions, a teacher's passing activations, batches waiting in the loader"
    yield ""


def _megabytes(count: int) -> str:
    """Format a number of bytes in MiB or GiB."""
    return f"{count / 2**20:.4g} MiB" if count < 2**30 else f"{count / 2**30:.4g} GiB"


def phase_lines(config: Config, facts: DataFacts, phases: tuple[TrainingPhase, ...]) -> Iterator[str]:
    """Report epochs, batches, learning rates and paths of every training phase."""
    assumed = " (assumed)" if facts.problem else ""
    yield "training phases"
    for number, phase in enumerate(phases, 1):
        per_epoch, schedule = phase.steps_per_epoch(facts.train), phase.schedule(facts.train)
        epochs = len(phase.epochs)
        yield f"  {number}. {phase.name}: {epochs} epochs, {phase.paths}"
        yield f"     batch {phase.batch_size}: {per_epoch} iterations per epoch{assumed}, {epochs * per_epoch} in all"
        yield f"     {_solver(phase, per_epoch)}"
        if len(phase.epochs) < phase.schedule_epochs:
            part = f"epochs {phase.epochs.start} to {phase.epochs.stop}"
            yield f"     is {part} of a schedule of {phase.schedule_epochs} epochs"
        if epochs:
            first, last = phase.epochs.start * per_epoch, phase.epochs.stop * per_epoch - 1
            rates = [schedule.get_learning_rate(step) for step in (first, last)]
            yield f"     learning rate {rates[0]:.4g} at its first step, {rates[1]:.4g} at its last"
        if not phase.largest_only and not phase.kd_ratio and phase.paths_per_step == 1:
            yield "     one path per iteration"
        elif not phase.largest_only:
            teacher = f"; distillation from the frozen fullnet, weight {phase.kd_ratio:g}" if phase.kd_ratio else ""
            yield f"     {phase.paths_per_step} path(s) per iteration{teacher}; {phase.space.size():.4g} paths in its space"
        if phase.sorted_ratios:
            groups = f"E {', '.join(map(str, phase.sorted_ratios))} and W {', '.join(map(str, phase.sorted_widths))}"
            yield f"     before it the middle channels are sorted, within those of {groups}"
    yield ""


def _solver(phase: TrainingPhase, per_epoch: int) -> str:
    """Describe the solver and the learning-rate schedule of a phase."""
    solver: Solver = phase.solver
    kinds = {
        "step": f"x {solver.gamma:g} at epochs {', '.join(map(str, solver.milestones))}",
        "cosine": f"cosine to 0 over {phase.schedule_epochs} epochs",
        "constant": "constant",
    }
    warm = solver.warmup_steps + phase.warmup_epochs * per_epoch
    warm_up = f"rising over the first {warm} steps ({warm / per_epoch:.3g} epochs)" if warm else "from the first step on"
    return f"{solver.name}, rate {solver.lr:g} {warm_up}, {kinds[solver.schedule]}, weight decay {solver.weight_decay:g}"


PAIRS = {
    "bounded": "pairs of one FLOPs bucket",
    "all": "pairs of all buckets",
    "both": "pairs of one FLOPs bucket and pairs of all buckets",
}


def filter_lines(config: Config, per_bucket: int) -> Iterator[str]:
    """Report the path filter's data (`per_bucket` paths of each FLOPs bucket), architecture and training."""
    options, buckets = config.hparams.filter, config.hparams.buckets
    held = round(0.2 * per_bucket)
    yield "path filter"
    yield (
        f"  m = {per_bucket} paths per bucket, {per_bucket * buckets} in all: 80/20 in each bucket, "
        f"{per_bucket - held} to train and {held} to validate"
    )
    yield (
        f"  {options.layers} transformer layers, {options.heads} heads, width {options.dim}, "
        f"feed-forward {options.feed_forward}, {options.pooling} pooling; positional "
        f"encoding {options.encoding}, of the block too: {options.block_encoding}; "
        f"stem tokens: {options.stem_tokens}; linear skip: {options.linear_skip}; members: {options.ensemble}"
    )
    yield (
        f"  Adam, rate {options.lr:g}, batch {options.batch_size}, at most {options.epochs} epochs, "
        f"patience {options.patience}, weight decay {options.weight_decay:g}, dropout {options.dropout:g}; "
        f"loss over {PAIRS[options.pairs]}, margin 1 between {options.margin}s"
        + (f", and {options.regression:g} times the squared error of the logits" if options.regression else "")
    )


def detofa_lines(config: Config, space: SearchSpace, cost: CostModel) -> Iterator[str]:
    """Report the path filter, the pruning and the search of Algorithm 1 or of a baseline."""
    hparams, search, ours = config.hparams, config.hparams.search, config.args.runner == "detofa"
    if config.args.runner == "fullnet":
        return
    yield from filter_lines(config, hparams.paths_per_bucket)
    yield f"  fitted {'after the warm-up, and again, ' if ours else ''}on paths of the final supernet, before the search"
    yield f"  held-out paths for Kendall's tau: {hparams.heldout_paths_per_bucket} per bucket"
    if ours:
        yield from pruning_lines(config, space)
    yield "search"
    yield (
        f"  {search.generations} generations, population {search.population}, parents {search.parent_ratio:.0%}, mutation "
        f"{search.mutate_prob:g}, {search.mutation_ratio:.0%} mutants and {1 - search.mutation_ratio:.0%} crossovers"
    )
    budgets = search.budgets or Buckets(space, cost.flops, hparams.buckets).edges[1:]
    listed = ", ".join(f"{budget / 1e9:.4g}" for budget in budgets)
    yield f"  budgets in GFLOPs: {listed}; across buckets by {search.across_buckets}"
    yield "  the found subnets are not fine-tuned"
    if ours:
        yield "the paper's baselines, each a run of its own: args.runner=fullnet, ofa, compofa or ofa_ps"
    yield ""


def pruning_lines(config: Config, space: SearchSpace) -> Iterator[str]:
    """Report the settings of operation and path pruning."""
    hparams, pruning = config.hparams, config.hparams.operation_pruning
    yield "pruning"
    shares = {
        "flops_score_all": f"r_op1 {pruning.r_op1:g} of all, then r_op2 {pruning.r_op2:g} in each bucket",
        "none": "no operation",
    }
    yield f"  operations: {pruning.strategy}, {shares.get(pruning.strategy, f'r_op {pruning.r_op:g} in each bucket')}"
    yield f"  {len(space.operations)} operations, each scored on {hparams.paths_per_operation} paths"
    yield (
        f"  paths: {hparams.path_pruning}, r_path {hparams.r_path:g}; "
        f"thresholds from {hparams.threshold_paths} paths per bucket"
    )


def pretrain_lines(config: Config) -> Iterator[str]:
    """Report the settings that only a pre-training has."""
    hparams = config.hparams
    yield f"label smoothing {hparams.label_smoothing:g}"
    if hparams.paths:
        yield from filter_lines(config, hparams.paths // hparams.buckets)
    yield ""


def step_lines(config: Config, facts: DataFacts, model, cost: CostModel, phases: tuple[TrainingPhase, ...]) -> Iterator[str]:
    """Run one training step of every phase that has epochs, and report its path, loss, gradients and duration."""
    yield "one step of each phase on the CPU: random weights, one synthetic image, forward, backward, update"
    arrays, rng = synthetic(config, facts.num_classes), np.random.default_rng((config.args.seed, 2))
    largest = ofa_resnet50(config.network.geometry, config.network.elastic_stem).largest
    fullnet = {name: parameter.d.copy() for name, parameter in model.get_parameters().items()}
    for phase in phases:
        if not phase.epochs:
            yield f"  {phase.name}: no epochs"
            continue
        if phase.sorted_ratios:
            sort_middle_channels(model, phase.sorted_ratios, phase.sorted_widths)
        sampler = OnePath(largest) if phase.largest_only else UniformPaths(phase.space, rng)
        optimizer = new_optimizer(model, phase.solver, phase.schedule(facts.train))
        objective = Distillation(model, largest, fullnet, phase.kd_ratio) if phase.kd_ratio else None
        seen: list[Progress] = []
        start = time.perf_counter()
        train(
            model,
            optimizer,
            sampler,
            SyntheticBatch(arrays),
            [nn.Variable(array.shape) for array in arrays],
            range(1),
            paths_per_step=phase.paths_per_step,
            objective=objective,
            on_step=seen.append,
        )
        parameters = optimizer.get_parameters()
        reached = sum(bool(np.any(parameter.g)) for parameter in parameters.values())
        flops = cost.flops(PathBatch.from_paths([seen[0].path], model.space.geometry))[0]
        teacher = " with the teacher" if objective else ""
        yield (
            f"  {phase.name}{teacher}: a path of {flops / 1e9:.4g} GFLOPs, loss {seen[0].losses[0]:.4g}, gradients in "
            f"{reached} of {len(parameters)} arrays, {time.perf_counter() - start:.1f} s"
        )
    yield (
        "  (arrays without a gradient are not of the path, or behind a residual branch that starts at 0; paths are of A where "
        "the run would prune it first)"
    )
    yield ""
