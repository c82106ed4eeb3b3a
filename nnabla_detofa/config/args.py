"""Section `args` of a config."""

from dataclasses import dataclass
from typing import Annotated, Literal

from .imported import IMPORT_PATH, with_colon
from .values import Count, Natural, expand_home, text


@dataclass(frozen=True)
class Args:
    """Method, device and output folder of a run.

    Attributes:
        runner: method: "detofa" is Algorithm 1; "pretrain" pre-trains the supernet and the path filter for it. Baselines:
            "fullnet" trains only the largest path, "ofa" and "ofa_ps" are OFA without and with progressive shrinking, and
            "compofa" is CompOFA. Or the import path of a class of your own.
        seed: seed of all random choices.
        context: "cpu", "cudnn", or "auto": a GPU if one is usable, otherwise the CPU.
        device_id: number of the GPU, or comma-separated numbers, one for each rank. With the context "auto", "0" is the first
            GPU for each rank.
        type_config: "float", 32-bit precision. "half" is not allowed, since the losses would overflow without mixed precision.
        output_path: folder of the run; null: the folder in runs/ that has the name of the config.
        workers: number of threads that load data; 0: data are loaded between the training steps.
        evaluation_processes: number of processes that share the evaluation of paths on the CPU; null: one per core.
        print_frequency: number of training steps between two lines of the log.
    """

    runner: Annotated[Literal["detofa", "pretrain", "fullnet", "ofa", "ofa_ps", "compofa"], IMPORT_PATH, with_colon] = "detofa"
    seed: Natural = 0
    context: Literal["auto", "cpu", "cudnn"] = "auto"
    device_id: Annotated[str, text] = "0"
    type_config: Literal["float"] = "float"
    output_path: Annotated[str, text, expand_home] | None = None
    workers: Annotated[int, "[0, 256]"] = 2
    evaluation_processes: Annotated[int, "[1, 256]"] | None = None
    print_frequency: Count = 50
