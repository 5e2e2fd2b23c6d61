"""Presets: what there is to know about a model besides its weights, as data.

Bundled models are folders under `assets/`, each with a `preset.json` in the form of `Preset`. The public
families are rows of `PUBLIC`. A row says all that differs between models; no code asks for a model's name.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from dummyforcing.errors import UserError

ASSETS = Path(__file__).parent / "assets"
PIXEL_FRAMES_PER_FRAME = 4
SIZE_MULTIPLE = 16
"""Pixels per token and axis: 8 by the VAE, 2 by the transformer's patches."""


@dataclass(frozen=True)
class ScheduleArgs:
    """How the denoising steps of a chunk are made; the arguments of `sampling.make_schedule`."""

    steps: tuple[float, ...]
    """Noise levels as in the model's own configuration, from 1000 downwards."""
    shift: float
    """Flow shift."""
    warp: bool = True
    """Whether the shift applies to `steps`, or they are timesteps already."""


@dataclass(frozen=True)
class DummyDefaults:
    """The model's settings of the `dummy` policy."""

    classify_at_chunk: int = 1
    """The chunk whose denoising steps are scored; the first chunk is 0."""
    neighbor_frames: int = 3
    """Recent latent frames that a neighbor head keeps."""
    dummy_fraction: float = 0.5
    """Share of all heads that become dummy."""


@dataclass(frozen=True)
class HubFile:
    """Where the weights of a public model are."""

    repo: str
    file: str
    key: str
    """Entry of the file that holds the weights; empty: they are at its top."""
    size: str = "1.3B"
    """Wan size, a key of `checkpoints.WAN_SIZES`."""
    lora: str = ""
    """File of the same repository to merge into the weights."""


