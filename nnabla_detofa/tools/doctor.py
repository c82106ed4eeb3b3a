"""Checks of an installation and of everything that a config needs: `detofa doctor`.

This module must load in a broken installation, so third-party packages are imported inside the checks.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import textwrap
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..common.checked import counted
from ..common.shipped import shipped
from .installation import OK, PROBLEM, WARNING, Finding, _message, command, gpu, mpi, no_gpu, packages, python, wheel

SMALL_SET = 10000
"""Largest number of images of a dataset that is searched for broken images."""


def examine(config_file: str | None = None, overrides: Sequence[str] = ()) -> Iterator[Finding]:
    """Run all checks and yield their findings one by one; a check that fails does not stop the others.

    Args:
        config_file: a config; its data, weights, output folder, disk space, memory and device are checked too. None checks
            the datasets of all configs in configs/ and the free disk space instead.
        overrides: "key=value" strings that replace settings of the config.
    """
    config, broken = None, []
    if config_file is not None:
        try:
            from .. import config as configs

            config = configs.load(config_file, overrides)
        except Exception as error:  # a package that the config module imports may be broken
            broken = [Finding(PROBLEM, f"the config {config_file} cannot be used: {_message(error)}")]
    checks: list[Callable[[], Iterator[Finding]]] = [python, packages, wheel, command, lambda: gpu(config), mpi]
    if config_file is None:
        checks += [known_data, lambda: disk(None)]
    for check in checks:
        try:
            yield from check()
        except Exception as error:  # a failed check must not stop the others
            yield Finding(WARNING, f"the check {check.__name__} failed: {_message(error)}")
    data = partial(config_data, words=shlex.join([config_file or "", *overrides]))
    needed: dict[str, Callable[[Any], Iterator[Finding]]] = {"config_data": data, "weights": weights, "output": output}
    needed.update(disk=disk, memory=memory)
    for name, check_config in needed.items() if config is not None else ():
        try:
            yield from check_config(config)
        except Exception as error:
            yield Finding(PROBLEM, f"the check {name} of {config_file} failed: {_message(error)}")
    yield from broken


# --- Checks of a config -----------------------------------------------------------------------------------------------


def known_data() -> Iterator[Finding]:
    """Check the datasets of all shipped configs that exist, each once; report all missing ones in a single finding."""
    from .. import config as configs
    from ..common.errors import UserError

    by_data: dict[tuple, list[Any]] = {}
    for file in sorted(shipped("configs").glob("*.json")):
        try:
            config = configs.load(file)
        except UserError:
            continue  # a base config, which cannot run on its own
        data = config.dataloader
        splits = (getattr(data, name, None) for name in ("train", "val", "test"))
        by_data.setdefault((data.root, *splits), []).append(config)
    missing: dict[str, None] = {}
    for users in by_data.values():
        if not Path(root := users[0].dataloader.root).is_dir():
            missing[root] = None
            continue
        for finding in config_data(users[0], users[0].name):
            state = WARNING if finding.state == PROBLEM else finding.state  # no run needs it now
            names = ", ".join(config.name for config in users[:3]) + (", ..." if len(users) > 3 else "")
            yield Finding(state, f"{finding.text} [{names}]", finding.todo)
    if missing:
        what = f"data: not found: {', '.join(missing)}; only runs of the configs that name them need them"
        yield Finding(OK, what, "detofa doctor CONFIG checks the data of one config")


def config_data(config: Any, words: str) -> Iterator[Finding]:
    """Check that a config's dataset exists and report its size.

    The files of datasets with at most `SMALL_SET` images are also checked for damage.

    Args:
        words: the config and its overrides in a command line.
    """
    from ..common.errors import UserError
    from ..data.check import check_config

    data = config.dataloader
    root, command_line = Path(data.root), f"detofa data check {words}"
    more = f"{command_line} lists all"
    if not root.is_dir():
        yield Finding(PROBLEM, f"data: the folder {root} does not exist", _where_from(config))
        return
    try:
        if _count_images(config) > SMALL_SET:
            from .data_facts import data_facts

            facts = data_facts(config)
            if facts.problem:
                yield Finding(PROBLEM, f"data: {facts.problem}", f"{more}; {_where_from(config)}")
                return
            found = {"train": facts.train, "val": facts.val, "test": facts.test}
            listed = ", ".join(f"{count} {name}" for name, count in found.items() if count is not None)
            yield Finding(OK, f"data: {root}: {listed}; image files not checked", f"{command_line} reads every image")
            return
        report = check_config(config)
    except UserError as error:
        yield Finding(PROBLEM, f"data: {error}", _where_from(config))
        return
    counts = ", ".join(f"{split.images} {split.name}" for split in report.splits)
    if report.fatal:
        rest = f" (and {len(report.fatal) - 1} more)" if len(report.fatal) > 1 else ""
        yield Finding(PROBLEM, f"data: {root}: {report.fatal[0]}{rest}", more)
    elif report.warnings:
        warned = counted(len(report.warnings), "warning")
        yield Finding(WARNING, f"data: {root}: {counts}; {warned}: {report.warnings[0]}", more)
    else:
        yield Finding(OK, f"data: {root}: {counts}, all files are complete")


def _count_images(config: Any) -> int:
    """Count the files in the image folders of a config; counting stops as soon as there are more than `SMALL_SET`."""
    data, root = config.dataloader, Path(config.dataloader.root)
    if config.dataloader_name == "voc":
        folders = [*root.glob("JPEGImages"), *root.glob("*/JPEGImages")]
    elif config.dataloader_name == "coco":
        folders = [root / split.images for split in (data.train, data.val, data.test) if split]
    elif config.dataloader_name == "yolo" or ":" in config.dataloader_name:
        folders = [root]
    else:
        folders = [root / data.train, root / data.val]
    count = 0
    for folder in folders:
        for _, _, files in os.walk(folder):
            count += len(files)
            if count > SMALL_SET:
                return count
    return count


def _where_from(config: Any) -> str:
    """Return instructions for getting the dataset of a config."""
    root = config.dataloader.root
    if Path(root).name == "classification" and "digits" in root or Path(root).name == "digits":
        place = Path(root).parent if Path(root).name == "classification" else root
        return f"detofa data digits --root {place}"
    key = f"dataloader.{config.dataloader_name}.root"
    return f"copy the dataset to this folder, or set {key}=FOLDER"


def weights(config: Any) -> Iterator[Finding]:
    """Check that the weights that a config starts from exist, can be read, and fit its networks."""
    named = {
        "supernet weights": (config.network.weights, _load_supernet),
        "path filter": (config.hparams.filter.weights, _load_filter),
    }
    for what, (file, load) in named.items():
        if not file:
            yield Finding(OK, f"{what}: none given, starting from random weights")
        elif not Path(file).is_file():
            folder = Path(file).parent
            run = folder.name if folder.parent.name == "runs" else ""
            todo = f"detofa train configs/{run}.json writes it" if run else "train it, or name another file"
            yield Finding(PROBLEM, f"{what}: {file} is missing", todo)
        else:
            try:
                load(config)
            except Exception as error:
                yield Finding(PROBLEM, f"{what}: {_message(error)}", "copy the file again, or name another")
            else:
                yield Finding(OK, f"{what}: {file} is valid and fits")


def _load_supernet(config: Any) -> None:
    """Load the supernet's weights as the run does; raises the same errors."""
    from ..config import DetofaHparams
    from ..methods.build import make_model
    from .data_facts import data_facts

    classes = config.network.num_classes or 1  # of a detector only the backbone is loaded, which does not depend on the classes
    if not isinstance(config.hparams, DetofaHparams):
        classes = data_facts(config).num_classes
    make_model(config, classes, config.network.weights)


