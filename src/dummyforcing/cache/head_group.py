"""Head groups: heads of a layer that see equally many frames, their keys and values in static slots."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dummyforcing.cache.ring import Slots, turn_of
from dummyforcing.kernels.rope import apply_rope, rope_table
from dummyforcing.kernels.transfers import indices, send


@dataclass(frozen=True)
class HeadGroup:
    """The keys and values that some heads of some samples attend to in one attention call."""

    samples: tuple[int, ...] | None
    """Which samples; None: all."""
    heads: tuple[int, ...] | None
    """Which of the heads that are kept here, in the order of `k`; None: all, in order."""
    k: Tensor
    """Keys, `(B', S, H', D)`: the visible past and the current chunk."""
    v: Tensor
    """Values, likewise."""
    frames: tuple[tuple[int, ...], ...]
    """The frame, counted from the start of the cache, in each slot of `S`, for each of the `H'` heads."""

    @property
    def is_whole(self) -> bool:
        """Whether this is the only group, with the heads in order."""
        return self.samples is None and self.heads is None

    def select(self, x: Tensor) -> Tensor:
        """Take this group's part of `x (B, L, H, D)`."""
        x = self._rows(x)
        return x if self.heads is None else x.index_select(2, indices(self.heads, x.device))

    def scatter(self, out: Tensor, part: Tensor) -> None:
        """Write `part (B', L, H', D)` to its place in `out (B, L, H, D)`."""
        rows = self._rows(out)
        if self.heads is None:
            rows.copy_(part)
        else:
            rows.index_copy_(2, indices(self.heads, out.device), part)
        if not self._is_run:
            assert self.samples is not None
            out.index_copy_(0, indices(self.samples, out.device), rows)

    @property
    def _is_run(self) -> bool:
        """Whether the samples follow each other, so that theirs is a view."""
        return self.samples is None or self.samples[-1] - self.samples[0] == len(self.samples) - 1

    def _rows(self, x: Tensor) -> Tensor:
        """What the samples have of `x (B, L, H, D)`: a view, or a copy."""
        if self.samples is None:
            return x
        if self._is_run:
            return x[self.samples[0] : self.samples[-1] + 1]
        return x.index_select(0, indices(self.samples, x.device))


@dataclass(frozen=True)
class CacheSizes:
    """Sizes that all head groups of a cache have in common."""

    batch: int
    head_dim: int
    """Channels of one head, `D`."""
    tokens_per_frame: int
    """Tokens of one latent frame."""
    chunk_frames: int
    """Most current frames of a denoising pass."""
    local_attention_size: int | None
    """All that is visible lies within so many frames, the current ones included; None: no such limit."""
    dtype: torch.dtype
    device: torch.device | None
    reserved_frames: int
    """How many frames there is room for in heads that see the whole past, before they grow."""


@dataclass(frozen=True)
class GroupState:
    """The past in the slots of one head group, and its places."""

    samples: tuple[int, ...]
    heads: tuple[int, ...]
    slots: tuple[Slots, ...]
    """Of each of `heads`."""
    shifts: tuple[int, ...]
    """How far the pinned keys are turned, of each run of heads with the same slots."""
    k: Tensor
    """Keys up to the last slot in use, `(B', S, H', D)`."""
    v: Tensor
    """Values, likewise."""
    pinned_k: Tensor
    """The pinned keys as they came, if they are to move."""

    def only(self, heads: Collection[int]) -> "GroupState":
        """The same of some heads."""
        columns = [column for column, head in enumerate(self.heads) if head in heads]
        if len(columns) == len(self.heads):
            return self
        slots = tuple(self.slots[column] for column in columns)
        shifts = dict(zip(dict.fromkeys(self.slots), self.shifts, strict=True))
        k, v, pinned = (t[:, :, columns] for t in (self.k, self.v, self.pinned_k))
        kept = tuple(self.heads[column] for column in columns)
        return GroupState(
            self.samples, kept, slots, tuple(shifts[one] for one in dict.fromkeys(slots)), k, v, pinned
        )

    def on_host(self) -> "GroupState":
        """The same in the main memory."""
        return replace(self, k=self.k.cpu(), v=self.v.cpu(), pinned_k=self.pinned_k.cpu())


