"""What may be wrong with an installation, and with what a config needs: `python -m nnabla_detofa doctor`.

Nothing here may depend on what it examines: whatever is no part of Python is imported inside the checks.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import logging
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..backend import cuda_libraries
from ..common.version import REPOSITORY

OK, WARNING, PROBLEM = "ok", "warning", "problem"
MODULES = {
    "nnabla": "nnabla",
    "numpy": "numpy",
    "opencv-python": "cv2",
    "defusedxml": "defusedxml",
    "h5py": "h5py",
    "hydra-core": "hydra",
    "markdown-it-py": "markdown_it",
    "matplotlib": "matplotlib",
    "omegaconf": "omegaconf",
    "pillow": "PIL",
    "pycocotools": "pycocotools.mask",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
    "scipy": "scipy",
    "tensorboard": "tensorboard",
    "tqdm": "tqdm",
}
"""Packages that are needed always -> what they import as; nnabla-nas has a check of its own."""
PYTHON = (3, 10)
SMALL_SET = 10000
"""Data sets of at most this number of photographs are looked through for broken ones."""
INSTALL = "make setup, or pip install -r requirements.lock and then pip install --no-deps -e ."


@dataclass(frozen=True)
class Finding:
    """One line of the examination: how it stands, what was found, and what to do about it."""

    state: str
    text: str
    todo: str = ""


def examine(config_file: str | None = None, overrides: Sequence[str] = ()) -> Iterator[Finding]:
    """Everything that is examined, one by one; no check keeps the others from being made.

    Args:
        config_file: what its run needs is examined too: data, weights, disk, memory and device. Otherwise the data sets of
            all configs in configs/ are looked for.
        overrides: "key=value" entries of the config to replace.
    """
    checks: list[Callable[[], Iterator[Finding]]] = [python, packages, wheel, command]
    needed: list[Callable[[Any], Iterator[Finding]]] = []
    config, broken = None, []
    if config_file is not None:
        try:
            from .. import config as configs

            config = configs.load(config_file, overrides)
        except Exception as error:  # a package that config needs may be what is broken
            broken = [Finding(PROBLEM, f"the config {config_file} cannot be used: {_said(error)}")]
    checks += [lambda: gpu(config), mpi]
    if config_file is None:
        checks += [known_data, lambda: disk(None)]
    elif config is not None:
        needed = [config_data, weights, output, disk, memory]
    for check in checks:
        try:
            yield from check()
        except Exception as error:  # an examination goes on whatever it meets
            yield Finding(WARNING, f"{getattr(check, '__name__', 'a check')} could not be examined: {_said(error)}")
    for check in needed:
        try:
            yield from check(config)
        except Exception as error:
            yield Finding(PROBLEM, f"{check.__name__} of {config_file} could not be examined: {_said(error)}")
    yield from broken


def _said(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if type(error).__name__ == "UserError" else f"{type(error).__name__}: {text}"


# --- The installation -------------------------------------------------------------------------------------------------


def python() -> Iterator[Finding]:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] == PYTHON:
        yield Finding(OK, f"Python {found}")
    else:
        yield Finding(
            PROBLEM, f"Python {found}, but nnabla 1.39 has wheels for 3.10 at most", "use Python 3.10; make setup finds one"
        )


def packages() -> Iterator[Finding]:
    """Versions against requirements.lock and setup.py, and whether each package that is always needed can be imported."""
    lock, needed = locked(), required()
    missing, other, unfit = [], [], []
    with _quiet():
        _import_error("nnabla_detofa.backend.compat")  # keeps nnabla's logging to nnabla, if both can be imported
        failed = {name: _import_error(module) for name, module in MODULES.items() if installed(name)}
    for name in sorted({*lock, *map(_plain, MODULES), "nnabla-nas"}):
        version = installed(name)
        if version is None:
            if name in needed:
                missing.append(name)
        elif name in needed and not _fits(version, needed[name]):
            unfit.append(f"{name} {version} (needed: {needed[name]})")
        elif name in lock and version != lock[name]:
            other.append(f"{name} {version} (tested: {lock[name]})")
    broken = [f"{name} ({error})" for name, error in failed.items() if error]
    if missing:
        yield Finding(PROBLEM, f"packages are missing: {', '.join(missing)}", INSTALL)
    if unfit:
        yield Finding(PROBLEM, f"packages of versions that do not fit: {', '.join(unfit)}", INSTALL)
    if broken:
        yield Finding(PROBLEM, f"packages that cannot be imported: {'; '.join(broken)}", f"install them again: {INSTALL}")
    if other:
        yield Finding(WARNING, f"other versions than those of requirements.lock: {', '.join(other)}", INSTALL)
    if not lock:
        yield Finding(WARNING, "requirements.lock is not beside the package: versions are not compared with it")
    if not (missing or unfit or broken or other):
        yield Finding(
            OK, f"packages: {len(needed)} needed, all there" + (" in the versions of requirements.lock" if lock else "")
        )


def locked() -> dict[str, str]:
    """Package -> version in requirements.lock; empty where the package is not in its repository."""
    file = REPOSITORY / "requirements.lock"
    lines = file.read_text().splitlines() if file.is_file() else []
    return {_plain(name): version for name, _, version in (line.partition("==") for line in lines if "==" in line)}


def required() -> dict[str, str]:
    """Package -> versions that setup.py allows, such as "<2", of those that are always needed."""
    lines = [*MODULES, "nnabla-nas"]
    with suppress(importlib.metadata.PackageNotFoundError):
        lines += [line for line in importlib.metadata.requires("nnabla-detofa") or () if "extra ==" not in line]
    found = [re.match(r"\s*([\w.-]+)\s*\(?([^;)]*)", line) for line in lines]
    return {_plain(match[1]): match[2].strip() for match in found if match}


@contextmanager
def _quiet() -> Iterator[None]:
    """No logging meanwhile: packages speak while they are imported."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _fits(version: str, allowed: str) -> bool:
    try:
        from packaging.specifiers import SpecifierSet

        return SpecifierSet(allowed).contains(version, prereleases=True)
    except Exception:  # without packaging nothing is known of it
        return True


