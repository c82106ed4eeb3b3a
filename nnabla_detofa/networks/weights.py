"""Weights in files: read strictly, written whole or not at all.

A weights file is what `nnabla.save_parameters` writes: HDF5 with one data set a parameter. Reading one runs no code.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath

import h5py
import numpy as np

from ..backend.compat import Mo, nn
from ..common import checked
from ..common.errors import UserError
from ..common.files import new_hdf5
from ..common.normalization import FIRST_CONV, FIRST_MEAN, UNRECORDED, Normalization, adapted
from ..common.reading import short, shown

logger = logging.getLogger(__name__)


def read(file: str | os.PathLike) -> dict[str, np.ndarray]:
    """Parameter name -> array of a weights file.

    Raises:
        UserError: the file is missing, is not HDF5, or holds something other than finite numbers.
    """
    file = FilePath(file)
    if not file.is_file():
        raise UserError(f"the weights file {file} does not exist")
    found: dict[str, np.ndarray] = {}
    left = MOST_BYTES

    def visit(name: str, item) -> None:
        nonlocal left
        if isinstance(item, h5py.Dataset):
            _refuse_odd(item, name, file, left)
            left -= item.nbytes
            found[name] = item[...]
            if not _finite(found[name]):
                raise UserError(f"the parameter {name} in {file} is not made of finite numbers")

    try:
        with h5py.File(file, "r") as opened:
            opened.visititems(visit)
    except UserError:
        raise
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, OverflowError, MemoryError) as error:
        raise UserError(f"the weights file {file} cannot be read as HDF5 ({short(str(error))})") from error
    if not found:
        raise UserError(f"the weights file {file} holds no parameters")
    return found


def _finite(array: np.ndarray) -> bool:
    """Are all numbers finite in float32, in which networks compute? No array as large as theirs is made for it."""
    most = np.finfo(np.float32).max
    return not array.size or bool(-most <= array.min() and array.max() <= most)  # either is NaN where one number is


MOST_BYTES = 1 << 30
"""Of all arrays of a weights file; those of the paper's largest network have 0.2 GB."""
SHRINKS, SMALL = 50, 1 << 20
"""Compressed, a parameter of more than SMALL bytes has at least a share of 1 / SHRINKS of them in the file: weights are hardly
compressible, but a file of a kilobyte may announce a gigabyte of zeros."""


def _refuse_odd(item: h5py.Dataset, name: str, file: FilePath, most: int) -> None:
    """Raise UserError, before it is read, for what no parameter is: not numbers, more than the file holds, another file's."""
    if item.dtype.kind not in "fiu" or item.shape is None:
        raise UserError(f"the parameter {name} in {file} is not made of finite numbers")
    if item.is_virtual or item.external:
        raise UserError(f"the parameter {name} in {file} lies in another file: all parameters must be in this one")
    if item.nbytes > most:
        raise UserError(f"the parameters in {file} must have at most {MOST_BYTES} bytes, and {name} goes beyond")
    stored = item.id.get_storage_size()
    if stored < item.nbytes and (item.compression is None or item.nbytes > max(SMALL, SHRINKS * stored)):
        raise UserError(f"the parameter {name} in {file} announces {item.nbytes} bytes, and the file stores only {stored}")


STRIDES, NORMALIZATION = "strides", "normalization"
"""Attributes of a weights file: what its shapes do not tell, the strides of the supernet's stages, and the mean and the
deviation of its images as (2, 3) numbers."""