def _load_filter(config: Any) -> None:
    """Load the path filter's weights as the run does; raises the same errors."""
    from ..training.filter_fitting import given_filter

    given_filter(config.hparams.filter, config.hparams.buckets, config.network.geometry)


def output(config: Any) -> Iterator[Finding]:
    """Check that the run can use its output folder, which must be new, empty, or hold an earlier run of the same config."""
    from ..common.errors import UserError
    from ..runs import lock

    folder = Path(config.output_path).absolute()
    try:
        lock.check(folder, config, restart=False)
    except UserError as error:
        yield Finding(PROBLEM, f"output: {error}")
        return
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    if not existing.is_dir():
        yield Finding(PROBLEM, f"output: {folder} cannot be created: {existing} is a file", "name another folder with -o")
    elif not os.access(existing, os.W_OK | os.X_OK):
        yield Finding(PROBLEM, f"output: {existing} is not writable", "name another folder with -o")
    elif lock.is_locked(folder):
        yield Finding(
            PROBLEM, f"output: another process is using {folder}", "wait until it ends, or name another folder with -o"
        )
    elif (folder / lock.CONFIG).exists() or (folder / lock.BEFORE).exists():
        yield Finding(OK, f"output: {folder}; the run of this config will be resumed")
    else:
        yield Finding(OK, f"output: {folder}; a new run")


