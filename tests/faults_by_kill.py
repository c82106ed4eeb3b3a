"""Kill runs of Algorithm 1 at random moments, let them go on, and compare them bit by bit with one that was left alone.

    python tests/faults_by_kill.py [--runs 12] [--jobs 2] [--seed 0]

The networks and the config are the demo's, with fewer and smaller of everything. Exit status 1 if a run differs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
from tqdm import tqdm

REPOSITORY = Path(__file__).parent.parent
CONFIG = "configs/digits_detofa.json"
OVERRIDES = (
    "args.evaluation_processes=2",
    "dataloader.voc.image_size=64",
    "hparams.fullnet_epochs=2",
    "hparams.warmup_epochs=2",
    "optimizer.train.warmup_steps=4",
    "hparams.epochs=2",
    "hparams.paths_per_bucket=8",
    "hparams.paths_per_operation=8",
    "hparams.threshold_paths=200",
    "hparams.heldout_paths_per_bucket=2",
    "hparams.bn_images=16",
    "hparams.bn_batch=16",
    "hparams.filter.epochs=8",
    'hparams.search.budgets=["20M", "24M"]',
    "hparams.search.generations=10",
    "hparams.search.population=20",
)
IMAGES = {"train": 64, "val": 16, "test": 24}
TIMES = ("seconds", "ledger")
"""What two equal runs differ in: in summary.json, and as files."""
ONE_RUN_ONLY = re.compile(r"log(\.\d+)?\.txt|tensorboard(/.*)?|checkpoint(/.*)?|config\.json")
"""Files that tell of one run of the program, and not of its result."""
MAX_STARTS = 10


def differing(one: Path, other: Path) -> list[str]:
    """The result files of two runs' folders that are not equal, or are only in one of them."""
    names = {str(file.relative_to(root)) for root in (one, other) for file in root.rglob("*") if file.is_file()}
    names = {name for name in names if not ONE_RUN_ONLY.fullmatch(name) and Path(name).stem not in TIMES}
    return sorted(name for name in names if not _equal(one / name, other / name))


def _equal(one: Path, other: Path) -> bool:
    if not (one.is_file() and other.is_file()):
        return False
    if one.suffix == ".h5":
        ours, theirs = _arrays(one), _arrays(other)
        return ours.keys() == theirs.keys() and all(ours[name] == theirs[name] for name in ours)
    if one.name in ("summary.json", "state.json"):
        return _timeless(one) == _timeless(other)
    return one.read_bytes() == other.read_bytes()


def _arrays(file: Path) -> dict[str, tuple]:
    """Every array of an HDF5 file, as its type, shape and bytes."""
    found: dict[str, tuple] = {}

    def visit(name: str, item) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item.dtype, item.shape, np.asarray(item[...]).tobytes()

    with h5py.File(file, "r") as opened:
        opened.visititems(visit)
    return found


def _timeless(file: Path) -> dict:
    """JSON without times; the files that a checkpoint's hashes are of are compared themselves."""
    content = json.loads(file.read_text())
    return {key: value for key, value in content.items() if key not in (*TIMES, "digest", "digests")}


def command(data: Path, folder: Path) -> list[str]:
    """A run's command line."""
    return [
        *(sys.executable, "-m", "nnabla_detofa", "run", "-f", CONFIG, "-c", "cpu", "-o", str(folder)),
        *(f"dataloader.voc.root={data}", *OVERRIDES),
    ]


def start(data: Path, folder: Path) -> subprocess.Popen:
    """The run as a process whose output is added to a file beside its folder."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with open(f"{folder}.txt", "a") as output:
        return subprocess.Popen(command(data, folder), cwd=REPOSITORY, env=environment, stdout=output, stderr=output)


def finish(data: Path, folder: Path, kills: list[float]) -> list[str]:
    """Run to the end, killed after each of these seconds; the phases that it was killed in.

    Raises:
        RuntimeError: a run failed.
    """
    phases: list[str] = []
    for _ in range(MAX_STARTS):
        process = start(data, folder)
        try:
            status = process.wait(kills[len(phases)] if len(phases) < len(kills) else None)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            phases.append(phase_of(folder))
            continue
        finally:
            if process.poll() is None:  # this program itself was stopped
                process.kill()
        if status:
            last = Path(f"{folder}.txt").read_text(errors="replace").strip().splitlines()[-1]
            raise RuntimeError(f"{folder.name} ended with status {status}: {last}")
        return phases
    raise RuntimeError(f"{folder.name} was not finished after {MAX_STARTS} starts")


def phase_of(folder: Path) -> str:
    """The phase that the newest log ends in."""
    logs = sorted(folder.glob("log*.txt"), key=lambda file: file.stat().st_mtime_ns)
    found = re.findall(r"^\[\d+/\d+\] (.*)$", logs[-1].read_text(), re.MULTILINE) if logs else []
    return found[-1] if found else "start"


def kill_times(rng: np.random.Generator, duration: float, number: int) -> list[float]:
    """Seconds after which a run is killed: once, and every third run once more."""
    return [float(rng.uniform(0, duration)) for _ in range(1 + (number % 3 == 2))]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=12, help="default: %(default)s")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    args = parser.parse_args(argv)

    from nnabla_detofa.data.digits import write_digits

    with tempfile.TemporaryDirectory() as place, tqdm(total=args.runs + 1, unit="run", dynamic_ncols=True) as bar:
        root, rng = Path(place), np.random.default_rng(args.seed)
        data = write_digits(root / "data", **IMAGES, image_size=96, crops_train=40, crops_val=20)
        began = time.monotonic()
        finish(data, root / "unbroken", [])
        duration = time.monotonic() - began
        bar.update()
        bar.write(f"unbroken: {duration:.1f} s")

        def one(job: tuple[int, list[float]]) -> bool:
            number, kills = job
            folder = root / f"run{number}"
            phases = finish(data, folder, kills)
            differences = differing(root / "unbroken", folder)
            moments = ", ".join(f"{moment:.1f} s in {phase}" for moment, phase in zip(kills, phases)) or "too late to be killed"
            bar.write(f"run {number + 1}: {moments}: {'differs in ' + ', '.join(differences) if differences else 'equal'}")
            bar.update()
            return not differences

        jobs = [(number, kill_times(rng, duration, number)) for number in range(args.runs)]
        with ThreadPoolExecutor(args.jobs) as pool:
            equal = list(pool.map(one, jobs))
    print(f"{sum(equal)} of {len(equal)} runs that were killed are equal to the one that was not")
    return 0 if all(equal) else 1


if __name__ == "__main__":
    sys.exit(main())