@dataclass(frozen=True)
class Preset:
    """A named model as data."""

    name: str
    description: str
    licence: str
    chunk_frames: int
    """Latent frames that are denoised together."""
    schedule: ScheduleArgs
    fps: int = 16
    """Pixel frames per second of video."""
    size: tuple[int, int] = (480, 832)
    """Default height and width in pixels."""
    native: str | None = "dense"
    """The policy that the model was trained for; None: its sampler has rules of its own."""
    dummy: DummyDefaults = DummyDefaults()
    source: HubFile | None = None
    """None: the model is a folder."""

    def pixel_frames(self, frames: int) -> int:
        """Pixel frames that `frames` latent frames decode to: one for the first, four for each other."""
        return 1 + PIXEL_FRAMES_PER_FRAME * (frames - 1)

    def latent_frames(self, pixel_frames: int) -> int:
        """Latent frames that decode to `pixel_frames` pixel frames.

        Raises:
            UserError: If no number of whole chunks gives that count; names the nearest that do.
        """
        chunks = self._nearest_chunks(pixel_frames)
        nearest = [self.pixel_frames(self.chunk_frames * n) for n in chunks]
        if pixel_frames not in nearest:
            counts = " or ".join(str(count) for count in nearest)
            raise UserError(
                f"{pixel_frames} pixel frames cannot be made in chunks of {self.chunk_frames} latent frames "
                f"by model '{self.name}'; take {counts}."
            )
        return self.chunk_frames * chunks[nearest.index(pixel_frames)]

    def pixel_frames_for(self, seconds: float) -> int:
        """The valid number of pixel frames that comes closest to `seconds` of video.

        Raises:
            UserError: If `seconds` is not positive.
        """
        if not seconds > 0:
            raise UserError(f"A video cannot last {seconds:g} seconds; take more than 0.")
        wanted = seconds * self.fps
        counts = [self.pixel_frames(self.chunk_frames * n) for n in self._nearest_chunks(wanted)]
        return min(counts, key=lambda count: abs(count - wanted))

    def _nearest_chunks(self, pixel_frames: float) -> list[int]:
        """The numbers of chunks just below and just above `pixel_frames`."""
        frames = (pixel_frames - 1) / PIXEL_FRAMES_PER_FRAME + 1
        below = int(frames // self.chunk_frames)
        return [n for n in (below, below + 1) if n > 0] or [1]


FOUR_STEPS = ScheduleArgs((1000, 750, 500, 250), shift=5)
FRAME_WISE = DummyDefaults(classify_at_chunk=3)
NON_COMMERCIAL = "cc-by-nc-sa-4.0"

# Licences are those of the weights' cards; where card and code disagree, the stricter one.
# fmt: off
PUBLIC: dict[str, Preset] = {preset.name: preset for preset in [
    Preset("self-forcing", "Self-Forcing 1.3B, DMD", NON_COMMERCIAL, 3, FOUR_STEPS,
           source=HubFile("gdhe17/Self-Forcing", "checkpoints/self_forcing_dmd.pt", "generator_ema")),
    Preset("self-forcing-sid", "Self-Forcing 1.3B, SiD", NON_COMMERCIAL, 3, FOUR_STEPS,
           source=HubFile("gdhe17/Self-Forcing", "checkpoints/self_forcing_sid.pt", "generator_ema")),
    Preset("longlive", "LongLive 1.0 1.3B, sees 3 sink and 6 recent frames", NON_COMMERCIAL, 3, FOUR_STEPS,
           native="window:3,6", dummy=DummyDefaults(classify_at_chunk=2),
           source=HubFile("Efficient-Large-Model/LongLive-1.3B", "models/longlive_base.pt", "generator",
                          lora="models/lora.pt")),
    Preset("causvid", "CausVid 1.3B", NON_COMMERCIAL, 3,
           ScheduleArgs((1000, 757, 522), shift=8, warp=False),
           source=HubFile("tianweiy/CausVid", "autoregressive_checkpoint/model.pt", "generator")),
    Preset("causvid-4step", "CausVid 1.3B", NON_COMMERCIAL, 3,
           ScheduleArgs((1000, 750, 500, 250), shift=8),
           source=HubFile("tianweiy/CausVid", "autoregressive_checkpoint_warp_4step_cfg2/model.pt",
                          "generator")),
    Preset("rolling-forcing", "Rolling Forcing 1.3B, five chunks at once, one noise level each",
           "academic use only (Tencent)", 3, ScheduleArgs((1000, 800, 600, 400, 200), shift=5), native=None,
           source=HubFile("TencentARC/RollingForcing", "checkpoints/rolling_forcing_dmd.pt",
                          "generator_ema")),
    Preset("krea-realtime", "Krea Realtime 14B, recomputes its context before every chunk", NON_COMMERCIAL, 3,
           ScheduleArgs((1000, 750, 500, 250, 0), shift=5), native=None,
           source=HubFile("krea/krea-realtime-video", "krea-realtime-video-14b.safetensors", "", size="14B")),
    Preset("causal-forcing", "Causal-Forcing 1.3B, chunk-wise", "apache-2.0", 3, FOUR_STEPS,
           source=HubFile("zhuhz22/Causal-Forcing", "chunkwise/causal_forcing.pt", "generator")),
    Preset("causal-forcing-frame", "Causal-Forcing 1.3B, frame-wise", "apache-2.0", 1, FOUR_STEPS,
           dummy=FRAME_WISE,
           source=HubFile("zhuhz22/Causal-Forcing", "framewise/causal_forcing.pt", "generator_ema")),
    Preset("causal-forcing-2step", "Causal-Forcing++ 1.3B, frame-wise", "apache-2.0", 1,
           ScheduleArgs((1000, 500), shift=5), dummy=FRAME_WISE,
           source=HubFile("zhuhz22/Causal-Forcing", "causal-forcing++/framewise-2step.pt", "generator_ema")),
    Preset("causal-forcing-1step", "Causal-Forcing++ 1.3B, frame-wise", "apache-2.0", 1,
           ScheduleArgs((1000,), shift=5), dummy=FRAME_WISE,
           source=HubFile("zhuhz22/Causal-Forcing", "causal-forcing++/framewise-1step.pt", "generator_ema")),
]}
# fmt: on


def bundled_folders() -> dict[str, Path]:
    """The folders of the models that come with the package, by name."""
    return {path.parent.name: path.parent for path in sorted(ASSETS.glob("*/preset.json"))}


def find_folder(name_or_path: str | Path) -> Path:
    """The folder of a bundled model or of one of the user's own.

    Args:
        name_or_path: Name of a bundled model, or a folder in its layout.

    Raises:
        UserError: If there is no such model, or it is a public one, which this version does not load.
    """
    name = str(name_or_path)
    bundled = bundled_folders()
    if name in bundled:
        return bundled[name]
    if name in PUBLIC and (source := PUBLIC[name].source):
        raise UserError(
            f"Model '{name}' (file {source.file} of {source.repo}, licence {PUBLIC[name].licence}) cannot be "
            "loaded yet: this version loads the bundled model and folders in the bundled model's layout."
        )
    folder = Path(name_or_path)
    if (folder / "preset.json").is_file():
        return folder
    if folder.is_dir():
        raise UserError(f"Folder {folder} is no model: it holds no preset.json.")
    known = ", ".join([*bundled, *PUBLIC])
    raise UserError(f"There is no model or folder '{name}'; the models are {known}.")


def read_preset(folder: Path) -> Preset:
    """Read `preset.json` of a model folder; its form is that of `Preset`.

    Raises:
        UserError: If the file is not such a preset; names the field.
    """
    path = folder / "preset.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return Preset(
            **{
                **data,
                "size": tuple(data["size"]),
                "schedule": ScheduleArgs(**{**data["schedule"], "steps": tuple(data["schedule"]["steps"])}),
                "dummy": DummyDefaults(**data.get("dummy", {})),
            }
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is not a preset: {error}.") from error
