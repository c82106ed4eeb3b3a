"""What we stand on, made ready: nnabla and nnabla-nas repaired, the device chosen, Hydra's state filled in.

The only file that knows Hydra and CUDA events, and what is wrong in the nnabla-nas wheel; `ranks.py` knows communicators.
Modules that build networks take what they need of nnabla-nas from here, so that a plain `import nnabla_detofa.networks` works:

    from .compat import Mo, Model, Runner
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from ..common.errors import UserError
from . import cuda_libraries
from .launch import launched, launched_here
from .ranks import Communicator, MpiCommunicator, NnablaCommunicator

logger = logging.getLogger(__name__)

NETWORKS = "nnabla_nas.contrib.classification.ofa.networks"
VISIBLE_GPUS = os.environ.get("CUDA_VISIBLE_DEVICES")
"""As it was when this was imported: None lets all GPUs through, an empty string none."""


def repair() -> None:
    """Make the installed nnabla quick and the installed nnabla-nas importable; a second call changes nothing.

    - Every function call of nnabla 1.39, and every access to an array, first imports `nnabla.nnabla` or
      `nnabla.nnabla_ext`, which do not exist, searching the path each time: half of the time it takes to build a supernet's
      graph. Stand-ins for them answer at once with what the second attempt would find.
    - The wheel of nnabla-nas 0.15 lacks the package `contrib.classification.ofa.networks` that its own `contrib`
      imports. Empty modules stand in for it; a complete installation (a source checkout) is left as it is.
    """
    _stand_in("nnabla.nnabla", "nnabla", ("_variable", "variable", "functions"))
    _stand_in("nnabla.nnabla_ext", "nnabla_ext", ("cpu",))
    found = importlib.util.find_spec("nnabla_nas")
    if found is None or NETWORKS in sys.modules:
        return
    # find_spec(NETWORKS) would import its parents, which is what fails: so look on the disk. The folder has no
    # __init__.py even in nnabla-nas' sources (which is why the wheel lacks it).
    inner = Path(*NETWORKS.split(".")[1:], "ofa_resnet50.py")
    if any((Path(place) / inner).is_file() for place in found.submodule_search_locations or ()):
        return
    package = ModuleType(NETWORKS, "Stands in for a package that the nnabla-nas wheel lacks.")
    package.__path__ = []
    sys.modules[NETWORKS] = package
    for name in ("ofa_mbv3", "ofa_xception", "ofa_resnet50"):
        module = ModuleType(f"{NETWORKS}.{name}", package.__doc__)
        sys.modules[module.__name__] = module
        setattr(package, name, module)


def _stand_in(name: str, existing: str, parts: Sequence[str]) -> None:
    """A package `name` that holds the loaded modules `parts` of the package `existing`, and nothing else to import."""
    if name in sys.modules:
        return
    stand_in = ModuleType(name, f"Stands in for {existing}.")
    stand_in.__path__ = []
    stand_in.__getattr__ = partial(getattr, importlib.import_module(existing))
    sys.modules[name] = stand_in
    for part in parts:
        sys.modules[f"{name}.{part}"] = importlib.import_module(f"{existing}.{part}")


@contextmanager
def _own_logging_only() -> Iterator[None]:
    """Keep nnabla's logging to nnabla: importing it gives the root logger its handler, its level and its name.

    What it says while it is imported (the CPU extension, no MPI library) is left out; later it says warnings. Where the user
    imported it before, all stays as it is. Importing it also turns off all FutureWarnings, which is undone.
    """
    root, nnabla = logging.getLogger(), logging.getLogger("nnabla")
    handlers, level, later = list(root.handlers), root.level, logging.WARNING
    if "nnabla" in sys.modules:
        later = nnabla.level
    nnabla.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            yield
    finally:
        for handler in [handler for handler in root.handlers if handler not in handlers]:
            root.removeHandler(handler)
            nnabla.addHandler(handler)
            nnabla.propagate = False
        root.setLevel(level)
        nnabla.setLevel(later)


with _own_logging_only():
    import nnabla as nn

    repair()
    import nnabla.functions as F
    import nnabla.solvers as S
    import nnabla_nas.module as Mo
    from nnabla.ext_utils import get_extension_context
    from nnabla_nas.contrib.model import Model
    from nnabla_nas.optimizer import Optimizer
    from nnabla_nas.runner.runner import Runner

__all__ = ["Communicator", "Device", "F", "Mo", "Model", "Optimizer", "Parameter", "Runner", "S", "hydra_state", "nn", "repair"]


class Parameter(Mo.Parameter):
    """A parameter of a module that is not entered in NNabla's global parameter scope.

    NNablaNAS enters each one there for good, under its address: networks would never be freed, and `nn.save_parameters` of the
    user's own model would write ours too.
    """

    def __init__(self, *args, **kwargs):
        nn.Variable.__init__(self)


class NoEvents:
    """The CPU's twin of nnabla_ext.cuda.StreamEventHandler: there is no stream to wait for."""

    def default_stream_synchronize(self) -> None:
        """Nothing runs behind the caller's back."""

    def add_default_stream_event(self) -> None:
        """Nothing to keep in step with."""


