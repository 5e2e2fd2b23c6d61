"""Videos of a whole prompt set, made in this process or by Ray's, in a folder that keeps to one setting."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from tyro.conf import arg

from dummyforcing.cli.common import bar, cache_dtype, load_for, open_files
from dummyforcing.cli.flags import Found, Given
from dummyforcing.cli.terminal import tell, wrote
from dummyforcing.errors import BadRequest, UnknownWordsWarning
from dummyforcing.pipeline.options import LoadOptions, choose

if TYPE_CHECKING:
    import torch

    from dummyforcing.checkpoints.model_files import ModelFiles
    from dummyforcing.evaluation.generate import VideoFolder
    from dummyforcing.evaluation.prompts import Job, PromptSet
    from dummyforcing.integrations.ray.workers import Workers
    from dummyforcing.pipeline.pipeline import DummyForcingPipeline
    from dummyforcing.pipeline.request import Request

    RequestOf = Callable[[Job], Request]

Ray = Annotated[
    str | None, arg(metavar="local|auto|ADDRESS", help_behavior_hint="(default: this process alone)")
]
SETTINGS: dict[str, Any] = {
    "num_frames": 81,
    "size": None,
    "policy": "dummy",
    "dummy_fraction": None,
    "plan": None,
}
"""Options of the videos that a folder keeps to in any case, and their defaults."""


class Maker(Protocol):
    """Makes videos of a model."""

    device: "torch.device"

    def fill(
        self, videos: "VideoFolder", jobs: "Sequence[Job]", request_of: "RequestOf", *, measured: bool
    ) -> "Iterator[Job]":
        """Make what is missing in a folder, and measure it if that is wished.

        Args:
            videos: The folder.
            jobs: Videos that are missing, or not measured.
            request_of: What is asked of the model.
            measured: Whether they shall be.

        Returns:
            Each as it is finished.
        """


class _Here:
    """Makes them in this process."""

    def __init__(self, files: "ModelFiles", load: Given) -> None:
        from dummyforcing.pipeline.devices import choose_device

        self.device = choose_device(load.get("device", "auto"))
        self._files, self._load = files, load
        self._pipeline: DummyForcingPipeline | None = None

    def fill(
        self, videos: "VideoFolder", jobs: "Sequence[Job]", request_of: "RequestOf", *, measured: bool
    ) -> "Iterator[Job]":
        for job in jobs:
            if not videos.video(job).exists():
                request = request_of(job)
                self._pipeline = self._pipeline or load_for(self._files, request, self._load)
                videos.make(job, self._pipeline, request)
            if measured:
                videos.measure(job, self._files.preset)
            yield job


class _OnRay:
    """Has the workers of a cluster make them."""

    def __init__(self, workers: "Workers", files: "ModelFiles") -> None:
        self.device, self._workers, self._files = workers.device, workers, files

    def fill(
        self, videos: "VideoFolder", jobs: "Sequence[Job]", request_of: "RequestOf", *, measured: bool
    ) -> "Iterator[Job]":
        there = [job for job in jobs if videos.video(job).exists()]
        missing = [job for job in jobs if job not in there]
        for job, made in self._workers.make(missing, request_of, measured=measured):
            videos.put(job, made.video, made.measures)
            yield job
        for job in there:
            videos.measure(job, self._files.preset)
            yield job


@contextmanager
def maker(ray: str | None, files: "ModelFiles", load: Given) -> "Iterator[Maker]":
    """What makes the videos; the model is loaded when the first one is.

    Args:
        ray: See `connected`; None: this process makes them.
        files: The model.
        load: How to load it.
    """
    if ray is None:
        yield _Here(files, load)
        return
    from dummyforcing.integrations.ray.cluster import connected
    from dummyforcing.integrations.ray.workers import Workers

    with connected(ray) as cluster, Workers(cluster, files, choose(LoadOptions, load)) as workers:
        yield _OnRay(workers, files)


def require_packages(ray: str | None) -> None:
    """Refuse --ray where its package is not installed."""
    if ray is not None:
        from dummyforcing.integrations.ray.cluster import require_ray

        require_ray()


def fill(
    videos: "VideoFolder",
    jobs: "Sequence[Job]",
    made_by: Maker,
    request_of: "RequestOf",
    *,
    measured: bool = True,
) -> None:
    """Make and measure the videos that are not there yet, with a bar that tells how long it takes."""
    is_done = videos.is_done if measured else lambda job: videos.video(job).exists()
    todo = [job for job in jobs if not is_done(job)]
    done, count = len(jobs) - len(todo), len(jobs)
    with warnings.catch_warnings(), bar(total=count, initial=done, unit="video") as shown:
        warnings.simplefilter("once", UnknownWordsWarning)  # not again for every sample
        try:
            for _ in made_by.fill(videos, todo, request_of, measured=measured):
                done += 1
                shown.update()
        except KeyboardInterrupt as error:
            error.add_note(f"{done} of {count} videos are in {videos.videos}; the same command goes on.")
            raise


def settings_of(
    files: "ModelFiles",
    request: "Request",
    options: Given,
    load: Given,
    device: "torch.device",
    fixed: Mapping[str, object],
) -> tuple[dict[str, object], dict[str, object]]:
    """What decides how the videos look, and what else there is to know of the head plan.

    Args:
        files: The model.
        request: The first video.
        options: Those of all videos, but for their seeds.
        load: Of the model.
        device: That computes them.
        fixed: Further settings.
    """
    from dummyforcing.evaluation.generate import plan_source
    from dummyforcing.pipeline.devices import choose_dtype

    policy, weights = options["policy"], load.get("weights")
    plan = plan_source(files, options["plan"])
    said = None if plan is None else plan[1]
    name = policy if isinstance(policy, str) else policy.name
    further = {name for name in options if name not in (*SETTINGS, "seed", "seconds")}
    settings = {
        # Names of settings are as old as the folders that keep to them.
        "frames": files.preset.pixel_frames(request.length),
        "size": request.size,
        "dummy_fraction": options["dummy_fraction"],
        "policy": name if plan is None else plan[0].policy,
        "policy_sha256": None if plan or isinstance(policy, str) else policy.sha256,
        "model": files.preset.name,
        "weights": Path(weights).name if weights else None,
        "lora": [Path(text).name for text in load.get("lora", ())],
        "plan": None if said is None else said["sha256"],
        "dtype": str(choose_dtype(load.get("torch_dtype"), device)),
        **{name: options[name] for name in sorted(further)},
        **fixed,
    }
    return settings, {"plan": said}


def tell_prompts(chosen: "PromptSet", path: Path) -> None:
    """Say what is not taken as it stands in the file."""
    if chosen.repeated:
        more = " and others" if chosen.repeated[1:] else ""
        tell(f"{path} has '{chosen.repeated[0]}'{more} more than once: there is one set of videos of each.")
    if chosen.unused:
        why = "; models of this kind take no negative prompt" if "negative" in " ".join(chosen.unused) else ""
        tell(f"{path}: not used: {', '.join(chosen.unused)}{why}.")


def generate_all(
    prompts: Path, output: Path | None, model: str, load: Given, video: Given, ray: str | None
) -> Found:
    """Make a video of each prompt of a file.

    Args:
        prompts: The file, as `dummyforcing eval` reads it.
        output: Folder for the videos; it keeps to one setting, as those of `eval` do.
        model: Its name.
        load: How to load it.
        video: Options of all videos.
        ray: See `maker`.
    """
    if output is None or output.suffix.lower() == ".mp4":
        raise BadRequest("The videos of many prompts go into a folder", "give -o FOLDER", "output")
    require_packages(ray)
    from dummyforcing.evaluation.generate import VideoFolder
    from dummyforcing.evaluation.prompts import PromptSet
    from dummyforcing.pipeline.devices import choose_device
    from dummyforcing.pipeline.request import make_request

    chosen = PromptSet.read(prompts)
    require_own_seeds(chosen, prompts, video)
    jobs = chosen.jobs(1, video.get("seed", 0))
    tell_prompts(chosen, prompts)
    files = open_files(model, load)
    options = {**SETTINGS, **video}
    if "seconds" in video:
        del options["num_frames"]

    def request_of(job: "Job", device: "torch.device") -> "Request":
        asked = {**options, "seed": job.seed}
        return make_request(files, job.text, cache_dtype=cache_dtype(load, device), **asked)

    here = choose_device(load.get("device", "auto") if ray is None else "auto")
    requests = [request_of(job, here) for job in jobs]  # refuses now what cannot be made
    fixed = {
        "samples": 1,
        "seeds": sorted({job.seed for job in jobs}),
        "dimensions": [],
        **chosen.hashes,
    }
    with maker(ray, files, load) as made_by:
        settings, _ = settings_of(files, requests[0], options, load, made_by.device, fixed)
        videos = VideoFolder.open(output, settings, here)
        videos.name_prompts(chosen, jobs)
        fill(videos, jobs, made_by, partial(request_of, device=made_by.device), measured=False)
    wrote(videos.videos, f"{len(jobs)} video{'s' * (len(jobs) != 1)}", videos=len(jobs))
    return {"settings": settings, "videos": [job.name for job in jobs]}


def require_own_seeds(chosen: "PromptSet", prompts: Path, video: Given) -> None:
    """Refuse a seed for prompts that have some."""
    if "seed" in video and any(prompt.seed is not None for prompt in chosen.prompts):
        raise BadRequest(f"The prompts of {prompts} have seeds of their own", "leave out --seed")