def _import_error(module: str) -> str:
    """Why a module cannot be imported; empty where it can."""
    try:
        importlib.import_module(module)
    except BaseException as error:  # a broken extension may raise anything
        return _said(error)
    return ""


def wheel() -> Iterator[Finding]:
    """Whether nnabla-nas, repaired, can be imported; see `compat.repair`."""
    if installed("nnabla-nas") is None and importlib.util.find_spec("nnabla_nas") is None:
        return  # said already
    try:
        compat = importlib.import_module("nnabla_detofa.backend.compat")
        networks = sys.modules.get(compat.NETWORKS)
        importlib.import_module("nnabla_nas.contrib.model")
    except BaseException as error:
        yield Finding(PROBLEM, f"nnabla-nas cannot be imported: {_said(error)}", INSTALL)
        return
    stands_in = networks is not None and not getattr(networks, "__path__", True)
    yield Finding(
        OK, "nnabla-nas: " + ("its wheel's missing package is stood in for" if stands_in else "complete, needs no repair")
    )


def command() -> Iterator[Finding]:
    """Whether `nnabla_nas` on the PATH, or else beside Python, is this package's and not nnabla-nas' own."""
    todo = "python -m nnabla_detofa does the same"
    beside = Path(sys.executable).parent / "nnabla_nas"
    on_path = shutil.which("nnabla_nas")
    found = Path(on_path) if on_path else beside
    if not found.is_file():
        yield Finding(WARNING, "there is no command nnabla_nas", f"{INSTALL}; or {todo}")
    elif "nnabla_detofa" not in found.read_text(errors="replace"):
        again = "pip install --no-deps --force-reinstall -e . makes it ours"
        yield Finding(
            WARNING, f"the command {found} is not this package's but nnabla-nas' own, which cannot work", f"{again}; {todo}"
        )
    elif beside.is_file() and not found.samefile(beside):
        yield Finding(WARNING, f"the command {found} is of another environment than {sys.executable}", todo)
    else:
        yield Finding(OK, f"the command nnabla_nas is this package's: {found}{'' if on_path else ' (not on the PATH)'}")


