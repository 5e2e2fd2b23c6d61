"""The device and the precision that a model is computed in."""

import torch

from dummyforcing.errors import BadRequest, NoSuchDevice

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def choose_device(device: str | torch.device) -> torch.device:
    """The device of a name; `auto` is a GPU if there is one.

    Raises:
        NoSuchDevice: If there is no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise NoSuchDevice(f"There is no device '{device}'", "take auto, cpu or cuda", "device") from error
    if chosen.type not in ("cpu", "cuda"):
        raise NoSuchDevice(f"Device '{device}' is not supported", "take auto, cpu or cuda", "device")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise NoSuchDevice(
            f"There is no GPU '{device}' that torch can use", "take device 'cpu' or 'auto'", "device"
        )
    return chosen


def choose_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The dtype of a name; None: bfloat16 on a GPU, else float32.

    Raises:
        BadRequest: If the name is none of `DTYPES`, or the dtype is one of whole numbers.
    """
    if dtype is None:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if isinstance(dtype, torch.dtype):
        if not dtype.is_floating_point:
            raise BadRequest(f"Nothing is computed in {dtype}", f"take {' or '.join(DTYPES)}", "torch_dtype")
        return dtype
    if dtype not in DTYPES:
        raise BadRequest(f"There is no dtype '{dtype}'", f"take {' or '.join(DTYPES)}", "torch_dtype")
    return DTYPES[dtype]
