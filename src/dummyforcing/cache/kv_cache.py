"""The KV cache: static frame slots for every head, written in place.

    groups = cache.write(layer, k, v)      # the current frames; what every head sees
    cache.commit()                         # they are past from now on
    cache.apply([plan])                    # heads see what the plan gives them

A head with context (sink, recent) owns `sink` pinned slots and a ring of `recent + chunk` slots; a slot is
one frame of keys and values. The current frames are written straight into their slots, where every denoising
step overwrites them and the commit pass leaves them. What a head may see is then always a prefix of its
slots: keys carry their positions, so attention does not care about their order. Nothing is concatenated or
allocated once the rings are full, and nothing is moved but key frames, which are copied to slots behind the
ring when they leave it. (Where passes differ in length, the prefix has gaps, and what is visible
is gathered.)

Heads of a layer with equally many visible frames form a head group: they share their memory and one attention
call. So dummy heads (0, 1) and sink heads (1, 0) are packed without any code for it.

With a local attention size, no key is further than that many frames from the newest one: pinned frames move
along with the video, which means to turn their keys on, and recent frames that would share their positions
are hidden.
"""

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dummyforcing.cache.head_group import CacheSizes, GroupState, HeadGroup, joined
from dummyforcing.cache.key_frames import FrameLooks, with_key
from dummyforcing.cache.layer_cache import LayerCache, Ranks, deal_rows
from dummyforcing.cache.ring import Slots
from dummyforcing.errors import BadRequest
from dummyforcing.method.plan import HeadContext, Plan


@dataclass(frozen=True)
class CacheState:
    """The past in a cache."""

    frames: int
    """Committed latent frames."""
    layers: tuple[tuple[GroupState, ...], ...]
    looks: tuple[tuple[int, Tensor], ...] = ()
    """Of frames that are, or may become, key frames."""


