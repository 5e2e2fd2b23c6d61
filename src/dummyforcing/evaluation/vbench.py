"""VBench: its 16 dimensions as data, its totals, and its files.

    scores(read_results(Path("evaluation_results")))  # quality, semantic and total in percent

A dimension that was not computed never counts as 0: without it there is no total.
Source: VBench (arXiv:2311.17982) and the weights of its leaderboard.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from dummyforcing.errors import BadFile, BadRequest
from dummyforcing.files.reading import read_json

FLICKER = "temporal_flickering"
SAMPLES = 5
"""Videos per prompt that VBench reads."""
STATIC_FILTER_SAMPLES = 25
"""Videos per prompt of temporal flickering, of which VBench's static filter keeps those without motion."""


@dataclass(frozen=True)
class Dimension:
    """One dimension of VBench."""

    group: str
    """`quality` or `semantic`."""
    low: float
    """Raw score that counts as 0."""
    high: float
    """Raw score that counts as 1."""
    networks: tuple[str, ...]
    """What the package reads from its cache folder in local mode."""
    weight: float = 1.0
    """Weight within the group."""

    def normalise(self, raw: float) -> float:
        """Raw score to 0..1."""
        return (raw - self.low) / (self.high - self.low)


_CLIP_B, _CLIP_L = "clip_model/ViT-B-32.pt", "clip_model/ViT-L-14.pt"
_GRIT = ("grit_model/grit_b_densecap_objectdet.pth",)
_VICLIP = ("ViCLIP/ViClip-InternVid-10M-FLT.pth", "ViCLIP/bpe_simple_vocab_16e6.txt.gz")
_DINO = ("dino_model/facebookresearch_dino_main", "dino_model/dino_vitbase16_pretrain.pth")
_AESTHETIC = (_CLIP_L, "aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth")

# fmt: off
DIMENSIONS: dict[str, Dimension] = {
    "subject_consistency": Dimension("quality", 0.1462, 1.0, _DINO),
    "background_consistency": Dimension("quality", 0.2615, 1.0, (_CLIP_B,)),
    FLICKER: Dimension("quality", 0.6293, 1.0, ()),
    "motion_smoothness": Dimension("quality", 0.706, 0.9975, ("amt_model/amt-s.pth",)),
    "dynamic_degree": Dimension("quality", 0.0, 1.0, ("raft_model/models/raft-things.pth",), weight=0.5),
    "aesthetic_quality": Dimension("quality", 0.0, 1.0, _AESTHETIC),
    "imaging_quality": Dimension("quality", 0.0, 1.0, ("pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",)),
    "object_class": Dimension("semantic", 0.0, 1.0, _GRIT),
    "multiple_objects": Dimension("semantic", 0.0, 1.0, _GRIT),
    "human_action": Dimension("semantic", 0.0, 1.0, ("umt_model/l16_ptk710_ftk710_ftk400_f16_res224.pth",)),
    "color": Dimension("semantic", 0.0, 1.0, _GRIT),
    "spatial_relationship": Dimension("semantic", 0.0, 1.0, _GRIT),
    "scene": Dimension("semantic", 0.0, 0.8222, ("caption_model/tag2text_swin_14m.pth",)),
    "appearance_style": Dimension("semantic", 0.0009, 0.2855, (_CLIP_B,)),
    "temporal_style": Dimension("semantic", 0.0, 0.364, _VICLIP),
    "overall_consistency": Dimension("semantic", 0.0, 0.364, _VICLIP),
}
# fmt: on


@dataclass(frozen=True)
class Scores:
    """VBench's summary in percent; None where a dimension that it needs is missing."""

    quality: float | None
    semantic: float | None
    total: float | None


def scores(raw: Mapping[str, float]) -> Scores:
    """Sum up raw scores of dimensions.

    Args:
        raw: Dimension -> raw score, 0 to 1.

    Raises:
        BadRequest: If a dimension is unknown or a score is out of range.
    """
    for name, value in raw.items():
        require_dimensions([name])
        if not 0 <= value <= 1:
            raise BadRequest(
                f"raw score {value:g} of {name} is not between 0 and 1", "divide scores in percent by 100"
            )
    quality, semantic = _group(raw, "quality"), _group(raw, "semantic")
    return Scores(quality, semantic, total(quality, semantic))


def total(quality: float | None, semantic: float | None) -> float | None:
    """VBench's total of its two groups, four parts quality and one part semantic; None if either is."""
    return None if quality is None or semantic is None else (4 * quality + semantic) / 5


def _group(raw: Mapping[str, float], group: str) -> float | None:
    parts = {name: part for name, part in DIMENSIONS.items() if part.group == group}
    if not parts.keys() <= raw.keys():
        return None
    weighted = sum(part.weight * part.normalise(raw[name]) for name, part in parts.items())
    return 100 * weighted / sum(part.weight for part in parts.values())


def require_dimensions(names: Collection[str]) -> None:
    """Refuse names that are no dimensions.

    Raises:
        BadRequest: Names the dimensions.
    """
    for name in names:
        if name not in DIMENSIONS:
            raise BadRequest(
                f"VBench has no dimension '{name}'", f"it has {', '.join(DIMENSIONS)}", "dimension"
            )


def read_results(path: Path) -> dict[str, float]:
    """Read raw scores that VBench has written.

    Args:
        path: A JSON file `{dimension: score}` or `{dimension: [score, ...]}`, or a folder with VBench's
            `*_eval_results.json`.

    Returns:
        Dimension -> raw score.

    Raises:
        BadFile: If there are none, they cannot be read, or two files disagree about a dimension.
    """
    files = sorted(path.rglob("*_eval_results.json")) if path.is_dir() else [path]
    if not files:
        raise BadFile(f"there is no *_eval_results.json in {path}", "give the folder that VBench wrote into")
    raw: dict[str, float] = {}
    for file in files:
        try:
            found = {
                name.replace(" ", "_"): float(value[0] if isinstance(value, list) else value)
                for name, value in read_json(file).items()
            }
        except (OSError, ValueError, TypeError, AttributeError, IndexError) as error:
            raise BadFile(f"{file} does not hold VBench's scores ({error})", "leave it out") from error
        for name, value in found.items():
            if raw.setdefault(name, value) != value:
                raise BadFile(f"{path} holds two different scores of {name}", "keep one result in the folder")
    return raw


def read_info(path: Path) -> dict[str, list[str]]:
    """Read VBench's `VBench_full_info.json`: the prompts of every dimension.

    Raises:
        BadFile: If it is no such file.
    """
    prompts: dict[str, list[str]] = {name: [] for name in DIMENSIONS}
    try:
        for entry in read_json(path):
            for name in entry["dimension"]:
                prompts[name].append(str(entry["prompt_en"]))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BadFile(
            f"{path} is not VBench's VBench_full_info.json ({error!r})", "give that file"
        ) from error
    return prompts
