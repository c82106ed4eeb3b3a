"""Checks of an installation: Python, packages, commands, GPUs and MPI."""

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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..backend import cuda_libraries
from ..backend.launch import mpirun, rank_environment
from ..common.shipped import ROOT, install_command

OK, WARNING, PROBLEM = "ok", "warning", "problem"
"""States of a finding."""
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
"""Required package -> the module that it provides. `wheel` checks nnabla-nas separately."""


PYTHON = (3, 10)
INSTALL = install_command("setup")


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        state: `OK`, `WARNING` or `PROBLEM`.
        text: what the check found.
        todo: how to fix the problem; empty if there is nothing to do.
    """

    state: str
    text: str
    todo: str = ""


def _message(error: BaseException) -> str:
    """Return the message of an error on one line, after the error's type unless it is a UserError."""
    text = " ".join(str(error).split())
    return text if type(error).__name__ == "UserError" else f"{type(error).__name__}: {text}"


def python() -> Iterator[Finding]:
    """Check the version of Python."""
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] == PYTHON:
        yield Finding(OK, f"Python {found}")
    else:
        yield Finding(
            PROBLEM,
            f"Python {found}, but nnabla 1.39 has wheels up to Python 3.10 only",
            f"use Python 3.10: {INSTALL}",
        )


def _order_of_sums_is_fixed() -> bool:
    from ..backend.compat import fix_order_of_sums

    return fix_order_of_sums()


def packages() -> Iterator[Finding]:
    """Compare the versions of required packages with requirements.lock and setup.py, and import each."""
    lock, needed = locked(), required()
    missing, other, unfit = [], [], []
    with _quiet():
        _import_error("nnabla_detofa.backend.compat")  # imported first: it keeps nnabla from changing the root logger
        failed = {name: _import_error(module) for name, module in MODULES.items() if installed(name)}
    for name in sorted(needed):
        version = installed(name)
        if version is None:
            missing.append(name)
        elif not _fits(version, needed[name]):
            unfit.append(f"{name} {version} (needed: {needed[name]})")
        elif name in lock and version != lock[name]:
            other.append(f"{name} {version} (tested: {lock[name]})")
    broken = [f"{name} ({error})" for name, error in failed.items() if error]
    if missing:
        yield Finding(PROBLEM, f"packages are missing: {', '.join(missing)}", INSTALL)
    if unfit:
        yield Finding(PROBLEM, f"packages with incompatible versions: {', '.join(unfit)}", INSTALL)
    if broken:
        yield Finding(PROBLEM, f"packages that cannot be imported: {'; '.join(broken)}", f"install them again: {INSTALL}")
    if other:
        yield Finding(WARNING, f"versions that differ from requirements.lock: {', '.join(other)}", INSTALL)
    if not lock:
        yield Finding(WARNING, "requirements.lock not found; versions are not compared with it")
    if not broken and not missing and not _order_of_sums_is_fixed():
        yield Finding(WARNING, "sums of this build of NNabla, and so results, depend on the processor", INSTALL)
    if not (missing or unfit or broken or other):
        yield Finding(
            OK, f"packages: all {len(needed)} are installed" + (" in the versions of requirements.lock" if lock else "")
        )


def locked() -> dict[str, str]:
    """Return package -> version from requirements.lock; empty if the file is not shipped."""
    file = ROOT / "requirements.lock"
    lines = file.read_text().splitlines() if file.is_file() else []
    return {_plain(name): version for name, _, version in (line.partition("==") for line in lines if "==" in line)}


def required() -> dict[str, str]:
    """Return required package -> versions that setup.py allows, such as "<2"."""
    lines = [*MODULES, "nnabla-nas"]
    with suppress(importlib.metadata.PackageNotFoundError):
        lines += [line for line in importlib.metadata.requires("nnabla-detofa") or () if "extra ==" not in line]
    found = [re.match(r"\s*([\w.-]+)\s*\(?([^;)]*)", line) for line in lines]
    return {_plain(match[1]): match[2].strip() for match in found if match}


