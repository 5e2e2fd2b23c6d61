"""Follows the videos that other code makes: head-wise memory, kept by what the passes of that code tell.

No argument says what a pass is for. What is known is where it begins: a chunk is finished when the next one
begins, and what it leaves in the cache is that of its last pass, the commit pass.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from dummyforcing.attention.attend import attend
from dummyforcing.attention.backends import default_backend
from dummyforcing.cache.kv_cache import KVCache
from dummyforcing.errors import BadRequest
from dummyforcing.kernels.choice import runs_in_triton
from dummyforcing.kernels.rope import apply_rope, rope_table
from dummyforcing.method.plan import Plan
from dummyforcing.method.policy import Policy
from dummyforcing.method.scoring import HeadScorer
from dummyforcing.models.wan import ModelConfig
from dummyforcing.presets.preset import Preset
from dummyforcing.runtime.head_layout import HeadLayout, place_of
from dummyforcing.runtime.heads import LocalHeads
from dummyforcing.sampling.classifier import HeadClassifier


@dataclass(frozen=True)
class Grid:
    """The sizes that all passes of a video share."""

    batch: int
    rows: int
    """Of the patch grid of a latent frame."""
    columns: int
    dtype: torch.dtype
    """Of queries, keys and values."""
    device: torch.device

    def __str__(self) -> str:
        return f"{self.batch} x {self.rows} x {self.columns} {str(self.dtype).removeprefix('torch.')}"


@dataclass(frozen=True)
class Pass:
    """One call of the transformer."""

    start: int
    """Position of its first latent frame."""
    frames: int
    """Latent frames that it works on."""
    commits: bool | None = None
    """Whether it says that it is a commit pass; None: such code does not say."""
    restarts: bool = False
    """Whether frames that it writes again become the first ones of a new past."""
    memory: int | None = None
    """Which KV cache of the code around it was given, by identity; None: that is not known."""
    masked: bool = False
    """Whether it was given a block mask."""

    @property
    def end(self) -> int:
        """Position after its last latent frame."""
        return self.start + self.frames


@dataclass(frozen=True)
class Rules:
    """What holds for the videos of a transformer."""

    preset: Preset
    """Of the chunks and the loop."""
    policy: Policy
    plan: Plan | None
    backend: str | None
    """Of the attention; None: the fastest that is there."""


class FollowedVideo:
    """The cache and the heads of one video; its chunks are written at their own positions and left there."""

    def __init__(
        self, config: ModelConfig, rules: Rules, grid: Grid, fingerprint: str | None, first: Pass
    ) -> None:
        """Begin with the first pass.

        Args:
            config: Sizes of the transformer.
            rules: What holds for its videos.
            grid: Sizes of this one.
            fingerprint: Of the transformer; None if it cannot be told.
            first: At position 0.
        """
        preset, policy = rules.preset, rules.policy
        self.rules, self.grid = rules, grid
        self._least_past = policy.initial.sink if preset.sampler == "rolling" else 0
        """Past frames that are not enough to score heads: there is no middle."""
        self.heads = HeadClassifier(
            config,
            policy,
            rules.plan,
            None,
            batch=grid.batch,
            chunk_frames=preset.chunk_frames,
            first_frames=max(policy.first_frames, self._least_past),
            fingerprint=fingerprint,
        )
        at = self.heads.classify_at
        self.cache = KVCache(
            self.heads.plans,
            head_dim=config.head_dim,
            tokens_per_frame=grid.rows * grid.columns,
            chunk_frames=preset.current_frames,
            local_attention_size=preset.local_attention_size,
            dtype=grid.dtype,
            device=grid.device,
            frames=preset.max_frames if at is None else (at + 1) * preset.chunk_frames,
        )
        self._layouts: dict[int, HeadLayout] = {}
        """By the latent frames of a pass."""
        self.origin = 0
        """Position of the cache's frame 0."""
        self.finished = 0
        """Latent frames that are finished."""
        self.last = first
        self.begun = [_mark(grid.device)]
        """When each chunk began."""
        self._begin_chunk()
        self._begin_pass(first)

    def go_on(self, now: Pass) -> bool:
        """Go on to the next pass.

        Returns:
            Whether it is one of this video; else it begins another one.

        Raises:
            BadRequest: If it goes on from nothing that is known.
        """
        here, last = self.origin + self.cache.frames, self.last
        if now.memory != last.memory:
            if now.start == 0:
                return False
            raise BadRequest(
                f"A pass at latent frame {now.start} has another KV cache than the pass before it",
                "make one video at a time with a transformer, and without guidance, for which two caches "
                "take turns",
            )
        if here < now.start <= last.end:
            self._finish(now.start - here)
        elif now.start < here and now.end == last.end:
            self._finish(last.end - here)
            self._write_again(now)
        elif now.start == 0 < here:
            return False
        elif now.start != here:  # else it is another step of the same chunk
            raise _jumped(now.start, last.end)
        self._begin_pass(now)
        return True

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Answer one layer's self-attention in the present pass: score, cache, attend.

        Args:
            layer: Its number.
            q: Queries, `(B, L, H, D)`.
            k: Keys, likewise.
            v: Values, likewise.
            rope: Cosines and sines of the tokens.

        Returns:
            `(B, L, H, D)`.
        """
        if layer == 0:
            self._placed = self._place(q)
        if self._placed is not None:
            attention, seen = self._placed.attentions[layer], self._seen[layer]
            assert isinstance(attention, LocalHeads)
            rows = len(q) * q.shape[1], *q.shape[2:]
            heads = q.reshape(rows), k.reshape(rows), v.reshape(rows)
            backend = self.rules.backend or default_backend(q.device, q.dtype, q.shape[-1])
            # Triton looks at the current device, not at that of tensors.
            with torch.cuda.device_of(q):  # type: ignore[no-untyped-call]
                attended = attention.attend(heads, None, rope, 0.0, seen, backend, kv_only=False)
            assert attended is not None
            return attention.in_order_of_model(attended)
        q, k = apply_rope(q, *rope), apply_rope(k, *rope)
        groups = self.cache.write(layer, k, v, self.pinned)
        if self.scorer is not None:
            self.scorer.observe(layer, q, groups)
        return attend(q, groups, self.rules.backend)

    def _place(self, q: Tensor) -> HeadLayout | None:
        """Lay out the present pass so that heads go to their places at once; None: that cannot be done.

        It is faster where launching kernels takes longer than they do.
        """
        width = q.shape[-1]
        if self.scorer is not None or not runs_in_triton(q) or width & (width - 1):
            return None
        frames = q.shape[1] // self.cache.sizes.tokens_per_frame
        layers = range(len(self.cache.layers))
        self._seen = [self.cache.prepare(number, frames, self.pinned) for number in layers]
        if not all(group.is_plain for layer in self.cache.layers for group in layer.groups):
            return None
        layout = self._layouts.setdefault(frames, HeadLayout(self.cache, frames, q.shape[2]))
        layout.prepare(place_of(self.cache), self._seen)
        return layout

    def _begin_chunk(self) -> None:
        self._passes = 0
        self._writes_again = False
        """Whether the passes write finished frames again."""
        self._scores: HeadScorer | None = None
        self._scores_before: HeadScorer | None = None
        """Without the last pass."""

    def _begin_pass(self, now: Pass) -> None:
        most = self.rules.preset.current_frames
        if now.frames > most and not self._writes_again:
            raise BadRequest(
                f"A pass has {now.frames} latent frames, where {most} are made at a time",
                'name a model that makes so many, such as preset="self-forcing"',
                "preset",
            )
        self.last = now
        self._passes += 1
        self.scorer = self._scorer_of(now)
        """Scores the heads in the present pass; None: nothing does."""
        self.pinned = not now.commits or self.heads.is_planned
        """Whether pinned frames stay visible beyond the local attention size; see `KVCache.write`."""

    def _finish(self, frames: int) -> None:
        """The first frames of the last pass are past from now on."""
        self.cache.commit(frames)
        if not self._writes_again:
            if self._passes > 1:  # else it was given, not made, and heads look elsewhere in a commit pass
                self._plan()
            self.finished += frames
        self._begin_chunk()
        self.begun.append(_mark(self.grid.device))

    def _plan(self) -> None:
        """Sort the heads, if the chunk that is over was scored."""
        scores = self._scores_before or self._scores
        if scores is not None and (plans := self.heads.plan(scores, self.finished)):
            self.cache.apply(plans)

    def _write_again(self, now: Pass) -> None:
        """Make room for the newest frames, which a pass writes again under another prompt."""
        self._writes_again = True
        if now.restarts:
            self.origin += self.cache.frames - now.frames
            self.cache.reset()
        else:
            self.cache.rewind(now.frames)

    def _scorer_of(self, now: Pass) -> HeadScorer | None:
        """The scorer of a pass, if it is one of a chunk that classifies the heads.

        Where nobody says which pass commits, it is the last one. So scores are kept as they were before it,
        or of it alone, as the policy wants.
        """
        if (
            self._writes_again
            or self.cache.frames <= self._least_past
            or not self.heads.is_due(self.finished)
        ):
            return None
        wants_commit = self.rules.policy.score_pass == "commit"
        if now.commits not in (None, wants_commit):
            return None
        if self._scores is None or (wants_commit and now.commits is None):
            self._scores = self.heads.scorer(self.finished)
        elif now.commits is None:
            self._scores_before = self._scores.copy()
        return self._scores


class RecomputedVideo(FollowedVideo):
    """One whose code writes context again before every chunk, by a pass under a block mask.

    That one is at position 0, and the passes of the chunk follow it. A chunk without context is the first.
    """

    def go_on(self, now: Pass) -> bool:
        """Go on to the next pass; see `FollowedVideo`."""
        last, size = self.last, self.rules.preset.chunk_frames
        if now.masked:
            if now.frames > size:
                raise BadRequest(
                    f"Context of {now.frames} latent frames cannot be written again at once",
                    f"let it have {size} (Krea's kv_cache_num_frames)",
                )
            if not last.masked:
                self._plan()
                self.finished += last.frames
                self.begun.append(_mark(self.grid.device))
            self.cache.reset()
            self._begin_chunk()
        elif now.start == 0 != self.finished:
            return False
        elif last.masked and now.start == last.end:
            self.cache.commit(last.frames)
            self.finished = self.finished or last.frames  # the first chunk goes on from given frames
        elif now.start != last.start or last.masked:
            raise _jumped(now.start, last.end)
        self._begin_pass(now)
        return True

    def _scorer_of(self, now: Pass) -> HeadScorer | None:
        """The scorer of a pass; those behind the context are denoising steps, all of them."""
        if not self.cache.frames or not self.heads.is_due(self.finished):
            return None
        self._scores = self._scores or self.heads.scorer(self.finished)
        return self._scores


class Follower:
    """The head-wise memory of a transformer: that of the video that it makes at present."""

    def __init__(
        self,
        config: ModelConfig,
        rules: Callable[[int], Rules],
        fingerprint: Callable[[], str | None],
        masks_context: bool = False,
    ) -> None:
        """Wait for a video.

        Args:
            config: Sizes of the transformer.
            rules: Tells what holds for a video whose first pass has so many latent frames.
            fingerprint: Tells that of the transformer where a video begins; None if it cannot be told.
            masks_context: See `families.Family`.
        """
        self._config, self._rules, self._fingerprint = config, rules, fingerprint
        self._masks_context = masks_context
        self.video: FollowedVideo | None = None
        """None: nothing was seen of one yet, or what was seen led nowhere."""
        self._place: tuple[Pass, Grid] | None = None

    def begin(self, now: Pass, grid: Grid) -> FollowedVideo:
        """Go on to the next pass, of the same video or of another.

        Raises:
            BadRequest: If it begins no video, and goes on from nothing that is known.
        """
        if now.masked and self._masks_context:
            now = replace(now, start=0)
        video, self.video = self.video, None  # stays away if there is an error
        if video is not None and video.grid != grid and now.start:
            raise BadRequest(
                f"A pass at latent frame {now.start} is {grid}, where the video is {video.grid}",
                "begin another video for another batch, picture or dtype: its first pass is at position 0",
            )
        if video is None or video.grid != grid or not video.go_on(now):
            del video  # the old cache and the new one never exist together
            video = self._begin_video(now, grid)
        self.video = video
        if self._place is None or self._place != (now, grid):
            self._place = (now, grid)
            frames = torch.arange(now.start, now.end)
            self.rope = rope_table(frames, grid.rows, grid.columns, self._config.head_dim, grid.device)
            """Cosines and sines of the tokens of the present pass."""
        return video

    def timings(self) -> tuple[float, ...]:
        """Seconds from the first pass of each finished chunk to that of the next; waits for a GPU."""
        marks = self.video.begun if self.video else []
        return tuple(_seconds(*pair) for pair in pairwise(marks))

    def _begin_video(self, now: Pass, grid: Grid) -> FollowedVideo:
        if now.start:
            raise BadRequest(
                f"A pass begins at latent frame {now.start}, and nothing is known of the frames before it",
                "begin the video again: its first pass is at position 0",
            )
        rules = self._rules(now.frames)
        kind = RecomputedVideo if rules.preset.sampler == "recompute" else FollowedVideo
        return kind(self._config, rules, grid, self._fingerprint(), now)


def _jumped(start: int, end: int) -> BadRequest:
    return BadRequest(
        f"A pass begins at latent frame {start}, where {end} would follow",
        "let the frames of a video follow each other",
    )


def _mark(device: torch.device) -> torch.cuda.Event | float:
    """The present moment, on a GPU by its own clock."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


def _seconds(before: torch.cuda.Event | float, after: torch.cuda.Event | float) -> float:
    if isinstance(before, float) or isinstance(after, float):
        assert isinstance(before, float)
        assert isinstance(after, float)
        return after - before
    after.synchronize()
    return float(before.elapsed_time(after)) / 1000
