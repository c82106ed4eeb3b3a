"""Dry run of a config, without its data, its weights or a GPU: `detofa train CONFIG --dry-run`.

A dry run builds the full-size networks at the config's input size. Each training phase runs one step of the real training
loop (forward, backward, update) on the CPU, with a batch of one synthetic image. Nothing is written.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path as FilePath
from typing import Any, cast

import numpy as np

from ..backend.compat import Device, nn
from ..common.checked import counted
from ..common.errors import UserError
from ..common.reading import shown_names
from ..config import CocoData, Config, DetofaHparams, Filter, ImageFolderData, PretrainHparams, Solver, VocData
from ..data.loader import Loader
from ..data.sets import sets_type
from ..data.targets import Targets
from ..methods.build import make_cost, make_model
from ..methods.subnet_search import check_budgets
from ..networks.distillation import Distillation
from ..networks.layers import BATCH
from ..networks.resnet50 import sort_middle_channels
from ..runs.phases import TrainingPhase, check_phases, slug, training_phases
from ..space.costs import CostModel, cost_range
from ..space.counting import Buckets
from ..space.paths import Path, PathBatch
from ..space.pruning import UniformPaths
from ..space.search_space import SearchSpace
from ..training.loop import OnePath, Progress, new_optimizer, train
from ..training.resolution import at_resolution
from .data_facts import DataFacts, data_facts
from .graph_memory import StepMemory, free_memory, step_memory
from .own_network import network_checks
from .synthetic import SyntheticBatch, shapes, synthetic


def smallest_path(space: SearchSpace) -> Path:
    """Return the path with the smallest depths, widths and expand ratios of the whole search space."""
    geometry = space.geometry
    return Path(
        min(space.stem_depths),
        (min(space.stem_widths[0]), min(space.stem_widths[1])),
        (min(geometry.depths),) * geometry.stages,
        (min(geometry.widths),) * geometry.stages,
        tuple((min(geometry.ratios),) * (base + min(geometry.depths)) for base in geometry.base_depths),
        tuple((name, values[0]) for name, values in space.named),
    )


def written_files(config: Config) -> list[str]:
    """List the files and folders that the run writes to its output folder; names of folders end in "/"."""
    phases, every = training_phases(config), config.hparams.checkpoint_every_epochs
    files = ["config.json", "provenance.json", "log.txt", "tensorboard/", "seconds.json", "ledger.json"]
    if any(epoch % every == 0 for phase in phases for epoch in phase.epochs[1:]):  # none is saved after the last epoch
        files.append("checkpoint/")
    files += [f"{slug(phase.name)}/" for phase in phases]
    if not isinstance(config.hparams, DetofaHparams):
        fitted = ["paths.jsonl", "path_filter.h5"] if config.hparams.paths else []
        return [*files, "supernet.h5", *fitted, "summary.json"]
    files += ["fullnet.json", "fullnet_detections.json"]
    if config.method == "fullnet":
        return [*files, "summary.json"]
    count = len(config.hparams.search.budgets) or config.hparams.buckets
    files += ["paths.jsonl", "path_filter.h5", "operations.json"] if config.method == "detofa" else []
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
    hparams = config.hparams
    facts = data_facts(config, whole=True)
    phases = training_phases(config)
    check_phases(phases, facts.train)
    cost = make_cost(config, facts.num_classes, config.dataloader.image_size)
    if isinstance(hparams, DetofaHparams):
        check_budgets(hparams.search.budgets, config.network.space, cost)
    check_parameters(config, facts)

    yield f"dry run of {config.name}: runner {config.args.runner}, network {config.network_name}; nothing is written"
    yield ""
    yield from file_lines(config, facts)
    yield from data_lines(config, facts)
    model = make_model(config, facts.num_classes)
    yield from network_lines(config, facts, model, cost)
    memory = step_memory(config, facts.num_classes, model, phases)
    yield from memory_lines(config, memory)
    yield from phase_lines(facts, phases)
    if isinstance(hparams, DetofaHparams):
        yield from search_lines(config.method, hparams, model.space, cost)
    else:
        yield from pretrain_lines(hparams)
    needed, free = memory.image + memory.kept, free_memory()
    if free is not None and needed > free:
        yield f"no step is tried: it needs {_megabytes(needed)}, and {_megabytes(free)} of memory are free on this machine"
        yield "dry run complete, without the steps"
        return
    yield from step_lines(config, facts, model, cost, phases)
    yield "dry run complete: one step of every phase succeeded"


def check_parameters(config: Config, facts: DataFacts) -> None:
    """Raise UserError if the memory of this machine does not hold the weights and gradients of the network."""
    kind = "detector" if isinstance(config.hparams, DetofaHparams) else "classifier"
    whole = config.network.cost_model(config.dataloader.image_size, facts.num_classes, kind)
    params = int(whole.params([config.network.space.largest])[0])
    free = free_memory()
    if free is not None and 8 * params > free:
        raise UserError(
            f"network.{config.network_name} has {params / 1e9:.4g} G parameters, and their values and gradients need "
            f"{_megabytes(8 * params)}; {_megabytes(free)} of memory are free on this machine: reduce the numbers of channels"
        )


# --- Files, data and network ------------------------------------------------------------------------------------------


def file_lines(config: Config, facts: DataFacts) -> Iterator[str]:
    """Report the files that the run reads and writes."""

    def state(file: str | None) -> str:
        return "none: random weights" if not file else f"{file} ({'found' if FilePath(file).exists() else 'missing'})"

    yield "reads"
    root = config.dataloader.root
    yield f"  data folder: {root} ({'found' if FilePath(root).is_dir() else 'missing'})"
    if facts.problem:
        yield f"  the run would stop with: {facts.problem}"
    yield f"  supernet weights: {state(config.network.weights)}"
    yield f"  path filter: {state(config.hparams.filter.weights)}"
    yield f"writes to {config.output_path}"
    yield f"  {', '.join(written_files(config))}"
    yield "  each training phase's folder: weights.h5, optim_train.h5, state.json; checkpoint/ until the phase is complete"
    yield ""


def data_lines(config: Config, facts: DataFacts) -> Iterator[str]:
    """Report the dataset and the numbers of images."""
    hparams, data = config.hparams, config.dataloader
    origin = {VocData: "Pascal VOC", CocoData: "COCO", ImageFolderData: "ImageNet"}.get(type(data), "")
    yield f"dataset ({f'not found; assuming the published sizes of {origin}' if facts.problem else 'found'})"
    holdout = 0 if isinstance(data, ImageFolderData) else data.holdout
    held = f" ({facts.train + holdout} less a holdout of {holdout})" if holdout else ""
    yield f"  {facts.num_classes} classes, {facts.train} training images{held}"
    if facts.classes:
        given = getattr(data, "classes", None) is not None
        yield f"  classes{'' if given else ', from the dataset'}: {shown_names(facts.classes)}"
    used = min(hparams.val_images or facts.val, facts.val)
    yield f"  paths: losses on {used} of {facts.val} images, BatchNorm re-estimated on {min(hparams.bn_images, facts.train)}"
    if facts.test is not None:
        yield f"  {facts.test} test images"
    sizes, resolutions = getattr(data, "train_sizes", ()), config.network.geometry.resolutions
    several = f"; each training step samples one of {', '.join(map(str, sizes))}" if sizes else ""
    several += f"; each path has one of {', '.join(map(str, resolutions))}" if resolutions else ""
    yield f"  input {data.image_size} x {data.image_size} pixels{several}"
    yield ""


def network_lines(config: Config, facts: DataFacts, model: Any, cost: CostModel) -> Iterator[str]:
    """Report shapes, parameters, FLOPs, FLOPs buckets and the size of the search space."""
    space, detection = model.space, isinstance(config.hparams, DetofaHparams)
    inputs = shapes(config, facts.num_classes)
    images = nn.Variable(inputs[0])
    outputs = model(images, space.largest, BATCH)
    yield "network (shapes for one image)"
    yield f"  input {inputs[0]}"
    named = zip(model.map_names, model.maps(outputs)) if detection else [("logits", outputs)]
    yield "  outputs: " + ", ".join(f"{name} {output.shape}" for name, output in named)
    names = Targets._fields if detection else ("label",)
    targets = list(map(str, at_resolution(model, inputs, space.largest.resolution)[1:]))
    yield "  targets: " + ", ".join(targets if sets_type(config) else map(" ".join, zip(names, targets)))
    whole = config.network.cost_model(cost.image_size, facts.num_classes, "detector" if detection else "classifier")
    ends = PathBatch.from_paths([space.largest, smallest_path(space)], space.geometry)
    params, flops = whole.params(ends), cost.flops(ends)
    sides = space.geometry.resolutions or (cost.image_size,)
    pixels = " to ".join(map(str, dict.fromkeys((sides[0], sides[-1]))))
    yield f"  parameters, whole network: {params[0] / 1e6:.4g} M on the largest path, {params[1] / 1e6:.4g} M on the smallest"
    yield (
        f"  GFLOPs (multiply-accumulates, scope {cost.scope}, {pixels} pixels): {flops[0] / 1e9:.4g} on the largest "
        f"path, {flops[1] / 1e9:.4g} on the smallest"
    )
    buckets = Buckets(space, cost.flops, config.hparams.buckets)
    yield f"  {buckets.n} FLOPs buckets, edges in GFLOPs: {_in_gflops(buckets.edges)}"
    shares = [f"{buckets.share(bucket):.3g}" for bucket in range(min(buckets.n, LISTED))]
    first = "" if buckets.n == len(shares) else f" of the first {LISTED}"
    yield f"  fraction of uniformly sampled paths in each bucket{first}: {', '.join(shares)}"
    yield f"  search space {space.name}: {space.size():.4g} paths"
    if ":" in config.network_name:
        yield from (f"  checked: {line}" for line in network_checks(config.network, facts.num_classes, whole))
    yield ""


LISTED = 20
"""Number of FLOPs buckets that are listed; of the many of a large `hparams.buckets`, counting all would take minutes."""


def _in_gflops(flops: Iterable[float]) -> str:
    """List FLOPs in GFLOPs."""
    return shown_names([f"{value / 1e9:.4g}" for value in flops], LISTED + 1)


def memory_lines(config: Config, memory: StepMemory) -> Iterator[str]:
    """Report the estimated memory of a training step."""
    image, batch, kept, teacher = memory
    sums = ", their sums over mini-batches" if config.hparams.mini_batch else ""
    yield "memory of a training step (estimated from the graph, 32-bit)"
    yield f"  peak of the largest path's values and gradients for one image: {_megabytes(image)}"
    yield f"  times {batch}, the mini-batch of one process: {_megabytes(batch * image)}"
    yield f"  weights, their gradients{sums} and the states of {config.optimizer.train.name}: {_megabytes(kept)}"
    if teacher:
        yield f"  weights of the teacher: {_megabytes(teacher)}"
    yield f"  total: {_megabytes(memory.total)}"
    yield "  not included: workspaces of convolutions, temporary activations of a teacher, batches queued in the loader"
    yield ""


def _megabytes(count: int) -> str:
    """Format a number of bytes in MiB or GiB."""
    return f"{count / 2**20:.4g} MiB" if count < 2**30 else f"{count / 2**30:.4g} GiB"


# --- Training, path filter and search ---------------------------------------------------------------------------------


def phase_lines(facts: DataFacts, phases: tuple[TrainingPhase, ...]) -> Iterator[str]:
    """Report epochs, batches, learning rates and paths of every training phase."""
    assumed = " (assumed)" if facts.problem else ""
    yield "training phases"
    for number, phase in enumerate(phases, 1):
        per_epoch, schedule = phase.steps_per_epoch(facts.train), phase.schedule(facts.train)
        epochs = len(phase.epochs)
        yield f"  {number}. {phase.name}: {counted(epochs, 'epoch')}, {phase.paths}"
        yield f"     batch size {phase.batch_size}: {per_epoch} steps per epoch{assumed}, {epochs * per_epoch} in total"
        yield f"     {_solver(phase, per_epoch)}"
        if len(phase.epochs) < phase.schedule_epochs:
            all_epochs = counted(phase.schedule_epochs, "epoch")
            yield f"     epochs {phase.epochs.start} to {phase.epochs.stop} of a schedule of {all_epochs}"
        if epochs:
            first, last = phase.epochs.start * per_epoch, phase.epochs.stop * per_epoch - 1
            rates = [schedule.get_learning_rate(step) for step in (first, last)]
            yield f"     learning rate {rates[0]:.4g} at the first step, {rates[1]:.4g} at the last"
        if not phase.largest_only and not phase.kd_ratio and phase.paths_per_step == 1:
            yield "     one path per step"
        elif not phase.largest_only:
            teacher = f"; distillation from the frozen fullnet, weight {phase.kd_ratio:g}" if phase.kd_ratio else ""
            yield f"     {phase.paths_per_step} path(s) per step{teacher}; {phase.space.size():.4g} paths in its space"
        if phase.sorted_ratios:
            groups = f"E {', '.join(map(str, phase.sorted_ratios))} and W {', '.join(map(str, phase.sorted_widths))}"
            yield f"     the middle channels are sorted before this phase, within the groups of {groups}"
    yield ""


def _solver(phase: TrainingPhase, per_epoch: int) -> str:
    """Describe the solver and the learning-rate schedule of a phase."""
    solver: Solver = phase.solver
    kinds = {
        "step": f"x {solver.gamma:g} at epochs {', '.join(map(str, solver.milestones))}",
        "cosine": f"cosine to 0 over {counted(phase.schedule_epochs, 'epoch')}",
        "constant": "constant",
    }
    warm = solver.warmup_steps + phase.warmup_epochs * per_epoch
    in_epochs = "1 epoch" if warm == per_epoch else f"{warm / per_epoch:.3g} epochs"
    warm_up = f"with a warm-up of {warm} steps ({in_epochs})" if warm else "without warm-up"
    return f"{solver.name}, rate {solver.lr:g} {warm_up}, {kinds[solver.schedule]}, weight decay {solver.weight_decay:g}"


PAIRS = {
    "bounded": "pairs within one FLOPs bucket",
    "all": "pairs across all buckets",
    "both": "pairs within one FLOPs bucket and pairs across all buckets",
}


def filter_lines(options: Filter, buckets: int, per_bucket: int) -> Iterator[str]:
    """Report the path filter's data (`per_bucket` paths of each FLOPs bucket), architecture and training."""
    held = round(0.2 * per_bucket)
    yield "path filter"
    yield (
        f"  m = {per_bucket} paths per bucket, {per_bucket * buckets} in total; per bucket {per_bucket - held} for training "
        f"and {held} for validation"
    )
    yield (
        f"  {options.layers} transformer layers, {options.heads} heads, width {options.dim}, "
        f"feed-forward width {options.feed_forward}, {options.pooling} pooling; positional "
        f"encoding {options.encoding}, block encoding: {options.block_encoding}; "
        f"stem tokens: {options.stem_tokens}; linear skip: {options.linear_skip}; ensemble members: {options.ensemble}"
    )
    yield (
        f"  Adam, rate {options.lr:g}, batch size {options.batch_size}, at most {options.epochs} epochs, "
        f"patience {options.patience}, weight decay {options.weight_decay:g}, dropout {options.dropout:g}; "
        f"loss over {PAIRS[options.pairs]}, margin 1 between {options.margin}s"
        + (f", plus {options.regression:g} times the squared error of the logits" if options.regression else "")
    )


