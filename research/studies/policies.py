"""Policies side by side: videos of several lengths from the same noise, judged over the whole and at the end.

A candidate is what `DummyForcingPipeline.generate` is told, with what has to be known to call one candidate
simpler than another; `candidates` holds all of them. `decision.py` decides between them.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

import torch

from dummyforcing.analysis.head_damage import HeadDamage
from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.evaluation.metrics import Frames
from dummyforcing.evaluation.suite import aggregate, differences
from dummyforcing.evaluation.world.detect import detect, verdict
from dummyforcing.evaluation.world.scene import Scene
from dummyforcing.method.criteria import Role
from dummyforcing.method.plan import HeadContext, Plan
from dummyforcing.method.policy import Policy, as_policy, parse_policy
from dummyforcing.pipeline.pipeline import DummyForcingPipeline
from dummyforcing.pipeline.request import make_request
from dummyforcing.pipeline.rollout import Rollout
from research.policies.deep_sinks import deep_sinks
from research.policies.forcing_kv import ForcingKV
from research.studies.decision import JUDGED
from research.studies.jobs import Job, Record
from research.studies.study import Row, Variant, make_row, past_frames

END_SECONDS = 5
"""How much of the end of a video is judged apart."""
TIMED_CHUNKS = 3
"""Last chunks of a video whose time is told."""
AT_COST = {"dummy": 2, "first kept": 3}
"""Past frames per head that plans by measured damage may have: those of `window 1+1` and of `window 1+2`."""
LONG_PAST = 1000
"""More past frames than any head with a bounded context sees."""
TOLD = (
    *("right", "right_at_end", "semantic", "semantic_at_end", *JUDGED["whole"]),
    *("seam_excess", "contrast_drift", "dynamic", "past_frames", "cache_bytes"),
)
"""Measures that result files have."""


@dataclass(frozen=True)
class Candidate(Variant):
    """One way to generate, and how simple it is."""

    found: str = "given"
    """How heads get their contexts: a key of `decision.FOUND`."""
    is_control: bool = False
    """Whether it is there to compare with alone, and can become no default."""

    @property
    def kinds(self) -> int:
        """How many different contexts its heads see."""
        if "plan" in self.options:
            return len({context for row in self.options["plan"].contexts for context in row})
        policy = self.options["policy"]
        return len(set((parse_policy(policy) if isinstance(policy, str) else policy).contexts))


@dataclass(frozen=True, kw_only=True)
class JudgedRow(Row):
    """All that is known of one video by itself, its end judged apart."""

    right: bool
    """Whether color, shape, motion and number of objects are right."""
    right_at_end: bool
    """Whether color, shape and number of objects are right in the last seconds."""
    semantic_at_end: float
    """Mean of these three verdicts."""


@dataclass(frozen=True)
class Length:
    """Videos of one length."""

    seconds: int
    frames: int
    """Pixel frames."""
    scenes: tuple[Scene, ...]
    """One video each; scene n is made from seed n."""


def first_kept(base: Policy, neighbor: int) -> Policy:
    """Dummy Forcing in which every head keeps the first frame, and the last one."""
    near = HeadContext(1, 1)
    roles: Mapping[str, HeadContext] = {
        Role.DUMMY: near,
        Role.SINK: near,
        Role.NEIGHBOR: HeadContext(1, neighbor),
    }
    return replace(base, name="first-kept", roles=roles)


def role_policies(files: ModelFiles) -> dict[str, Policy]:
    """The policies with roles whose parts are looked at: the paper's, and the one that keeps first frames."""
    base = make_request(files, "any", policy="dummy").policy
    assert base.roles is not None
    recent = base.roles[Role.NEIGHBOR].recent
    assert recent is not None
    return {"dummy": base, "first kept": first_kept(base, recent)}


def damage_plans(damage: HeadDamage, files: ModelFiles) -> dict[str, Plan]:
    """One plan for all videos for each of `role_policies`, whose dummy heads are those of least damage.

    There are as many of them as the policy says, and as many more as it takes to cost no more than `AT_COST`.
    """
    plans = {}
    for name, policy in role_policies(files).items():
        total = damage.damage.numel()
        made = (
            damage.plan(replace(policy, num_dummy=count))
            for count in range(policy.dummy_heads(total), total + 1)
        )
        plans[name] = next(plan for plan in made if past_frames(plan, LONG_PAST) <= AT_COST[name])
    return plans


