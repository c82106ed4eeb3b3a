"""What we stand on, made ready: nnabla and nnabla-nas repaired, the device chosen, Hydra's state filled in.

The only file that knows Hydra, CUDA events and communicators, and what is wrong in the nnabla-nas wheel. Modules that
build networks take what they need of nnabla-nas from here, so that a plain `import nnabla_detofa.supernet` works:

    from .compat import Mo, Model, Runner
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from .errors import UserError

logger = logging.getLogger(__name__)

NETWORKS = "nnabla_nas.contrib.classification.ofa.networks"
# Sizes that launchers of several ranks announce: Open MPI; MPICH, Intel MPI and Hydra; MVAPICH.
LAUNCHED_RANKS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
LAUNCHED_LOCAL_RANKS = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "MV2_COMM_WORLD_LOCAL_SIZE")

VISIBLE_GPUS = os.environ.get("CUDA_VISIBLE_DEVICES", "")


def repair() -> None:
    """Make the installed nnabla quick and the installed nnabla-nas importable; a second call changes nothing.

    - Every function call of nnabla 1.39 tries to import a module `nnabla.nnabla` that does not exist, searching the
      path each time: half of the time it takes to build a supernet's graph. With None in its place that fails at once.
    - The wheel of nnabla-nas 0.15 lacks the package `contrib.classification.ofa.networks` that its own `contrib`
      imports. Empty modules stand in for it; a complete installation (a source checkout) is left as it is.
    """
    sys.modules.setdefault("nnabla.nnabla", None)  # type: ignore[arg-type]
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


@contextmanager
def _own_logging_only() -> Iterator[None]:
    """Keep nnabla's logging to nnabla: importing it gives the root logger its handler, its level and its name.

    What it says while it is imported (the CPU extension, no MPI library) is left out; later it says warnings.
    """
    root, nnabla = logging.getLogger(), logging.getLogger("nnabla")
    handlers, level = list(root.handlers), root.level
    nnabla.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for handler in [handler for handler in root.handlers if handler not in handlers]:
            root.removeHandler(handler)
            nnabla.addHandler(handler)
            nnabla.propagate = False
        root.setLevel(level)
        nnabla.setLevel(logging.WARNING)


with _own_logging_only():
    import nnabla as nn

    repair()
    import nnabla.communicators as C
    import nnabla_nas.module as Mo
    from nnabla.ext_utils import get_extension_context
    from nnabla_nas.contrib.model import Model
    from nnabla_nas.optimizer import Optimizer
    from nnabla_nas.runner.runner import Runner

__all__ = ["Communicator", "Device", "Mo", "Model", "Optimizer", "Runner", "hydra_state", "nn", "repair"]


class NoEvents:
    """The CPU's twin of nnabla_ext.cuda.StreamEventHandler: there is no stream to wait for."""

    def default_stream_synchronize(self) -> None:
        """Nothing runs behind the caller's back."""

    def add_default_stream_event(self) -> None:
        """Nothing to keep in step with."""


class Communicator:
    """One process alone, and the interface of those that are not: that of upstream's CommunicatorWrapper.

    Attributes:
        ctx: the context this process computes in.
        rank: number of this process, from 0; rank 0 writes files and logs.
        local_rank: number of this process on its machine, from 0.
        n_procs: how many processes train together.
    """

    def __init__(self, ctx: nn.Context, rank: int = 0, local_rank: int = 0, n_procs: int = 1):
        self.ctx = ctx
        self.rank = rank
        self.local_rank = local_rank
        self.n_procs = n_procs

    @property
    def size(self) -> int:
        return self.n_procs

    def all_reduce(self, arrays: Sequence[nn.NdArray], division: bool = False, inplace: bool = True) -> None:
        """Replace each array by the sum over all processes, or with `division` by the mean.

        Args:
            inplace: add up array by array, without one packed buffer (slower for many small arrays, no extra memory).
        """

    def barrier(self) -> None:
        """Return once every process has called this."""


class NnablaCommunicator(Communicator):
    """Processes on GPUs, one on each, joined by nnabla's own communicator (NCCL)."""

    def __init__(self, ctx: nn.Context):
        try:
            self._comm = C.MultiProcessDataParallelCommunicator(ctx)
            self._comm.init()
        except Exception as error:  # nnabla raises RuntimeError, or what a missing MPI or NCCL library makes of it
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(
                f"several ranks were launched, but nnabla has no communicator here ({reason}): install MPI and NCCL, "
                "or start one process"
            ) from error
        super().__init__(ctx, self._comm.rank, self._comm.local_rank, self._comm.size)
        ctx.device_id = str(self.local_rank)

    def all_reduce(self, arrays: Sequence[nn.NdArray], division: bool = False, inplace: bool = True) -> None:
        self._comm.all_reduce(list(arrays), division=division, inplace=inplace)

    def barrier(self) -> None:
        self._comm.barrier()


class MpiCommunicator(Communicator):
    """Processes on CPUs, joined by mpi4py: nnabla's CPU build has no communicator of its own."""

    def __init__(self, ctx: nn.Context):
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py finds no MPI library
            raise UserError(
                f"several ranks were launched, but on the CPU they talk through mpi4py, which does not load ({error}): "
                "install nnabla-detofa[mpi], or start one process"
            ) from error
        self._mpi = MPI
        self._world = MPI.COMM_WORLD
        local = self._world.Split_type(MPI.COMM_TYPE_SHARED)
        super().__init__(ctx, self._world.Get_rank(), local.Get_rank(), self._world.Get_size())

    def all_reduce(self, arrays: Sequence[nn.NdArray], division: bool = False, inplace: bool = True) -> None:
        groups = [[array] for array in arrays] if inplace else [list(arrays)]
        for group in filter(None, groups):
            packed = np.concatenate([array.data.ravel() for array in group])
            self._world.Allreduce(self._mpi.IN_PLACE, packed, op=self._mpi.SUM)
            if division:
                packed /= self.n_procs
            ends = np.cumsum([array.size for array in group])[:-1]
            for array, part in zip(group, np.split(packed, ends)):
                array.data = part.reshape(array.shape)

    def barrier(self) -> None:
        self._world.Barrier()


