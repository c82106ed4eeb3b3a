"""Compatibility shims for nnabla and nnabla-nas, selection of the device, and Hydra's global state.

Only this file depends on Hydra, on CUDA events and on the defects of the nnabla-nas wheel; communicators are in `ranks.py`.
Modules that build networks import nnabla-nas from here, so that a plain `import nnabla_detofa.networks` works:

    from .compat import Mo, Model, Runner
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from ..common.errors import UserError
from ..common.files import real
from . import cuda_libraries
from .launch import launched, launched_here
from .ranks import Communicator, MpiCommunicator, NnablaCommunicator

logger = logging.getLogger(__name__)

NETWORKS = "nnabla_nas.contrib.classification.ofa.networks"
CACHE_SIZES = (48 << 10, 2 << 20, 32 << 20)
"""Bytes of the first, second, and third level of the cache that matrix products on the CPU assume."""
EIGEN_CACHE_SIZES = "ZN5Eigen8internal20manage_caching_sizesENS_6ActionEPlS2_S2_E12m_cacheSizes"
VISIBLE_GPUS = os.environ.get("CUDA_VISIBLE_DEVICES")
"""CUDA_VISIBLE_DEVICES when this module was imported: None makes all GPUs visible, an empty string none."""


def repair() -> None:
    """Speed up the installed nnabla, fix its bits, and make the installed nnabla-nas importable; calls can be repeated.

    - Every function call of nnabla 1.39, and every access to an array, first tries to import `nnabla.nnabla` or
      `nnabla.nnabla_ext`, which do not exist. The search of the path takes half of the time to build a supernet's graph.
      Substitute modules return at once what nnabla's second import finds.
    - The sums in matrix products, and so in convolutions, have the same order on every processor; see `fix_order_of_sums`.
    - The wheel of nnabla-nas 0.15 lacks the package `contrib.classification.ofa.networks` that its own `contrib`
      imports. Empty modules replace it; a complete installation (a source checkout) is not changed.
    """
    _stand_in("nnabla.nnabla", "nnabla", ("_variable", "variable", "functions"))
    _stand_in("nnabla.nnabla_ext", "nnabla_ext", ("cpu",))
    fix_order_of_sums()
    found = importlib.util.find_spec("nnabla_nas")
    if found is None or NETWORKS in sys.modules:
        return
    # Check the disk, since find_spec(NETWORKS) would import the parent packages, which fails. The folder has no
    # __init__.py even in the sources of nnabla-nas, which is why the wheel lacks it.
    inner = Path(*NETWORKS.split(".")[1:], "ofa_resnet50.py")
    if any((Path(folder) / inner).is_file() for folder in found.submodule_search_locations or ()):
        return
    package = ModuleType(NETWORKS, "Stands in for a package that the nnabla-nas wheel lacks.")
    package.__path__ = []
    sys.modules[NETWORKS] = package
    for name in ("ofa_mbv3", "ofa_xception", "ofa_resnet50"):
        module = ModuleType(f"{NETWORKS}.{name}", package.__doc__)
        sys.modules[module.__name__] = module
        setattr(package, name, module)


def fix_order_of_sums(cache_sizes: Sequence[int] = CACHE_SIZES) -> bool:
    """Make matrix products on the CPU add up in the same order on every processor.

    NNabla computes them with Eigen, which adds up products in blocks whose length depends on the size of the processor's
    first-level cache. With other caches, weights would differ in the last bits after one step of training, and as much as with
    another seed after a few hundred.

    Args:
        cache_sizes: bytes of the three levels of the cache that Eigen assumes from now on.

    Returns:
        Whether the installed build of NNabla has the variable in which Eigen stores them; otherwise nothing is changed.
    """
    library = ctypes.CDLL(nnabla_library.__file__)
    try:
        sizes = (ctypes.c_ssize_t * 3).in_dll(library, f"_Z{EIGEN_CACHE_SIZES}")
        initialized = ctypes.c_byte.in_dll(library, f"_ZGV{EIGEN_CACHE_SIZES}")
    except ValueError:
        return False
    sizes[:], initialized.value = list(cache_sizes), 1
    return True


def _stand_in(name: str, existing: str, parts: Sequence[str]) -> None:
    """Register a package `name` that contains the modules `parts` of the package `existing` and no others."""
    if name in sys.modules:
        return
    stand_in: Any = ModuleType(name, f"Stands in for {existing}.")
    stand_in.__path__ = []
    stand_in.__getattr__ = partial(getattr, importlib.import_module(existing))
    sys.modules[name] = stand_in
    for part in parts:
        sys.modules[f"{name}.{part}"] = importlib.import_module(f"{existing}.{part}")


@contextmanager
def _own_logging_only() -> Iterator[None]:
    """Confine nnabla's logging to its own logger: its import gives the root logger a level and a handler in nnabla's format.

    Messages during the import (CPU extension, missing MPI library) are suppressed; later the level is WARNING. If the user
    imported nnabla before, its level is kept. Importing nnabla also disables all FutureWarnings, which is undone.
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
    import nnabla._init as nnabla_library

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
    """Parameter of a module that is not registered in NNabla's global parameter scope.

    NNablaNAS registers each parameter there permanently, under its address: networks would never be freed, and
    `nn.save_parameters` for the user's own model would save this package's parameters too.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        nn.Variable.__init__(self)


class NoEvents:
    """CPU counterpart of nnabla_ext.cuda.StreamEventHandler; it does nothing, since the CPU has no streams."""

    def default_stream_synchronize(self) -> None:
        """Do nothing: the CPU computes synchronously."""

    def add_default_stream_event(self) -> None:
        """Do nothing: the CPU computes synchronously."""


def _visible_gpus(device_id: str) -> str:
    """Return CUDA_VISIBLE_DEVICES for the GPUs in `device_id`, which are indices into `VISIBLE_GPUS`."""
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
    """Context, communicator and event object that a run computes with.

    Attributes:
        name: "cpu" or "cudnn".
        ctx: nnabla's current context after `Device.open`; `process_state.restored_state` restores the previous one.
        comm: communicator of the processes that train together.
        event: synchronizes data loading and computation on a GPU's stream; does nothing on the CPU.
    """

    name: str
    ctx: nn.Context
    comm: Communicator = field(repr=False)
    event: Any = field(repr=False)

    @classmethod
    def open(cls, context: str = "auto", device_id: str = "0") -> Device:
        """Select the device and make it nnabla's current context.

        Args:
            context: "cpu", "cudnn", or "auto": a GPU if nnabla finds one, otherwise the CPU.
            device_id: number of the GPU; with several ranks one number for each on this machine, like "0,1". Numbers count
                the GPUs that CUDA_VISIBLE_DEVICES makes visible; "-1" does not change that variable. With the context "auto",
                "0" is the first GPU, or with several ranks the first ones. Ignored on the CPU.

        Raises:
            UserError: an argument is not allowed, no GPU is usable, there are fewer GPUs than ranks, or the launched ranks
                cannot communicate.
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
        """Open GPUs: `device_id` as in `open`, or None for the first GPUs, one for each rank."""
        if VISIBLE_GPUS == "":
            raise _NoCuda("CUDA_VISIBLE_DEVICES is empty, which hides all GPUs", "unset it, or set it to the numbers of GPUs")
        ranks = launched_here()
        ids = device_id
        if ids is None:
            first = ranks if VISIBLE_GPUS is None else min(ranks, len(VISIBLE_GPUS.split(",")))
            ids = ",".join(map(str, range(first)))
        visible = None if ids == "-1" else _visible_gpus(ids)  # checked even if no GPU is usable
        try:
            with cuda_libraries.quiet():
                cuda_libraries.load()
                # NCCL uses the GPU whose number is the local rank, so GPUs are selected by visibility before CUDA starts.
                if visible is not None:
                    os.environ["CUDA_VISIBLE_DEVICES"] = visible
                cuda = importlib.import_module("nnabla_ext.cuda")
                count = cuda.get_device_count()
                if not count:
                    raise RuntimeError("CUDA reports no device")
                ctx = importlib.import_module("nnabla_ext.cudnn").context(device_id="0", type_config="float")
        except UserError:
            raise
        except Exception as error:  # ImportError for a missing library, NVML errors, ValueError for an unusable GPU
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
    def _joined(
        cls,
        name: str,
        ctx: nn.Context,
        several: Callable[[nn.Context], Communicator],
        make_event: Callable[[Communicator], Any],
    ) -> Device:
        _, ranks = launched()
        comm = several(ctx) if ranks > 1 else Communicator(ctx)
        if comm.n_procs != ranks:
            # Otherwise each rank would run the whole job alone and write the same files.
            raise UserError(
                f"{ranks} ranks were launched, but they find {comm.n_procs}: their MPI is not the launcher's "
                "(srun may need --mpi=pmix)"
            )
        module: Any = importlib.import_module("nnabla.context")
        module.current_ctx = comm.ctx  # set_default_context raises in a context_scope
        return cls(name, comm.ctx, comm, make_event(comm))


