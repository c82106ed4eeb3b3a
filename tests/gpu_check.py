"""What a machine with a GPU can show in five minutes: `make test-gpu`.

    python tests/gpu_check.py          # compares the GPU with the CPU
    python tests/gpu_check.py cpu      # compares the CPU with itself, which must agree exactly: a check of this program

Two processes compute the same from the same numbers, one on each device, and what they computed is compared. Then the GPU runs
full-size steps, a run that is stopped and resumed, two GPUs against one, and one step too large for its memory.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
SMALL, FULL, CLASSIFIER = (f"configs/{name}.json" for name in ("digits_detofa", "voc_detofa", "imagenet_pretrain"))
BOUNDS = {
    "loss": 1e-4,
    "gradient": 1e-2,
    "mean": 1e-3,
    "variance": 1e-3,
    "map": 1e-3,
    "path losses": 1e-4,
    "losses of 12 steps": 3e-2,
    "odd sizes": 1e-3,
    "filter scores": 1e-4,
    "filter losses": 1e-3,
}
"""Largest difference over the largest value, by kind of array. They are estimates until a GPU has run this."""
ORDER = 0.95
"""Least rank correlation of path losses."""
GROWTH = 2**20
"""Bytes that a process may grow on the GPU from step 50 to step 100."""


# --- What both devices compute -----------------------------------------------------------------------------------------


def repeated(array, count: int):
    """A batch of one item `count` times, sparse if the item is."""
    from nnabla_detofa.data.compact import Sparse

    if not isinstance(array, Sparse):
        return np.repeat(array, count, 0)
    return Sparse.stack([Sparse(array.places, array.values, array.shape[1:])] * count)


def batch(config, classes: int, count: int) -> list:
    """A batch of noise with one object in each image."""
    from nnabla_detofa.tools.synthetic import synthetic

    arrays = [repeated(array, count) for array in synthetic(config, classes)]
    arrays[0] = np.random.default_rng(0).normal(size=arrays[0].shape).astype(np.float32)
    return arrays


def networks(device, found: dict) -> None:
    """Losses, gradients, statistics and maps of five paths, and arrays that a step must leave alone."""
    import nnabla as nn

    from nnabla_detofa import config as configs
    from nnabla_detofa.evaluation.detections import BoxDetector
    from nnabla_detofa.evaluation.reestimation import reestimate
    from nnabla_detofa.evaluation.validation import PathEvaluator
    from nnabla_detofa.methods.build import make_model
    from nnabla_detofa.tools.dry_run import smallest_path
    from nnabla_detofa.training import loop as training

    config = configs.load(SMALL)
    net = make_model(config, 10, config.network.weights)
    arrays = batch(config, 10, 8)
    few = net.space.sample_many(np.random.default_rng(1), 3)
    for number, path in enumerate((net.space.largest, smallest_path(net.space), *few)):
        parameters = net.get_parameters(grad_only=True)
        for parameter in parameters.values():
            parameter.grad.zero()
        graph = training.build(net, path, [nn.Variable(array.shape) for array in arrays])
        training.load(graph, arrays)
        training.step(graph)
        found[f"loss {number}"] = np.array([float(loss.d) for loss in graph.losses[1:]])
        for name, parameter in parameters.items():
            if not parameter.grad.zeroing:
                found[f"gradient {number} {name}"] = parameter.g.copy()
        statistics = reestimate(net, path, [arrays[0]] * 2)
        for name, (mean, variance) in statistics.items():
            found[f"mean {number} {name}"], found[f"variance {number} {name}"] = mean, variance
        for name, output in zip("hos", BoxDetector(net, path, statistics)._outputs(arrays[0])):
            found[f"map {number} {name}"] = output
    evaluator = PathEvaluator(net, [arrays[0]] * 2, [arrays] * 2)
    found["path losses"] = evaluator.losses(net.space.sample_many(np.random.default_rng(2), 12))


class Given:
    """Stands in for a loader: the same batch in every step."""

    def __init__(self, arrays):
        self.arrays = arrays

    def batches(self, start: int):
        while True:
            yield self.arrays


def train(device, net, config, arrays, paths, steps: int, on_step) -> None:
    """The training loop of the last phase of `config`."""
    import nnabla as nn

    from nnabla_detofa.runs.phases import training_phases
    from nnabla_detofa.training import loop as training

    phase = training_phases(config)[-1]
    optimizer = training.new_optimizer(net, phase.solver, phase.schedule(400))
    inputs = [nn.Variable(array.shape) for array in arrays]
    loop = {"comm": device.comm, "event": device.event, "on_step": on_step}
    training.train(net, optimizer, paths, Given(arrays), inputs, range(steps), **loop)


def steps(device, found: dict) -> None:
    """Losses of 12 steps on random paths; and which arrays a step on the smallest path leaves as they were."""
    from nnabla_detofa import config as configs
    from nnabla_detofa.methods.build import make_model
    from nnabla_detofa.space.pruning import UniformPaths
    from nnabla_detofa.tools.dry_run import smallest_path
    from nnabla_detofa.training import loop as training

    config = configs.load(SMALL)
    net = make_model(config, 10, config.network.weights)
    arrays, losses = batch(config, 10, 8), []
    sampler = UniformPaths(net.space, np.random.default_rng(3))
    train(device, net, config, arrays, sampler, 12, lambda progress: losses.append(progress.losses[0]))
    found["losses of 12 steps"] = np.array(losses)
    before = {name: parameter.d.copy() for name, parameter in net.get_parameters().items()}
    train(device, net, config, arrays, training.OnePath(smallest_path(net.space)), 1, lambda progress: None)
    same = [name for name, parameter in net.get_parameters().items() if np.array_equal(before[name], parameter.d)]
    found["untouched"] = np.array(sorted(same))


def others(device, found: dict) -> None:
    """A classifier on maps of odd sizes (132 pixels: 33, 17, 9, 5), and a path filter's scores and fit."""
    import nnabla as nn

    from nnabla_detofa import config as configs
    from nnabla_detofa.methods.build import make_model
    from nnabla_detofa.networks.layers import BATCH
    from nnabla_detofa.path_filter.fitting import FitOptions, fit
    from nnabla_detofa.path_filter.model import PathFilter

    classifier = make_model(configs.load(CLASSIFIER, ["network.ofa_resnet50.width_scale=0.125"]), 10)
    x = nn.Variable((4, 3, 132, 132))
    x.d = np.random.default_rng(4).normal(size=x.shape)
    y = classifier(x, classifier.space.largest, BATCH)
    y.forward()
    found["odd sizes"] = y.d.copy()
    path_filter = PathFilter(classifier.space.geometry, rng=np.random.default_rng(5), pooling="concat")
    paths, rng = classifier.space.sample_many(np.random.default_rng(6), 100), np.random.default_rng(7)
    buckets = rng.integers(0, 5, 100)
    found["filter scores"] = path_filter.score(paths, buckets)
    options = FitOptions(epochs=5, lr=1e-4)
    (fitted,) = fit(path_filter, paths, buckets, rng.normal(size=100), np.random.default_rng(8), options)
    found["filter losses"] = fitted.validation_losses


