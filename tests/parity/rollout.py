"""Runs the library's own samplers on a golden file's inputs and notes what they do, by the file's names."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from dummyforcing.method.policy import Policy
from dummyforcing.method.scoring import HeadScorer
from dummyforcing.models.wan import CausalWan, TextKV, TimeEmbedding
from dummyforcing.sampling import denoise
from dummyforcing.sampling.block import BlockSampler
from dummyforcing.sampling.noise import NoiseSource
from dummyforcing.sampling.passes import Call, Passes
from dummyforcing.sampling.sampler import Received, Sampler
from dummyforcing.sampling.schedule import COMMIT_TIMESTEP, Schedule, x0_from_velocity
from tests.parity.goldenfile import Golden


class NotingPasses(Passes):
    """Passes that show the velocity of every commit pass, which has none, as nothing needs it.

    So a full pass is run before it: the commit pass then overwrites the same slots of the cache with the same
    values.
    """

    show: Callable[[Tensor, Tensor, TimeEmbedding], None]
    """`show(x0, velocity, time)`."""

    def commit(
        self, x0: Tensor, text: TextKV, call: Call, scorer: HeadScorer | None = None, pinned: bool = True
    ) -> None:
        time = self.time([COMMIT_TIMESTEP], x0.shape[1])
        self.show(x0, commit_flow(self, x0, text, call, pinned), time)
        super().commit(x0, text, call, scorer, pinned)


def show_commits(sampler: Sampler, show: Callable[[Tensor, Tensor, TimeEmbedding], None]) -> None:
    """Let a sampler's commit passes be shown, with their velocities."""
    passes = sampler.passes
    assert type(passes) is Passes
    passes.__class__ = NotingPasses
    assert isinstance(passes, NotingPasses)
    passes.show = show


def commit_flow(passes: Passes, x0: Tensor, text: TextKV, call: Call, pinned: bool = True) -> Tensor:
    """What the network predicts in a commit pass of `x0`, which becomes no past here."""
    time = passes.time([COMMIT_TIMESTEP], x0.shape[1])
    return passes.velocity(passes.transform(passes.tokens(x0), time, text, call, pinned=pinned), time)


def show_estimates(loop: ModuleType, show: Callable[[Tensor, Tensor, Any], None]) -> Any:
    """A context in which a module's estimates of clean latents are shown: `show(velocity, x0, sigma)`."""

    def shown(x: Tensor, velocity: Tensor, sigma: Any) -> Tensor:
        x0 = x0_from_velocity(x, velocity, sigma)
        show(velocity, x0, sigma)
        return x0

    return patch.object(loop, "x0_from_velocity", shown)