def candidates(files: ModelFiles, plans: Mapping[str, Plan], seed: int = 0) -> dict[str, Candidate]:
    """All candidates by name, dense first.

    Args:
        files: Of the model, whose own settings `dummy` has.
        plans: From `damage_plans`.
        seed: Of the random heads.
    """
    roles = role_policies(files)
    chunk = files.preset.chunk_frames

    def window(sink: int, recent: int) -> Candidate:
        return Candidate(f"every head: {sink} first, {recent} last", {"policy": f"window:{sink},{recent}"})

    def key_frames(sink: int, keys: int, recent: int) -> Candidate:
        what = f"every head: {sink} first, {keys} key, {recent} last"
        return Candidate(what, {"policy": f"keyframes:{sink},{keys},{recent}"}, "video")

    def by_look(policy: Policy, what: str, found: str = "video") -> Candidate:
        return Candidate(what, {"policy": policy}, found)

    def deep(span: int) -> tuple[str, Candidate]:
        policy = deep_sinks(span, chunk)
        seen = f"{policy.initial.sink} first, {policy.initial.recent} last"
        name = f"deep sinks {policy.initial.sink}+{policy.initial.recent}"
        return name, Candidate(f"Deep Forcing's sinks, every head: {seen}", {"policy": policy})

    table = {
        "dense": Candidate("every head: all", {"policy": "dense"}),
        "window 1+1": window(1, 1),
        "window 1+2": window(1, 2),
        "window 1+3": window(1, 3),
        "window 3+6": window(3, 6),
        "key frames 1+1+2": key_frames(1, 1, 2),
        "key frames 1+4+4": key_frames(1, 4, 4),
        "dummy": by_look(roles["dummy"], "the paper's roles, the model's settings"),
        "anchored": Candidate("every role also sees what it leaves out", {"policy": "anchored"}, "video"),
        "first kept": by_look(roles["first kept"], "roles, the first and the last frame in every head"),
        "first kept, 3": by_look(first_kept(roles["dummy"], 3), "the same, neighbor heads: 3 last frames"),
        **dict((deep(chunk + 4), deep(chunk + 18))),
        "forcing-kv": by_look(
            as_policy(ForcingKV()), "static heads 1+1, dynamic heads 3+6, the first layer all"
        ),
        "forcing-kv, short": by_look(
            as_policy(ForcingKV(1, 3, 3)), "static heads 1+1, dynamic heads and the first layer 1+3"
        ),
    }
    for name, policy in roles.items():
        later = replace(policy, classify_at_chunk=2)
        drawn = replace(policy, criterion="random", seed=seed)
        table |= {
            f"{name}, chunk 2": by_look(later, f"{name}, classified at chunk 2"),
            f"{name}, damage": Candidate(
                f"{name}, dummy heads by measured damage, one plan", {"plan": plans[name]}, "model"
            ),
            f"{name}, random": Candidate(
                f"control: {name}, dummy heads drawn", {"policy": drawn}, "video", is_control=True
            ),
        }
    return table


# --- videos ---------------------------------------------------------------------------------------------


def video_jobs(
    files: ModelFiles,
    plans: Mapping[str, Plan],
    lengths: Sequence[Length],
    names: Sequence[str],
    batch: int,
) -> dict[tuple[int, int, str], Job]:
    """A job for each batch of pairs and candidate, by seconds, first pair and name.

    First all of the first batch, the longest videos first, then all of the second one, and so on: whatever
    part of them is done, the candidates have the same pairs.
    """
    jobs = {}
    starts = range(0, max(len(length.scenes) for length in lengths), batch)
    for start in starts:
        table = candidates(files, plans, start)
        for length in sorted(lengths, key=lambda length: -length.frames):
            scenes = length.scenes[start : start + batch]
            for name in names if scenes else ():
                one = table[name]
                title = f"{length.frames} frames, pairs {start}-{start + len(scenes) - 1}, {name}: {one.what}"
                work = partial(make_videos, scenes, start, length.frames, dict(one.options))
                jobs[length.seconds, start, name] = Job(title, work)
    return jobs


def make_videos(
    scenes: Sequence[Scene],
    seed: int,
    frames: int,
    options: Mapping[str, Any],
    pipeline: DummyForcingPipeline,
) -> Record:
    """Generate and judge a batch.

    Args:
        scenes: One per video.
        seed: Of the first video; the others follow.
        frames: Pixel frames per video.
        options: Of the candidate.
        pipeline: The model.

    Returns:
        `rows`: one per scene, as dicts.
    """
    prompts, preset = [scene.prompt for scene in scenes], pipeline.files.preset
    videos = pipeline.generate(prompts, num_frames=frames, seed=seed, **options)
    rows = []
    for video, scene in zip(videos, scenes, strict=True):
        row = make_row(video, scene, preset)
        last = video.frames[-END_SECONDS * preset.fps :]
        whole = [bool(getattr(row, name)) for name in JUDGED["whole"]]
        end = verdicts_at_end(last, scene)
        judged = JudgedRow(
            **{**asdict(row), "cache_bytes": row.cache_bytes / len(scenes)},
            right=all(whole),
            right_at_end=all(end),
            semantic_at_end=sum(end) / len(end),
        )
        rows.append(asdict(judged))
    return {"rows": rows}


