"""A folder of videos of a prompt set, filled little by little: by several processes, after interruptions.

    FOLDER/manifest.json            what the videos are made with; a folder has one setting
    FOLDER/videos/{prompt}-{i}.mp4  sample i of each prompt, as VBench wants it; nothing else is in there
    FOLDER/measures/...             what was measured of each video
    FOLDER/prompts.json             video -> prompt, where the name is another

A video or measure that is there is whole: both appear under their names once they are complete.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch

from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.errors import BadFile, BadRequest
from dummyforcing.evaluation.bootstrap import EstimateJson
from dummyforcing.evaluation.prompts import Job, PromptSet, file_hash
from dummyforcing.evaluation.results import write_results
from dummyforcing.evaluation.suite import aggregate, measure
from dummyforcing.evaluation.vbench import DIMENSIONS, FLICKER, SAMPLES, scores
from dummyforcing.evaluation.vbench_package import Outcome
from dummyforcing.evaluation.world.measures import SceneMeasures, measure_scene
from dummyforcing.evaluation.world.scene import Scene, read_prompt
from dummyforcing.files.reading import read_json
from dummyforcing.files.records import to_json
from dummyforcing.files.writing import explaining, replacing
from dummyforcing.media.clips import read_mp4
from dummyforcing.media.video import write_mp4
from dummyforcing.method.plan import Plan
from dummyforcing.pipeline.pipeline import DummyForcingPipeline
from dummyforcing.pipeline.request import Request, make_request
from dummyforcing.pipeline.shipped import read_plan
from dummyforcing.presets.preset import Preset


@dataclass(frozen=True)
class VideoFolder:
    """A folder of videos and their measures."""

    path: Path

    @classmethod
    def open(cls, path: Path, settings: Mapping[str, object], device: torch.device) -> "VideoFolder":
        """Create the folder with its manifest, or check that an existing one was made with the same settings.

        Args:
            path: The folder.
            settings: All that decides what the videos look like; JSON values.
            device: For the manifest.

        Raises:
            BadFile: If the settings differ; says which. If the folder cannot be written.
        """
        with explaining(path):
            for folder in ("videos", "measures"):
                (path / folder).mkdir(parents=True, exist_ok=True)
        manifest = path / "manifest.json"
        settings = json.loads(json.dumps(settings))
        if not (manifest.exists() and any((path / "videos").iterdir())):  # nothing was made with others
            write_results(manifest, {"settings": settings}, device)
            return cls(path)
        try:
            old = dict(read_json(manifest)["settings"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise BadFile(f"{manifest} cannot be read ({error})", "take another folder") from error
        differ = [
            f"{name} was {json.dumps(old.get(name))}, now {json.dumps(settings.get(name))}"
            for name in {**old, **settings}
            if old.get(name) != settings.get(name)
        ]
        if differ:
            raise BadFile(
                f"Folder {path} holds videos of other settings ({'; '.join(differ)})",
                "take another folder, or the same settings",
            )
        return cls(path)

    @property
    def videos(self) -> Path:
        """The folder of the videos."""
        return self.path / "videos"

    def video(self, job: Job) -> Path:
        """Path of the video."""
        return self.videos / job.name

    def measures(self, job: Job) -> Path:
        """Path of its measures."""
        return self.path / "measures" / f"{job.name}.json"

    def name_prompts(self, prompts: PromptSet, jobs: Sequence[Job]) -> None:
        """Write what the videos show where their names do not tell it, as VBench's `--prompt_file` wants it.

        Raises:
            BadFile: If it cannot be written.
        """
        whole = {prompt.name: prompt.prompt for prompt in prompts.prompts}
        if any(name != prompt for name, prompt in whole.items()):
            with replacing(self.path / "prompts.json") as part:
                part.write_text(to_json({job.name: whole[job.prompt] for job in jobs}, indent=1))

    def is_done(self, job: Job) -> bool:
        """Whether the video is there and measured."""
        if not (self.video(job).exists() and self.measures(job).exists()):
            return False
        try:
            known = read_json(self.measures(job))
            return "motion" in known  # else of version 0.1, which measured less
        except ValueError:  # damaged: `read_measures` says so
            return True

    def make(self, job: Job, pipeline: DummyForcingPipeline, asked: Request) -> None:
        """Make a video; an interrupted one leaves nothing under its name.

        Args:
            job: What to make.
            pipeline: The model.
            asked: What is asked of it, by `request`.

        Raises:
            BadFile: If it cannot be written.
        """
        frames = np.concatenate([chunk.frames[0] for chunk in pipeline.run(asked)])
        with self._new_video(job) as part:
            write_mp4(part, frames, pipeline.files.preset.fps)

    def take(self, job: Job) -> tuple[bytes, bytes | None]:
        """Take a video and its measures out of the folder, for `put`; None: it was not measured."""
        video, measures = self.video(job), self.measures(job)
        found = video.read_bytes(), measures.read_bytes() if measures.exists() else None
        for path in (video, measures):
            path.unlink(missing_ok=True)
        return found

    def put(self, job: Job, video: bytes, measures: bytes | None) -> None:
        """Put a video into the folder that was made and measured elsewhere.

        Raises:
            BadFile: If it cannot be written.
        """
        with self._new_video(job) as part, explaining(self.video(job)):
            part.write_bytes(video)
        if measures is not None:
            with replacing(self.measures(job)) as part:
                part.write_bytes(measures)

    @contextmanager
    def _new_video(self, job: Job) -> Iterator[Path]:
        """Write a video to the path that this gives; measures of an older one go."""
        self.measures(job).unlink(missing_ok=True)
        part = self.path / f".{job.name}"  # beside the videos' folder, which holds whole ones alone
        try:
            yield part
            with explaining(self.video(job)):
                part.replace(self.video(job))
        finally:
            part.unlink(missing_ok=True)

    def measure(self, job: Job, preset: Preset) -> None:
        """Measure a video as its file shows it; exact detectors judge what the prompt says, where they can.

        Raises:
            BadFile: If the video cannot be read or the measures cannot be written.
        """
        frames, scene = read_mp4(self.video(job)), scene_of(job, preset)
        if scene is not None and frames.shape[1] == frames.shape[2]:
            found = measure_scene(frames, scene, preset.chunk_frames, preset.fps)
        else:
            found = SceneMeasures(**asdict(measure(frames, preset.chunk_frames, preset.fps)))
        with replacing(self.measures(job)) as part:
            part.write_text(to_json(asdict(found)))

    def read_measures(self, jobs: Sequence[Job]) -> list[SceneMeasures]:
        """Read the measures of each video.

        Raises:
            BadFile: If one cannot be read.
        """
        rows = []
        for job in jobs:
            path = self.measures(job)
            try:
                rows.append(read_row(read_json(path)))
            except (OSError, ValueError, TypeError) as error:
                raise BadFile(f"{path} cannot be read ({error})", "delete it and run again") from error
        return rows


class Summary(TypedDict):
    """Measures of a folder, ready for JSON."""

    measures: dict[str, EstimateJson]
    """Means, with intervals over prompts."""
    temporal_flickering: dict[str, float | None]
    """Raw and normalised as VBench defines them, on the samples that it reads, without its static filter."""
    vbench: dict[str, object]
    """Raw scores, totals, and what is missing."""
    videos: dict[str, dict[str, object]]
    """The measures of each."""


def summarize(videos: VideoFolder, jobs: Sequence[Job], flicker: Sequence[Job], vbench: Outcome) -> Summary:
    """Everything that was measured of a folder, ready for JSON.

    Args:
        videos: The folder; all jobs must be done.
        jobs: Its videos.
        flicker: Those of VBench's temporal-flickering prompts, or all if these are not known.
        vbench: What VBench said.

    Raises:
        BadRequest: If VBench's scores cannot be.
    """
    rows = dict(zip((job.name for job in jobs), videos.read_measures(jobs), strict=True))
    standing = [rows[job.name].flicker for job in flicker if job.index < SAMPLES]
    known = [value for value in standing if value is not None]
    raw = sum(known) / len(known) if known else None
    return {
        "measures": aggregate(list(rows.values()), groups=[job.prompt for job in jobs]),
        "temporal_flickering": {
            "raw": raw,
            "normalised": None if raw is None else DIMENSIONS[FLICKER].normalise(raw),
            "videos": len(known),
        },
        "vbench": {**asdict(vbench), **asdict(scores(vbench.raw))},
        "videos": {name: asdict(row) for name, row in rows.items()},
    }


def request(job: Job, folder: ModelFiles, options: Mapping[str, Any]) -> Request:
    """Make the request of a job; `options` are all but the seed.

    Raises:
        UserError: If it cannot be done.
    """
    return make_request(folder, job.text, **{**options, "seed": job.seed})


def read_row(fields: Mapping[str, Any]) -> SceneMeasures:
    """The measures of a video as files have them.

    Raises:
        TypeError: If they are something else.
    """
    return SceneMeasures(**{**fields, "reasons": tuple(fields.get("reasons", ()))})


def scene_of(job: Job, preset: Preset) -> Scene | None:
    """What a video should show, if exact detectors can tell; None: they cannot."""
    return read_prompt(job.text) if preset.rendered_world else None


def plan_source(files: ModelFiles, plan: str | None) -> tuple[Plan, dict[str, object]] | None:
    """A head plan by its file or as `shipped`, and what result files say of it; None: there is none.

    Raises:
        UserError: If there is no such plan.
    """
    found = read_plan(files, plan)
    if plan is None or found is None:
        return None
    path = files.shipped("plan.json") if plan == "shipped" else Path(plan)
    assert path is not None
    said: dict[str, object] = {
        "file": plan if plan == "shipped" else path.name,
        "sha256": file_hash(path),
        "policy": found.policy,
        "heads": found.counts,
    }
    return found, said


def read_folder(path: Path) -> tuple[dict[str, Any], dict[str, SceneMeasures]]:
    """The settings of a finished folder, and the measures of its videos by name.

    Raises:
        BadFile: If there are none.
    """
    file = path / "metrics.json"
    try:
        found = read_json(file)
        rows = {name: read_row(row) for name, row in found["videos"].items()}
        return dict(found["settings"]), rows
    except OSError as error:
        raise BadFile(
            f"There are no results in {path}", "give a folder in which dummyforcing eval has finished"
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadFile(f"{file} cannot be read ({error})", "run dummyforcing eval there again") from error


def parse_shard(text: str) -> tuple[int, int]:
    """Read `i/n`: part i of n, counted from 0.

    Raises:
        BadRequest: If it is no such text.
    """
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise BadRequest(
            f"shard '{text}' cannot be read", "of four processes the first is 0/4, the last 3/4", "shard"
        )
    return int(part), int(parts)