def _visible_gpus(device_id: str) -> str:
    """CUDA_VISIBLE_DEVICES for the GPUs numbered in `device_id`, counted among those visible when we were imported."""
    ids = [part.strip() for part in device_id.split(",")]
    if not all(part.isdecimal() and part.isascii() for part in ids):
        raise UserError(f'args.device_id must be the number of a GPU like "0", a list like "0,1", or "-1", got {device_id!r}')
    if VISIBLE_GPUS is None:
        return ",".join(ids)
    visible = VISIBLE_GPUS.split(",")
    if max(map(int, ids)) >= len(visible):
        raise UserError(f"args.device_id must be below {len(visible)} (CUDA_VISIBLE_DEVICES={VISIBLE_GPUS}), got {device_id!r}")
    return ",".join(visible[int(part)] for part in ids)


@dataclass(frozen=True)
class Device:
    """Where networks are computed, and with whom: one context, one communicator, one event object.

    Attributes:
        name: "cpu" or "cudnn".
        ctx: nnabla's current context since `Device.open`; `process_state.given_back` undoes that.
        comm: the processes that train together.
        event: keeps data loading and computing in step on a GPU's stream; does nothing on the CPU.
    """

    name: str
    ctx: nn.Context
    comm: Communicator = field(repr=False)
    event: Any = field(repr=False)

    @classmethod
    def open(cls, context: str = "auto", device_id: str = "0") -> Device:
        """Choose the device and make it nnabla's current context.

        Args:
            context: "cpu", "cudnn", or "auto": a GPU where nnabla finds one, otherwise the CPU.
            device_id: the GPU to use; with several ranks one for each on this machine, like "0,1"; numbers count what
                CUDA_VISIBLE_DEVICES lets through, and "-1" leaves that as it is. With the context "auto", "0" is the first
                GPU, and with several ranks the first ones. The CPU has no use for it.

        Raises:
            UserError: an argument is not one of these, there is no usable GPU, there are fewer GPUs than ranks, or ranks were
                launched that cannot talk.
        """
        if context not in ("cpu", "cudnn", "auto"):
            raise UserError(f"args.context must be cpu, cudnn or auto, got {context!r}")
        if context != "cpu":
            try:
                return cls._open_cuda(None if context == "auto" and device_id == "0" else device_id)
            except _NoCuda as error:
                reason, todo = error.args
                if context == "cudnn":
                    raise UserError(f"args.context is cudnn, but {reason}: {todo}, or choose the CPU (-c cpu)") from error
                logger.info("no usable GPU was found, so this runs on the CPU (%s)", reason)
        ctx = get_extension_context("cpu", type_config="float")
        return cls._joined("cpu", ctx, MpiCommunicator, lambda comm: NoEvents())

    @classmethod
    def _open_cuda(cls, device_id: str | None) -> Device:
        """`device_id` as `open` has it; None: the first GPU for each rank."""
        if VISIBLE_GPUS == "":
            raise _NoCuda("CUDA_VISIBLE_DEVICES is empty, which hides all GPUs", "unset it, or set it to the numbers of GPUs")
        ranks = launched_here()
        ids = device_id
        if ids is None:
            first = ranks if VISIBLE_GPUS is None else min(ranks, len(VISIBLE_GPUS.split(",")))
            ids = ",".join(map(str, range(first)))
        try:
            with cuda_libraries.quiet():
                cuda_libraries.load()
                # NCCL uses the GPU whose number is the local rank, so GPUs are chosen by visibility, before CUDA starts.
                if ids != "-1":
                    os.environ["CUDA_VISIBLE_DEVICES"] = _visible_gpus(ids)
                cuda = importlib.import_module("nnabla_ext.cuda")
                count = cuda.get_device_count()
                if not count:
                    raise RuntimeError("CUDA reports no device")
                ctx = importlib.import_module("nnabla_ext.cudnn").context(device_id="0", type_config="float")
        except UserError:
            raise
        except Exception as error:  # ImportError without a library, nvml's errors, ValueError for a GPU it cannot use
            raise _NoCuda(*cuda_libraries.explain(error)) from error
        if device_id not in (None, "-1") and len(device_id.split(",")) < ranks:
            several = ",".join(map(str, range(ranks)))
            raise UserError(f"args.device_id must name a GPU for each of {ranks} ranks, like {several}; got {device_id!r}")
        if count < ranks:
            raise UserError(
                f"{ranks} ranks need {ranks} GPUs on this machine, usable: {count}; choose --processes 1, or the CPU: -c cpu"
            )
        return cls._joined("cudnn", ctx, NnablaCommunicator, lambda comm: cuda.StreamEventHandler(int(comm.ctx.device_id)))

    @classmethod
    def _joined(cls, name: str, ctx: nn.Context, several: type[Communicator], make_event) -> Device:
        _, ranks = launched()
        comm = several(ctx) if ranks > 1 else Communicator(ctx)
        if comm.n_procs != ranks:
            # Each rank would otherwise run the whole job alone, and write the same files.
            raise UserError(
                f"{ranks} ranks were launched, but they find {comm.n_procs}: their MPI is not the launcher's "
                "(srun may need --mpi=pmix)"
            )
        importlib.import_module("nnabla.context").current_ctx = comm.ctx  # set_default_context refuses in a context_scope
        return cls(name, comm.ctx, comm, make_event(comm))