def joined(parts: Sequence[GroupState], samples: tuple[int, ...], heads: tuple[int, ...]) -> GroupState:
    """Join what several GPUs hold of a head group.

    Args:
        parts: Of all GPUs, of other groups, too.
        samples: Of the group.
        heads: Of the group, in order.
    """
    mine = [part for part in parts if part.samples == samples and set(part.heads) <= set(heads)]
    places = [next((part, part.heads.index(head)) for part in mine if head in part.heads) for head in heads]
    used = max(part.k.shape[1] for part in mine)

    def column(tensor: Tensor, at: int, length: int) -> Tensor:
        wide = tensor.new_zeros(len(samples), length, 1, tensor.shape[-1])
        wide[:, : tensor.shape[1]] = tensor[:, :, at : at + 1]
        return wide

    slots = tuple(part.slots[at] for part, at in places)
    shifts = {
        one: shift for part in mine for one, shift in zip(dict.fromkeys(part.slots), part.shifts, strict=True)
    }
    pinned = max(part.pinned_k.shape[1] for part in mine)
    return GroupState(
        samples,
        heads,
        slots,
        tuple(shifts[one] for one in dict.fromkeys(slots)),
        torch.cat([column(part.k, at, used) for part, at in places], 2),
        torch.cat([column(part.v, at, used) for part, at in places], 2),
        torch.cat([column(part.pinned_k, at, pinned) for part, at in places], 2),
    )


