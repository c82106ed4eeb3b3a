"""Builds a null GPU: stand-ins for NVIDIA's libraries, with which NNabla's real CUDA extension runs without a GPU.

Device memory is host memory, kernels do nothing but are counted by name. It shows which implementation each function gets,
launches, copies, peaks of memory, and whether programs run through; its numbers mean nothing, and it has no times.

The sources beside this file hold the functions that must answer something. Whatever else the extension needs is read from its
symbols, and becomes a function that counts its calls.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

SOURCES = Path(__file__).parent
ROOT = SOURCES.parent.parent
BUILD = ROOT / "build" / "null_gpu"
LOCK = ROOT / "requirements-cuda120.lock"
PACKAGES = {"cudart": "cuda_runtime", "nccl": "nccl"}  # others have the library's name
DRIVER = {"libcuda.so.1": "cuda.c", "libnvidia-ml.so.1": "nvml.c"}


def shell(*command: str | Path) -> str:
    return subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True).stdout


def install(folder: Path) -> None:
    """NNabla's extension and CUDA's headers, of the versions that `make setup-cuda` installs, in a folder of their own."""
    wanted = [line for line in LOCK.read_text().splitlines() if line.startswith(("nnabla-ext", "nvidia-cuda-runtime"))]
    stamp = folder / "installed.txt"
    if stamp.exists() and stamp.read_text() == "\n".join(wanted):
        return
    pip = (sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-deps", "--upgrade")
    shell(*pip, "--target", folder, *wanted)
    stamp.write_text("\n".join(wanted))


def needed(site: Path) -> dict[str, set[str]]:
    """Library -> functions of it that the extension needs; those without a version are the driver's."""
    found = defaultdict(set)
    for file in sorted(site.glob("nnabla_ext/cud*/*.so")):
        for symbol in re.findall(r"U ((?:__)?cu\w+)(?:@(\S+))?", shell("nm", "-D", "--undefined-only", file)):
            name, library = symbol
            found[library or "libcuda.so.1"].add(name)
    return found


def compile_library(file: Path, source: Path | None, functions: set[str], headers: Path, runtime: Path | None) -> None:
    """One shared library: what `source` defines, and a counting function for every other of `functions`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    options = ("-O1", "-fPIC", "-w", f"-I{SOURCES}", f"-I{headers}")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        objects, defined = [], set()
        if source:
            objects.append(place / "source.o")
            shell("gcc", *options, "-c", source, "-o", objects[0])
            defined = set(re.findall(r" T (\w+)", shell("nm", objects[0])))
        rest = place / "rest.c"
        rest.write_text(counting(functions - defined, counted=file.name not in DRIVER, handles="cudart" not in file.name))
        links = [f"-L{runtime.parent}", f"-l:{runtime.name}"] if runtime else []
        if file.name not in DRIVER:  # their symbols have no version
            (place / "versions.map").write_text(f"{file.name} {{ global: *; }};\n")
            links.append(f"-Wl,--version-script={place / 'versions.map'}")
        command = ("gcc", *options, "-shared", f"-Wl,-soname,{file.name}", *objects, rest, *links, "-lpthread", "-lrt")
        shell(*command, "-o", file)


def counting(functions: set[str], counted: bool, handles: bool) -> str:
    """C code of functions that succeed; those that create something give a handle that is not null."""
    lines = ['#include "null_gpu.h"', "#include <stdlib.h>"]
    for name in sorted(functions):
        count = f'null_count("{name}"); ' if counted else ""
        handle = "*handle = malloc(64); " if handles and "Create" in name else ""
        lines.append(f"int {name}(void **handle) {{ {count}{handle}return 0; }}")
    return "\n".join(lines) + "\n"


def build(folder: Path = BUILD) -> dict[str, str]:
    """Make the null GPU in `folder`.

    Returns:
        the environment of programs that are to run on it.
    """
    site, packages, driver = folder / "site", folder / "python", folder / "driver"
    install(site)
    headers, functions = site / "nvidia" / "cuda_runtime" / "include", needed(site)
    for name, source in DRIVER.items():
        compile_library(driver / name, SOURCES / source, functions.pop(name, set()), headers, None)
    runtime = None
    for name in sorted(functions, key=lambda name: "cudart" not in name):  # the others count with its counters
        library = re.match(r"lib(\w+)\.so", name)[1]
        source = SOURCES / f"{library}.c"
        file = packages / "nvidia" / PACKAGES.get(library, library) / "lib" / name
        compile_library(file, source if source.exists() else None, functions[name], headers, runtime)
        runtime = runtime or file
    compile_library(packages / "nvidia" / "nccl" / "lib" / "libnccl.so.2", SOURCES / "nccl.c", set(), headers, runtime)
    (packages / "nvidia" / "__init__.py").touch()  # hides packages that `make setup-cuda` installed
    environment = {key: value for key, value in os.environ.items() if key not in ("NCCL_HOME", "CUDA_VISIBLE_DEVICES")}
    return environment | {"PYTHONPATH": f"{packages}:{site}:{SOURCES.parent}", "LD_LIBRARY_PATH": str(driver)}


if __name__ == "__main__":
    for key in ("PYTHONPATH", "LD_LIBRARY_PATH"):
        print(f"export {key}={build()[key]}")
