"""Weights of few bits: float8 with scales beside it is read, other formats are refused by name.

    tensors = unscaled(tensors, path)  # a weight with a scale is read as float32, their product

ComfyUI calls the scale of `q.weight` `q.scale_weight`, diffusers and newer files `q.weight_scale`. It is one
number, one for each row, or one for each of so many parts of a row (musubi-tuner). What the files have for
the inputs of layers has no meaning for weights that are not float8 any more.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor

from dummyforcing.checkpoints.stored import StoredTensor
from dummyforcing.errors import BadFile

SCALES = ("scale_weight", "weight_scale")
"""What stands in place of `weight` in the name of its scale."""

ASIDE = re.compile(r"(^|\.)scaled_fp8$|\.(scale_input|input_scale|comfy_quant)$")
"""Marks of such files, and what they have for the inputs of layers."""

OTHERS = {
    "4-bit weights of bitsandbytes": re.compile(r"\.quant_state\.bitsandbytes__|\.absmax$|\.quant_map$"),
    "8-bit weights of bitsandbytes": re.compile(r"\.SCB$|\.weight_format$"),
    "weights of SVDQuant (Nunchaku)": re.compile(r"\.(wscales|wtscale|smooth_factor)$"),
    "weights of GPTQ or AWQ": re.compile(r"\.(qweight|qzeros|g_idx)$"),
    "NVFP4 weights": re.compile(r"\.weight_scale_2$"),
    "weights in blocks with scales of their own": re.compile(r"\.weight_scale_inv$"),
    "weights of quanto": re.compile(r"\.weight\._(data|scale)$"),
}
"""Formats that are not read, told by a name that only they have."""

FLOATS = ("float64", "float32", "float16", "bfloat16")
FLOAT8 = ("float8_e4m3fn", "float8_e5m2")
REMEDY = 'take the model in bfloat16 or float8; fp8="linear" computes in float8'


def unscaled(tensors: Mapping[str, StoredTensor], path: Path) -> dict[str, StoredTensor]:
    """The weights of a file without scales and what belongs to them: each is multiplied once it is read.

    Args:
        tensors: By name, as they are in the file.
        path: The file, for error messages.

    Raises:
        BadFile: If the weights are quantised in a way that is not read here.
    """
    for what, mark in OTHERS.items():
        if any(map(mark.search, tensors)):
            raise BadFile(f"{path} holds {what}", REMEDY)
    found = {name: tensor for name, tensor in tensors.items() if not ASIDE.search(name)}
    for name in tensors:
        layer, _, end = name.rpartition(".")
        if end in SCALES and (weight := found.get(f"{layer}.weight")):
            found[f"{layer}.weight"] = _product(weight, found.pop(name), path)
    return found


def _product(weight: StoredTensor, scale: StoredTensor, path: Path) -> StoredTensor:
    if weight.dtype not in (*FLOAT8, *FLOATS) or scale.dtype not in FLOATS:
        raise BadFile(f"{path} holds weights in {weight.dtype} with scales in {scale.dtype}", REMEDY)
    count, size = math.prod(scale.shape), math.prod(weight.shape)
    rows = weight.shape[0] if weight.shape else 1
    if count != 1 and (scale.shape[0] != rows or size % count):
        raise BadFile(
            f"{path}: scale {scale.place.rpartition(' of ')[0]} is {list(scale.shape)}, and its weight "
            f"{list(weight.shape)}",
            REMEDY,
        )
    return replace(weight, read=partial(_multiplied, weight, scale))


def _multiplied(weight: StoredTensor, scale: StoredTensor) -> Tensor:
    factors = scale.read().float()
    parts = weight.read().float().reshape(factors.numel(), -1)
    return (parts * factors.reshape(-1, 1)).reshape(weight.shape)