class GroupCache:
    """The static slots of one head group: its keys and values."""

    def __init__(
        self,
        sizes: CacheSizes,
        samples: Sequence[int],
        slots: Sequence[Slots],
        heads: Sequence[int],
        own: Sequence[int],
        past: int,
    ) -> None:
        """Make room.

        Args:
            sizes: Of the cache.
            samples: Which samples the group is of.
            slots: Of all heads of the layer.
            heads: Those that form the group; heads with the same slots are neighbours.
            own: Those that are kept here.
            past: How many frames are committed.
        """
        self.sizes, self.samples = sizes, tuple(samples)
        self.heads, self.own = tuple(heads), tuple(own)
        self.slots = tuple(slots[head] for head in self.heads)
        self._runs = [(s, self.slots.index(s), self.slots.count(s)) for s in dict.fromkeys(self.slots)]
        total = self.slots[0].context.total
        self.bounded = total is not None
        if total is None:
            count = max(sizes.reserved_frames, len(self.slots[0].held(past)))
        else:
            count = total + sizes.chunk_frames
        self.k, self.v = self._empty(count), self._empty(count)
        # Pinned keys as they came, if they are to move: turned from here every time, errors don't add up.
        moves = sizes.local_attention_size is not None
        self.pinned_k = self._empty(max(s.context.sink for s in self.slots) if moves else 0)
        self._shifts = [0] * len(self._runs)
        self._samples = None if len(self.samples) == sizes.batch else self.samples
        self._heads = None if self.heads == self.own else tuple(self.own.index(head) for head in self.heads)
        self._pass: tuple[int, int, bool] | None = None
        self.targets: list[tuple[int, ...]] = []
        """The slot of each current frame, -1 where it has none, for each of `heads`."""

    @classmethod
    def from_state(
        cls, sizes: CacheSizes, slots: Sequence[Slots], state: GroupState, own: Sequence[int]
    ) -> "GroupCache":
        """Make a group that holds what another one did; `slots` are of all heads of the layer."""
        group = cls(sizes, state.samples, slots, state.heads, own, 0)
        held = state.k.shape[1]
        if held > group.k.shape[1]:
            group.k, group.v = (_grown(t, held) for t in (group.k, group.v))
        group.k[:, :held] = state.k
        group.v[:, :held] = state.v
        group.pinned_k.copy_(state.pinned_k)
        group._shifts = list(state.shifts)
        return group

    def state(self, past: int) -> GroupState:
        """Give the state when `past` frames are committed; it shares memory with this group."""
        used = 1 + max((s.slot(f) for s, _, _ in self._runs for f in s.held(past)), default=-1)
        k, v = (buffer[:, : used * self.sizes.tokens_per_frame] for buffer in (self.k, self.v))
        return GroupState(self.samples, self.heads, self.slots, tuple(self._shifts), k, v, self.pinned_k)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return self.k.nbytes + self.v.nbytes + self.pinned_k.nbytes

    @property
    def is_plain(self) -> bool:
        """Whether what is visible in the current pass is a prefix of the slots."""
        return not self._gathers

    @property
    def is_full(self) -> bool:
        """Whether later passes like the current one see as many frames, in the same memory."""
        return self.bounded and self.visible.k.shape[1] == self.k.shape[1]

    def restart(self, start: int) -> None:
        """Forget what the rings held: the next frame to reach them is `start`. Memory stays where it is."""
        self._take(lambda slots: slots.begin(start))

    def keep(self, after: Mapping[Slots, Slots]) -> None:
        """Copy frames that become key frames from the ring to their slots.

        Args:
            after: What takes the place of slots.
        """
        size = self.sizes.tokens_per_frame
        for slots, lo, heads in self._runs:
            new = after.get(slots, slots)
            for frame in set(new.keys) - set(slots.keys):
                ring, place = slots.slot(frame) * size, new.slot(frame) * size
                for buffer in (self.k, self.v):
                    buffer[:, place : place + size, lo : lo + heads] = buffer[
                        :, ring : ring + size, lo : lo + heads
                    ]
        self._take(lambda slots: after.get(slots, slots))

    def _take(self, change: Callable[[Slots], Slots]) -> None:
        """Take other slots for all heads; memory stays where it is."""
        self.slots = tuple(change(slots) for slots in self.slots)
        self._runs = [(change(slots), lo, heads) for slots, lo, heads in self._runs]
        self._pass = None

    def prepare(self, past: int, current: int, pinned: bool) -> HeadGroup:
        """Get ready for a pass over `current` frames, see `KVCache.prepare`."""
        now = (past, current, pinned)
        if self._pass != now:
            self._turn(*now)
            self._pass = now
        return self.visible

    def write(self, past: int, k: Tensor, v: Tensor, pinned: bool) -> HeadGroup:
        """Put the current frames in place, see `KVCache.write`."""
        self.prepare(past, k.shape[1] // self.sizes.tokens_per_frame, pinned)
        for buffer, new in ((self.k, self.visible.select(k)), (self.v, self.visible.select(v))):
            for lo, hi, source, target in self._writes:
                buffer[:, target, lo:hi] = new[:, source, lo:hi]
        if not self._gathers:
            return self.visible
        k, v = (
            torch.cat([buffer[:, :, lo:hi].index_select(1, tokens) for lo, hi, tokens in self._gathers], 2)
            for buffer in (self.k, self.v)
        )
        return replace(self.visible, k=k, v=v)

    def _turn(self, past: int, current: int, pinned: bool) -> None:
        """Get ready for a pass over `current` frames from `past` on."""
        size, end = self.sizes.tokens_per_frame, past + current
        turns = [(turn_of(slots, past, end, pinned), lo, heads) for slots, lo, heads in self._runs]
        count = len(turns[0][0].frames)
        if not self.bounded and count * size > self.k.shape[1]:
            self.k, self.v = (_grown(t, count * size) for t in (self.k, self.v))
        self._move_pinned([turn.shift for turn, _, _ in turns])
        self._writes: list[tuple[int, int, slice, slice]] = []
        self.targets = []
        shown: list[tuple[int, ...]] = []
        for turn, lo, heads in turns:
            self.targets += [turn.targets] * heads
            for frame, slot, length in turn.writes:
                source = slice((frame - past) * size, (frame - past + length) * size)
                target = slice(slot * size, (slot + length) * size)
                self._writes.append((lo, lo + heads, source, target))
            shown += [turn.frames] * heads
        k, v = (buffer[:, : count * size] for buffer in (self.k, self.v))
        self.visible = HeadGroup(self._samples, self._heads, k, v, tuple(shown))
        is_prefix = all(turn.slots == tuple(range(count)) for turn, _, _ in turns)
        self._gathers = [] if is_prefix else [(lo, lo + n, self._tokens(turn.slots)) for turn, lo, n in turns]

    def _move_pinned(self, shifts: Sequence[int]) -> None:
        """Turn the pinned keys of each run of heads to stand so many frames after their own."""
        for i, ((slots, lo, heads), shift) in enumerate(zip(self._runs, shifts, strict=True)):
            if shift == self._shifts[i] or not slots.context.sink:
                continue
            span, columns = slice(slots.context.sink * self.sizes.tokens_per_frame), slice(lo, lo + heads)
            if self._shifts[i] == 0:
                self.pinned_k[:, span, columns] = self.k[:, span, columns]
            turn = rope_table(torch.tensor([shift]), 1, 1, self.sizes.head_dim, self.sizes.device)
            self.k[:, span, columns] = apply_rope(self.pinned_k[:, span, columns], *turn)
            self._shifts[i] = shift

    def unmoved(self) -> "GroupCache":
        """This group with the pinned keys where they were made."""
        self._move_pinned([0] * len(self._runs))
        return self

    def _empty(self, frames: int) -> Tensor:
        sizes = self.sizes
        shape = len(self.samples), frames * sizes.tokens_per_frame, len(self.heads), sizes.head_dim
        return torch.empty(shape, dtype=sizes.dtype, device=sizes.device)

    def _tokens(self, slots: Sequence[int]) -> Tensor:
        """The tokens of some slots."""
        within = torch.arange(self.sizes.tokens_per_frame)
        tokens = torch.tensor(slots)[:, None] * self.sizes.tokens_per_frame + within
        return send(tokens.flatten(), self.sizes.device)


def _grown(buffer: Tensor, tokens: int) -> Tensor:
    larger = buffer.new_empty(buffer.shape[0], tokens, *buffer.shape[2:])
    larger[:, : buffer.shape[1]] = buffer
    return larger