@contextmanager
def _quiet() -> Iterator[None]:
    """Disable logging inside the block, because some packages log while they are imported."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def installed(name: str) -> str | None:
    """Return the installed version of a package, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _plain(name: str) -> str:
    """Normalize the name of a package: lowercase, with "-" as the only separator."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _fits(version: str, allowed: str) -> bool:
    """Return whether a version is inside the allowed range."""
    try:
        from packaging.specifiers import SpecifierSet

        return SpecifierSet(allowed).contains(version, prereleases=True)
    except Exception:  # without the library "packaging", accept every version
        return True


def _import_error(module: str) -> str:
    """Return why a module cannot be imported, or an empty string."""
    try:
        importlib.import_module(module)
    except BaseException as error:  # a broken extension may raise anything
        return _message(error)
    return ""


def _error_in_another_process(module: str) -> str:
    """Return why a module cannot be imported, or an empty string. MPI ends the whole process if it cannot start."""
    command = [sys.executable, "-c", f"import {module}"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=rank_environment())
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return (lines[-1] if lines else f"status {done.returncode}") if done.returncode else ""


def wheel() -> Iterator[Finding]:
    """Check that nnabla-nas can be imported after `compat.repair`."""
    if installed("nnabla-nas") is None and importlib.util.find_spec("nnabla_nas") is None:
        return  # `packages` reports it
    try:
        compat = importlib.import_module("nnabla_detofa.backend.compat")
        networks = sys.modules.get(compat.NETWORKS)
        importlib.import_module("nnabla_nas.contrib.model")
    except BaseException as error:
        yield Finding(PROBLEM, f"nnabla-nas cannot be imported: {_message(error)}", INSTALL)
        return
    stands_in = networks is not None and not getattr(networks, "__path__", True)
    yield Finding(
        OK, "nnabla-nas: " + ("the package that its wheel lacks is replaced" if stands_in else "complete, needs no repair")
    )


def command() -> Iterator[Finding]:
    """Check that the command `nnabla_nas`, on the PATH or else next to Python, belongs to this package, not to nnabla-nas."""
    todo = "python -m nnabla_detofa does the same"
    beside = Path(sys.executable).parent / "nnabla_nas"
    on_path = shutil.which("nnabla_nas")
    found = Path(on_path) if on_path else beside
    if not found.is_file():
        yield Finding(WARNING, "the command nnabla_nas is not installed", f"{INSTALL}; or {todo}")
    elif "nnabla_detofa" not in found.read_text(errors="replace"):
        again = "install nnabla-detofa again, with pip's options --no-deps and --force-reinstall"
        yield Finding(
            WARNING, f"the command {found} belongs to nnabla-nas instead of this package, and does not work", f"{again}; {todo}"
        )
    elif beside.is_file() and not found.samefile(beside):
        yield Finding(WARNING, f"the command {found} belongs to another environment than {sys.executable}", todo)
    else:
        yield Finding(OK, f"the command nnabla_nas belongs to this package: {found}{'' if on_path else ' (not on the PATH)'}")


def gpu(config: Any = None) -> Iterator[Finding]:
    """Check that nnabla can compute on a GPU.

    Args:
        config: without a usable GPU, the result is a problem if its `args.context` is "cudnn"; None means "auto".
    """
    context = "auto" if config is None else config.args.context
    reason, todo = no_gpu()
    if not reason:
        yield Finding(OK, f"GPU: {_gpu_names()}")
    elif context == "cudnn":
        yield Finding(PROBLEM, f"the config requires a GPU, but {reason}", f"{todo}, or -c cpu")
    else:
        yield Finding(OK, f"no usable GPU, runs use the CPU: {reason}", "" if context == "cpu" else f"for a GPU: {todo}")


def no_gpu() -> tuple[str, str]:
    """Return why no GPU is usable and how to fix it; ("", "") if a GPU is usable."""
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
    """Return name, memory and driver of every GPU as nvidia-smi prints them."""
    try:
        query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        printed = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
        return printed.replace("\n", "; ") or "usable"
    except (OSError, subprocess.SubprocessError):
        return "usable"


def mpi() -> Iterator[Finding]:
    """Check mpi4py and the MPI launcher, which only runs with several processes need."""
    launcher = mpirun() or shutil.which("mpiexec")
    error = _error_in_another_process("mpi4py.MPI")
    several = "runs with several processes"
    if not error and launcher:
        yield Finding(OK, f"MPI: mpi4py and {launcher}")
    elif not error or installed("mpi4py"):
        lacks = f"mpi4py cannot be imported ({error})" if error else "mpirun is neither next to this Python nor on the PATH"
        yield Finding(WARNING, f"MPI: {lacks}; only {several} need it", f"{INSTALL}; or install the extra mpi")
    else:
        which = "mpi4py is not installed" if launcher else "mpi4py and mpirun are not installed"
        yield Finding(OK, f"MPI: {which}; only {several} need the extra mpi")
