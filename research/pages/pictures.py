"""Make pictures of docs/images/ with the bundled model: `python -m research.pages.pictures`."""

from pathlib import Path

from dummyforcing.analysis.plots import save_head_map
from dummyforcing.media.montage import save_contact_sheet
from dummyforcing.pipeline.pipeline import load

PROMPTS = (
    "a red ball bounces on a green floor",
    "a yellow star moves in a circle",
    "a blue square passes behind a pillar",
    "an orange triangle floats up and a white cross stays still",
)


def main() -> None:
    """A contact sheet, dense and dummy in turns, and the head map of the first prompt."""
    folder = Path(__file__).parents[2] / "docs" / "images"
    folder.mkdir(parents=True, exist_ok=True)
    pipeline = load("tiny", device="cpu")
    videos, labels = [], []
    for prompt in PROMPTS:
        for policy in ("dense", "dummy"):
            video = pipeline.generate(prompt, seed=1, policy=policy)
            videos.append(video.frames)
            labels.append(f"{policy}: {prompt}")
            if prompt == PROMPTS[0] and policy == "dummy":
                save_head_map(folder / "heads.png", video.plan)
    save_contact_sheet(folder / "compare.png", videos, labels=labels)


if __name__ == "__main__":
    main()
