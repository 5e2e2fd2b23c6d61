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

from dummyforcing.checkpoints.hub import HubFile, find_base, find_part, find_weights
from dummyforcing.checkpoints.lora import parse_lora
from dummyforcing.checkpoints.transformer import (
    PARAMETERS,
    WAN_SIZES,
    count_parameters,
    count_stored,
    decoder_sizes,
    read_config,
)
from dummyforcing.errors import UserError
from dummyforcing.files.writing import split_number
from dummyforcing.method.budget import DEFAULT_BUDGET, past_within
from dummyforcing.method.plan import Plan
from dummyforcing.method.policy import Policy
from dummyforcing.models.wan import ModelConfig
from dummyforcing.pipeline.choices import check_guard, check_teacache, choose_heads, choose_policy
from dummyforcing.pipeline.memory import DecoderSizes, MemoryEstimate, require_memory
from dummyforcing.pipeline.request import (
    Request,
    choose_device,
    choose_dtype,
    place_switches,
    read_begin,
)
from dummyforcing.presets.preset import SIZE_MULTIPLE, Preset, find_preset, parse_size
from dummyforcing.sampling.classifier import Guard
from dummyforcing.sampling.teacache import Calibration

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
    decoder: DecoderSizes
    """Of the VAE."""
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
        loras: list[tuple[Path | HubFile, float]] = [
            parse_lora(text) for text in ([lora] if isinstance(lora, str) else lora)
        ]
        transformer: Path | HubFile
        if weights is not None:
            transformer = find_weights(str(weights))
        elif source is not None:
            transformer = HubFile(source.repo, source.file) if source.repo else Path(source.file)
        elif folder is not None:
            transformer = folder / "transformer"
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
        sizes = decoder_sizes(parts / "vae") if isinstance(parts, Path) else DecoderSizes()
        return cls(preset, config, transformer, tuple(loras), parts, counts, sizes, folder)

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
        size: tuple[int, int] | str | None = None,
        seed: int = 0,
        policy: str | Policy = "dummy",
        dummy_fraction: float | None = None,
        budget: str | None = None,
        cache_dtype: torch.dtype | None = None,
        plan: Plan | Literal["shipped"] | None = None,
        guard: Guard | None = None,
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
            size: Height and width in pixels, or text as for `presets.parse_size`.
            seed: Of the first sample's noise.
            policy: Name or policy.
            dummy_fraction: Share of dummy heads.
            budget: What policy `long` may cost.
            cache_dtype: Of keys and values, for a budget in bytes; None: as models are loaded by default.
            plan: A plan to use instead of finding one; `shipped`: the model's own.
            guard: What has the heads classified anew.
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
        height, width = parse_size(size) if isinstance(size, str) else size or self.preset.size
        if min(height, width) < SIZE_MULTIPLE or height % SIZE_MULTIPLE or width % SIZE_MULTIPLE:
            nearest = [max(1, round(side / SIZE_MULTIPLE)) * SIZE_MULTIPLE for side in (width, height)]
            raise UserError(
                f"Size {width}x{height} (width x height) is no multiple of {SIZE_MULTIPLE} pixels; "
                f"the nearest is {nearest[0]}x{nearest[1]}."
            )
        if not 0 <= seed < 2**63:
            raise UserError(f"Seed {seed} is out of range; take a number from 0 to 2^63 - 1.")
        chosen = choose_policy(self.preset, policy, latent_frames)
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
            guard=check_guard(self.preset, guard, chosen, plan),
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

    def estimate(
        self, request: Request, dtype: torch.dtype, *, loaded: bool = False, bands: int = 1
    ) -> MemoryEstimate:
        """Estimate the memory that a request needs.

        Measured: the transformer holds some 10 vectors per token besides its FFN.

        Args:
            request: What is asked for.
            dtype: Of the computation.
            loaded: Whether the weights are in memory already.
            bands: Of the VAE's decoder.
        """
        (height, width), batch, config = request.size, len(request.prompts), self.config
        tokens = batch * (height // SIZE_MULTIPLE) * (width // SIZE_MULTIPLE)
        cache = request.cache_frames() * tokens * config.num_layers * config.dim * 2
        transformer = request.current * tokens * (10 * config.dim + 3 * config.ffn_dim) * dtype.itemsize
        bytes_of = {part: 0 if loaded else n * dtype.itemsize for part, n in self.parameters.items()}
        stride = self.decoder.stride
        latents = batch, self.preset.chunk_frames, height // stride, width // stride
        decoder = self.decoder.memory(latents, dtype.itemsize, bands)
        return MemoryEstimate(
            text_encoder=bytes_of["text_encoder"],
            transformer=bytes_of["transformer"],
            vae=bytes_of["vae"],
            cache=cache * dtype.itemsize,
            denoising=transformer + SCRATCH,
            decoding=decoder.working + SCRATCH,
            frames=batch * self.preset.pixel_frames(request.frames) * height * width * 3,
            waiting=decoder.waiting,
        )

    def estimates(
        self, request: Request, dtype: torch.dtype, *, loaded: bool = False, offload: bool = False
    ) -> list[MemoryEstimate]:
        """What a request needs if it is decoded in one band, in two, and so on up to one for each row."""
        rows = range(1, request.size[0] // self.decoder.stride + 1)
        estimates = (self.estimate(request, dtype, loaded=loaded, bands=bands) for bands in rows)
        return [estimate.offloaded() if offload else estimate for estimate in estimates]

    def require_memory(
        self,
        request: Request,
        dtype: torch.dtype,
        device: torch.device,
        *,
        loaded: bool = False,
        offload: bool = False,
    ) -> int:
        """Refuse a request that does not fit into the memory of a device.

        Returns:
            In how many bands to decode it: as few as fit.

        Raises:
            UserError: If it does not fit in any number of bands; says what would.
        """
        estimates = self.estimates(request, dtype, loaded=loaded, offload=offload)
        return require_memory(estimates, device, self._remedies(request, dtype, device, loaded))

    def _remedies(
        self, request: Request, dtype: torch.dtype, device: torch.device, loaded: bool
    ) -> Iterator[tuple[str, list[MemoryEstimate]]]:
        """Smaller requests, the dearest first: another policy, offloading, a shorter or a smaller video."""
        sparse = replace(request, policy=choose_policy(self.preset, "dummy"), plan=None)
        choices = [] if request.has_roles else [("--policy dummy", sparse)]
        for name, smaller in choices:
            yield name, self.estimates(smaller, dtype, loaded=loaded)
        if device.type == "cuda":
            for name, smaller in [("", request), *((f"{name} ", smaller) for name, smaller in choices)]:
                yield f"{name}--offload", self.estimates(smaller, dtype, loaded=loaded, offload=True)
        for divisor in (2, 4, 8):
            chunks = request.chunks // divisor
            if chunks:
                shorter = replace(request, chunks=chunks, frames=chunks * self.preset.chunk_frames)
                count = self.preset.pixel_frames(shorter.frames)
                yield f"--frames {count}", self.estimates(shorter, dtype, loaded=loaded)
        for divisor in (2, 4, 8):
            height, width = (side // divisor // SIZE_MULTIPLE * SIZE_MULTIPLE for side in request.size)
            if height and width:
                smaller = replace(request, size=(height, width))
                yield f"--size {width}x{height}", self.estimates(smaller, dtype, loaded=loaded)

    def _past_within(self, budget: str, size: tuple[int, int], dtype: torch.dtype | None) -> Fraction:
        """Past frames per head, mean over heads, that a budget pays for in a video of that size."""
        tokens = size[0] // SIZE_MULTIPLE * (size[1] // SIZE_MULTIPLE)
        itemsize = (dtype or choose_dtype(None, choose_device("auto"))).itemsize
        frame_bytes = 2 * tokens * self.config.num_layers * self.config.dim * itemsize
        current = self.preset.current_frames
        # Where pinned frames move along, sink heads keep the keys of one frame as they came, too.
        fixed_bytes = current * frame_bytes + (frame_bytes // 2 if self.preset.reach else 0)
        return past_within(budget, current, frame_bytes, fixed_bytes)


def _config(transformer: Path | HubFile, preset: Preset, own_folder: bool) -> ModelConfig:
    """Sizes from the `config.json` beside the weights, which our own folders must have, else the preset's."""
    if isinstance(transformer, Path):
        folder = transformer.parent if transformer.is_file() else transformer
        if own_folder or (folder / "config.json").is_file():
            return read_config(folder)
    return WAN_SIZES[preset.architecture]