# --- Devices ----------------------------------------------------------------------------------------------------------


def gpu(config: Any = None) -> Iterator[Finding]:
    """Whether nnabla can compute on a GPU, and else why not."""
    context = "auto" if config is None else config.args.context
    reason, todo = _no_gpu()
    if not reason:
        yield Finding(OK, f"GPU: {_gpu_names()}")
    elif context == "cudnn":
        yield Finding(PROBLEM, f"the config wants a GPU, and {reason}", f"{todo}, or -c cpu")
    else:
        yield Finding(OK, f"no usable GPU, so runs use the CPU: {reason}", "" if context == "cpu" else f"for a GPU: {todo}")


def _no_gpu() -> tuple[str, str]:
    """Why no GPU is usable, and what to do; ("", "") where one is."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return "CUDA_VISIBLE_DEVICES is empty, which hides all GPUs", "unset it, or set it to the numbers of GPUs"
    with cuda_libraries.quiet():
        try:
            cuda_libraries.load()
            count = importlib.import_module("nnabla_ext.cuda").get_device_count()
            if not count:
                raise RuntimeError("CUDA reports no device")
            importlib.import_module("nnabla_ext.cudnn").context(device_id="0")
        except BaseException as error:
            return cuda_libraries.explain(error)
    return "", ""


def _gpu_names() -> str:
    try:
        query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        said = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
        return said.replace("\n", "; ") or "usable"
    except (OSError, subprocess.SubprocessError):
        return "usable"


def mpi() -> Iterator[Finding]:
    """mpi4py and a launcher: for several processes only."""
    from ..backend.launch import mpirun

    launcher = mpirun() or shutil.which("mpiexec")
    error = _import_error("mpi4py.MPI")
    several = "several processes at once"
    if not error and launcher:
        yield Finding(OK, f"MPI: mpi4py and {launcher}")
    elif not error or installed("mpi4py"):
        lacks = f"mpi4py cannot be imported ({error})" if error else "there is no mpirun beside this Python or on the PATH"
        yield Finding(WARNING, f"MPI: {lacks}; it is for {several} only", "run make setup, or install the extra mpi")
    else:
        extra = "" if launcher else ", nor mpirun"
        yield Finding(OK, f"MPI: mpi4py is not installed{extra}; the extra mpi is for {several} only")


# --- What a config needs ----------------------------------------------------------------------------------------------


def known_data() -> Iterator[Finding]:
    """The data sets of all configs in configs/, each once."""
    from .. import config as configs
    from ..common.errors import UserError

    by_data: dict[tuple, list[Any]] = {}
    folder = next((place for place in (Path("configs"), REPOSITORY / "configs") if place.is_dir()), None)
    for file in sorted(folder.glob("*.json")) if folder else ():
        try:
            config = configs.load(file)
        except UserError:
            continue  # a base of others
        data = config.dataloader
        by_data.setdefault((data.root, data.train, data.val, getattr(data, "test", None)), []).append(config)
    for users in by_data.values():
        for finding in config_data(users[0]):
            state = WARNING if finding.state == PROBLEM else finding.state  # no run was asked for
            yield Finding(state, f"{finding.text} [{', '.join(config.name for config in users)}]", finding.todo)


def config_data(config: Any) -> Iterator[Finding]:
    """Whether a config's data set is there, how large it is, and if it is small whether its files are whole."""
    from ..common.errors import UserError
    from ..data.check import check_config

    data = config.dataloader
    root = Path(data.root)
    if not root.is_dir():
        yield Finding(PROBLEM, f"data: the folder {root} is not there", _where_from(config))
        return
    try:
        if _photographs(config) > SMALL_SET:
            from .dry_run import data_facts

            facts = data_facts(config)
            if facts.problem:
                yield Finding(
                    PROBLEM, f"data: {facts.problem}", f"python -m nnabla_detofa data check --help; {_where_from(config)}"
                )
                return
            counts = {"train": facts.train, "val": facts.val, "test": facts.test}
            listed = ", ".join(f"{count} {name}" for name, count in counts.items() if count is not None)
            yield Finding(OK, f"data: {root}: {listed}; photographs not looked through", "data check looks at each")
            return
        report = check_config(config)
    except UserError as error:
        yield Finding(PROBLEM, f"data: {error}", _where_from(config))
        return
    counts = ", ".join(f"{split.images} {split.name}" for split in report.splits)
    more = "python -m nnabla_detofa data check lists everything"
    if report.fatal:
        rest = f" (and {len(report.fatal) - 1} more)" if len(report.fatal) > 1 else ""
        yield Finding(PROBLEM, f"data: {root}: {report.fatal[0]}{rest}", more)
    elif report.warnings:
        yield Finding(WARNING, f"data: {root}: {counts}; {len(report.warnings)} warnings: {report.warnings[0]}", more)
    else:
        yield Finding(OK, f"data: {root}: {counts}, all files whole")