def search_lines(runner: str, hparams: DetofaHparams, space: SearchSpace, cost: CostModel) -> Iterator[str]:
    """Report the path filter, the pruning and the search of Algorithm 1 or of a baseline."""
    search, detofa = hparams.search, runner == "detofa"
    if runner == "fullnet":
        return
    yield from filter_lines(hparams.filter, hparams.buckets, hparams.paths_per_bucket)
    yield f"  fitted {'after the warm-up, and again ' if detofa else ''}on paths of the final supernet, before the search"
    yield f"  held-out paths for Kendall's tau: {hparams.heldout_paths_per_bucket} per bucket"
    if detofa:
        yield from pruning_lines(hparams, space)
    yield "search"
    yield (
        f"  {search.generations} generations, population {search.population}, parents {search.parent_ratio:.0%}, mutation "
        f"{search.mutate_prob:g}, {search.mutation_ratio:.0%} mutants and {1 - search.mutation_ratio:.0%} crossovers"
    )
    budgets = search.budgets or Buckets(space, cost.flops, hparams.buckets).edges[1:]
    yield f"  budgets in GFLOPs: {_in_gflops(budgets)}; buckets compared by {search.across_buckets}"
    if any(budget > cost_range(space, cost.flops)[1] for budget in budgets):
        yield "  a budget above the largest path bounds nothing"
    yield "  the subnets found are not fine-tuned"
    if detofa:
        yield "the paper's baselines are separate runs: args.runner=fullnet, ofa, compofa or ofa_ps"
    yield ""


