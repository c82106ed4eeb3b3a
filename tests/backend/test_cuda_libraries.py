"""NVIDIA's libraries are loaded by path, in an order that works, and what is missing is named."""

import ctypes
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from nnabla_detofa.backend import cuda_libraries
from nnabla_detofa.backend.cuda_libraries import SETUP, UPDATE

ROOT = Path(__file__).parents[2]
NNABLA = 'target_specific error in f\n/builds/nnabla/init.cpp:1725\n(g()) failed with "no device".\n'
MISSING = "{}: cannot open shared object file: No such file or directory"


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A folder `nvidia` as PyPI's packages fill it, with empty files; the names that are loaded; an installed extension."""

    def make(*names):
        for name in names:
            file = tmp_path / "nvidia" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        (tmp_path / "nvidia").mkdir(exist_ok=True)
        (tmp_path / "nvidia" / "__init__.py").touch()
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "nvidia", raising=False)
        loaded = []
        monkeypatch.setattr(ctypes, "CDLL", lambda name: loaded.append(Path(name).name))
        monkeypatch.setattr(cuda_libraries, "installed", lambda: True)
        for variable in ("NCCL_HOME", "OMPI_HOME"):
            monkeypatch.delenv(variable, raising=False)
        return loaded

    return make


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (
            ("cublas/lib/libcublas.so.12", "cublas/lib/libcublasLt.so.12", "cuda_runtime/lib/libcudart.so.12"),
            ["libcuda.so.1", "libcudart.so.12", "libcublasLt.so.12", "libcublas.so.12"],
        ),
        (
            ("cusolver/lib/libcusolver.so.11", "cusparse/lib/libcusparse.so.12", "nvjitlink/lib/libnvJitLink.so.12"),
            ["libcuda.so.1", "libnvJitLink.so.12", "libcusparse.so.12", "libcusolver.so.11"],
        ),
        (("cudnn/lib/libcudnn_cnn_infer.so.8", "cudnn/lib/libcudnn.so.8"), ["libcuda.so.1", "libcudnn.so.8"]),
        ((), ["libcuda.so.1"]),  # the system's own CUDA
    ],
)
def test_libraries_come_after_those_that_they_need(names, order, packages):
    loaded = packages(*names)
    cuda_libraries.load()
    assert loaded == order


def test_nnabla_is_told_where_nccl_and_open_mpi_are(packages, tmp_path, monkeypatch):
    packages("nccl/lib/libnccl.so.2")
    prefix = tmp_path / "environment"
    monkeypatch.setattr(sys, "prefix", str(prefix))
    cuda_libraries.load()
    assert os.environ["NCCL_HOME"] == str(tmp_path / "nvidia" / "nccl") and "OMPI_HOME" not in os.environ
    (prefix / "lib").mkdir(parents=True)
    (prefix / "lib" / "libmpi.so").touch()
    monkeypatch.setenv("NCCL_HOME", "/opt/nccl")  # the user's own stays
    cuda_libraries.load()
    assert os.environ["OMPI_HOME"] == str(prefix) and os.environ["NCCL_HOME"] == "/opt/nccl"


def test_without_the_extension_nothing_is_loaded(packages, monkeypatch):
    loaded = packages("cuda_runtime/lib/libcudart.so.12")
    monkeypatch.setattr(cuda_libraries, "installed", lambda: False)
    with pytest.raises(ImportError) as caught:
        cuda_libraries.load()
    assert loaded == [] and cuda_libraries.explain(caught.value) == ("NNabla's CUDA extension is not installed", SETUP)


