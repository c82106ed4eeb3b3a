"""NVIDIA's libraries for NNabla's CUDA extension, loaded by path.

The extension's wheel brings none of them. `make setup-cuda` installs them from PyPI into site-packages/nvidia/*/lib, where the
dynamic loader does not look; a library that is already loaded is found by its name, so loading them in order of their
dependencies makes LD_LIBRARY_PATH unnecessary. Without those packages nothing is loaded here, and the system's libraries count.
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

DRIVER = "libcuda.so.1"
"""Part of NVIDIA's driver, the one library that no package brings."""
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
"""Each library after those that it needs; cuDNN finds its own parts beside itself."""
SETUP = "make setup-cuda (CUDA=116 for drivers older than 525.60)"
UPDATE = "install NVIDIA's driver 525.60 or newer, or 450.80 for make setup-cuda CUDA=116"
HARMLESS = (
    "library is not found, distribution training feature is disabled.",  # MPI or NCCL: one process needs neither
    "GPU compatibility could not be verified",  # NVML is not there
)
"""Lines that the extension prints while it is imported, and that say nothing of a run of one process."""


def installed() -> bool:
    """Whether NNabla's CUDA extension is installed."""
    try:
        return importlib.util.find_spec("nnabla_ext.cuda") is not None
    except ModuleNotFoundError:  # not even nnabla_ext
        return False


def files() -> list[Path]:
    """The libraries of PyPI's packages, in the order to load them; empty where none is installed."""
    found = importlib.util.find_spec("nvidia")
    folders = map(Path, found.submodule_search_locations or ()) if found else ()
    folders = list(folders)
    return [file for pattern in ORDER for folder in folders for file in sorted(folder.glob(pattern))]


def load() -> None:
    """Load the libraries, and tell NNabla where NCCL and Open MPI are.

    Raises:
        ImportError: the driver or the extension is missing, or a library needs another that is not found.
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


def explain(error: BaseException) -> tuple[str, str]:
    """Why the extension could not be imported or used, as a clause, and what to do about it."""
    text = " ".join(str(error).split()) or type(error).__name__
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
    return f"NNabla's CUDA extension is not usable ({text})", "look at CUDA_VISIBLE_DEVICES and nvidia-smi"


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out the `HARMLESS` lines of what is printed meanwhile, by Python or by a library."""
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