def probe(context: str, file: str) -> None:
    """Compute all of the above on one device, and keep it."""
    from nnabla_detofa.backend.compat import Device

    device, found = Device.open(context), {}
    for compute in (networks, steps, others):
        compute(device, found)
    np.savez(file, **found)


# --- Comparing ---------------------------------------------------------------------------------------------------------


class Checks:
    """Prints a line for each check, and counts those that failed."""

    failed = 0

    def say(self, good: bool, text: str) -> None:
        self.failed += not good
        print(f"{'ok' if good else 'FAILED':8s}{text}", flush=True)


def compare(one, two, checks: Checks) -> None:
    """Two devices' arrays, kind by kind."""
    checks.say(set(one) == set(two), f"both devices gave the same {len(one)} arrays")
    worst: dict[str, tuple[float, str]] = {}
    for key in set(one) & set(two):
        kind = next((kind for kind in sorted(BOUNDS, key=len, reverse=True) if key.startswith(kind)), None)
        if kind:
            error = float(np.abs(one[key] - two[key]).max() / (np.abs(one[key]).max() + 1e-12))
            error = float("inf") if np.isnan(error) else error
            worst[kind] = max(worst.get(kind, (-1.0, "")), (error, key))
    for kind, bound in BOUNDS.items():
        error, key = worst.get(kind, (float("inf"), "missing"))
        checks.say(error <= bound, f"{kind}: differs by {error:.1e} at most, in {key} (allowed {bound:.0e})")
    ranks = [np.argsort(np.argsort(found["path losses"])) for found in (one, two)]
    order = float(np.corrcoef(*ranks)[0, 1])
    checks.say(order >= ORDER, f"order of 12 paths by their losses: rank correlation {order:.3f} (at least {ORDER})")
    equal = one["untouched"].tolist() == two["untouched"].tolist()
    checks.say(equal, f"a step leaves the same {len(one['untouched'])} arrays as they were")