class _NoCuda(Exception):
    """Why there is no GPU to compute on, and what to do about it."""


@contextmanager
def own_modes() -> Iterator[None]:
    """Run a block as if the caller were in no scope of NNabla's modes: graphs are built first, and have gradients."""
    with nn.auto_forward(False), nn.no_grad(False):
        yield


def _literal(text: str) -> str:
    """A string that OmegaConf reads back as it is: what starts like an interpolation, ${, is escaped."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


@contextmanager
def hydra_state(output_dir: str | Path) -> Iterator[Path]:
    """Fill Hydra's global state, which upstream's Runner, ProgressMeter, Optimizer and get_output_path read.

    Inside, a Runner whose `args["output_path"]` is "" writes its log, its events and its checkpoint into `output_dir`,
    which is made. What was there before comes back afterwards.

    Yields:
        `output_dir`, absolute.

    Raises:
        UserError: it cannot be made.
    """
    from hydra.conf import HydraConf
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf, open_dict

    place = Path(output_dir).resolve()
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"args.output_path must be a folder that can be made, got {output_dir} ({error.strerror})") from error
    config = OmegaConf.create({"hydra": OmegaConf.structured(HydraConf)})
    with open_dict(config):
        config.hydra.run.dir = _literal(str(place))
        config.hydra.output_subdir = ""  # a part of the log's file name: log.txt
        config.hydra.runtime.cwd = _literal(os.getcwd())
    state = HydraConfig.instance()
    before = state.cfg
    state.set_config(config)
    try:
        yield place
    finally:
        state.cfg = before