def _announced(names: Sequence[str], environ: Mapping[str, str]) -> int:
    """The number a launcher put into the environment under one of `names`; 1 where none did."""
    return max([int(environ[name]) for name in names if environ.get(name, "").isdigit()], default=1)


def _visible_gpus(device_id: str, ranks: int) -> str:
    """CUDA_VISIBLE_DEVICES for the GPUs numbered in `device_id`, counted among those visible when we were imported."""
    ids = [part.strip() for part in device_id.split(",")]
    if not all(part.isdecimal() and part.isascii() for part in ids):
        raise UserError(f'args.device_id must be the number of a GPU like "0", a list like "0,1", or "-1", got {device_id!r}')
    if len(ids) < ranks:
        raise UserError(f"args.device_id must name a GPU for each of {ranks} ranks, like 0,1; got {device_id!r}")
    if not VISIBLE_GPUS:
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
        ctx: nnabla's default context since `Device.open`.
        comm: the processes that train together.
        event: keeps data loading and computing in step on a GPU's stream; does nothing on the CPU.
    """

    name: str
    ctx: nn.Context
    comm: Communicator = field(repr=False)
    event: Any = field(repr=False)

    @classmethod
    def open(cls, context: str = "auto", device_id: str = "0", type_config: str = "float") -> Device:
        """Choose the device and make it nnabla's default.

        Args:
            context: "cpu", "cudnn", or "auto": a GPU where nnabla finds one, otherwise the CPU.
            device_id: the GPU to use; with several ranks one for each on this machine, like "0,1"; numbers count what
                CUDA_VISIBLE_DEVICES lets through, and "-1" leaves that as it is. The CPU has no use for it.
            type_config: "float", or "half" on GPUs (no loss scaling: it gave NaNs with cuDNN 8.0.5).

        Raises:
            UserError: an argument is not one of these, there is no usable GPU, or ranks were launched that cannot talk.
        """
        if context not in ("cpu", "cudnn", "auto"):
            raise UserError(f"args.context must be cpu, cudnn or auto, got {context!r}")
        if type_config not in ("float", "half"):
            raise UserError(f"args.type_config must be float or half, got {type_config!r}")
        if context != "cpu":
            try:
                return cls._open_cuda(device_id, type_config)
            except _NoCuda as error:
                if context == "cudnn":
                    raise UserError(
                        f"args.context is cudnn, but nnabla finds no usable GPU ({error}): install nnabla-detofa with the "
                        "extra cuda110, cuda116 or cuda120 and a driver for it, or take the context cpu"
                    ) from error
                logger.info("computing on the CPU: %s", error)
        if type_config == "half":
            raise UserError("args.type_config half needs a GPU (args.context cudnn); the CPU computes in float")
        ctx = get_extension_context("cpu", type_config=type_config)
        return cls._joined("cpu", ctx, MpiCommunicator, lambda comm: NoEvents())

    @classmethod
    def _open_cuda(cls, device_id: str, type_config: str) -> Device:
        if device_id != "-1":
            # NCCL takes the GPU whose number is the local rank, so the choice is made by what is visible (as upstream does).
            os.environ["CUDA_VISIBLE_DEVICES"] = _visible_gpus(device_id, _announced(LAUNCHED_LOCAL_RANKS, os.environ))
        try:
            cuda = importlib.import_module("nnabla_ext.cuda")
            if not cuda.get_device_count():
                raise RuntimeError("CUDA reports no device")
            ctx = importlib.import_module("nnabla_ext.cudnn").context(device_id="0", type_config=type_config)
        except Exception as error:  # ImportError without it or its driver, nvml's errors, ValueError for a GPU it cannot use
            raise _NoCuda(" ".join(str(error).split()) or type(error).__name__) from error
        if type_config == "half":
            logger.warning("type_config half: there is no loss scaling, and NaNs were seen with cuDNN 8.0.5")
        return cls._joined("cudnn", ctx, NnablaCommunicator, lambda comm: cuda.StreamEventHandler(int(comm.ctx.device_id)))

    @classmethod
    def _joined(cls, name: str, ctx: nn.Context, several: type[Communicator], make_event) -> Device:
        ranks = _announced(LAUNCHED_RANKS, os.environ)
        comm = several(ctx) if ranks > 1 else Communicator(ctx)
        if comm.n_procs != ranks:
            # Each rank would otherwise run the whole job alone, and write the same files.
            raise UserError(f"{ranks} ranks were launched, but they find {comm.n_procs}: their MPI is not the launcher's")
        nn.set_default_context(comm.ctx)
        return cls(name, comm.ctx, comm, make_event(comm))


class _NoCuda(Exception):
    """Why there is no GPU to compute on."""


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
        config.hydra.run.dir = str(place)
        config.hydra.output_subdir = ""  # a part of the log's file name: log.txt
        config.hydra.runtime.cwd = os.getcwd()
    state = HydraConfig.instance()
    before = state.cfg
    state.set_config(config)
    try:
        yield place
    finally:
        state.cfg = before