def _photographs(config: Any) -> int:
    """How many photographs are in the folders that a config reads, counted no further than is needed."""
    data, root = config.dataloader, Path(config.dataloader.root)
    if config.dataloader_name == "voc":
        folders = [*root.glob("JPEGImages"), *root.glob("*/JPEGImages")]
    elif config.dataloader_name == "coco":
        folders = [root / split.images for split in (data.train, data.val, data.test) if split]
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
    """How to get the data set of a config."""
    root = config.dataloader.root
    if Path(root).name == "classification" and "digits" in root or Path(root).name == "digits":
        place = Path(root).parent if Path(root).name == "classification" else root
        return f"python -m nnabla_detofa data digits --root {place}"
    key = f"dataloader.{config.dataloader_name}.root"
    return f"put the data set there, or name its folder: {key}=FOLDER"


def weights(config: Any) -> Iterator[Finding]:
    """Whether the weights that a config starts from are there, whole, and those of its networks."""
    named = {
        "supernet weights": (config.network.weights, _load_supernet),
        "path filter": (config.hparams.filter.weights, _load_filter),
    }
    for what, (file, load) in named.items():
        if not file:
            yield Finding(OK, f"{what}: none named, random weights")
        elif not Path(file).is_file():
            folder = Path(file).parent
            run = folder.name if folder.parent.name == "runs" else ""
            todo = f"nnabla_nas -f configs/{run}.json leaves it" if run else "train it, or name another file"
            yield Finding(PROBLEM, f"{what}: {file} is missing", todo)
        else:
            try:
                load(config)
            except Exception as error:
                yield Finding(PROBLEM, f"{what}: {_said(error)}", "copy the file again, or name another")
            else:
                yield Finding(OK, f"{what}: {file}, which fits")


def _load_supernet(config: Any) -> None:
    """Load the supernet's weights as the run would; raises as that."""
    from ..config import DetofaHparams
    from ..methods import algorithm1, pretrain
    from .dry_run import data_facts

    if isinstance(config.hparams, DetofaHparams):  # the backbone's alone, which knows no classes
        algorithm1.make_model(config, config.network.num_classes or 1, config.network.weights)
    else:
        pretrain.make_model(config, data_facts(config).num_classes, config.network.weights)


def _load_filter(config: Any) -> None:
    """As `_load_supernet`, of the path filter's."""
    from ..training.runner import given_filter

    given_filter(config, config.network.geometry)


def output(config: Any) -> Iterator[Finding]:
    """Whether the run would get its folder: it may hold its own earlier run, and nothing else."""
    from ..common.errors import UserError
    from ..runs import lock as claim

    folder = Path(config.output_path).absolute()
    try:
        claim.check(folder, config, restart=False)
    except UserError as error:
        yield Finding(PROBLEM, f"output: {error}")
        return
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    if not existing.is_dir():
        yield Finding(PROBLEM, f"output: {folder} cannot be made: {existing} is a file", "name another folder with -o")
    elif not os.access(existing, os.W_OK | os.X_OK):
        yield Finding(PROBLEM, f"output: {existing} cannot be written to", "name another folder with -o")
    elif claim.is_locked(folder):
        yield Finding(PROBLEM, f"output: another process is running in {folder}", "wait for its end, or name another with -o")
    elif (folder / claim.CONFIG).exists() or (folder / claim.BEFORE).exists():
        yield Finding(OK, f"output: {folder}, where the run of this config goes on")
    else:
        yield Finding(OK, f"output: {folder}, a new run")


