"""Judge a trained model on the held-out prompts: in batches, and with nothing of the product but its loop.

    python -m research.training.judge --folder runs/tiny --output runs/tiny/judged.json

The folder has the layout of a run and of a preset. 96 videos of one object, 48 of two and 24 free sentences
are made from fixed seeds; exact detectors judge them. Contact sheets go beside the JSON file, 24 videos each.
With `--ceiling` ground truth is judged, plain and after the model's VAE: no model can do better. It needs
torch, diffusers and transformers, but neither PyAV nor the command line; `research.studies.benchmark` judges
a preset as users load it, with all measures of a video.
"""

import argparse
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dummyforcing.evaluation.results import write_results
from dummyforcing.evaluation.world.detect import Verdict
from dummyforcing.evaluation.world.detect import judge as judge_clip
from dummyforcing.evaluation.world.scene import FPS, Scene
from dummyforcing.media.montage import save_contact_sheet
from dummyforcing.method.policy import parse_policy
from dummyforcing.sampling.block import BlockSampler
from dummyforcing.sampling.schedule import make_schedule
from dummyforcing.vae.codec import VideoDecoder
from research.training.networks import SHIFT, load_model
from research.training.run import CHUNK, LATENT, SIZE, Run
from research.training.text import TextReader
from research.training.vae import build_vae
from research.world.prompts import benchmark_scenes, free_scenes, two_object_scenes
from research.world.render import render
from research.world.verdicts import listed

Frames = NDArray[np.uint8]
Maker = Callable[[Sequence[Scene], int], Frames]
"""Makes videos `(B, T, H, W, 3)` of scenes; the number is the first one's seed."""

GROUPS: dict[str, Callable[[], list[Scene]]] = {
    "one": partial(benchmark_scenes, 96),
    "two": partial(two_object_scenes, 48),
    "free": free_scenes,
}
STEPS = [1000, 750, 500, 250]
_SHEET = 24


class Judged:
    """A trained model, and the videos that it makes."""

    def __init__(self, run: Run, chunks: int, policy: str) -> None:
        self.run, self.chunks, self.policy = run, chunks, policy
        self.reader = TextReader(run)
        self.model = load_model(run.folder / "transformer").to(run.device).eval()
        self.decoder = VideoDecoder(build_vae(run).eval())
        self.schedule = make_schedule(STEPS, SHIFT)

    @property
    def pixel_frames(self) -> int:
        """Of each video."""
        return 1 + 4 * (CHUNK * self.chunks - 1)

    def make(self, scenes: Sequence[Scene], seed: int) -> Frames:
        """The model's videos of the scenes' prompts."""
        embeds = self.reader.embed([scene.prompt for scene in scenes]).float()
        sampler = BlockSampler(
            self.model, embeds, parse_policy(self.policy), self.schedule, (len(scenes), 16, LATENT, LATENT),
            seeds=range(seed, seed + len(scenes)), frames=CHUNK * self.chunks,
        )  # fmt: skip
        stream = self.decoder.stream()
        return np.concatenate([stream.decode(latents).cpu().numpy() for latents in sampler], axis=1)

    def truth(self, scenes: Sequence[Scene], seed: int) -> Frames:
        """What they should look like."""
        drawn = render(scenes, self.pixel_frames, SIZE, self.run.device) * 255
        frames: Frames = drawn.round().byte().movedim(2, -1).cpu().numpy()
        return frames

    @torch.inference_mode()
    def decoded(self, scenes: Sequence[Scene], seed: int) -> Frames:
        """The same after the VAE."""
        latents = self.decoder.encode(torch.from_numpy(self.truth(scenes, seed)))
        frames: Frames = self.decoder.decode(latents).cpu().numpy()
        return frames


def judge_group(
    make: Maker, scenes: Sequence[Scene], batch: int, workers: ProcessPoolExecutor, picture: Path
) -> dict[str, object]:
    """Make the videos of some scenes and judge them while the next ones are made.

    Args:
        make: Of the videos.
        scenes: With their prompts.
        batch: Videos that are made together.
        workers: That judge.
        picture: Path of the contact sheets; a number is added.
    """
    futures, waiting, sheets = [], [], 0
    for first in range(0, len(scenes), batch):
        part = scenes[first : first + batch]
        videos = make(part, first)
        futures += [workers.submit(judge_clip, *pair) for pair in zip(videos, part, strict=True)]
        waiting += list(zip(videos, (scene.prompt for scene in part), strict=True))
        while len(waiting) >= _SHEET or (waiting and first + batch >= len(scenes)):
            shown, waiting = waiting[:_SHEET], waiting[_SHEET:]
            path = picture.with_name(f"{picture.stem}-{sheets}.png")
            save_contact_sheet(path, [v[:, ::2, ::2] for v, _ in shown], 10, [p for _, p in shown])
            sheets += 1
    verdicts: list[Verdict] = [future.result() for future in futures]
    return listed(scenes, verdicts)


def main(arguments: list[str] | None = None) -> None:
    """Make, judge, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/tiny"), help="of a run, or a preset")
    parser.add_argument("--output", type=Path, required=True, help="JSON file; contact sheets go beside it")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each video")
    parser.add_argument("--policies", nargs="+", default=["dense"], help="of the cache")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--limit", type=int, help="prompts of each group")
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--ceiling", action="store_true", help="judge ground truth, too")
    args = parser.parse_args(arguments)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    run = Run(args.folder, small=False, pool=1.0)
    chunks = round((args.seconds * FPS + 3) / (4 * CHUNK))
    makers: dict[str, Maker] = {policy: Judged(run, chunks, policy).make for policy in args.policies}
    if args.ceiling:
        judged = Judged(run, chunks, "dense")
        makers |= {"truth": judged.truth, "truth after the VAE": judged.decoded}
    context = multiprocessing.get_context("spawn")  # threads of torch do not survive a fork
    found: dict[str, dict[str, object]] = {}
    with ProcessPoolExecutor(
        min(8, os.cpu_count() or 1), context, initializer=torch.set_num_threads, initargs=(1,)
    ) as workers:
        for name, make in makers.items():
            found[name] = {}
            for group in args.groups:
                scenes = GROUPS[group]()[: args.limit]
                picture = args.output.with_name(f"{args.output.stem}-{name.replace(' ', '-')}-{group}.png")
                found[name][group] = rows = judge_group(make, scenes, args.batch, workers, picture)
                said = {key: rows[key] for key in ("color", "shape", "motion", "all_right")}
                run.log(name, group, said)
    write_results(args.output, {"seconds": args.seconds, "found": found}, run.device)


if __name__ == "__main__":
    main()