def pruning_lines(hparams: DetofaHparams, space: SearchSpace) -> Iterator[str]:
    """Report the settings of operation and path pruning."""
    pruning = hparams.operation_pruning
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


def pretrain_lines(hparams: PretrainHparams) -> Iterator[str]:
    """Report the settings that only a pre-training has."""
    yield f"label smoothing {hparams.label_smoothing:g}"
    if hparams.paths:
        yield from filter_lines(hparams.filter, hparams.buckets, hparams.paths // hparams.buckets)
    yield ""


SPEED = 5e9
"""Multiply-accumulates per second of a CPU core, roughly; a forward and backward pass takes three times those of a path."""


# --- One step of each phase -------------------------------------------------------------------------------------------


def step_lines(
    config: Config, facts: DataFacts, model: Any, cost: CostModel, phases: tuple[TrainingPhase, ...]
) -> Iterator[str]:
    """Run one training step of every phase that has epochs, and report its path, loss, gradients and duration."""
    largest = config.network.space.largest
    macs = 3 * sum(map(bool, (phase.epochs for phase in phases))) * cost.flops([largest])[0]
    minutes = f"; this may take {macs / SPEED / 60:.0f} minutes" if macs > 60 * SPEED else ""
    yield f"one step of each phase on the CPU: random weights, one synthetic image, forward, backward, update{minutes}"
    arrays, rng = synthetic(config, facts.num_classes), np.random.default_rng((config.args.seed, 2))
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
            cast(Loader, SyntheticBatch(arrays)),  # `train` uses nothing but its batches
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
        "  (arrays without a gradient are outside the path, or behind a residual branch that is initialized to 0; where the "
        "run would prune first, the path is from the unpruned space A)"
    )
    yield ""
