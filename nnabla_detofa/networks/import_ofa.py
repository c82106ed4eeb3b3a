"""Conversion of a PyTorch checkpoint of OFA's ResNet50 supernet to an NNabla weights file.

The published supernets of `once-for-all` (d 0+1+2, e 0.2+0.25+0.35, w 0.65+0.8+1.0) replace the paper's pre-training
(section 3, step 1), which would need hundreds of GPU hours. Only this module needs PyTorch.

Colors: OFA was trained on images in red, green, blue order with ImageNet's normalization, and this package reads images in
blue, green, red order. The input channels of the first convolution are therefore reversed, and the weights file records
ImageNet's normalization. A network for images with another normalization, such as COCO's, adapts the weights when it loads the
file (`normalization.adapted`).
"""

from __future__ import annotations

import inspect
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import NamedTuple

import numpy as np

from ..backend.compat import nn
from ..common.errors import UserError
from ..common.normalization import FIRST_CONV, IMAGENET, Normalization
from . import weights
from .supernet import Classifier

STATISTICS = ("/_mean", "/_var")
NAMES = {
    "conv.weight": "conv/_W",
    "bn.weight": "bn/_gamma",
    "bn.bias": "bn/_beta",
    "bn.running_mean": "bn/_mean",
    "bn.running_var": "bn/_var",
    "linear.weight": "linear/_W",
    "linear.bias": "linear/_b",
}
"""Suffix of a tensor name in the state dict -> suffix of the NNabla parameter name."""


class Imported(NamedTuple):
    """A converted checkpoint.

    Attributes:
        arrays: parameter name -> array, for all parameters of `Classifier(classes)`.
        placed: number of tensors of the checkpoint that are in `arrays`.
        dropped: number of tensors that NNabla does not need (`num_batches_tracked`).
        classes: number of outputs of the classifier.
    """

    arrays: dict[str, np.ndarray]
    placed: int
    dropped: int
    classes: int


