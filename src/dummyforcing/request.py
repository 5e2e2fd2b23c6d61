"""What can be asked of a model, complete and checked; and the device and precision that it is computed in."""

from dataclasses import dataclass
from typing import TypedDict

import torch

from dummyforcing.errors import UserError
from dummyforcing.heads import Policy
from dummyforcing.plan import HeadContext, Plan

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Options(TypedDict, total=False):
    """What can be chosen for a video besides its prompt; the defaults are those of `ModelFiles.request`."""

    frames: int
    """Pixel frames; 81 by default."""
    size: tuple[int, int] | None
    """Height and width in pixels, multiples of 16; the preset's size by default."""
    seed: int
    """Seeds the noise; sample i of a batch uses `seed + i`. 0 by default."""
    policy: str | Policy
    """`dummy` by default; `dense`, `native` (what the model was trained for), `window:SINK,RECENT`,
    `official`, or a policy of your own."""
    dummy_fraction: float | None
    """Share of the heads that become dummy; the preset's by default."""
    plan: Plan | None
    """Used from the first chunk on; nothing is classified then."""


@dataclass(frozen=True)
class Request:
    """One video, or a batch of them, complete and checked."""

    prompts: tuple[str, ...]
    frames: int
    """Latent frames."""
    chunks: int
    size: tuple[int, int]
    """Height and width in pixels."""
    seed: int
    policy: Policy
    plan: Plan | None
    current: int
    """Latent frames that are denoised at a time."""
    past: int | None = None
    """Most past frames that the sampler ever holds; None: all."""

    @property
    def has_roles(self) -> bool:
        """Whether heads have roles, given or to be found."""
        return self.plan is not None or self.policy.roles is not None

    @property
    def has_plan(self) -> bool:
        """Whether the video ends with a plan: given, or found on the way."""
        return self.plan is not None or (
            self.policy.roles is not None and self.chunks > self.policy.classify_at_chunk
        )

    def cache_frames(self) -> float:
        """Latent frames that the cache holds at most, mean over heads; exact if nothing is classified."""
        most = self.frames if self.past is None else min(self.frames, self.past + self.current)

        def held(context: HeadContext, most: int = most) -> int:
            return most if context.total is None else min(most, context.total + self.current)

        if self.plan is not None:
            counts = self.plan.counts
            heads = sum(counts.values())
            return sum(held(context) * counts[role] for role, context in self.plan.table.items()) / heads
        if self.policy.roles is None:
            return held(self.policy.initial)
        classified = self.policy.classify_at_chunk * (self.frames // self.chunks) + self.current
        before = held(self.policy.initial, min(most, classified))
        return max(before, *(held(context) for context in self.policy.roles.values()))


def choose_device(device: str | torch.device) -> torch.device:
    """The device of a name; `auto` is a GPU if there is one.

    Raises:
        UserError: If there is no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"There is no device '{device}'; take auto, cpu or cuda.") from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UserError(f"There is no GPU '{device}' that torch can use; take device 'cpu' or 'auto'.")
    return chosen


def choose_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The dtype of a name; None: bfloat16 on a GPU, else float32.

    Raises:
        UserError: If the name is none of `DTYPES`.
    """
    if dtype is None:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise UserError(f"There is no dtype '{dtype}'; take {' or '.join(DTYPES)}.")
    return DTYPES[dtype]