class _NoCuda(Exception):
    """No GPU is usable; the arguments are the reason and how to fix it."""


@contextmanager
def own_modes() -> Iterator[None]:
    """Disable auto_forward and no_grad inside the block: graphs are built before they run, and have gradients."""
    with nn.auto_forward(False), nn.no_grad(False):
        yield


def _literal(text: str) -> str:
    """Escape a string so that OmegaConf reads "${" literally and not as an interpolation."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


@contextmanager
def hydra_state(output_dir: str | Path) -> Iterator[Path]:
    """Set Hydra's global state, which Runner, ProgressMeter, Optimizer and get_output_path of NNablaNAS read.

    Inside the block, a Runner whose `args["output_path"]` is "" writes its log, its events and its checkpoint into
    `output_dir`, which is created. The previous state is restored afterwards.

    Args:
        output_dir: folder of the run's files.

    Yields:
        The absolute path of `output_dir`.

    Raises:
        UserError: the folder cannot be created.
    """
    from hydra.conf import HydraConf
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf, open_dict

    folder = real(Path(output_dir))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"args.output_path must be a folder that can be created, got {output_dir} ({error.strerror})"
        ) from error
    config = OmegaConf.create({"hydra": OmegaConf.structured(HydraConf)})
    with open_dict(config):
        config.hydra.run.dir = _literal(str(folder))
        config.hydra.output_subdir = ""  # part of the log's file name, log.txt
        config.hydra.runtime.cwd = _literal(os.getcwd())
    state = HydraConfig.instance()
    before = state.cfg
    state.set_config(config)
    try:
        yield folder
    finally:
        state.cfg = before
