"""Runs the library's own session on a golden file's inputs and notes what it does, by the file's names."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from goldenfile import Golden
from torch import Tensor

from dummyforcing.heads import HeadScorer, Policy
from dummyforcing.session import Session


class NotingSession(Session):
    """A session that notes velocities, x0 and module outputs of every call, the commit pass included.

    A commit pass has no velocity, as nothing needs it. So a full pass is run before it, with the session's
    own attention: the commit pass then overwrites the same cache slots with the same values.
    """

    def __init__(self, golden: Golden, policy: Policy, rows: Tensor | None = None, **options: object) -> None:
        model, noise, meta = golden.model, golden["noise"], golden.meta
        assert meta["context_noise"] == 0
        self.noted: dict[str, Tensor] = {}
        self.probes: dict[int, dict[str, Tensor]] = defaultdict(dict)
        self.rows = rows
        self._golden, self._call = golden, 0
        self._hook(model)
        super().__init__(
            model,
            model.embed_text(golden["prompt_embeds"]),
            policy,
            golden.schedule,
            (noise.shape[0], *noise.shape[2:]),
            chunk_frames=meta["frames_per_chunk"],
            seeds=_stored_noise(golden),
            **options,
        )

    def _denoise(self, x: Tensor, step: int) -> Tensor:
        x0 = super()._denoise(x, step)
        self.noted[f"chunk{self._chunk}/step{step}/x0"] = x0
        return x0

    def _velocity(self, x: Tensor, step: int) -> Tensor:
        velocity = super()._velocity(x, step)
        self.noted[f"chunk{self._chunk}/step{step}/flow"] = velocity
        self._note_times(step)
        return velocity

    def _commit(self, x0: Tensor) -> None:
        frames = torch.arange(self.frames, self.frames + self.chunk_frames)
        time, scorer = self._times[-1], self._scorer
        self._scorer = None  # this pass is not the session's own
        attention = self._attention(None)
        self.noted[f"chunk{self._chunk}/clean/flow"] = self.model(x0, time, self._text, frames, attention)
        self._note_times(-1)
        self._scorer = scorer
        super()._commit(x0)

    @property
    def _chunk(self) -> int:
        return self.frames // self.chunk_frames

    def _new_scorer(self) -> HeadScorer:
        scorer = super()._new_scorer()
        if self.rows is not None:
            scorer.rows = lambda layer, length: self.rows[layer]
        return scorer

    def _note_times(self, step: int) -> None:
        probes, time = self.probes[self._call], self._times[step]
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


def _stored_noise(golden: Golden):
    """Hand out the file's noise in the order in which a session asks for it."""
    frames, steps = golden.meta["frames_per_chunk"], len(golden.schedule.sigmas)

    def draws() -> Iterator[Tensor]:
        for chunk, noise in enumerate(golden["noise"].split(frames, dim=1)):
            yield noise
            for step in range(steps - 1):
                yield golden[f"renoise/chunk{chunk}/step{step}"]

    stored = draws()
    return lambda shape: next(stored)


def run(session: NotingSession, chunks: int) -> dict[str, Tensor]:
    """Make all chunks; returns what was noted, with the whole video as `latents`."""
    made: Sequence[Tensor] = [session.next_chunk() for _ in range(chunks)]
    session.noted["latents"] = torch.cat(list(made), 1)
    return session.noted