def verdicts_at_end(frames: Frames, scene: Scene) -> list[bool]:
    """Whether color, shape and number of objects are right in the last frames of a video."""
    detection = detect(frames)
    seen = verdict(detection, scene)
    found = {"color": seen.color, "shape": seen.shape, "count": detection.count == len(scene.things)}
    return [found[name] for name in JUDGED["end"]]


def summarise(
    lengths: Sequence[Length],
    table: Mapping[str, Candidate],
    found: Mapping[tuple[int, int, str], Record],
) -> Record:
    """What was found: by length and candidate the measures, the differences to dense, and every verdict.

    Args:
        lengths: Of the videos.
        table: The candidates, dense among them.
        found: Results of `video_jobs`; a batch that some candidate lacks does not count.
    """
    results: Record = {}
    for length in lengths:
        starts = sorted({start for seconds, start, _ in found if seconds == length.seconds})
        full = [s for s in starts if all((length.seconds, s, name) in found for name in table)]
        rows = {
            name: [JudgedRow(**row) for s in full for row in found[length.seconds, s, name]["rows"]]
            for name in table
        }
        if not full:
            continue
        results[str(length.seconds)] = {
            "pixel_frames": length.frames,
            "videos": len(rows["dense"]),
            "policies": {
                name: {
                    "measures": _told(aggregate(own)),
                    "against_dense": _told(differences(own, rows["dense"])),
                    # One digit for each video: how many verdicts are right. From these, any two policies can
                    # be compared pair by pair.
                    "right": {
                        "whole": "".join(str(round(len(JUDGED["whole"]) * row.semantic)) for row in own),
                        "end": "".join(str(round(len(JUDGED["end"]) * row.semantic_at_end)) for row in own),
                    },
                }
                for name, own in rows.items()
            },
        }
    return results


def _told(measures: Mapping[str, Any]) -> Record:
    return {name: measures[name] for name in TOLD if name in measures}


# --- time -----------------------------------------------------------------------------------------------


def time_jobs(table: Mapping[str, Candidate], prompt: str, lengths: Sequence[Length]) -> list[Job]:
    """How long a chunk takes at the end of videos of all lengths, a job for each candidate."""
    frames = {str(length.seconds): length.frames for length in lengths}
    return [
        Job(f"time, {frames}, {name}: {one.what}", partial(time_chunks, prompt, frames, dict(one.options)))
        for name, one in table.items()
    ]


def time_chunks(
    prompt: str, frames: Mapping[str, int], options: Mapping[str, Any], pipeline: DummyForcingPipeline
) -> Record:
    """Time the chunks of one video, not decoded, which nothing runs beside.

    Args:
        prompt: Of the video.
        frames: Lengths in pixel frames, by name.
        options: Of the candidate.
        pipeline: The model.

    Returns:
        `chunk_ms`: for each length the median of the last chunks of a video of that length.
    """
    preset, ends = pipeline.files.preset, [time.perf_counter()]

    def note(rollout: Rollout, number: int, latents: torch.Tensor) -> None:
        if latents.device.type == "cuda":
            torch.cuda.synchronize()
        ends.append(time.perf_counter())

    pipeline(
        prompt,
        num_frames=max(frames.values()),
        output_type="latent",
        callback_on_chunk_end=note,
        **options,
    )
    chunks = {name: preset.latent_frames(count) // preset.chunk_frames for name, count in frames.items()}
    took = [1000 * (after - before) for before, after in pairwise(ends)]
    last = {name: took[max(0, count - TIMED_CHUNKS) : count] for name, count in chunks.items()}
    return {"chunk_ms": {name: round(median(times), 2) for name, times in last.items()}}


def described(table: Mapping[str, Candidate], times: Mapping[str, Record]) -> Record:
    """What the candidates are, and the time of their chunks by length, for the result file."""
    return {
        name: {
            "what": one.what,
            "kinds": one.kinds,
            "found": one.found,
            "is_control": one.is_control,
            **times[name],
        }
        for name, one in table.items()
    }
