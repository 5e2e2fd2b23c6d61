"""Runs all configurations of a benchmark in turns; their results are one table of JSON."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import get_args

import torch

from dummyforcing.attention.backends import default_backend
from dummyforcing.bench.candidates import Candidate, build_candidates, build_on_several
from dummyforcing.bench.measure import Record, diffuse, make_video, warm_up
from dummyforcing.bench.plans import plan_of
from dummyforcing.bench.rates import matmul_rate
from dummyforcing.bench.summary import Rates, short, summarise
from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.errors import BadRequest, NoSuchDevice, RequestWarning
from dummyforcing.method.loading import policy_of
from dummyforcing.method.plan import Plan, context_fields
from dummyforcing.pipeline.memory import require_memory
from dummyforcing.pipeline.pipeline import DummyForcingPipeline
from dummyforcing.pipeline.request import Request, make_request
from dummyforcing.pipeline.team import Team
from dummyforcing.runtime.fused import Fp8, has_float8

Report = Callable[[str], None]
Candidates = dict[tuple[Fp8, int], Candidate]
"""By FP8 mode and number of GPUs."""


@dataclass(frozen=True)
class Settings:
    """Settings of a benchmark: every size with every policy or plan and FP8 mode.

    If steps are left out, all of it without them, too.
    """

    sizes: tuple[tuple[int, int], ...]
    """Height and width in pixels."""
    policies: tuple[str, ...] = ("dummy",)
    fp8: tuple[Fp8, ...] = ("none",)
    skip_steps: tuple[int, ...] = ()
    """Not empty: every policy but `dense` also without these denoising steps."""
    frames: int = 81
    """Pixel frames."""
    compare: bool = False
    """Whether to measure `dense` too."""
    vae: bool = True
    """Whether to measure whole videos, with the VAE, too."""
    repeats: int = 3
    """Videos of every configuration."""
    warm_up_chunks: int | None = None
    """Chunks of the video before that does not count; None: all."""
    plans: Mapping[str, Plan] = field(default_factory=dict)
    """Head plans by name, measured like policies of these names."""
    gpus: tuple[int, ...] = (1,)
    """How many GPUs make each video together; 1 and one other number at most."""
    batch: tuple[int, ...] = (1,)
    """How many videos are made together in one pass; several also one after another."""


@dataclass(frozen=True)
class Configuration:
    """One row of the results."""

    size: tuple[int, int]
    policy: str
    """Or the name of a plan."""
    fp8: Fp8
    skip_steps: tuple[int, ...]
    gpus: int = 1
    batch: int = 1

    def __str__(self) -> str:
        height, width = self.size
        parts = [f"{width}x{height}", self.policy]
        parts += [f"fp8 {self.fp8}"] if self.fp8 != "none" else []
        parts += [f"without step {','.join(map(str, self.skip_steps))}"] if self.skip_steps else []
        parts += [f"{self.gpus} GPUs"] if self.gpus > 1 else []
        parts += [f"batch {self.batch}"] if self.batch > 1 else []
        return ", ".join(parts)


def configurations(settings: Settings) -> list[Configuration]:
    """List all rows, in the order in which they take turns."""
    compared = ["dense"] if settings.compare else []
    policies = list(dict.fromkeys([*compared, *settings.policies, *settings.plans]))
    only_compared = settings.compare and "dense" not in settings.policies
    rows = []
    for size, policy in product(dict.fromkeys(settings.sizes), policies):
        # What is there for comparison alone is so with the first of the modes.
        modes = settings.fp8[:1] if policy == "dense" and only_compared else settings.fp8
        for mode, *numbers in product(modes, dict.fromkeys(settings.gpus), dict.fromkeys(settings.batch)):
            rows.append(Configuration(size, policy, mode, (), *numbers))
            if settings.skip_steps and policy != "dense":
                rows.append(Configuration(size, policy, mode, settings.skip_steps, *numbers))
    return rows


def one_by_one(request: Request) -> list[Request]:
    """The videos of a batch, each as a request of its own; empty if there is but one."""
    if len(request.prompts) == 1:
        return []
    return [
        replace(request, prompts=(prompt,), seed=request.seed + n, plans=request.plans[n : n + 1])
        for n, prompt in enumerate(request.prompts)
    ]


class Benchmark:
    """A checked benchmark, ready to run."""

    def __init__(
        self, files: ModelFiles, settings: Settings, device: torch.device, dtype: torch.dtype, random: bool
    ) -> None:
        """Check everything before any weights are there.

        Args:
            files: Of the model.
            settings: What to measure.
            device: Where.
            dtype: In what precision; FP8 modes replace some of it.
            random: Whether the weights are made up.

        Raises:
            UserError: If anything of it cannot be done.
        """
        preset = files.preset
        if preset.sampler != "block":
            raise BadRequest(
                f"Model '{preset.name}' has sampler '{preset.sampler}', which cannot be measured chunk by "
                "chunk",
                "take a model of sampler 'block', such as self-forcing",
            )
        if unknown := [mode for mode in settings.fp8 if mode not in get_args(Fp8)]:
            raise BadRequest(
                f"There is no FP8 mode '{unknown[0]}'", f"take {', '.join(get_args(Fp8))}", "fp8"
            )
        if settings.repeats < 1:
            raise BadRequest(f"{settings.repeats} repeats measure nothing", "take 1 or more", "repeats")
        if settings.warm_up_chunks is not None and settings.warm_up_chunks < 1:
            raise BadRequest(
                f"{settings.warm_up_chunks} chunks warm up nothing", "take 1 or more", "warm_up_chunks"
            )
        several = sorted({gpus for gpus in settings.gpus if gpus != 1})
        if len(several) > 1 or not settings.gpus or min(settings.gpus) < 1:
            raise BadRequest(
                f"GPUs in numbers of {', '.join(map(str, settings.gpus)) or 'none'} are too many for one run",
                "take 1 and one other number, such as --gpus 1 2",
                "gpus",
            )
        if several and not random:
            raise BadRequest(
                "Several GPUs are measured with random weights only", "leave weights out", "gpus"
            )
        self._several = several[0] if several else 1
        if not settings.batch or min(settings.batch) < 1:
            raise BadRequest("A batch has at least one video", "take 1 or more", "batch")
        if not (settings.sizes and (settings.policies or settings.plans) and settings.fp8):
            raise BadRequest("Nothing is to be measured", "give a size, a policy and an FP8 mode")
        if set(settings.fp8) != {"none"} and not has_float8(device):
            raise NoSuchDevice("FP8 needs a GPU of compute capability 8.9 or later", 'take fp8="none"', "fp8")
        self.files, self.settings = files, settings
        self.device, self.dtype, self._random = device, dtype, random
        self.rows = {row: self._request(row) for row in configurations(settings)}
        for request in self.rows.values():
            require_memory(files, request, dtype, device, offload=random)  # then without a text encoder

    def _request(self, row: Configuration) -> Request:
        given = self.settings.plans.get(row.policy)
        if given is not None and self._random:
            given = replace(given, fingerprint=None)  # the sizes are what counts
        plans = [given or plan_of(row.policy, self.files.config, seed) for seed in range(row.batch)]
        is_fixed = None not in plans
        return make_request(
            self.files,
            ["a video"] * row.batch,
            num_frames=self.settings.frames,
            size=row.size,
            policy="dummy" if is_fixed else policy_of(row.policy),
            plan=plans if is_fixed else None,
            teacache=row.skip_steps or None,
        )

    @property
    def videos(self) -> int:
        """Number of videos that will be made, those that do not count included."""
        kinds = self.settings.repeats * (1 + self.settings.vae)
        several = [row.batch for row in self.rows if row.batch > 1]
        return len(self.rows) * (1 + kinds) + len(several) + kinds * sum(several)

    def run(self, report: Report = lambda text: None) -> dict[str, object]:
        """Measure.

        The rows of a size take turns: one video each, then the next one each, so that all meet the same state
        of the machine.

        Args:
            report: Is told what is done next, before each video.

        Returns:
            The results, ready for `write_results`.

        Raises:
            BadFile: If files are missing or damaged.
        """
        modes = tuple(dict.fromkeys(row.fp8 for row in self.rows))
        rates = Rates(matmul_rate(self.device, self.dtype))
        if modes != ("none",):
            rates = Rates(rates.plain, matmul_rate(self.device, torch.float8_e4m3fn))
        team = Team(self._several, self.device.type == "cuda") if self._several > 1 else None
        try:
            candidates: Candidates = {}
            if team is not None:
                built = build_on_several(self.files, modes, team, self.device, self.dtype)
                candidates |= {(mode, self._several): one for mode, one in built.items()}
            if 1 in self.settings.gpus:
                built = build_candidates(self.files, modes, self.device, self.dtype, self._random)
                candidates |= {(mode, 1): one for mode, one in built.items()}
            records: dict[Configuration, Record] = {}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RequestWarning)  # nobody looks at these videos
                for size in dict.fromkeys(row.size for row in self.rows):
                    records |= self._measure(size, candidates, report)
            results = [
                self._result(row, record, candidates[row.fp8, row.gpus], rates)
                for row, record in records.items()
            ]
        finally:
            if team is not None:
                team.end()
        return {**self._conditions(rates), "configurations": results}

    def _measure(
        self, size: tuple[int, int], candidates: Candidates, report: Report
    ) -> dict[Configuration, Record]:
        settings = self.settings
        rows = {
            row: (candidates[row.fp8, row.gpus], request)
            for row, request in self.rows.items()
            if row.size == size
        }
        records = {}
        for row, (candidate, request) in rows.items():
            report(f"{row}: warm-up")
            records[row] = warm_up(candidate, request, settings.warm_up_chunks, settings.vae)
            for one in one_by_one(request)[:1]:
                report(f"{row}: warm-up, one by itself")
                warm_up(candidate, one, settings.warm_up_chunks, settings.vae)
        for _ in range(settings.repeats):
            for row, (candidate, request) in rows.items():
                record, alone = records[row], one_by_one(request)
                report(f"{row}: diffusion")
                record.diffusion.append(diffuse(candidate, request))
                for one in alone:
                    report(f"{row}: diffusion, one after another")
                    record.alone.append(diffuse(candidate, one))
                if not settings.vae:
                    continue
                report(f"{row}: end to end")
                record.end_to_end.append(make_video(candidate, request))
                for one in alone:
                    report(f"{row}: end to end, one after another")
                    record.alone_end_to_end.append(make_video(candidate, one))
        return records

    def _conditions(self, rates: Rates) -> dict[str, object]:
        """Conditions that all rows have in common."""
        preset, settings = self.files.preset, self.settings
        return {
            "model": preset.name,
            "weights": "random" if self._random else "real",
            "dtype": str(self.dtype).removeprefix("torch."),
            "pixel_frames": settings.frames,
            "chunk_frames": preset.chunk_frames,
            "schedule": list(preset.schedule.steps),
            "repeats": settings.repeats,
            "warm_up_chunks": settings.warm_up_chunks,
            "matmul_tflops": {
                "plain": short(rates.plain / 1e12),
                "fp8": None if rates.fp8 is None else short(rates.fp8 / 1e12),
            },
        }

    def _result(
        self, row: Configuration, record: Record, candidate: Candidate, rates: Rates
    ) -> dict[str, object]:
        plan = record.diffusion[0].plans[-1][0]  # of a batch, the first one's
        return {
            "size": list(row.size),
            "policy": row.policy,
            "fp8": row.fp8,
            "gpus": row.gpus,
            "batch": row.batch,
            "attention": _attention(candidate.pipeline),
            "skip_steps": list(row.skip_steps),
            "heads": {
                role: {"heads": count, **context_fields(plan.table[role])}
                for role, count in plan.counts.items()
            },
            **summarise(record, candidate, self.rows[row], row.fp8, rates.times(row.gpus)),
        }


def _attention(pipeline: DummyForcingPipeline) -> str:
    """The kernel of self-attention."""
    if pipeline.fused is not None:
        return pipeline.fused.backend(pipeline.device)
    return default_backend(pipeline.device, pipeline.dtype, pipeline.model.config.head_dim)