# --- Full size ---------------------------------------------------------------------------------------------------------


def used_memory() -> int:
    """Bytes of GPU memory that are in use; 0 where nvidia-smi does not say."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        return int(subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return 0


def timed(function, seconds: list[float]):
    """The function, which then also adds what each call takes to `seconds`."""

    def call(*args, **options):
        start = time.perf_counter()
        result = function(*args, **options)
        seconds.append(time.perf_counter() - start)
        return result

    return call


def speed(context: str, images: int, count: int) -> None:
    """Seconds of a full-size step and its parts, of evaluating a path, and memory from step 50 to step 100; as JSON."""
    from nnabla_detofa import config as configs
    from nnabla_detofa.backend.compat import Device
    from nnabla_detofa.evaluation.validation import PathEvaluator
    from nnabla_detofa.methods.build import make_model
    from nnabla_detofa.space.pruning import UniformPaths
    from nnabla_detofa.training import loop as training

    device, config = Device.open(context), configs.load(FULL)
    net, arrays = make_model(config, 20), batch(config, 20, images)
    parts: dict[str, list[float]] = {"build": [], "step": []}
    for name, seconds in parts.items():
        setattr(training, name, timed(getattr(training, name), seconds))
    times, memory = [time.perf_counter()], {}

    def on_step(progress) -> None:
        device.event.default_stream_synchronize()
        times.append(time.perf_counter())
        if len(times) - 1 in (count // 2, count):
            memory[len(times) - 1] = used_memory()

    train(device, net, config, arrays, UniformPaths(net.space, np.random.default_rng(0)), count, on_step)
    evaluator = PathEvaluator(net, [arrays[0]] * 8, [arrays] * 8)
    start = time.perf_counter()
    for path in net.space.sample_many(np.random.default_rng(1), 3):
        evaluator.evaluate(path)
    result = {
        "step": float(np.median(np.diff(times)[count // 2 :])),
        "first step": times[1] - times[0],
        "build": float(np.median(parts["build"])),
        "launch": float(np.median(parts["step"])),
        "path": (time.perf_counter() - start) / 3,
        "memory": memory.get(count, 0),
        "growth": memory.get(count, 0) - memory.get(count // 2, 0),
    }
    print(json.dumps(result))


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-W", "ignore", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | environment)


def full_size(context: str, checks: Checks) -> None:
    images, count = ("32", "100") if context != "cpu" else ("1", "2")
    done = python(__file__, "speed", context, images, count)
    if done.returncode:
        checks.say(False, f"full-size steps ended with status {done.returncode}: {done.stderr.strip()[-1000:]}")
        return
    found = json.loads(done.stdout.splitlines()[-1])
    gib = found["memory"] / 2**30
    print(
        f"        a step of {images} images, random paths: {found['step']:.3f} s (the first {found['first step']:.1f} s)\n"
        f"        building its graph {found['build']:.3f} s, launching it {found['launch']:.3f} s; {gib:.1f} GiB of memory\n"
        f"        a path on 2 x {8 * int(images)} images: {found['path']:.2f} s"
    )
    growth = f"{found['growth'] / 2**20:.0f} MiB"
    checks.say(found["growth"] <= GROWTH, f"memory grew by {growth} in the second half of {count} steps")


# --- Runs --------------------------------------------------------------------------------------------------------------


def small_run(folder: Path) -> list[str]:
    """A command for a run of Algorithm 1 of a minute, without what it needs besides its data."""
    sys.path.insert(0, str(ROOT / "tests"))
    from tiny import config_file

    return ["-m", "nnabla_detofa", "-f", str(config_file()), "-o", str(folder)]


def equal_losses(one: Path, two: Path) -> bool:
    """Whether two runs measured the same losses of the same paths at their end."""
    losses = []
    for folder in (one, two):
        lines = (folder / "paths_again.jsonl").read_text().splitlines()[1:]
        losses.append([json.loads(line)["loss"] for line in lines])
    return len(losses[0]) == len(losses[1]) > 0 and bool(np.allclose(*losses, rtol=1e-3))


def runs(context: str, folder: Path, checks: Checks) -> None:
    """Stop and resume."""
    whole = python(*small_run(folder / "whole"), "-c", context)
    checks.say(whole.returncode == 0, f"a run of Algorithm 1 ends with status {whole.returncode} {whole.stderr.strip()[-300:]}")
    command = [sys.executable, "-W", "ignore", *small_run(folder / "stopped"), "-c", context]
    job = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while job.poll() is None and not (folder / "stopped" / "fullnet").exists():
        time.sleep(0.2)
    job.send_signal(signal.SIGINT)
    stopped = job.wait()
    resumed = python(*small_run(folder / "stopped"), "-c", context)
    same = resumed.returncode == whole.returncode == 0 and equal_losses(folder / "stopped", folder / "whole")
    text = f"a run that was stopped (status {stopped}) and resumed gives the losses of a whole one"
    checks.say(same and stopped == 130, text)


def two_ranks(context: str, folder: Path, checks: Checks) -> None:
    """Two ranks against one, where there are two GPUs; both have mini-batches of half a batch."""
    context = "cpu" if context == "cpu" else "auto"  # which takes a GPU for each rank
    ranks = python(*small_run(folder / "two"), "-c", context, "--processes", "2", "hparams.mini_batch=2")
    one = python(*small_run(folder / "one"), "-c", context, "hparams.mini_batch=2")
    if "need 2 GPUs" in ranks.stderr or "need mpirun" in ranks.stderr:
        said = next(line for line in ranks.stderr.splitlines() if "need" in line)
        print(f"        not checked, two ranks against one: {said}")
        return
    same = ranks.returncode == one.returncode == 0 and equal_losses(folder / "two", folder / "one")
    checks.say(same, f"two ranks give the losses of one {'' if same else ranks.stderr.strip()[-300:]}")


def too_large(context: str, checks: Checks) -> None:
    """A batch that no GPU holds is a sentence."""
    if context == "cpu":
        return
    done = python(__file__, "large", context)
    said = (done.stderr.strip().splitlines() or [""])[-1]
    checks.say("lower hparams.mini_batch" in said, f"out of memory: {said}")


def large(context: str) -> None:
    from nnabla_detofa import config as configs
    from nnabla_detofa.backend.compat import Device
    from nnabla_detofa.methods.build import make_model
    from nnabla_detofa.training import loop as training

    device, config = Device.open(context), configs.load(FULL)
    net = make_model(config, 20)
    train(device, net, config, batch(config, 20, 512), training.OnePath(net.space.largest), 1, lambda progress: None)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="?", default="cudnn", help="cudnn, cpu, or what this program calls itself for")
    parser.add_argument("rest", nargs="*")
    args = parser.parse_args()
    if args.what in ("probe", "speed", "large"):
        numbers = [int(part) if part.isdigit() else part for part in args.rest]
        {"probe": probe, "speed": speed, "large": large}[args.what](*numbers)
        return 0
    from nnabla_detofa.tools.installation import no_gpu

    reason, todo = no_gpu() if args.what != "cpu" else ("", "")
    if reason:
        print(f"error: these checks need a GPU, but {reason}: {todo}", file=sys.stderr)
        return 2
    checks, start = Checks(), time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, context in enumerate(("cpu", args.what)):
            done = python(__file__, "probe", context, str(folder / f"{number}.npz"))
            if done.returncode:
                print(f"FAILED  computing on {context}: {done.stderr.strip()[-2000:]}")
                return 1
        compare(np.load(folder / "0.npz"), np.load(folder / "1.npz"), checks)
        full_size(args.what, checks)
        runs(args.what, folder, checks)
        two_ranks(args.what, folder, checks)
        too_large(args.what, checks)
    print(f"{checks.failed or 'none'} failed, {time.perf_counter() - start:.0f} s")
    return bool(checks.failed)


if __name__ == "__main__":
    sys.exit(main())
