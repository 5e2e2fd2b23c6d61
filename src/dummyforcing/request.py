"""What is asked for, and whether it can be done: all that can be told before any weights are read.

folder = ModelFolder.open("tiny")
request = folder.request("a red ball bounces", frames=81)
require_memory(folder.estimate(request, torch.float32), torch.device("cpu"))
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

import torch

from dummyforcing.checkpoints import read_config, read_headers
from dummyforcing.errors import UserError
from dummyforcing.heads import Policy, parse_policy
from dummyforcing.memory import MemoryEstimate
from dummyforcing.model import ModelConfig
from dummyforcing.plan import HeadContext, Plan
from dummyforcing.presets import PIXEL_FRAMES_PER_FRAME, SIZE_MULTIPLE, Preset, find_folder, read_preset

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SCRATCH = 2**28
"""Bytes that scoring and the libraries take besides, whatever the size of the video."""


class Options(TypedDict, total=False):
    """What can be chosen for a video besides its prompt; the defaults are those of `ModelFolder.request`."""

    frames: int
    """Pixel frames; 81 by default."""
    size: tuple[int, int] | None
    """Height and width in pixels, multiples of 16; the preset's size by default."""
    seed: int
    """Seeds the noise; sample i of a batch uses `seed + i`. 0 by default."""
    policy: str | Policy
    """`dummy` by default; `anchored`, `dense`, `window:SINK,RECENT`, `official`, or one of your own."""
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

    @property
    def has_plan(self) -> bool:
        """Whether the video ends with a plan: given, or found on the way."""
        return self.plan is not None or (
            self.policy.roles is not None and self.chunks > self.policy.classify_at_chunk
        )

    def cache_frames(self) -> float:
        """Latent frames that the cache holds at most, mean over heads; exact if nothing is classified."""
        chunk = self.frames // self.chunks

        def held(context: HeadContext, frames: int = self.frames) -> int:
            return frames if context.total is None else min(frames, context.total + chunk)

        if self.plan is not None:
            counts = self.plan.counts
            heads = sum(counts.values())
            return sum(held(context) * counts[role] for role, context in self.plan.table.items()) / heads
        if self.policy.roles is None:
            return held(self.policy.initial)
        before = held(self.policy.initial, min(self.frames, (self.policy.classify_at_chunk + 1) * chunk))
        return max(before, *(held(context) for context in self.policy.roles.values()))


@dataclass(frozen=True)
class ModelFolder:
    """A model on disk: its description, its sizes and how many weights it has."""

    path: Path
    preset: Preset
    config: ModelConfig
    parameters: int
    """Of transformer, text encoder and VAE together."""
    vae_width: float
    """Channels of the VAE at its widest resolution, per pixel."""

    @classmethod
    def open(cls, name_or_path: str | Path) -> "ModelFolder":
        """Find a model and read everything about it except its weights.

        Raises:
            UserError: If there is no such model, or files are missing or damaged.
        """
        path = find_folder(name_or_path)
        preset, config = read_preset(path), read_config(path / "transformer")
        parts = [read_headers(path / part) for part in ("transformer", "text_encoder", "vae")]
        parameters = sum(math.prod(tensor.shape) for part in parts for tensor in part.values())
        vae = path / "vae" / "config.json"
        try:
            sizes = json.loads(vae.read_text(encoding="utf-8"))
            width = sizes["base_dim"] / (sizes.get("patch_size") or 1) ** 2
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{vae} does not describe a Wan VAE: {error}.") from error
        return cls(path, preset, config, parameters, width)

    def request(
        self,
        prompt: str | Sequence[str],
        *,
        frames: int = 81,
        size: tuple[int, int] | None = None,
        seed: int = 0,
        policy: str | Policy = "dummy",
        dummy_fraction: float | None = None,
        plan: Plan | None = None,
    ) -> Request:
        """Check what is asked of this model and fill in its defaults; see `Options`.

        Args:
            prompt: One prompt, or several for a batch.
            frames: Pixel frames.
            size: Height and width in pixels.
            seed: Of the first sample's noise.
            policy: Name or policy.
            dummy_fraction: Share of dummy heads.
            plan: A plan to use instead of finding one.

        Raises:
            UserError: If anything of it cannot be done.
        """
        prompts = (prompt,) if isinstance(prompt, str) else tuple(prompt)
        if not prompts or not all(text.strip() for text in prompts):
            raise UserError("The prompt is empty; say what the video shall show.")
        latent_frames = self.preset.latent_frames(frames)
        height, width = size or self.preset.size
        if min(height, width) < SIZE_MULTIPLE or height % SIZE_MULTIPLE or width % SIZE_MULTIPLE:
            nearest = [max(1, round(side / SIZE_MULTIPLE)) * SIZE_MULTIPLE for side in (width, height)]
            raise UserError(
                f"Size {width}x{height} (width x height) is no multiple of {SIZE_MULTIPLE} pixels; "
                f"the nearest is {nearest[0]}x{nearest[1]}."
            )
        if not 0 <= seed < 2**63:
            raise UserError(f"Seed {seed} is out of range; take a number from 0 to 2^63 - 1.")
        chosen = self._policy(policy)
        if dummy_fraction is not None:
            if plan is not None or chosen.roles is None:
                cause = (
                    "a plan is given" if plan is not None else f"policy '{chosen.name}' has no dummy heads"
                )
                raise UserError(f"The dummy fraction has no effect when {cause}; leave it out.")
            chosen = replace(chosen, dummy_fraction=dummy_fraction, num_dummy=None)
        if plan is not None:
            plan.require(self.config.num_layers, self.config.num_heads)
        chunks = latent_frames // self.preset.chunk_frames
        return Request(prompts, latent_frames, chunks, (height, width), seed, chosen, plan)

    def estimate(self, request: Request, dtype: torch.dtype) -> MemoryEstimate:
        """Estimate the memory that a request needs, weights included.

        Measured: the transformer holds some 10 vectors per token besides its FFN, and the VAE's last stage
        some 16 feature maps of the four pixel frames that it makes at a time.
        """
        (height, width), batch, config = request.size, len(request.prompts), self.config
        tokens = batch * (height // SIZE_MULTIPLE) * (width // SIZE_MULTIPLE)
        cache = request.cache_frames() * tokens * config.num_layers * config.dim * 2
        chunk = self.preset.chunk_frames
        transformer = chunk * tokens * (10 * config.dim + 3 * config.ffn_dim) * dtype.itemsize
        pixels = batch * height * width * PIXEL_FRAMES_PER_FRAME
        decoder = pixels * (16 * self.vae_width * dtype.itemsize + chunk * 9 * torch.float32.itemsize)
        return MemoryEstimate(
            weights=self.parameters * dtype.itemsize,
            cache=cache * dtype.itemsize,
            activations=max(transformer, decoder) + SCRATCH,
            frames=batch * self.preset.pixel_frames(request.frames) * height * width * 3,
        )

    def _policy(self, policy: str | Policy) -> Policy:
        """A policy by name gets the preset's settings where its text gives none."""
        if isinstance(policy, Policy):
            return policy
        defaults = self.preset.dummy
        complete = {
            "dummy": f"dummy:{defaults.neighbor_frames}",
            "anchored": f"anchored:{defaults.neighbor_frames}",
            "official": f"official:{defaults.classify_at_chunk},1,{self.preset.chunk_frames}",
        }
        chosen = parse_policy(complete.get(policy, policy))
        if chosen.name not in ("dummy", "anchored"):
            return chosen
        return replace(
            chosen,
            classify_at_chunk=defaults.classify_at_chunk,
            dummy_fraction=defaults.dummy_fraction,
        )


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
