"""What runs on the null GPU inside `check.py`, and is measured there: prints one line of JSON.

python probe.py step configs/voc_detofa.json [KEY=VALUE ...]
python probe.py evaluation configs/voc_detofa.json [KEY=VALUE ...]
python probe.py commands FOLDER
python probe.py algorithm1 FOLDER [OPTION ...]
"""

import ctypes
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from gpu_check import repeated

from nnabla_detofa.backend.compat import Device
from nnabla_detofa.config import load

KERNEL_CALLS = ("cudnnConvolution", "cudnnBatchNormalization", "cudnnActivation", "cudnnPooling", "cudnnAddTensor",
                "cudnnSoftmax", "cudnnReduceTensor", "cublasSgemm", "cublasGemm", "cublasSgemv", "ncclAllReduce")  # fmt: skip
"""Calls of libraries that start at least one kernel."""
VIEWS = ("Reshape", "Identity", "Constant")


class Counters:
    """Those of the null GPU's runtime, which is loaded once NNabla's extension is."""

    def __init__(self):
        self.library = ctypes.CDLL("libcudart.so.12")

    def reset(self) -> None:
        self.library.null_reset()

    def read(self) -> dict:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "counters.json")
            assert self.library.null_report(str(file).encode()) == 0
            found = json.loads(file.read_text())
        calls = {name: count for name, count in found["calls"] if name.startswith(KERNEL_CALLS)}
        copies = found["copies"]
        return {
            "kernels": found["launches"] + sum(calls.values()),
            "peak": found["peak"],
            "copies": copies["host to device"][0] + copies["device to host"][0],
            "reads": copies["device to host"][0],
            "copied": copies["host to device"][1] + copies["device to host"][1],
            "most": sorted(found["kernels"], key=lambda item: -item[1])[:5],
        }


def elsewhere(variable) -> set[str]:
    """Names of the functions of a graph that have no CUDA kernel; views need none, nor constants, which the device fills."""
    names = set()
    variable.visit(lambda function: names.add(function.name))
    return {name for name in names if "Cuda" not in name and name not in VIEWS}


def batch(config, classes: int, count: int) -> list:
    """A batch of `count` images in the form in which the loader gives it."""
    from nnabla_detofa.tools.synthetic import synthetic

    return [repeated(array, count) for array in synthetic(config, classes)]


def step(config) -> dict:
    """The second of three training steps on the largest path, by the training loop itself."""
    import nnabla as nn

    from nnabla_detofa.methods.build import make_model
    from nnabla_detofa.runs.phases import training_phases
    from nnabla_detofa.tools.data_facts import data_facts
    from nnabla_detofa.tools.graph_memory import step_memory
    from nnabla_detofa.tools.synthetic import SyntheticBatch
    from nnabla_detofa.training import loop as training

    device, counters = Device.open("cudnn"), Counters()
    facts = data_facts(config)
    phases = training_phases(config)
    model = make_model(config, facts.num_classes)
    estimate = step_memory(config, facts.num_classes, model, phases).total
    mini = config.hparams.mini_batch or config.hparams.batch_size
    arrays = batch(config, facts.num_classes, config.hparams.batch_size)
    inputs = [nn.Variable((mini, *array.shape[1:])) for array in arrays]
    phase = phases[0]
    optimizer = training.new_optimizer(model, phase.solver, phase.schedule(facts.train))
    device.event.default_stream_synchronize()
    measured = []

    def on_step(progress: training.Progress) -> None:
        measured.append(counters.read())
        counters.reset()

    training.train(
        model,
        optimizer,
        training.OnePath(model.space.largest),
        SyntheticBatch(arrays),
        inputs,
        range(3),
        accumulate=config.hparams.batch_size // mini,
        comm=device.comm,
        event=device.event,
        on_step=on_step,
    )
    graph = training.build(model, model.space.largest, inputs)
    peak = max(found["peak"] for found in measured)
    return measured[1] | {"peak": peak, "estimate": estimate, "elsewhere": sorted(elsewhere(graph.losses[0]))}


def commands(folder: Path) -> dict:
    """Exit status of each command of a user, on the smallest data set and networks."""
    from tiny import config_file, digits

    from nnabla_detofa.cli import main
    from nnabla_detofa.tools import export

    export.TOLERANCE = float("inf")  # numbers mean nothing here, so an exported detector is not that of the supernet
    run, tuned = str(folder / "run"), str(folder / "tuned")
    image = str(next(digits().glob("JPEGImages/test*.jpg")))
    lines = {
        "Algorithm 1": ["-f", str(config_file()), "-c", "cudnn", "-o", run],
        "evaluate": ["evaluate", run, "-c", "cudnn"],
        "search": ["search", run, "--flops", "4M", "-c", "cudnn"],
        "detect": ["detect", run, image, "-c", "cudnn", "-o", str(folder / "found")],
        "finetune": ["finetune", run, "--detector", "subnet_1", "--epochs", "1", "-c", "cudnn", "-o", tuned],
        "export": ["export", tuned, "--detector", "finetuned", "-c", "cudnn", "-o", str(folder / "detector.nnp")],
        "measure-latency": ["measure-latency", "-f", str(config_file()), "--classes", "10", "-c", "cudnn", "-o",
                            str(folder / "latency.json")],
    }  # fmt: skip
    return {name: main(line) for name, line in lines.items()}


def algorithm1(folder: Path, *options: str) -> dict:
    """Exit status of Algorithm 1."""
    from tiny import config_file

    from nnabla_detofa.cli import main

    return {"status": main(["-f", str(config_file()), "-o", str(folder), *options])}


def evaluation(config) -> dict:
    """Re-estimation and validation of one path, as Algorithm 1 line 5 does it."""
    from nnabla_detofa.data.compact import Pixels
    from nnabla_detofa.evaluation.validation import PathEvaluator
    from nnabla_detofa.methods.build import make_model

    Device.open("cudnn")
    counters = Counters()
    model = make_model(config, 20)
    images, *targets = batch(config, 20, config.hparams.bn_batch)
    images = Pixels(np.zeros(images.shape, np.uint8), model.normalization)
    batches = config.hparams.bn_images // config.hparams.bn_batch
    evaluator = PathEvaluator(model, [images] * batches, [[images, *targets]] * batches)
    evaluator.evaluate(model.space.largest)
    counters.reset()
    evaluator.evaluate(model.space.sample(np.random.default_rng(0)))
    return counters.read()


if __name__ == "__main__":
    what, first, *rest = sys.argv[1:]
    if what == "commands":
        found = commands(Path(first))
    elif what == "algorithm1":
        found = algorithm1(Path(first), *rest)
    else:
        found = {"step": step, "evaluation": evaluation}[what](load(first, rest))
    print(json.dumps(found))