def read_checkpoint(file: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read the state dict of a PyTorch checkpoint, stored alone or under the key `state_dict`, without running code in it.

    Returns:
        tensor name -> array; floating-point tensors become float32.

    Raises:
        UserError: PyTorch is missing or too old, the file is missing or unreadable, or it contains no state dict.
    """
    file = FilePath(file)
    if not file.is_file():
        raise UserError(f"the checkpoint {file} does not exist")
    try:
        import torch
    except ImportError as error:
        raise UserError(
            "reading a checkpoint needs PyTorch, which is not installed: pip install 'torch>=2.6', or the extra torch"
        ) from error
    # Before version 2.6, a crafted file could run code despite weights_only (CVE-2025-32434).
    version = tuple(int(number) for number in re.findall(r"\d+", torch.__version__)[:2])
    if version < (2, 6) or "weights_only" not in inspect.signature(torch.load).parameters:
        raise UserError(f"reading a checkpoint needs PyTorch 2.6 or later, which runs no code in it, got {torch.__version__}")
    try:
        loaded = torch.load(file, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:  # PyTorch's message suggests running the code in the file
        raise UserError(
            f"the checkpoint {file} must contain only tensors; it contains other objects, or was not saved by PyTorch"
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise UserError(
            f"the checkpoint {file} cannot be read ({(str(error).strip() or type(error).__name__).splitlines()[0]})"
        ) from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else loaded
    if not isinstance(state, Mapping) or not state or not all(isinstance(t, torch.Tensor) for t in state.values()):
        raise UserError(f"the checkpoint {file} must be a state dict, or contain one under the key state_dict")
    # Convert to float32 first, because NumPy has no bfloat16.
    try:
        return {str(name): (t.float() if t.is_floating_point() else t).detach().numpy() for name, t in state.items()}
    except (RuntimeError, TypeError) as error:  # a quantized or sparse tensor
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"the checkpoint {file} must contain plain dense tensors ({reason})") from error


def convert(tensors: Mapping[str, np.ndarray], keep_channels: bool = False) -> Imported:
    """Convert OFA's tensors to the names, shapes and color order of `supernet.Classifier`.

    Args:
        tensors: name -> array, as in OFA's state dict. A prefix `module.` of all names is ignored. The names of elastic layers
            (`bn.bn.weight`) and of the layers of OFA's largest static network (`bn.weight`) are both accepted.
        keep_channels: whether to keep the first convolution in red, green, blue order.

    Raises:
        UserError: a tensor has no matching parameter or occurs twice, a parameter has no tensor, a shape differs, a number is
            not finite, or a variance is negative.
    """
    kept = {name: np.asarray(array) for name, array in tensors.items() if not name.endswith("num_batches_tracked")}
    if kept and all(name.startswith("module.") for name in kept):
        kept = {name.removeprefix("module."): array for name, array in kept.items()}
    linear = next((array for name, array in kept.items() if re.fullmatch(r"classifier\.(linear\.){1,2}weight", name)), None)
    if linear is None or linear.ndim != 2:
        raise UserError("the checkpoint lacks classifier.linear.linear.weight with its two dimensions: is it OFA's ResNet50?")
    parameters = Classifier(len(linear)).get_parameters()
    arrays: dict[str, np.ndarray] = {}
    for name, array in kept.items():
        place = _place(name, parameters)
        if place is None:
            raise UserError(f"the checkpoint's tensor {name} {array.shape} matches no parameter of OFA-ResNet50")
        if place in arrays:
            raise UserError(f"the checkpoint contains {place} twice, the second time as {name}")
        expected = parameters[place].shape
        theirs = expected[1:2] if "/bn/bn/" in place else expected[::-1] if place.endswith("linear/_W") else expected
        if array.shape != theirs:
            raise UserError(f"the checkpoint's tensor {name} has the shape {array.shape}; OFA-ResNet50's is {theirs}")
        if array.dtype.kind != "f" or not np.all(np.isfinite(array)):
            raise UserError(f"the checkpoint's tensor {name} must contain only finite numbers")
        if place.endswith("/_var") and array.min() < 0:
            raise UserError(f"the checkpoint's tensor {name} is a variance and must not be negative, got {array.min():g}")
        arrays[place] = (array.T if array.ndim == 2 else array.reshape(expected)).astype(np.float32)
    missing = [name for name in parameters if name not in arrays]
    if missing:
        raise UserError(
            f"the checkpoint has no tensor for {len(missing)} of {len(parameters)} parameters, such as {missing[0]}"
        )
    if not keep_channels:
        arrays[FIRST_CONV] = _reversed(arrays[FIRST_CONV])
    ordered = {name: arrays[name] for name in parameters}
    return Imported(ordered, len(kept), len(tensors) - len(kept), len(linear))


def convert_nnablanas(arrays: Mapping[str, np.ndarray], keep_channels: bool = False) -> Imported:
    """Convert weights that NNablaNAS saved for its `ofa_resnet50`, which uses the same parameter names and OFA's color order.

    Args:
        arrays: parameter name -> array.
        keep_channels: see `convert`.

    Raises:
        UserError: the names or shapes differ from those of the full supernet.
    """
    bias = arrays.get("classifier/0/linear/linear/_b")
    if bias is None or bias.ndim != 1:
        raise UserError("the weights lack classifier/0/linear/linear/_b: are they those of NNablaNAS' ofa_resnet50?")
    parameters = Classifier(len(bias)).get_parameters()
    extra = [name for name in arrays if name not in parameters]
    if extra:
        raise UserError(f"the weights hold {len(extra)} parameters that OFA-ResNet50 lacks, the first is {extra[0]}")
    weights.fill(parameters, arrays, "the file of NNablaNAS' ofa_resnet50")
    ours = {name: np.asarray(arrays[name], np.float32) for name in parameters}
    if not keep_channels:
        ours[FIRST_CONV] = _reversed(ours[FIRST_CONV])
    return Imported(ours, len(ours), 0, len(bias))


def _place(name: str, parameters: Mapping[str, nn.Variable]) -> str | None:
    """Return the parameter name for a tensor of the state dict, or None if there is none.

    An elastic layer nests the plain layer under the same name: `bn.bn.weight` instead of `bn.weight`.
    """
    for theirs, ours in NAMES.items():
        if name == theirs or name.endswith("." + theirs):
            stem = name.removesuffix(theirs).replace(".", "/").replace("classifier/", "classifier/0/", 1)
            inner = theirs.split(".")[0]
            return next((place for place in (stem + ours, f"{stem}{inner}/{ours}") if place in parameters), None)
    return None


def _reversed(weight: np.ndarray) -> np.ndarray:
    """Return the weight of the first convolution for images with reversed channels."""
    return np.ascontiguousarray(weight[:, ::-1])


def import_checkpoint(file: str | os.PathLike, output: str | os.PathLike, keep_channels: bool = False) -> Imported:
    """Convert a PyTorch checkpoint, or NNablaNAS weights if the name ends in .h5, to a weights file of this package.

    `supernet.SearchNet(weights=...)` and `load_backbone` read the result.

    Args:
        file: the checkpoint.
        output: the weights file to write.
        keep_channels: see `convert`.

    Raises:
        UserError: see `read_checkpoint` and `convert`; nothing is written in this case.
    """
    if FilePath(file).suffix == ".h5":
        imported = convert_nnablanas(weights.read(file), keep_channels)
    else:
        imported = convert(read_checkpoint(file), keep_channels)
    parameters = {
        name: nn.Variable.from_numpy_array(array, need_grad=not name.endswith(STATISTICS))
        for name, array in imported.arrays.items()
    }
    (b, g, r), (b_std, g_std, r_std) = IMAGENET.mean, IMAGENET.std
    normalization = Normalization((r, g, b), (r_std, g_std, b_std)) if keep_channels else IMAGENET
    weights.write(output, parameters, normalization=normalization)
    return imported