@pytest.mark.parametrize(
    ("error", "reason", "todo"),
    [
        (ImportError(MISSING.format("libcuda.so.1")), "NVIDIA's driver (libcuda.so.1) is not found", UPDATE),
        (ImportError(MISSING.format("libcudnn.so.8")), "the library libcudnn.so.8 is not found", SETUP),
        (OSError(MISSING.format("libcublasLt.so.12")), "the library libcublasLt.so.12 is not found", SETUP),
        (ImportError("version `GLIBC_2.28' not found"), "glibc is older than 2.28", "newer Linux"),
        (RuntimeError("CUDA driver version is insufficient for CUDA runtime version"), "driver is too old", UPDATE),
        (RuntimeError("CUDA reports no device"), "not usable (CUDA reports no device)", "nvidia-smi"),
        (RuntimeError(NNABLA), 'not usable (target_specific error in f; (g()) failed with "no device".)', "nvidia-smi"),
        (ImportError("/lib/libx.so.1: undefined symbol: f"), "not usable (/lib/libx.so.1: undefined symbol: f)", "nvidia-smi"),
    ],
)
def test_what_is_missing_is_named_and_not_what_is_installed(error, reason, todo, monkeypatch):
    monkeypatch.setattr(cuda_libraries, "installed", lambda: True)
    said = cuda_libraries.explain(error)
    assert reason in said[0] and todo in said[1]


def test_checks_of_a_gpu_say_in_one_line_that_there_is_none():
    command = [sys.executable, "-W", "ignore", "tests/gpu_check.py"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    said = "error: these checks need a GPU, but CUDA_VISIBLE_DEVICES is empty, which hides all GPUs: unset it, or set it to"
    assert done.returncode == 2 and done.stderr.startswith(said) and done.stderr.count("\n") == 1 and done.stdout == ""


def test_only_harmless_lines_are_left_out(capfd):
    with cuda_libraries.quiet():
        os.write(2, b"openmpi library is not found, distribution training feature is disabled.\nCUDA error 3\n")
        print("GPU compatibility could not be verified due to a problem getting the GPU list.")
        print("a warning")
    with pytest.raises(ImportError), cuda_libraries.quiet():
        os.write(2, b"said before an error\n")
        raise ImportError
    seen = capfd.readouterr()
    assert (seen.out, seen.err) == ("", "a warning\nCUDA error 3\nsaid before an error\n")


@pytest.mark.parametrize("version", ["120", "116"])
def test_locks_name_the_extension_and_every_library_that_is_loaded(version):
    lines = (ROOT / f"requirements-cuda{version}.lock").read_text().splitlines()
    names = {line.partition("==")[0] for line in lines if not line.startswith("#")}
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9.]+", line) for line in lines if not line.startswith("#"))
    folders = {pattern.partition("/")[0].replace("_", "-") for pattern in cuda_libraries.ORDER}
    if version == "116":
        folders.remove("nvjitlink")  # of CUDA 12
    assert names == {f"nnabla-ext-cuda{version}"} | {f"nvidia-{folder}-cu{version[:2]}" for folder in folders}


def needed(file: Path) -> set[str]:
    """The libraries that the loader alone does not find for `file`."""
    said = subprocess.run(["ldd", str(file)], capture_output=True, text=True, check=True).stdout
    return {line.split()[0] for line in said.splitlines() if "not found" in line}


RESOLVE = """
import ctypes, sys
import nnabla
from nnabla_detofa.backend import cuda_libraries
cuda_libraries.DRIVER = "libc.so.6"  # there may be none here
cuda_libraries.load()
for name in sys.argv[1:]:
    ctypes.CDLL(name)
"""


@pytest.mark.skipif(not (cuda_libraries.installed() and cuda_libraries.files()), reason="make setup-cuda was not run")
def test_every_library_is_found_but_the_drivers():
    """By name, as the loader looks for what the extension needs, once the others are loaded; cuDNN's parts too."""
    folder = Path(next(iter(find_spec("nnabla_ext.cuda").submodule_search_locations)))
    (extension,) = folder.glob("libnnabla_cuda*.so")
    names = needed(extension) - {"libcuda.so.1"}
    assert {"libnnabla.so"} < names and any(name.startswith("libcudart.") for name in names)
    (cudnn,) = (file for file in cuda_libraries.files() if file.name == "libcudnn.so.8")
    environment = {key: value for key, value in os.environ.items() if key != "LD_LIBRARY_PATH"}
    command = [sys.executable, "-c", RESOLVE, *names, *map(str, sorted(cudnn.parent.glob("libcudnn_*.so.8"))), "libnccl.so.2"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
