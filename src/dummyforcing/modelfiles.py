"""A model before it is loaded: where its files are, what it can do, and how much memory that takes.

files = ModelFiles.open("tiny")
request = files.request("a red ball bounces", frames=81)
files.require_memory(request, torch.float32, torch.device("cpu"))

No weights are read here and nothing is downloaded.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Literal

import torch

from dummyforcing.budget import DEFAULT_BUDGET, past_within
from dummyforcing.checkpoints import (
    PARAMETERS,
    WAN_SIZES,
    WAN_VAE_WIDTH,
    count_parameters,
    count_stored,
    read_config,
    vae_width,
)
from dummyforcing.errors import UserError
from dummyforcing.files import split_number
from dummyforcing.heads import LONG_CONTEXT, Policy, Role, parse_policy
from dummyforcing.hub import HubFile, find_base, find_part, find_weights
from dummyforcing.memory import PASS_PIXELS, MemoryEstimate, require_memory
from dummyforcing.model import ModelConfig
from dummyforcing.plan import Plan
from dummyforcing.presets import PIXEL_FRAMES_PER_FRAME, SIZE_MULTIPLE, Preset, find_preset
from dummyforcing.request import (
    Request,
    check_teacache,
    choose_device,
    choose_dtype,
    choose_heads,
    place_switches,
    read_begin,
)
from dummyforcing.teacache import Calibration

HALF_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
SCRATCH = 2**28
"""Bytes that scoring and the libraries take besides, whatever the size of the video."""


@dataclass(frozen=True)
class ModelFiles:
    """A model: its description, its sizes and where its files are, on disk or on the Hub."""

    preset: Preset
    config: ModelConfig
    transformer: Path | HubFile
    loras: tuple[tuple[Path | HubFile, float], ...]
    """To be merged into the transformer, with their scales."""
    base: Path | HubFile
    """Holds text encoder, tokenizer and VAE."""
    parameters: Mapping[str, int]
    """Of `transformer`, `text_encoder` and `vae`."""
    vae_width: float
    """Channels of the VAE at its widest resolution, per pixel."""
    folder: Path | None = None
    """Of a bundled model or one of the user's own."""

    @classmethod
    def open(
        cls,
        model: str | Path = "tiny",
        *,
        weights: str | Path | None = None,
        base: str | Path | None = None,
        lora: str | Sequence[str] = (),
    ) -> "ModelFiles":
        """Find a model and read everything about it except its weights; nothing is downloaded.

        Args:
            model: A bundled or public model, a folder in the bundled one's layout, or a preset file.
            weights: The transformer's file or folder, or `OWNER/NAME:FILE` on the Hub, instead of
                the model's own and its LoRA.
            base: Folder or Hub repository with text encoder, tokenizer and VAE, instead of the model's own.
            lora: LoRA files to merge, each as FILE or FILE:SCALE.

        Raises:
            UserError: If there is no such model, or files are missing or damaged.
        """
        preset, folder = find_preset(model)
        source = preset.source
        loras = [_parse_lora(text) for text in ([lora] if isinstance(lora, str) else lora)]
        transformer: Path | HubFile
        if weights is not None:
            transformer = find_weights(str(weights))
        elif folder is not None:
            transformer = folder / "transformer"
        elif source is not None:
            transformer = HubFile(source.repo, source.file) if source.repo else Path(source.file)
        else:
            raise UserError(
                f"Preset '{preset.name}' names no weights; give --weights FILE, or a source in it."
            )
        if weights is None and source is not None and source.lora:
            beside = HubFile(source.repo, source.lora) if source.repo else Path(source.lora)
            loras.append((beside, source.lora_scale))
        if base is not None:
            parts = find_base(str(base))
        else:
            own = folder is not None and ((folder / "text_encoder").exists() or not preset.base)
            if not own and not preset.base:
                raise UserError(f"Preset '{preset.name}' names no base; give --base FOLDER, or one in it.")
            parts = folder if own and folder is not None else find_base(preset.base)
        config = _config(transformer, preset, own_folder=folder is not None and weights is None)
        counts = {"transformer": count_parameters(config), **PARAMETERS}
        if isinstance(parts, Path):
            counts |= {part: count_stored(find_part(parts, part)) for part in PARAMETERS}
        width = vae_width(parts / "vae") if isinstance(parts, Path) else WAN_VAE_WIDTH
        return cls(preset, config, transformer, tuple(loras), parts, counts, width, folder)

    @property
    def key(self) -> str:
        """Entry of the transformer's file that holds the weights."""
        return self.preset.source.key if self.preset.source else ""

    def vae_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """What the VAE computes in beside a transformer in `dtype`."""
        own = self.preset.vae_dtype
        return HALF_DTYPES[own] if own and dtype == torch.bfloat16 else dtype

    def request(
        self,
        prompt: str | Sequence[str],
        *,
        frames: int = 81,
        size: tuple[int, int] | None = None,
        seed: int = 0,
        policy: str | Policy = "dummy",
        dummy_fraction: float | None = None,
        budget: str | None = None,
        cache_dtype: torch.dtype | None = None,
        plan: Plan | Literal["shipped"] | None = None,
        image: str | Path | None = None,
        video: str | Path | None = None,
        strength: float | None = None,
        switches: Sequence[tuple[float, str]] = (),
        fade: int = 1,
        teacache: float | str | Sequence[int] | Calibration | None = None,
    ) -> Request:
        """Check what is asked of this model and fill in its defaults; see `Options`.

        Args:
            prompt: One prompt, or several for a batch.
            frames: Pixel frames.
            size: Height and width in pixels.
            seed: Of the first sample's noise.
            policy: Name or policy.
            dummy_fraction: Share of dummy heads.
            budget: What policy `long` may cost.
            cache_dtype: Of keys and values, for a budget in bytes; None: as models are loaded by default.
            plan: A plan to use instead of finding one; `shipped`: the model's own.
            image: Image to begin with.
            video: Video to begin with, or to make this one from.
            strength: How much of `video` is made anew.
            switches: Changes of the prompt.
            fade: Chunks that each of them takes.
            teacache: Threshold of TeaCache, a calibrated table or where it is, or the steps to leave out.

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
        chosen = self.policy(policy, latent_frames)
        if plan == "shipped":
            plan = self.shipped_plan()
        chosen = choose_heads(chosen, plan, dummy_fraction, budget)
        if chosen.budget is not None and plan is None and (budget or isinstance(policy, str)):
            past = self._past_within(budget or DEFAULT_BUDGET, (height, width), cache_dtype)
            chosen = replace(chosen, budget=past)
        if plan is not None:
            plan.require(self.config.num_layers, self.config.num_heads)
        if isinstance(teacache, str):
            with suppress(ValueError):  # else it names a table
                teacache = float(teacache)
        if isinstance(teacache, str):
            teacache = self.teacache_table(teacache)
        begin = read_begin(self.preset, image, video, strength, latent_frames, (height, width))
        return Request(
            prompts,
            latent_frames,
            latent_frames // self.preset.chunk_frames,
            (height, width),
            seed,
            chosen,
            plan,
            current=self.preset.current_frames,
            past=self.preset.past_frames(latent_frames),
            switches=place_switches(self.preset, switches, fade, latent_frames),
            fade=fade,
            teacache=check_teacache(self.preset, teacache, begin.get("strength", 1.0)),
            **begin,
        )

    def shipped_plan(self) -> Plan:
        """The head plan that comes with the model, found over many prompts.

        Raises:
            UserError: If there is none.
        """
        return Plan.load(self._shipped("plan.json", "head plan", "'dummyforcing heads --save-plan'"))

    def teacache_table(self, text: str) -> Calibration:
        """Read the calibrated TeaCache table of `FILE` or `FILE:ERROR`; `shipped` is the model's own file.

        Raises:
            UserError: If there is none.
        """
        path, error = split_number(text, "error", "TeaCache table")
        if path == "shipped":
            path = str(self._shipped("teacache.json", "TeaCache table", "'dummyforcing teacache calibrate'"))
        table = Calibration.load(path)
        return table if error is None else table.at(error)

    def _shipped(self, name: str, what: str, maker: str) -> Path:
        path = self.folder / name if self.folder else None
        if path is None or not path.is_file():
            raise UserError(
                f"Model '{self.preset.name}' ships no {what}; leave it out, or make one with {maker}."
            )
        return path

    def estimate(self, request: Request, dtype: torch.dtype, *, loaded: bool = False) -> MemoryEstimate:
        """Estimate the memory that a request needs.

        Measured: the transformer holds some 10 vectors per token besides its FFN. Counted: the VAE holds four
        feature maps of its last stage for the pixel frames that it makes at a time, and past frames that are
        as large as seven maps of the four pixel frames of a latent frame.

        Args:
            request: What is asked for.
            dtype: Of the computation.
            loaded: Whether the weights are in memory already.
        """
        (height, width), batch, config = request.size, len(request.prompts), self.config
        tokens = batch * (height // SIZE_MULTIPLE) * (width // SIZE_MULTIPLE)
        cache = request.cache_frames() * tokens * config.num_layers * config.dim * 2
        transformer = request.current * tokens * (10 * config.dim + 3 * config.ffn_dim) * dtype.itemsize
        pixels, chunk = batch * height * width * PIXEL_FRAMES_PER_FRAME, self.preset.chunk_frames
        at_once = min(chunk, max(PASS_PIXELS // (batch * (height // 8) * (width // 8)), 1))
        maps = (7 + 4 * at_once) * self.vae_width * dtype.itemsize
        decoder = pixels * (maps + chunk * 9 * torch.float32.itemsize)
        bytes_of = {part: 0 if loaded else n * dtype.itemsize for part, n in self.parameters.items()}
        return MemoryEstimate(
            text_encoder=bytes_of["text_encoder"],
            transformer=bytes_of["transformer"],
            vae=bytes_of["vae"],
            cache=cache * dtype.itemsize,
            denoising=transformer + SCRATCH,
            decoding=decoder + SCRATCH,
            frames=batch * self.preset.pixel_frames(request.frames) * height * width * 3,
        )

    def require_memory(
        self,
        request: Request,
        dtype: torch.dtype,
        device: torch.device,
        *,
        loaded: bool = False,
        offload: bool = False,
    ) -> None:
        """Refuse a request that does not fit into the memory of a device.

        Raises:
            UserError: If it does not; says what would.
        """
        estimate = self.estimate(request, dtype, loaded=loaded)
        remedies = self._remedies(request, dtype, device, loaded)
        require_memory(estimate.offloaded() if offload else estimate, device, remedies)

    def _remedies(
        self, request: Request, dtype: torch.dtype, device: torch.device, loaded: bool
    ) -> Iterator[tuple[str, MemoryEstimate]]:
        """Smaller requests, the dearest first: another policy, offloading, a shorter or a smaller video."""
        sparse = replace(request, policy=self.policy("dummy"), plan=None)
        choices = [] if request.has_roles else [("--policy dummy", sparse)]
        for name, smaller in choices:
            yield name, self.estimate(smaller, dtype, loaded=loaded)
        if device.type == "cuda":
            for name, smaller in [("", request), *((f"{name} ", smaller) for name, smaller in choices)]:
                yield f"{name}--offload", self.estimate(smaller, dtype, loaded=loaded).offloaded()
        for divisor in (2, 4, 8):
            chunks = request.chunks // divisor
            if chunks:
                shorter = replace(request, chunks=chunks, frames=chunks * self.preset.chunk_frames)
                count = self.preset.pixel_frames(shorter.frames)
                yield f"--frames {count}", self.estimate(shorter, dtype, loaded=loaded)
        for divisor in (2, 4, 8):
            height, width = (side // divisor // SIZE_MULTIPLE * SIZE_MULTIPLE for side in request.size)
            if height and width:
                smaller = replace(request, size=(height, width))
                yield f"--size {width}x{height}", self.estimate(smaller, dtype, loaded=loaded)

    def _past_within(self, budget: str, size: tuple[int, int], dtype: torch.dtype | None) -> Fraction:
        """Past frames per head, mean over heads, that a budget pays for in a video of that size."""
        tokens = size[0] // SIZE_MULTIPLE * (size[1] // SIZE_MULTIPLE)
        itemsize = (dtype or choose_dtype(None, choose_device("auto"))).itemsize
        frame_bytes = 2 * tokens * self.config.num_layers * self.config.dim * itemsize
        current = self.preset.current_frames
        # Where pinned frames move along, sink heads keep the keys of one frame as they came, too.
        fixed_bytes = current * frame_bytes + (frame_bytes // 2 if self.preset.reach else 0)
        return past_within(budget, current, frame_bytes, fixed_bytes)

    def policy(self, policy: str | Policy, frames: int | None = None) -> Policy:
        """A policy by name gets the preset's settings where its text gives none.

        Args:
            policy: Name or policy.
            frames: Latent frames of the video; None: no end.

        Raises:
            UserError: If there is no such policy, or its heads see further than the model can.
        """
        if isinstance(policy, Policy):
            return policy
        defaults, farthest = self.preset.dummy, self.preset.farthest()
        before = None if frames is None else max(frames - self.preset.current_frames, 1)
        cap = min(limit for limit in (LONG_CONTEXT, farthest, before) if limit is not None)
        complete = {
            "native": self.preset.native,
            "dummy": f"dummy:{defaults.neighbor_frames}",
            "anchored": f"anchored:{defaults.neighbor_frames}",
            "long": f"long:{cap}",
            "official": f"official:{defaults.classify_at_chunk},1,{self.preset.chunk_frames}",
        }
        chosen = parse_policy(complete.get(policy, policy))
        if chosen.name not in ("dummy", "anchored", "long"):
            return chosen
        assert chosen.roles is not None
        recent = chosen.roles[Role.NEIGHBOR].recent or 0
        if chosen.name == "long" and farthest is not None and recent > farthest:
            raise UserError(
                f"Model '{self.preset.name}' sees {farthest} past frames at most; "
                f"take long:{farthest} or less."
            )
        return replace(
            chosen,
            initial=parse_policy(self.preset.native).initial,
            classify_at_chunk=defaults.classify_at_chunk,
            dummy_fraction=defaults.dummy_fraction,
        )


def _parse_lora(text: str) -> tuple[Path | HubFile, float]:
    """Read FILE or FILE:SCALE."""
    path, scale = split_number(text, "scale", "LoRA")
    if not Path(path).exists():
        raise UserError(f"There is no LoRA file {path}; give FILE or FILE:SCALE.")
    return Path(path), 1.0 if scale is None else scale


def _config(transformer: Path | HubFile, preset: Preset, own_folder: bool) -> ModelConfig:
    """Sizes from the `config.json` beside the weights, which our own folders must have, else the preset's."""
    if isinstance(transformer, Path):
        folder = transformer.parent if transformer.is_file() else transformer
        if own_folder or (folder / "config.json").is_file():
            return read_config(folder)
    return WAN_SIZES[preset.architecture]
