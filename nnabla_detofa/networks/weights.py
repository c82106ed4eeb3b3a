"""Weights files: validated reading and atomic writing.

A weights file has the format of `nnabla.save_parameters`: HDF5 with one dataset per parameter. Reading a file runs no code.
"""

from __future__ import annotations

import hashlib
import logging
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5p, h5s, h5t

from ..backend.compat import Mo, nn
from ..common import checked
from ..common.errors import UserError
from ..common.files import new_hdf5
from ..common.normalization import FIRST_CONV, FIRST_MEAN, UNRECORDED, Normalization, adapted
from ..common.reading import parse_json, short, shown

logger = logging.getLogger(__name__)

RENAMED = ("heat_map/", "heatmap/")
"""Prefix of the heatmap head's parameters in files of older versions, and now."""


def current_name(name: str) -> str:
    """Return the name of a parameter, given its name in a file of any version."""
    older, current = RENAMED
    return current + name.removeprefix(older) if name.startswith(older) else name


def older_name(name: str) -> str:
    """Return the name that a parameter has in files of older versions."""
    older, current = RENAMED
    return older + name.removeprefix(current) if name.startswith(current) else name


def read(file: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read a weights file.

    Returns:
        parameter name -> array.

    Raises:
        UserError: the file is missing, is not HDF5, has no parameters, is too large, is damaged, or contains anything but
            finite numbers.
    """
    file = FilePath(file)
    if not file.is_file():
        raise UserError(f"the weights file {file} does not exist")
    found: dict[str, np.ndarray] = {}
    left = MAX_BYTES

    def visit(name: str, item: Any) -> None:
        nonlocal left
        if isinstance(item, h5py.Dataset):
            _check_item(item, name, file, left)
            left -= item.nbytes
            found[current_name(name)] = array = item[...]
            if CHECKSUM in item.attrs and not np.array_equal(item.attrs[CHECKSUM], _checksum(array)):
                raise UserError(
                    f"the parameter {name} in {file} is damaged: restore an intact copy (or delete the parameter's attribute "
                    f"{CHECKSUM}, if you changed its values yourself)"
                )
            if not _finite(array):
                raise UserError(f"the parameter {name} in {file} must contain only finite numbers")

    try:
        with h5py.File(file, "r") as opened:
            opened.visititems(visit)
    except UserError:
        raise
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, OverflowError, MemoryError) as error:
        raise UserError(f"the weights file {file} cannot be read as HDF5 ({short(str(error))})") from error
    if not found:
        raise UserError(f"the weights file {file} contains no parameters")
    return found


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).data)


def _finite(array: np.ndarray) -> bool:
    """Return whether all numbers are finite in float32, the type of the networks, without allocating a temporary array."""
    most = np.finfo(np.float32).max
    return not array.size or bool(-most <= array.min() and array.max() <= most)  # min and max are NaN if any number is


MAX_BYTES = 1 << 30
"""Largest total size of the arrays of a weights file in bytes; the paper's largest network has 0.2 GB."""
SHRINKS, SMALL = 50, 1 << 20
"""A compressed parameter of more than SMALL bytes must take at least 1 / SHRINKS of its size in the file. Weights are hardly
compressible, but a file of a kilobyte may declare a gigabyte of zeros."""


def _check_item(item: h5py.Dataset, name: str, file: FilePath, most: int) -> None:
    """Raise UserError for an HDF5 dataset that must not be read: not numeric, stored in another file, or suspiciously large."""
    if item.dtype.kind not in "fiu" or item.shape is None:
        raise UserError(f"the parameter {name} in {file} must contain only finite numbers")
    if item.is_virtual or item.external:
        raise UserError(
            f"the parameter {name} in {file} is stored in another file: all parameters must be in the weights file itself"
        )
    if item.nbytes > most:
        raise UserError(f"the parameters in {file} must have at most {MAX_BYTES} bytes in all, and {name} exceeds this limit")
    stored = item.id.get_storage_size()
    if stored < item.nbytes and (item.compression is None or item.nbytes > max(SMALL, SHRINKS * stored)):
        raise UserError(f"the parameter {name} in {file} declares {item.nbytes} bytes, but the file stores only {stored}")


CHECKSUM = "crc32"
"""Attribute of each parameter in a weights file: the checksum of its values; older files and those of NNabla have none."""
MAX_ATTRIBUTE = 60_000
"""Bytes of an attribute; HDF5 allows 64 KiB for one of fixed length."""
NETWORK, SETTINGS = "network", "network_settings"
"""Attributes of a weights file: the name of the network, such as the import path of its class, and its settings as JSON. The
files of the paper's networks have none."""
STRIDES, NORMALIZATION = "strides", "normalization"
"""Attributes of a weights file that its shapes do not determine: the strides of the supernet's stages, and the mean and
standard deviation of its images, (2, 3)."""


def write(
    file: str | os.PathLike,
    parameters: Mapping[str, nn.Variable],
    strides: Sequence[int] | None = None,
    normalization: Normalization | None = None,
    **attributes: str,
) -> None:
    """Write parameters atomically, in the format of `nnabla.save_parameters`.

    Args:
        file: the file to write.
        parameters: parameter name -> variable.
        strides, normalization: stored as the attributes `STRIDES` and `NORMALIZATION`.
        attributes: further attributes to store.
    """
    file = FilePath(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    with new_hdf5(file) as opened:
        for index, (name, variable) in enumerate(parameters.items()):
            array = variable.d
            add_array(opened, name, array, index=index, need_grad=variable.need_grad, **{CHECKSUM: _checksum(array)})
        if strides is not None:
            opened.attrs[STRIDES] = list(strides)
        if normalization is not None:
            opened.attrs[NORMALIZATION] = np.array([normalization.mean, normalization.std])
        _set_attributes(opened, attributes)


def _set_attributes(opened: h5py.File, attributes: Mapping[str, Any]) -> None:
    """Set attributes of a file. Strings get a fixed length, because damage in HDF5's heap of others can hang a reader."""
    for key, value in attributes.items():
        text = value.encode() if isinstance(value, str) else b""
        opened.attrs[key] = np.bytes_(text) if 0 < len(text) < MAX_ATTRIBUTE else value


def attributes_of(file: str | os.PathLike, *names: str) -> list[Any]:
    """Return attributes of a weights file, text as a string; None for those that it lacks.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with h5py.File(file, "r") as opened:
            found = [opened.attrs.get(name) for name in names]
            return [value.decode() if isinstance(value, bytes) else value for value in found]
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"the weights file {file} cannot be read as HDF5 ({short(str(error))})") from error


_LINKS, _OPTIONS, _SCALAR = h5p.create(h5p.LINK_CREATE), h5p.create(h5p.DATASET_CREATE), h5s.create(h5s.SCALAR)
_LINKS.set_create_intermediate_group(True)
_OPTIONS.set_obj_track_times(False)  # equal arrays give equal bytes


def add_array(group: h5py.Group, name: str, array: np.typing.ArrayLike, **attributes: int) -> None:
    """Create a dataset with attributes, the same that `group.create_dataset(name, data=array)` creates in twice the time."""
    array = np.asarray(array, order="C")
    space = h5s.create_simple(array.shape) if array.shape else _SCALAR
    data = h5d.create(group.id, name.encode(), h5t.py_create(array.dtype, logical=True), space, _OPTIONS, _LINKS)
    data.write(h5s.ALL, h5s.ALL, array)
    for key, value in attributes.items():
        number = np.asarray(value)
        h5a.create(data, key.encode(), h5t.py_create(number.dtype, logical=True), _SCALAR).write(number)


def save(net: Mo.Module, file: str | os.PathLike) -> None:
    """Write the parameters of a network, and the attributes that `load` and `loading.load_supernet` need."""
    space = getattr(net, "space", None)
    attributes = {name: getattr(net, name) for name in (NETWORK, SETTINGS) if getattr(net, name, None)}
    write(file, net.get_parameters(), space and space.geometry.strides, getattr(net, "normalization", None), **attributes)


def strides_of(file: str | os.PathLike) -> tuple[int, ...] | None:
    """Return the strides that are stored in a weights file, or None if it has none.

    Raises:
        UserError: they are not a list of integers.
    """
    (stored,) = attributes_of(file, STRIDES)
    if stored is None:
        return None
    if np.ndim(stored) != 1 or np.asarray(stored).dtype.kind not in "iu":
        raise UserError(f"the strides stored in {file} must be a list of integers, got {shown(stored)}")
    return tuple(int(stride) for stride in stored)


def normalization_of(file: str | os.PathLike) -> Normalization:
    """Return the image normalization that is stored in a weights file, or `normalization.UNRECORDED` if it has none.

    Raises:
        UserError: the file cannot be read, or the stored values are not a valid mean and standard deviation.
    """
    (stored,) = attributes_of(file, NORMALIZATION)
    if stored is None:
        return UNRECORDED
    if np.shape(stored) != (2, 3) or np.asarray(stored).dtype.kind != "f":
        raise UserError(f"the normalization stored in {file} must be a mean and a std of 3 numbers each, got {shown(stored)}")
    mean, std = np.asarray(stored, float).tolist()
    return checked.read(Normalization, {"mean": mean, "std": std}, f"the normalization stored in {file}")


def network_of(file: str | os.PathLike) -> tuple[str, Any] | None:
    """Return the name and the settings of the network that a weights file records, or None for one of the paper's.

    Raises:
        UserError: it records no valid settings.
    """
    name, settings = attributes_of(file, NETWORK, SETTINGS)
    if name is None:
        return None
    try:
        return str(name), parse_json(settings)
    except (ValueError, TypeError) as error:
        raise UserError(f"{file} must record the settings of its network {shown(name)}, got {shown(settings)}") from error


def check_network(net: Mo.Module, file: str | os.PathLike) -> None:
    """Raise UserError if a weights file holds another network than `net`, or the network of another search space."""
    (stored,) = attributes_of(file, NETWORK)
    own = getattr(net, NETWORK, None)
    if stored != own:
        names = [shown(name) if name else "one of this package" for name in (stored, own)]
        raise UserError(f"{file} holds weights of the network {names[0]}, but the config's network is {names[1]}")


def convert(source: str | os.PathLike, target: str | os.PathLike, dtype: np.typing.DTypeLike) -> None:
    """Copy a weights file and its attributes, with the parameters converted to `dtype`.

    Raises:
        UserError: the source cannot be read.
    """
    arrays, target = read(source), FilePath(target)
    with h5py.File(source, "r") as theirs:
        names = list(theirs.attrs)
    attributes = dict(zip(names, attributes_of(source, *names)))
    target.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(source, "r") as theirs, new_hdf5(target) as ours:
        _set_attributes(ours, attributes)
        for name, array in arrays.items():
            data = ours.create_dataset(name, data=array.astype(dtype))
            data.attrs.update(theirs[name if name in theirs else older_name(name)].attrs)
            data.attrs[CHECKSUM] = _checksum(data[...])


def fill(parameters: Mapping[str, nn.Variable], arrays: Mapping[str, np.ndarray], source: str) -> None:
    """Set every parameter to the array of the same name. If there is an error, no parameter is changed.

    Arrays without a parameter are ignored.

    Args:
        parameters: parameter name -> variable to set.
        arrays: parameter name -> array.
        source: name of the arrays' origin, for errors.

    Raises:
        UserError: a parameter has no array, or the shapes differ.
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
    """Load all parameters of a network from a weights file of this package or of NNablaNAS.

    Args:
        net: the network, which must have the same parameter names as the file.
        file: the weights file.
        arrays: the result of `read(file)`, if the file was read before.
        adapt: whether to adapt weights that were trained with another image normalization to the network's normalization, so
            that the outputs stay the same (see `normalization.adapted`).

    Raises:
        UserError: the file cannot be read, the parameter names or shapes differ, or the normalizations differ and `adapt` is
            false; nothing is loaded in this case.
    """
    parameters, arrays = net.get_parameters(), read(file) if arrays is None else arrays
    check_network(net, file)
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
    logger.info("loaded all %d parameters from %s", len(parameters), file)


def load_backbone(detector: Mo.Module, file: str | os.PathLike) -> list[str]:
    """Load the backbone of a detector from a weights file of a classification supernet or a detector (section 3, step 2).

    Weights that were trained with another image normalization are adapted to the detector's (`normalization.adapted`). The
    log lists what was loaded and which parameters of the file were not used.

    Returns:
        names of the parameters in the file that were not used: the classifier, or the up-convolutions and heads.

    Raises:
        UserError: the file cannot be read, lacks a parameter of the backbone, has one with another shape, or has parameters
            that belong to neither a backbone nor a classifier or head; nothing is loaded in this case.
    """
    arrays = read(file)
    prefix = "backbone/" if any(name.startswith("backbone/") for name in arrays) else ""
    own = {f"{name.split('/')[0]}/" for name in detector.get_parameters()} - {"backbone/"}
    heads = ("deconv/", "heatmap/", "offset/", "size/", *own) if prefix else ("classifier/",)
    wanted = {prefix + name: parameter for name, parameter in detector.backbone.get_parameters().items()}
    unused = [name for name in arrays if name not in wanted]
    odd = [name for name in unused if not name.startswith(heads)]
    if odd:
        raise UserError(f"{file} holds {len(odd)} parameters that belong to no backbone or head here, the first is {odd[0]}")
    fill(wanted, _for_images(arrays, prefix, normalization_of(file), detector.normalization, file), str(file))
    logger.info("loaded the %d parameters of the backbone from %s; %s", len(wanted), file, _not_used(unused))
    return unused


def _for_images(
    arrays: Mapping[str, np.ndarray], prefix: str, trained: Normalization, given: Normalization, file: str | os.PathLike
) -> Mapping[str, np.ndarray]:
    """Adapt arrays to images normalized by `given`; arrays of a backbone without the stem's first layer are not changed."""
    if trained == given or any(prefix + name not in arrays for name in (FIRST_CONV, FIRST_MEAN)):
        return arrays
    logger.info("%s was trained on images normalized by %s; its first layer is adapted to %s", file, trained, given)
    return {**arrays, **adapted(arrays, prefix, trained, given)}


def _not_used(names: Sequence[str]) -> str:
    """Return the end of a log message: the number of unused parameters, and their modules."""
    if not names:
        return "the file has no others"
    return f"{len(names)} others in it are unused ({', '.join(sorted({name.split('/')[0] for name in names}))})"


def digest(parameters: Mapping[str, nn.Variable]) -> str:
    """Return a short hash (16 hex digits) of parameter names and values, which identifies the weights of a result.

    The names are those of older versions, so that the hashes in files of older versions stay valid.
    """
    total = hashlib.sha256()
    for name, parameter in sorted((older_name(name), parameter) for name, parameter in parameters.items()):
        total.update(name.encode())
        total.update(np.ascontiguousarray(parameter.d).tobytes())
    return total.hexdigest()[:16]