def disk(config: Any) -> Iterator[Finding]:
    """Free space where the run would write, against what it leaves there."""
    place = Path("runs" if config is None else config.output_path).absolute()
    existing = next(folder for folder in (place, *place.parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if config is None:
        yield Finding(OK, f"disk: {_size(free)} free in {existing}")
        return
    needed = _run_size(config)
    text = f"disk: {_size(free)} free in {existing}, the run takes about {_size(needed)}"
    if free < needed:
        yield Finding(PROBLEM, text, "make room, or name another folder with -o")
    else:
        yield Finding(WARNING if free < 2 * needed else OK, text)


def _run_size(config: Any) -> int:
    """Bytes: the weights and the solver's two states of each training phase and a checkpoint, written beside the last one."""
    from dataclasses import replace

    from ..config import DetofaHparams
    from ..methods import algorithm1, pretrain
    from ..runs.phases import training_phases
    from ..space.paths import PathBatch
    from ..space.search_space import ofa_resnet50

    detection = isinstance(config.hparams, DetofaHparams)
    classes = config.network.num_classes or (20 if detection else 1000)
    cost = (algorithm1 if detection else pretrain).make_cost(config, classes, config.dataloader.image_size)
    space = ofa_resnet50(config.network.geometry)
    whole = replace(cost, scope="detector" if detection else "classifier")
    (params,) = whole.params(PathBatch.from_paths([space.largest], space.geometry))
    return int(3 * 4 * params * (len(training_phases(config)) + 2)) + 50 * 2**20  # and logs, evaluated paths, detections


def memory(config: Any) -> Iterator[Finding]:
    """Memory of the machine, or of the GPU, against the dry run's estimate of a training step."""
    from ..common.errors import UserError
    from ..config import DetofaHparams
    from ..methods import algorithm1, pretrain
    from ..runs.phases import training_phases
    from .dry_run import data_facts, step_memory

    runner = algorithm1 if isinstance(config.hparams, DetofaHparams) else pretrain
    try:
        facts = data_facts(config)
    except UserError:
        yield Finding(
            WARNING, "memory: not estimated, since the data set is not known", "nnabla_nas -f CONFIG --dry-run says why"
        )
        return
    model = runner.make_model(config, facts.num_classes)
    needed = step_memory(config, facts, model, training_phases(config)).total
    on_gpu = config.args.context != "cpu" and not _no_gpu()[0]
    free, where = (_gpu_memory(), "of GPU memory") if on_gpu else (_memory(), "of memory")
    text = f"memory: a training step takes about {_size(needed)}"
    if free is None:
        yield Finding(OK, text)
        return
    text += f", {_size(free)} {where} are free"
    if 0.85 * needed > free:  # the estimate is within 15%
        yield Finding(
            PROBLEM, text, f"a smaller hparams.mini_batch divides it: it is {config.hparams.mini_batch or 'the batch_size'} now"
        )
    else:
        yield Finding(WARNING if needed > free else OK, text)


def _memory() -> int | None:
    try:
        found = re.search(r"^MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
        return int(found[1]) * 1024 if found else None
    except OSError:
        return None


def _gpu_memory() -> int | None:
    try:
        query = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
        said = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
        return int(said.splitlines()[0]) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def _size(count: float) -> str:
    return f"{count / 2**20:.0f} MiB" if count < 2**30 else f"{count / 2**30:.1f} GiB"


# --- For a human ------------------------------------------------------------------------------------------------------


def lines(finding: Finding, width: int | None = None) -> str:
    """A finding in lines of at most `width` letters where words allow (default: the terminal's)."""
    width = max(30, width or shutil.get_terminal_size().columns)
    options = {"width": width, "subsequent_indent": " " * 9, "break_long_words": False, "break_on_hyphens": False}
    told = textwrap.wrap(finding.text, initial_indent=f"{finding.state:<9}", **options)
    if finding.todo:
        told += textwrap.wrap(f"-> {finding.todo}", initial_indent=" " * 9, **options)
    return "\n".join(told)