def write(
    file: str | os.PathLike,
    parameters: Mapping[str, nn.Variable],
    strides: Sequence[int] | None = None,
    normalization: Normalization | None = None,
    **attributes: str,
) -> None:
    """Write parameters as `nnabla.save_parameters` would; the file appears complete or not at all.

    Args:
        strides, normalization: kept with them as `STRIDES` and `NORMALIZATION`.
        attributes: kept with them under their names.
    """
    file = FilePath(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    with new_hdf5(file) as opened:
        for index, (name, variable) in enumerate(parameters.items()):
            data = opened.create_dataset(name, data=variable.d)
            data.attrs["index"], data.attrs["need_grad"] = index, variable.need_grad
        if strides is not None:
            opened.attrs[STRIDES] = list(strides)
        if normalization is not None:
            opened.attrs[NORMALIZATION] = np.array([normalization.mean, normalization.std])
        opened.attrs.update(attributes)


def save(net: Mo.Module, file: str | os.PathLike) -> None:
    """Write a network's parameters, and what else `load` and `loading.load_supernet` need to know of it."""
    space = getattr(net, "space", None)
    write(file, net.get_parameters(), space and space.geometry.strides, getattr(net, "normalization", None))


def strides_of(file: str | os.PathLike) -> tuple[int, ...] | None:
    """The strides that `write` kept in a weights file; None where it has none.

    Raises:
        UserError: they are no integers.
    """
    with h5py.File(file, "r") as opened:
        kept = opened.attrs.get(STRIDES)
    if kept is None:
        return None
    if np.ndim(kept) != 1 or np.asarray(kept).dtype.kind not in "iu":
        raise UserError(f"the strides kept in {file} must be a list of integers, got {shown(kept)}")
    return tuple(int(stride) for stride in kept)


def normalization_of(file: str | os.PathLike) -> Normalization:
    """What images a weights file's network takes; `normalization.UNRECORDED` where the file does not say.

    Raises:
        UserError: the file cannot be read, or what it keeps is no mean and no deviation.
    """
    try:
        with h5py.File(file, "r") as opened:
            kept = opened.attrs.get(NORMALIZATION)
    except OSError as error:
        raise UserError(f"the weights file {file} cannot be read as HDF5 ({short(str(error))})") from error
    if kept is None:
        return UNRECORDED
    if np.shape(kept) != (2, 3) or np.asarray(kept).dtype.kind != "f":
        raise UserError(f"the normalization kept in {file} must be a mean and a std of 3 numbers each, got {shown(kept)}")
    mean, std = np.asarray(kept, float).tolist()
    return checked.read(Normalization, {"mean": mean, "std": std}, f"the normalization kept in {file}")


def convert(source: str | os.PathLike, target: str | os.PathLike, dtype) -> None:
    """Copy a weights file with its attributes, its numbers in another type.

    Raises:
        UserError: the source cannot be read.
    """
    arrays, target = read(source), FilePath(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(source, "r") as theirs, new_hdf5(target) as ours:
        ours.attrs.update(theirs.attrs)
        for name, array in arrays.items():
            data = ours.create_dataset(name, data=array.astype(dtype))
            data.attrs.update(theirs[name].attrs)


def fill(parameters: Mapping[str, nn.Variable], arrays: Mapping[str, np.ndarray], source: str) -> None:
    """Set every parameter to the array of its name: all of them, or none and an error.

    Arrays that no parameter asks for are left alone.

    Raises:
        UserError: a parameter has no array, or one of another shape.
    """
    for name, variable in parameters.items():
        if name not in arrays:
            missing = sum(name not in arrays for name in parameters)
            raise UserError(f"{source} lacks the parameter {name} ({missing} of {len(parameters)} are missing)")
        if arrays[name].shape != variable.shape:
            raise UserError(f"{name} in {source} has the shape {arrays[name].shape}; this network's is {variable.shape}")
    for name, variable in parameters.items():
        variable.d = arrays[name]


def load(net: Mo.Module, file: str | os.PathLike, arrays: Mapping[str, np.ndarray] | None = None, adapt: bool = False) -> None:
    """Fill the whole network from a weights file, ours or NNablaNAS' own; the two must hold the same names.

    Args:
        arrays: what `read(file)` gave, where it was read before.
        adapt: change weights for images of another normalization than the network's, so that they compute the same.

    Raises:
        UserError: the file cannot be read, or a name is only in one of the two, or a shape differs, or the file's images are
            normalized otherwise and `adapt` is off; nothing is loaded then.
    """
    parameters, arrays = net.get_parameters(), read(file) if arrays is None else arrays
    extra = [name for name in arrays if name not in parameters]
    if extra:
        raise UserError(f"{file} holds {len(extra)} parameters that this network lacks, the first is {extra[0]}")
    given = getattr(net, "normalization", None)
    if given is not None:
        trained = normalization_of(file)
        if trained != given and not adapt:
            raise UserError(
                f"{file} holds a network for images normalized by {trained}, not by {given}: "
                f'set the normalization of the dataloader to {{"mean": {list(trained.mean)}, "std": {list(trained.std)}}}'
            )
        arrays = _for_images(arrays, "", trained, given, file)
    fill(parameters, arrays, str(file))
    logger.info("all %d parameters are loaded from %s", len(parameters), file)


def load_backbone(detector: Mo.Module, file: str | os.PathLike) -> list[str]:
    """Fill the detector's backbone from a classification supernet, or from another detector (section 3, step 2).

    The log says what was loaded and what the file holds besides. Weights for images of another normalization than the
    detector's are adapted to it (`normalization.adapted`).

    Returns:
        the names in the file that were not used: the classifier's, or the other detector's head.

    Raises:
        UserError: the file cannot be read, lacks a parameter of the backbone or has one in another shape, or holds
            more than a backbone and a classifier or head; nothing is loaded then.
    """
    arrays = read(file)
    prefix = "backbone/" if any(name.startswith("backbone/") for name in arrays) else ""
    heads = ("deconv/", "heat_map/", "offset/", "size/") if prefix else ("classifier/",)
    wanted = {prefix + name: parameter for name, parameter in detector.backbone.get_parameters().items()}
    unused = [name for name in arrays if name not in wanted]
    odd = [name for name in unused if not name.startswith(heads)]
    if odd:
        raise UserError(f"{file} holds {len(odd)} parameters that belong to no backbone or head here, the first is {odd[0]}")
    fill(wanted, _for_images(arrays, prefix, normalization_of(file), detector.normalization, file), str(file))
    logger.info("the backbone's %d parameters are loaded from %s; %s", len(wanted), file, _not_used(unused))
    return unused


def _for_images(
    arrays: Mapping[str, np.ndarray], prefix: str, trained: Normalization, given: Normalization, file: str | os.PathLike
) -> Mapping[str, np.ndarray]:
    """The arrays for images normalized by `given`; those of a backbone without the stem are left as they are."""
    if trained == given or any(prefix + name not in arrays for name in (FIRST_CONV, FIRST_MEAN)):
        return arrays
    logger.info("%s is for images normalized by %s: its first layer is adapted to %s", file, trained, given)
    return {**arrays, **adapted(arrays, prefix, trained, given)}


def _not_used(names: Sequence[str]) -> str:
    """The rest of a log line: how many parameters were left in the file, and of which modules."""
    if not names:
        return "the file holds no more"
    return f"{len(names)} more in it are not used ({', '.join(sorted({name.split('/')[0] for name in names}))})"


def digest(parameters: Mapping[str, nn.Variable]) -> str:
    """A short hash of names and values: which weights a result belongs to."""
    total = hashlib.sha256()
    for name in sorted(parameters):
        total.update(name.encode())
        total.update(np.ascontiguousarray(parameters[name].d).tobytes())
    return total.hexdigest()[:16]
