"""Runs the library's own sessions on a golden file's inputs and notes what they do, by the file's names."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from goldenfile import Golden
from torch import Tensor

from dummyforcing.method.policy import Policy
from dummyforcing.method.scoring import HeadScorer
from dummyforcing.sampling.block import BlockSampler
from dummyforcing.sampling.noise import NoiseSource
from dummyforcing.sampling.schedule import COMMIT_TIMESTEP, Schedule


class NotingSession(BlockSampler):
    """A block loop that notes velocities, x0 and module outputs of every call, commit passes included.

    A commit pass has no velocity, as nothing needs it. So a full pass is run before it, with the session's
    own attention: the commit pass then overwrites the same cache slots with the same values.
    """

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
        self.rows = rows
        self._call, self._commit_name = 0, "chunk{}/clean"
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

    def _denoise(self, x: Tensor, step: int) -> Tensor:
        x0 = super()._denoise(x, step)
        self.noted[f"chunk{self._chunk}/step{step}/x0"] = x0
        return x0

    def _velocity(self, x: Tensor, step: int) -> Tensor:
        velocity = super()._velocity(x, step)
        self.noted[f"chunk{self._chunk}/step{step}/flow"] = velocity
        self._note_times(self._steps.timesteps[step])
        return velocity

    def _commit(self, x0: Tensor) -> None:
        scorer, self._scorer = self._scorer, None  # this pass is not the session's own
        self.noted[f"{self._commit_name.format(self._chunk)}/flow"] = commit_flow(self, x0)
        self._note_times(COMMIT_TIMESTEP)
        self._scorer = scorer
        super()._commit(x0)

    def _recache(self) -> None:
        self._commit_name = "recache_before_chunk{}"
        super()._recache()
        self._commit_name = "chunk{}/clean"

    def extend(self, latents: Tensor) -> None:
        self._commit_name = "chunk{}/given"
        super().extend(latents)
        self._commit_name = "chunk{}/clean"

    @property
    def _chunk(self) -> int:
        return self.frames // self.chunk_frames

    def _new_scorer(self) -> HeadScorer | None:
        scorer = super()._new_scorer()
        if scorer is not None and self.rows is not None:
            scorer.rows = lambda layer, length: self.rows[layer]
        return scorer

    def _note_times(self, timestep: float) -> None:
        probes, time = self.probes[self._call], self._times[timestep]
        probes["time_embedding"] = time.head[0].expand(self.chunk_frames, -1)
        probes["time_projection"] = time.blocks[0].flatten(1).expand(self.chunk_frames, -1)
        probes["text_embedding"] = self._text_embedding
        self._call += 1

    def _hook(self, model: torch.nn.Module) -> None:
        def note(name: str, module: torch.nn.Module) -> None:
            module.register_forward_hook(lambda _m, _i, out: self.probes[self._call].update({name: out}))

        for layer, block in enumerate(model.blocks):
            note(f"block{layer}", block)
            for name, part in block.named_children():
                # Upstream's attention modules end with the output projection.
                note(f"block{layer}.{name}", getattr(part, "o", part))
        note("patch_embedding", model.patch_embedding)
        note("head", model.head)
        model.text_embedding.register_forward_hook(lambda _m, _i, out: setattr(self, "_text_embedding", out))


def commit_flow(session: BlockSampler, x0: Tensor) -> Tensor:
    """What the network predicts in a commit pass of `x0`, with the session's own attention."""
    time, positions = session._times[COMMIT_TIMESTEP], session._positions(x0.shape[1])
    return session.model(x0, time, session._text, positions, session._attention(None))


def block_draws(golden: Golden, steps: int, renoise: str = "renoise", given: int = 0) -> Iterator[Tensor]:
    """The file's noise in the order of the block loop, after `given` chunks; tensors under `renoise`."""
    frames = golden.meta["frames_per_chunk"]
    for chunk, noise in list(enumerate(golden["noise"].split(frames, dim=1)))[given:]:
        yield noise
        for step in range(steps - 1):
            yield golden[f"{renoise}/chunk{chunk}/step{step}"]


def in_order(tensors: Iterable[Tensor]) -> NoiseSource:
    """Hand out stored noise in the order in which a session asks for it."""
    stored = iter(tensors)
    return lambda shape: next(stored)


def run(
    session: NotingSession, chunks: int, prompts: Mapping[int, Tensor] | None = None
) -> dict[str, Tensor]:
    """Make all chunks, with other prompts from some chunks on.

    Returns:
        What was noted, with the chunks as `latents`.
    """
    made: list[Tensor] = []
    for chunk in range(chunks):
        if prompts and chunk in prompts:
            session.set_prompt(prompts[chunk])
        made.append(session.next_chunk())
    session.noted["latents"] = torch.cat(made, 1)
    return session.noted


def schedule_tensors(schedule: Schedule) -> dict[str, Tensor]:
    """A schedule by the files' names."""
    values: dict[str, Sequence[float]] = {"timesteps": schedule.timesteps, "sigmas": schedule.sigmas}
    return {f"denoising_{key}": torch.tensor(value) for key, value in values.items()}
