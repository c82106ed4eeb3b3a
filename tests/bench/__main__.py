"""How fast the parts are, as ratios to what bounds them: `make bench` prints a table and writes results/bench.json.

P1  a supernet step / the step of the path cut out as a static network, whose graph is built once
P2  a supernet step / the same step of NNablaNAS' own supernet (--upstream: a source checkout, which its wheel is not)
P3  evaluating a path / evaluating it the straightforward way, and Kendall's tau between the losses of both
P4  a training step with path pruning / without
P5  search, 500 generations of 100, with a score that costs nothing and with the path filter's
P6  the FLOPs of a million paths
P7  steps of two processes / steps of one
P8  scoring paths / its bare matrix products
fit     fitting the small data sets' filter, of four members, / fitting the filter as in the paper
loader  images that one process decodes, augments and batches in a second

What is compared takes turns, so that whatever else the machine does slows both sides. Times are medians of CPU seconds of one
core, P7's of wall time. Each measure is a process of its own, whose peak memory is reported.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before NNabla is loaded

import argparse
import json
import logging
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path as FilePath

from paths import fit, p3, p5, p6, p8
from steps import as_rank, loader, p1, p2, p4, p7
from timing import busy_share

BUSY = 0.1
"""Share of the cores' time in use by others, above which the machine counts as busy."""
MEASURES = {"P1": p1, "P2": p2, "P3": p3, "P4": p4, "P5": p5, "P6": p6, "P7": p7, "P8": p8, "fit": fit, "loader": loader}
SAID = dict(line.split("  ", 1) for line in __doc__.splitlines() if line.startswith(("P", "fit  ", "loader  ")))


def alone(name: str, options) -> dict | None:
    """A measure in a process of its own: what it found, with its peak memory and the command that repeats it."""
    with tempfile.TemporaryDirectory() as folder:
        file = FilePath(folder, "found.json")
        program = [sys.executable, "-W", "ignore", __file__, "--single", str(file), "--only", name]
        program += ["--upstream", str(options.upstream)] if options.upstream else []
        subprocess.run(program, check=True)
        found = json.loads(file.read_text())
    upstream = " UPSTREAM=CHECKOUT" if name == "P2" else ""
    return found and {**found, "command": f'make bench ONLY="{name}"{upstream}'}


def single(name: str, file: FilePath, options) -> None:
    """Runs in that process."""
    logging.disable(logging.INFO)
    found = MEASURES[name](options)
    if found is not None:
        peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        found["memory_mib"] = round(peak / 1024)
    file.write_text(json.dumps(found))


def row(name: str, found: dict) -> str:
    others = [key for key in found if key not in ("value", "spread", "command", "memory_mib", "busy")]
    shown = ", ".join(f"{key} {found[key]:g}" for key in others)
    first = f"{found['value']:.3f}" if "value" in found else ""
    quartiles = " to ".join(f"{value:.4g}" for value in found["spread"])
    return f"{name:<8}{first:>7}  {shown:<32}{quartiles:>18}{found['memory_mib']:>7}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", choices=MEASURES, default=list(MEASURES), metavar="P1", help="these measures alone"
    )
    parser.add_argument("--upstream", type=FilePath, metavar="CHECKOUT", help="NNablaNAS' sources, for P2")
    parser.add_argument("-o", "--output", type=FilePath, default=FilePath("results/bench.json"))
    parser.add_argument("--single", type=FilePath, help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=FilePath, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.upstream and not (options.upstream / "nnabla_nas").is_dir():
        parser.error(f"--upstream must be a checkout of nnabla-nas with a folder nnabla_nas, got {options.upstream}")
    if options.rank:
        as_rank(options.rank, options.steps)
        return 0
    if options.single:
        single(options.only[0], options.single, options)
        return 0
    busy = busy_share()
    if busy > BUSY:
        print(f"the machine is busy ({busy:.0%} of its cores' time is in use by others): measure again when it is idle")
    print(f"{'':<8}{'ratio':>7}  {'':<32}{'quartiles':>18}{'MiB':>7}")
    results = json.loads(options.output.read_text()) if options.output.exists() else {}
    for name in options.only:
        found = alone(name, options)
        if found is None:
            print(f"{name:<8}not measured: needs --upstream CHECKOUT (make bench UPSTREAM=CHECKOUT)")
            continue
        found["busy"] = round(busy, 2)
        print(row(name, found), flush=True)
        results[name] = found
        options.output.parent.mkdir(exist_ok=True)
        options.output.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    print()
    for name in options.only:
        print(f"{name:<8}{SAID[name].strip()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