class NotingSampler(BlockSampler):
    """A block loop that notes velocities, x0 and module outputs of every call, commit passes included."""

    _text_embedding: Tensor

    def __init__(
        self,
        golden: Golden,
        policy: Policy,
        rows: Tensor | None = None,
        *,
        prompt: str = "prompt_embeds",
        schedule: Schedule | None = None,
        noise: NoiseSource | None = None,
        **options: Any,
    ) -> None:
        model, meta = golden.model, golden.meta
        assert meta.get("context_noise", 0) == 0
        schedule = schedule or golden.schedule
        self.noted: dict[str, Tensor] = {}
        self.probes: dict[int, dict[str, Tensor]] = defaultdict(dict)
        self._pass, self._step = 0, 0
        self._hook(model)
        super().__init__(
            model,
            golden[prompt],
            policy,
            schedule,
            golden.latent_shape,
            chunk_frames=meta["frames_per_chunk"],
            seeds=noise or in_order(block_draws(golden, len(schedule.sigmas))),
            **options,
        )
        show_commits(self, self._note_commit)
        if rows is not None:
            score_rows(self, rows)

    def next_chunk(self, received: Received | None = None) -> Tensor:
        # What is committed before any step was denoised is the past, under a new prompt.
        self._step, self._commit_name = 0, "recache_before_chunk{}"
        with show_estimates(denoise, self._note_step):
            return super().next_chunk(received)

    def extend(self, latents: Tensor) -> None:
        self._commit_name = "chunk{}/given"
        super().extend(latents)

    def _note_step(self, velocity: Tensor, x0: Tensor, sigma: float) -> None:
        step, timestep = self._step, self.schedule.timesteps[self._step]
        assert sigma == self.schedule.sigmas[step]
        self.noted[f"chunk{self._chunk}/step{step}/flow"] = velocity
        self.noted[f"chunk{self._chunk}/step{step}/x0"] = x0
        self._note_pass(self.passes.time([timestep], self.chunk_frames))
        self._step, self._commit_name = step + 1, "chunk{}/clean"

    def _note_commit(self, x0: Tensor, velocity: Tensor, time: TimeEmbedding) -> None:
        self.noted[f"{self._commit_name.format(self._chunk)}/flow"] = velocity
        self._note_pass(time)

    @property
    def _chunk(self) -> int:
        return self.frames // self.chunk_frames

    def _note_pass(self, time: TimeEmbedding) -> None:
        probes = self.probes[self._pass]
        probes["time_embedding"] = time.head[0].expand(self.chunk_frames, -1)
        probes["time_projection"] = time.blocks[0].flatten(1).expand(self.chunk_frames, -1)
        probes["text_embedding"] = self._text_embedding
        self._pass += 1

    def _hook(self, model: CausalWan) -> None:
        def note(name: str, module: torch.nn.Module) -> None:
            module.register_forward_hook(lambda _m, _i, out: self.probes[self._pass].update({name: out}))

        for layer, block in enumerate(model.blocks):
            note(f"block{layer}", block)
            for name, part in block.named_children():
                # Upstream's attention modules end with the output projection.
                note(f"block{layer}.{name}", getattr(part, "o", part))
        note("patch_embedding", model.patch_embedding)
        note("head", model.head)
        model.text_embedding.register_forward_hook(lambda _m, _i, out: setattr(self, "_text_embedding", out))


def score_rows(sampler: Sampler, rows: Tensor) -> None:
    """Let heads be scored by the file's rows of queries, `(layers, R)`, in place of random ones."""
    make = sampler.heads.scorer

    def scorer(frames: int) -> HeadScorer | None:
        made = make(frames)
        if made is not None:
            made.rows = lambda layer, length: rows[layer]
        return made

    sampler.heads.scorer = scorer  # type: ignore[method-assign]


def block_draws(golden: Golden, steps: int, renoise: str = "renoise", given: int = 0) -> Iterator[Tensor]:
    """The file's noise in the order of the block loop, after `given` chunks; tensors under `renoise`."""
    frames = golden.meta["frames_per_chunk"]
    for chunk, noise in list(enumerate(golden["noise"].split(frames, dim=1)))[given:]:
        yield noise
        for step in range(steps - 1):
            yield golden[f"{renoise}/chunk{chunk}/step{step}"]


def in_order(tensors: Iterable[Tensor]) -> NoiseSource:
    """Hand out stored noise in the order in which a sampler asks for it."""
    stored = iter(tensors)
    return lambda shape: next(stored)


def run(
    sampler: NotingSampler, chunks: int, prompts: Mapping[int, Tensor] | None = None
) -> dict[str, Tensor]:
    """Make all chunks, with other prompts from some chunks on.

    Returns:
        What was noted, with the chunks as `latents`.
    """
    made: list[Tensor] = []
    for chunk in range(chunks):
        if prompts and chunk in prompts:
            sampler.set_prompt(prompts[chunk])
        made.append(sampler.next_chunk())
    sampler.noted["latents"] = torch.cat(made, 1)
    return sampler.noted


def schedule_tensors(schedule: Schedule) -> dict[str, Tensor]:
    """A schedule by the files' names."""
    values: dict[str, Sequence[float]] = {"timesteps": schedule.timesteps, "sigmas": schedule.sigmas}
    return {f"denoising_{key}": torch.tensor(value) for key, value in values.items()}