def disk(config: Any) -> Iterator[Finding]:
    """Compare the free disk space with the estimated size of the run's files."""
    place = Path("runs" if config is None else config.output_path).absolute()
    existing = next(folder for folder in (place, *place.parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if config is None:
        yield Finding(OK, f"disk: {_size(free)} free in {existing}")
        return
    needed = _run_size(config)
    text = f"disk: {_size(free)} free in {existing}; the run needs about {_size(needed)}"
    if free < needed:
        yield Finding(PROBLEM, text, "free disk space, or name another folder with -o")
    else:
        yield Finding(WARNING if free < 2 * needed else OK, text)


def _run_size(config: Any) -> int:
    """Estimate the size of a run's files in bytes.

    Each training phase and the checkpoint hold the weights and two arrays of solver state. A new checkpoint is written
    before the last one is deleted.
    """
    from dataclasses import replace

    from ..config import DetofaHparams
    from ..methods.build import make_cost
    from ..runs.phases import training_phases
    from ..space.paths import PathBatch

    detection = isinstance(config.hparams, DetofaHparams)
    classes = config.network.num_classes or (20 if detection else 1000)
    cost = make_cost(config, classes, config.dataloader.image_size)
    space = config.network.space
    whole = replace(cost, scope="detector" if detection else "classifier")
    (params,) = whole.params(PathBatch.from_paths([space.largest], space.geometry))
    return int(3 * 4 * params * (len(training_phases(config)) + 2)) + 50 * 2**20  # for logs, evaluated paths, detections


def memory(config: Any) -> Iterator[Finding]:
    """Compare the free memory of the machine or the GPU with the dry run's estimate for a training step."""
    from ..common.errors import UserError
    from ..methods.build import make_model
    from ..runs.phases import training_phases
    from .data_facts import data_facts
    from .graph_memory import free_memory, step_memory

    try:
        facts = data_facts(config)
    except UserError:
        yield Finding(
            WARNING, "memory: not estimated, because the dataset is unknown", "detofa train CONFIG --dry-run gives the reason"
        )
        return
    model = make_model(config, facts.num_classes)
    needed = step_memory(config, facts.num_classes, model, training_phases(config)).total
    on_gpu = config.args.context != "cpu" and not no_gpu()[0]
    free, where = (_gpu_memory(), "of GPU memory") if on_gpu else (free_memory(), "of memory")
    text = f"memory: a training step needs about {_size(needed)}"
    if free is None:
        yield Finding(OK, text)
        return
    text += f"; {_size(free)} {where} are free"
    if 0.85 * needed > free:  # the estimate is within 15%
        yield Finding(PROBLEM, text, f"reduce hparams.mini_batch, which is {config.hparams.mini_batch or 'the batch_size'} now")
    else:
        yield Finding(WARNING if needed > free else OK, text)


def _gpu_memory() -> int | None:
    """Return the free memory of the first GPU in bytes, or None if it is unknown."""
    try:
        query = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
        printed = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
        return int(printed.splitlines()[0]) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def _size(count: float) -> str:
    """Format a number of bytes in MiB or GiB."""
    return f"{count / 2**20:.0f} MiB" if count < 2**30 else f"{count / 2**30:.1f} GiB"


# --- Text output ------------------------------------------------------------------------------------------------------


def lines(finding: Finding, width: int | None = None) -> str:
    """Format a finding as text.

    Args:
        finding: the finding.
        width: largest length of a line in characters, which long words may exceed; None is the width of the terminal.
    """
    width = max(30, width or shutil.get_terminal_size().columns)
    wrap = partial(textwrap.wrap, width=width, subsequent_indent=" " * 9, break_long_words=False, break_on_hyphens=False)
    found = wrap(finding.text, initial_indent=f"{finding.state:<9}")
    if finding.todo:
        found += wrap(f"-> {finding.todo}", initial_indent=" " * 9)
    return "\n".join(found)
