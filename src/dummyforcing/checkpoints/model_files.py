"""A model before it is loaded: its preset, its sizes, and where its files are.

    files = ModelFiles.open("tiny")

No weights are read here and nothing is downloaded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel

from dummyforcing.checkpoints.hub import HubFile, find_base, find_part, find_weights
from dummyforcing.checkpoints.lora import parse_lora
from dummyforcing.checkpoints.transformer import (
    PARAMETERS,
    WAN_SIZES,
    config_of,
    count_parameters,
    open_any_size,
    read_config,
)
from dummyforcing.checkpoints.vae import decoder_sizes
from dummyforcing.checkpoints.weights import count_stored
from dummyforcing.errors import BadRequest
from dummyforcing.models.wan import CausalWan, ModelConfig
from dummyforcing.presets.catalog import bundled_folders, find_preset, may_be_weights
from dummyforcing.presets.preset import SIZE_MULTIPLE, Preset
from dummyforcing.vae.memory import DecoderSizes

HALF_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


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
        transformer: WanTransformer3DModel | CausalWan | None = None,
    ) -> "ModelFiles":
        """Find a model and read everything about it except its weights; nothing is downloaded.

        Args:
            model: A bundled or public model, a folder in the bundled one's layout, or a preset file.
            weights: The transformer's file or folder, or `OWNER/NAME:FILE` on the Hub, instead of
                the model's own and its LoRA.
            base: Folder or Hub repository with text encoder, tokenizer and VAE, instead of the model's own.
            lora: LoRA files to merge, each as FILE or FILE:SCALE.
            transformer: One that is loaded already, likewise; the sizes are its own.

        Raises:
            UserError: If there is no such model, or files are missing or damaged.
        """
        if may_be_weights(model) and (Path(model).is_file() or any(Path(model).glob("*.safetensors"))):
            open_any_size(Path(model))  # says what it is, if it is no transformer that could be used
        preset, folder = find_preset(model)
        source = preset.source
        loras: list[tuple[Path | HubFile, float]] = [
            parse_lora(text) for text in ([lora] if isinstance(lora, str) else lora)
        ]
        place: Path | HubFile
        if weights is not None:
            place = find_weights(str(weights))
        elif source is not None:
            place = HubFile(source.repo, source.file) if source.repo else Path(source.file)
        elif folder is not None:
            place = folder / "transformer"
        else:
            raise BadRequest(
                f"Preset '{preset.name}' names no weights",
                'give weights="FILE", or a source in it',
                "weights",
            )
        is_own = weights is None and transformer is None
        if is_own and source is not None and source.lora:
            beside = HubFile(source.repo, source.lora) if source.repo else Path(source.lora)
            loras.append((beside, source.lora_scale))
        if base is not None:
            parts = find_base(str(base))
        else:
            own = folder is not None and ((folder / "text_encoder").exists() or not preset.base)
            if not own and not preset.base:
                raise BadRequest(
                    f"Preset '{preset.name}' names no base", 'give base="FOLDER", or one in it', "base"
                )
            parts = folder if own and folder is not None else find_base(preset.base)
        config = _config(place, preset, parts, own_folder=folder is not None and weights is None)
        if transformer is not None:
            config = config_of(transformer, config.text_len)
        counts = {"transformer": count_parameters(config), **PARAMETERS}
        if isinstance(parts, Path):
            counts |= {part: count_stored(find_part(parts, part)) for part in PARAMETERS}
        sizes = decoder_sizes(parts / "vae") if isinstance(parts, Path) else DecoderSizes()
        return cls(preset, config, place, tuple(loras), parts, counts, sizes, folder)

    @property
    def key(self) -> str:
        """Entry of the transformer's file that holds the weights."""
        return self.preset.source.key if self.preset.source else ""

    def frame_bytes(self, size: tuple[int, int], dtype: torch.dtype) -> int:
        """Bytes of the keys and values of a latent frame, in all heads of all layers.

        Args:
            size: Height and width in pixels.
            dtype: Of the cache.
        """
        tokens = size[0] // SIZE_MULTIPLE * (size[1] // SIZE_MULTIPLE)
        return 2 * tokens * self.config.num_layers * self.config.dim * dtype.itemsize

    def vae_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Choose the dtype of the VAE beside a transformer in `dtype`."""
        own = self.preset.vae_dtype
        return HALF_DTYPES[own] if own and dtype == torch.bfloat16 else dtype

    def shipped(self, name: str) -> Path | None:
        """A file that comes with the model, such as `plan.json`; None: there is none."""
        path = self.folder / name if self.folder else None
        return path if path is not None and path.is_file() else None


def _config(
    transformer: Path | HubFile, preset: Preset, base: Path | HubFile, own_folder: bool
) -> ModelConfig:
    """Sizes from the `config.json` beside the weights, which our own folders must have.

    Else they are those of the bundled model that the weights are for, or the preset's.
    """
    if isinstance(transformer, Path):
        folder = transformer.parent if transformer.is_file() else transformer
        if own_folder or (folder / "config.json").is_file():
            return read_config(folder)
    bundled = {folder.resolve() for folder in bundled_folders().values()}
    if isinstance(base, Path) and base.resolve() in bundled:
        return read_config(base / "transformer")
    return WAN_SIZES[preset.architecture]
