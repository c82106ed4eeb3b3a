"""Runs the program on a null GPU and checks what that can show: `make test-null-gpu`.

The limits are those of a V100: a full-size training step on VOC must fit into 16 GB, and must not be thousands of kernels.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time

from build import ROOT, build

GIB = 2**30
VOC, COCO, IMAGENET = (f"configs/{name}.json" for name in ("voc_detofa", "coco_detofa", "imagenet_pretrain"))
TOLERANCE = 0.15
"""Of the dry run's estimate of memory."""


class Checks:
    """Prints a line for each check, and counts those that failed."""

    def __init__(self, environment: dict[str, str]):
        self.environment, self.failed = environment, 0

    def say(self, good: bool, text: str) -> None:
        self.failed += not good
        print(f"{'ok' if good else 'FAILED':8s}{text}", flush=True)

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-W", "ignore", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=self.environment | environment)

    def probe(self, *arguments: str) -> dict | None:
        """What a probe measured; None, and a failed check, where it did not run through."""
        done = self.run("tests/null_gpu/probe.py", *arguments)
        if done.returncode:
            self.say(False, f"{' '.join(arguments)} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
            return None
        return json.loads(done.stdout.splitlines()[-1])

    def step(self, name: str, config: str, *overrides: str, kernels: int, copies: int, gib: float | None = None) -> None:
        """A training step of the largest path: launches, copies, reads, memory, and where its functions are computed."""
        found = self.probe("step", config, *overrides)
        if found is None:
            return
        peak, estimate = found["peak"] / GIB, found["estimate"] / GIB
        self.say(found["kernels"] < kernels, f"{name}: {found['kernels']} kernels (fewer than {kernels})")
        self.say(found["copies"] < copies, f"{name}: {found['copies']} copies between host and device (fewer than {copies})")
        self.say(found["reads"] == 1, f"{name}: {found['reads']} read of the device by the host (1)")
        print(f"        {name}: {found['copied'] / 2**20:.1f} MiB copied between host and device")
        if gib:
            self.say(peak < gib, f"{name}: peak of device memory {peak:.2f} GiB (below {gib})")
        near = abs(estimate / peak - 1) <= TOLERANCE
        self.say(near, f"{name}: estimated {estimate:.2f} GiB, measured {peak:.2f} (within {TOLERANCE:.0%})")
        self.say(not found["elsewhere"], f"{name}: functions without a CUDA kernel: {', '.join(found['elsewhere']) or 'none'}")

    def out_of_memory(self, folder: str) -> None:
        """A device of 4 MiB is full in the first step."""
        done = self.run("tests/null_gpu/probe.py", "algorithm1", folder, "-c", "cudnn", NULL_GIB="0.004")
        said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        good = len(said) == 1 and "lower hparams.mini_batch" in said[0] and '"status": 2' in done.stdout
        self.say(good, f"out of memory: {said[0] if said else done.stderr[-500:]}")


def main() -> int:
    start = time.perf_counter()
    checks = Checks(build())
    with tempfile.TemporaryDirectory() as folder:
        checks.step("VOC, batch 32", VOC, kernels=5000, copies=20, gib=14)
        checks.step("COCO, mini-batches of 16", COCO, "hparams.mini_batch=16", kernels=20_000, copies=60)
        checks.step("ImageNet, mini-batches of 64", IMAGENET, kernels=40_000, copies=60)
        if found := checks.probe("evaluation", VOC):
            # 32 batches of 32 images to re-estimate, and 32 to validate
            checks.say(found["kernels"] < 40_000, f"a path on 2 x 1024 images: {found['kernels']} kernels (fewer than 40000)")
            reads, copies = found["reads"], found["copies"]
            checks.say(reads == 2, f"a path: {reads} reads of the device by the host (2), of {copies} copies")
        for name, status in (checks.probe("commands", folder) or {}).items():
            checks.say(status == 0, f"{name} ends with status {status}")
        if found := checks.probe("algorithm1", f"{folder}/two", "-c", "auto", "--processes", "2"):
            checks.say(found["status"] == 0, f"Algorithm 1 on two ranks ends with status {found['status']}")
        checks.out_of_memory(f"{folder}/small")
    print(f"{checks.failed or 'none'} failed, {time.perf_counter() - start:.0f} s")
    return bool(checks.failed)


if __name__ == "__main__":
    sys.exit(main())
