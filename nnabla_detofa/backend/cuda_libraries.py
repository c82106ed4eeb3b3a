"""Loading of NVIDIA's libraries for NNabla's CUDA extension, by path.

The wheel of the extension contains none of them. `make setup-cuda` installs them from PyPI into site-packages/nvidia/*/lib,
which the dynamic loader does not search. It finds a library that is already loaded by name, so loading the libraries in order
of their dependencies makes LD_LIBRARY_PATH unnecessary. Without those packages nothing is loaded here, and the loader uses the
system's libraries.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryFile

from ..common.shipped import INSTALLED, ROOT, install_command

DRIVER = "libcuda.so.1"
"""Library of NVIDIA's driver, the only one that no PyPI package contains."""
ORDER = (
    "cuda_runtime/lib/libcudart.so.*",
    "nvjitlink/lib/libnvJitLink.so.*",
    "cuda_nvrtc/lib/libnvrtc.so.*",
    "cublas/lib/libcublasLt.so.*",
    "cublas/lib/libcublas.so.*",
    "cusparse/lib/libcusparse.so.*",
    "cusolver/lib/libcusolver.so.*",
    "curand/lib/libcurand.so.*",
    "cufft/lib/libcufft.so.*",
    "cudnn/lib/libcudnn.so.8",
    "nccl/lib/libnccl.so.2",
)
"""Libraries in loading order, each after its dependencies; cuDNN finds its own parts in its folder."""
OLDER = "for drivers older than 525.60: "
SETUP = f"{install_command('setup-cuda')} ({OLDER}{'requirements-cuda116.lock' if ROOT == INSTALLED else 'CUDA=116'})"
UPDATE = "install NVIDIA's driver 525.60 or newer, or 450.80 for CUDA 11.6"
HARMLESS = (
    "library is not found, distribution training feature is disabled.",  # MPI or NCCL: one process needs neither
    "GPU compatibility could not be verified",  # NVML is missing
)
"""Parts of lines that the extension prints on import and that do not matter for a run of one process."""


def installed() -> bool:
    """Return whether NNabla's CUDA extension is installed."""
    try:
        return importlib.util.find_spec("nnabla_ext.cuda") is not None
    except ModuleNotFoundError:  # nnabla_ext itself is missing
        return False


def files() -> list[Path]:
    """Return the library files of the PyPI packages in loading order; empty if none is installed."""
    found = importlib.util.find_spec("nvidia")
    folders = [Path(folder) for folder in found.submodule_search_locations or ()] if found else []
    return [file for pattern in ORDER for folder in folders for file in sorted(folder.glob(pattern))]


def load() -> None:
    """Load the libraries, and set NCCL_HOME and OMPI_HOME, where NNabla looks for NCCL and Open MPI.

    Raises:
        ImportError: the driver, the extension, or a dependency of a library is missing.
    """
    if not installed():
        raise ImportError("NNabla's CUDA extension is not installed")
    libraries = files()
    try:
        for name in (DRIVER, *libraries):
            ctypes.CDLL(str(name))
    except OSError as error:
        raise ImportError(str(error)) from error
    homes = {"NCCL_HOME": [file.parents[1] for file in libraries if file.name.startswith("libnccl.")]}
    homes["OMPI_HOME"] = [Path(sys.prefix)] if (Path(sys.prefix) / "lib" / "libmpi.so").exists() else []
    for variable, places in homes.items():
        for place in places:
            os.environ.setdefault(variable, str(place))


def reason(error: BaseException) -> str:
    """Return the message of an error in one line, without the places in NNabla's source code, which have their own lines."""
    lines = [line.strip() for line in str(error).splitlines()]
    return "; ".join(line for line in lines if line and not re.fullmatch(r"/\S+:\d+", line)) or type(error).__name__


def explain(error: BaseException) -> tuple[str, str]:
    """Return why the extension could not be imported or used, as a clause, and how to fix it."""
    text = reason(error)
    if not installed():
        return "NNabla's CUDA extension is not installed", SETUP
    if missing := re.search(r"(lib\S+\.so\S*): cannot open shared object file", text):
        if missing[1] == DRIVER:
            return f"NVIDIA's driver ({DRIVER}) is not found", UPDATE
        return f"the library {missing[1]} is not found", SETUP
    if "GLIBC" in text:
        return f"glibc is older than 2.28 ({text})", "use a newer Linux: Debian 10, Ubuntu 20.04, RHEL 8"
    if "driver version is insufficient" in text:
        return f"NVIDIA's driver is too old ({text})", UPDATE
    return f"NNabla's CUDA extension is not usable ({text})", "look at nvidia-smi, CUDA_VISIBLE_DEVICES and -d"


@contextmanager
def quiet() -> Iterator[None]:
    """Capture what Python and libraries print inside the block, and print it to stderr without the `HARMLESS` lines."""
    printed, before = StringIO(), os.dup(2)
    with TemporaryFile() as said:
        sys.stderr.flush()
        os.dup2(said.fileno(), 2)
        try:
            with redirect_stdout(printed):
                yield
        finally:
            sys.stderr.flush()
            os.dup2(before, 2)
            os.close(before)
            said.seek(0)
            for line in [*printed.getvalue().splitlines(), *said.read().decode(errors="replace").splitlines()]:
                if not any(part in line for part in HARMLESS):
                    print(line, file=sys.stderr)