class KVCache:
    """Keys and values of the committed frames and of the current chunk, for every layer."""

    def __init__(
        self,
        plans: Sequence[Plan],
        *,
        head_dim: int,
        tokens_per_frame: int,
        chunk_frames: int,
        local_attention_size: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
        frames: int | None = None,
        ranks: Ranks | None = None,
        has_keys: bool = False,
    ) -> None:
        """Make an empty cache.

        Args:
            plans: One per sample; samples with equal plans share their head groups.
            head_dim: Channels of one head, `D`.
            tokens_per_frame: Tokens of one latent frame.
            chunk_frames: Most current frames of a denoising pass, commonly the latent frames of a chunk.
            local_attention_size: How many frames attention spans, the current ones included: pinned frames
                move along, to stay as near. None: without end.
            dtype: Of keys and values.
            device: Where they live.
            frames: How many frames to make room for in heads that see the whole past; beyond that they grow
                by one chunk at a time.
            ranks: GPUs that share out the heads, this one among them; None: there is one, which has all.
            has_keys: Whether heads may get key frames; then every `commit` must show its latents.

        Raises:
            BadRequest: If a head pins more frames than the local attention has room for.
        """
        self._ranks = ranks
        self.sizes = CacheSizes(
            len(plans),
            head_dim,
            tokens_per_frame,
            chunk_frames,
            local_attention_size,
            dtype,
            device,
            frames or 0,
        )
        self.frames = 0
        """Committed latent frames."""
        self._looks = FrameLooks() if has_keys else None
        self.layout = 0
        """Another number whenever heads move to other memory."""
        rank = ranks.rank if ranks else 0
        self.layers = [
            LayerCache.empty(self.sizes, rows, deal_rows(rows, self.sizes, ranks), rank, 0, chunk_frames)
            for rows in self._slots(plans)
        ]

    def write(self, layer: int, k: Tensor, v: Tensor, pinned: bool = True) -> list[HeadGroup]:
        """Put the current frames' keys and values in place; later writes before `commit` overwrite them.

        Args:
            layer: Whose keys and values these are.
            k: Keys, RoPE applied, `(B, tokens, H, D)`; any number of whole frames. Of a pass that is longer
                than a head's ring, the head gets the newest frames.
            v: Values, likewise.
            pinned: Whether pinned frames stay visible beyond the local attention size.

        Returns:
            What to attend to; every head of every sample is in exactly one group.
        """
        return [group.write(self.frames, k, v, pinned) for group in self.layers[layer].groups]

    def prepare(self, layer: int, current: int, pinned: bool = True) -> list[HeadGroup]:
        """Get ready for a pass over `current` frames whose keys and values the caller writes.

        Where they go is in the `targets` of the groups. Where what is visible must be gathered (not
        `is_plain`), only `write` knows it.
        """
        return [group.prepare(self.frames, current, pinned) for group in self.layers[layer].groups]

    def commit(self, frames: int | None = None, latents: Tensor | None = None) -> None:
        """Make current frames part of the past.

        Args:
            frames: So many, the first ones; None: a whole chunk.
            latents: Theirs, clean, `(B, frames, C, h, w)`, by which key frames are chosen.
        """
        before = self.frames
        self.frames += self.sizes.chunk_frames if frames is None else frames
        if self._looks is not None:
            assert latents is not None
            self._looks.add(before, latents)
            slots = {slots for layer in self.layers for row in layer.rows for slots in row}
            after = {one: self._with_keys(one, one.leaving(before, self.frames)) for one in slots}
            if any(one != new for one, new in after.items()):
                for layer in self.layers:
                    layer.keep(after)
            self._forget_looks()

    def apply(self, plans: Sequence[Plan]) -> None:
        """Change what the heads see from now on, keeping of the past what they still need.

        Args:
            plans: One per sample.

        Raises:
            BadRequest: If a head pins more frames than the local attention has room for.
            ValueError: If a plan needs first frames that the cache no longer has.
        """
        for number, rows in enumerate(self._slots(plans)):
            old = self.layers[number].rows
            new = [
                tuple(self._converted(slots, wanted) for slots, wanted in zip(*pair, strict=True))
                for pair in zip(old, rows, strict=True)
            ]
            self._rebuild(number, new, self.frames + self.sizes.chunk_frames)
        self._forget_looks()

    def rewind(self, frames: int) -> None:
        """Forget all but the pinned frames; the next pass writes the last `frames` frames again, at once."""
        self._begin_rings(self.frames - frames, self.frames)

    def jump(self, frame: int) -> None:
        """Forget all but the pinned frames, which are there; the next pass writes a chunk from `frame` on.

        So frames are left out that nobody needs: once the first ones are written again after `reset`, the
        newest ones follow at their own positions.
        """
        self._begin_rings(frame, frame + self.sizes.chunk_frames)

    def reset(self) -> None:
        """Forget all frames: the next one is frame 0."""
        self.frames = 0
        self._looks = self._looks and FrameLooks()
        for number, layer in enumerate(self.layers):
            rows = [tuple(slots.begin(0) for slots in row) for row in layer.rows]
            if rows != layer.rows:
                self._rebuild(number, rows, self.sizes.chunk_frames)

    def state(self) -> CacheState:
        """Give the state; it shares memory with this cache. Of several GPUs, rank 0 gets that of all."""
        layers = [[group.state(self.frames) for group in layer.groups] for layer in self.layers]
        if self._ranks is not None:
            everywhere = self._ranks.collect([[one.on_host() for one in states] for states in layers])
            for number, layer in enumerate(self.layers if everywhere else []):
                parts = [one for states in everywhere or [] for one in states[number]]
                layers[number] = [joined(parts, group.samples, group.heads) for group in layer.held]
        looks = self._looks.state() if self._looks is not None else ()
        return CacheState(self.frames, tuple(map(tuple, layers)), looks)

    def load_state(self, state: CacheState) -> None:
        """Hold what a cache of the same sizes held, of several GPUs what all of them held; copies it."""
        self.frames = state.frames
        self._looks = self._looks and FrameLooks.from_state(state.looks)
        self.layout += 1
        for number, states in enumerate(state.layers):
            self.layers[number] = LayerCache.from_state(self.sizes, states, self._ranks)

    def copy(self) -> "KVCache":
        """Another cache that holds the same."""
        other = copy(self)
        other.layers = [layer.copied(self.frames) for layer in self.layers]
        other._looks = copy(self._looks)  # what it holds is replaced, never changed
        return other

    def _begin_rings(self, frame: int, end: int) -> None:
        """Begin all rings again at `frame`, for a pass up to frame `end`.

        Head groups stay where they are if they can: then nothing is copied, and CUDA graphs stay valid.
        """
        self.frames = frame
        for number, layer in enumerate(self.layers):
            if not layer.restart(frame, end):
                rows = [tuple(slots.begin(frame) for slots in row) for row in layer.rows]
                self._rebuild(number, rows, end)

    def _rebuild(self, number: int, rows: Sequence[tuple[Slots, ...]], end: int) -> None:
        self.layout += 1
        # One layer at a time: the old and the new memory of all layers never exist together.
        self.layers[number] = self.layers[number].rebuilt(rows, self._ranks, self.frames, end)

    def _slots(self, plans: Sequence[Plan]) -> list[list[tuple[Slots, ...]]]:
        """The slots that plans ask for: of every layer, sample and head."""
        return [
            [tuple(self._slots_of(context, sample) for context in row) for sample, row in enumerate(rows)]
            for rows in zip(*(plan.contexts for plan in plans), strict=True)
        ]

    def _slots_of(self, context: HeadContext, sample: int) -> Slots:
        size, chunk = self.sizes.local_attention_size, self.sizes.chunk_frames
        if size is not None:
            room = size - chunk
            if context.sink > room:
                raise BadRequest(
                    f"A head of this model cannot keep {context.sink} first frames: of the {size} that "
                    f"attention spans, {chunk} are current",
                    f"take {room} at most",
                )
            if context.keys:
                raise BadRequest(
                    f"A head of this model cannot keep key frames: attention spans {size} frames",
                    "take a policy without them",
                    "policy",
                )
            if context.recent is None:
                context = HeadContext(context.sink, size)
        return Slots(context, chunk, size, sample=sample if context.keys else 0)

    def _converted(self, slots: Slots, wanted: Slots) -> Slots:
        """The slots that take over from others; frames that these still hold may become key frames."""
        new = slots.convert(wanted, self.frames)
        oldest = new.recent(self.frames).start
        held = [*sorted(slots.keys), *slots.recent(self.frames)]
        return self._with_keys(new, [frame for frame in held if new.context.sink <= frame < oldest])

    def _with_keys(self, slots: Slots, frames: Iterable[int]) -> Slots:
        """The slots with those key frames that are chosen once some frames are no recent ones any more."""
        sink, most, keys = slots.context.sink, slots.context.keys, slots.keys
        if not most or self._looks is None:
            return slots
        for frame in frames:
            keys = with_key(keys, frame, most, range(sink), self._looks.of(slots.sample))
        return replace(slots, keys=keys)

    def _forget_looks(self) -> None:
        """Forget what frames look like that cannot become, or stop being, key frames any more."""
        if self._looks is not None:
            rows = (row for layer in self.layers for row in layer.rows)
            self._looks.keep({frame for row in rows for slots in row for frame in slots.held(self.frames)})

    def room(self, frames: int) -> int:
        """How many of so many frames the head with most slots has room for."""
        slots = {slots for layer in self.layers for row in layer.rows for slots in row}
        totals = [s.context.total for s in slots]
        return min(frames, max(frames if t is None else t + self.sizes.chunk_frames for t in totals))

    @property
    def nbytes(self) -> int:
        """Bytes of all head groups, as far as they are kept here."""
        return sum(group.nbytes for layer in self.layers for group in layer.groups)
