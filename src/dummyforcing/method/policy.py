"""The method: measure where heads look, give each one a role, and each role the past frames that it uses.

    policy = parse_policy("dummy")                  # how roles are found, and what past each role sees
    scorer.observe(layer, q, segments)              # while one chunk is denoised
    plan = make_plan(policy, scorer.scores()[0], chunk=1)
    cache.apply([plan])                             # from here on the cache is small

Source: Dummy Forcing (arXiv:2601.20499), online head classification, dynamic head programming and packing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from inspect import signature
from math import floor
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dummyforcing.cache.head_group import Segment
from dummyforcing.errors import UserError
from dummyforcing.method.budget import fit_heads
from dummyforcing.method.plan import HeadContext, Plan
from dummyforcing.method.programming import CRITERIA, Role, assign_roles

__all__ = [
    "POLICIES",
    "HeadContext",
    "HeadScorer",
    "Plan",
    "Policy",
    "Role",
    "assign_roles",
    "attention_mass",
    "make_plan",
    "parse_policy",
    "region_mass",
]

BLOCK_ELEMENTS = {"cpu": 2**19, "cuda": 2**24}
"""Most logits that scoring holds at a time (one row of a frame at least): as fit a cache, or few launches."""

LONG_CONTEXT = 60
"""Past frames of a neighbor head under policy `long`: 237 pixel frames."""

RowSampler = Callable[[int, int], Tensor]
"""`rows(layer, L) -> (R,)` int64: the query rows of a chunk that one scoring call looks at."""

Labels = Callable[[Tensor, int], Tensor]
"""`label(frames, current) -> (H, slots)` int64: the region of each frame slot; see `frame_regions`."""


@dataclass(frozen=True)
class Policy:
    """How the roles of heads are found, and which past each role gets."""

    name: str
    initial: HeadContext
    """What every head sees while there is no plan."""
    roles: Mapping[Role, HeadContext] | None = None
    """What each role sees; None: heads have no roles and keep `initial`."""
    dummy_fraction: float = 0.5
    """Share of all heads that become dummy."""
    num_dummy: int | None = None
    """Number of dummy heads; wins over `dummy_fraction`."""
    budget: Fraction | None = None
    """Past frames, mean over heads, that all of them may see together once there is a plan: decides the
    number of dummy heads, and shortens the neighbor heads' context if it must (see `budget.fit_heads`)."""
    classify_at_chunk: int = 1
    """The chunk whose attention is scored; the plan holds from the next one on."""
    score_pass: Literal["denoise", "commit"] = "denoise"
    """Score all denoising steps of that chunk, or its commit pass."""
    first_frames: int = 1
    """How many of the oldest visible past frames count as the first ones."""
    last_frames: int = 0
    """How many of the newest past frames count as current."""
    criterion: str = "dhp"
    """How the dummy heads are chosen: a name of `criteria.CRITERIA`."""
    rows: int | Fraction | None = 256
    """Query rows per scoring call, drawn with replacement: a number, a share, or None for every row once."""
    seed: int = 0
    """Seeds the draw of rows, and of heads where the criterion is `random`."""

    def __post_init__(self) -> None:
        if not 0 <= self.dummy_fraction <= 1:
            raise UserError(f"The dummy fraction must lie between 0 and 1, not {self.dummy_fraction}.")
        if self.num_dummy is not None and self.num_dummy < 0:
            raise UserError(f"The number of dummy heads must not be negative, but is {self.num_dummy}.")
        if self.roles is not None and self.classify_at_chunk < 1:
            raise UserError(
                "Heads can be classified at chunk 1 at the earliest: chunk 0 has no past to look at."
            )
        if self.criterion not in CRITERIA:
            raise UserError(
                f"There is no criterion {self.criterion!r}; the criteria are {', '.join(CRITERIA)}."
            )
        if self.budget is not None and not self._suits_budget():
            raise UserError(
                "A budget is 1 past frame per head or more, and goes with criterion dhp, dummy and sink "
                "heads that see one past frame, and neighbor heads that see 1 recent one or more."
            )

    def _suits_budget(self) -> bool:
        assert self.budget is not None
        recent = (self.roles[Role.NEIGHBOR].recent if self.roles else None) or 0
        return recent > 0 and self.roles == _roles(recent) and self.budget >= 1 and self.criterion == "dhp"

    def dummy_heads(self, total: int) -> int:
        """How many of `total` heads become dummy.

        Raises:
            UserError: If more dummy heads were asked for than there are heads.
        """
        if self.num_dummy is None:
            return round(self.dummy_fraction * total)
        if self.num_dummy > total:
            raise UserError(f"{self.num_dummy} dummy heads were asked for, but the model has {total} heads.")
        return self.num_dummy


def dense() -> Policy:
    """Every head sees the whole past."""
    return Policy("dense", HeadContext(0, None))


def window(sink: int, recent: int) -> Policy:
    """Every head sees the first `sink` and the last `recent` frames: the native window of LongLive."""
    return Policy("window", HeadContext(sink, recent))


def dummy(neighbor: int = 3) -> Policy:
    """Dummy Forcing, scored while denoising over the whole past; neighbor heads see `neighbor` frames."""
    roles = _roles(neighbor)
    return Policy("dummy", HeadContext(0, None), roles)


def anchored(neighbor: int = 3) -> Policy:
    """Dummy Forcing in which every head also sees what its role leaves out, at one frame more per head.

    Sink heads also see the last frame and neighbor heads also the first one; dummy heads see two frames, so
    that they still share an attention call with the sink heads.
    """
    roles = {
        Role.DUMMY: HeadContext(0, 2),
        Role.SINK: HeadContext(1, 1),
        Role.NEIGHBOR: HeadContext(1, neighbor),
    }
    return Policy("anchored", HeadContext(0, None), roles)


def long(cap: int = LONG_CONTEXT) -> Policy:
    """Dummy Forcing at the cost of a window of 12 frames: few neighbor heads see `cap` frames.

    `budget` has that cost for chunks of 3 frames.
    """
    return Policy("long", HeadContext(0, None), _roles(cap), budget=Fraction(9))


def official(ar_start: int = 1, m: int = 1, chunk: int = 3) -> Policy:
    """Dummy Forcing as the public code has it, to the letter, quirks included.

    Args:
        ar_start: The chunk whose commit pass is scored.
        m: `local_context_length`, in chunks.
        chunk: Frames per chunk.

    Returns:
        The policy. The context is short from the start; the first chunk counts as first unless `ar_start` is
        1, even where it makes frames count as first that are not; a third of the first frames' number of rows
        is scored.
    """
    first = 1 if ar_start == 1 else chunk
    return Policy(
        "official",
        HeadContext(1, m * chunk),
        _roles(m * chunk),
        classify_at_chunk=ar_start,
        score_pass="commit",
        first_frames=first,
        rows=Fraction(first, 3 * chunk),
    )


def _roles(neighbor: int) -> Mapping[Role, HeadContext]:
    return {
        Role.DUMMY: HeadContext(0, 1),
        Role.SINK: HeadContext(1, 0),
        Role.NEIGHBOR: HeadContext(0, neighbor),
    }


POLICIES: dict[str, Callable[..., Policy]] = {
    "dense": dense,
    "window": window,
    "dummy": dummy,
    "anchored": anchored,
    "long": long,
    "official": official,
}


def parse_policy(text: str) -> Policy:
    """Read a policy such as `dummy`, `window:3,6` or `official:2,1`.

    Args:
        text: A name of `POLICIES`, then optionally a colon and whole numbers, the arguments of that entry.

    Returns:
        The policy.

    Raises:
        UserError: If the name is unknown or the numbers do not fit it.
    """
    name, _, numbers = text.partition(":")
    if name not in POLICIES:
        raise UserError(f"There is no policy {name!r}; the policies are {', '.join(POLICIES)}.")
    build = POLICIES[name]
    try:
        call = signature(build).bind(*(int(n) for n in numbers.split(",") if numbers))
    except (TypeError, ValueError):
        usage = ",".join(p.upper() for p in signature(build).parameters)
        raise UserError(
            f"Policy {text!r} cannot be read; write {name}{':' if usage else ''}{usage}"
            f"{' with whole numbers' if usage else ' without numbers'}."
        ) from None
    return build(*call.args)


def row_sampler(policy: Policy) -> RowSampler:
    """Draw rows as `policy` says, from a generator of its own."""
    generator = torch.Generator().manual_seed(policy.seed)

    def sample(layer: int, length: int) -> Tensor:
        if policy.rows is None:
            return torch.arange(length)
        count = policy.rows if isinstance(policy.rows, int) else int(policy.rows * length)
        return torch.randint(length, (count,), generator=generator)

    return sample


def attention_mass(q: Tensor, k: Tensor, slots: int) -> Tensor:
    """Measure the share of attention that each head spends on each frame slot.

    The softmax over all keys is one over slots, of the log of each slot's summed exponentials. So logits are
    made block by block, a few slots or some rows of one, and memory does not grow with the number of keys.

    Args:
        q: Query rows, RoPE applied, `(B, R, H, D)`.
        k: Visible keys, RoPE applied, `(B, S, H, D)`.
        slots: How many frames `S` holds.

    Returns:
        Mean over the rows, `(B, H, slots)` float32; the slots sum to 1.
    """
    q = q.transpose(1, 2).float() * q.shape[-1] ** -0.5
    tokens = k.shape[1] // slots
    block = BLOCK_ELEMENTS["cpu" if q.device.type == "cpu" else "cuda"]
    block //= tokens * q.shape[0] * q.shape[1]  # in rows times slots
    wide = max(1, min(slots, block // q.shape[2]))
    high = max(1, block // wide)
    log_mass = q.new_empty(*q.shape[:3], slots)
    for slot in range(0, slots, wide):
        keys = k[:, slot * tokens : (slot + wide) * tokens].permute(0, 2, 3, 1).float()
        for row in range(0, q.shape[2], high):
            logits = q[:, :, row : row + high] @ keys
            by_slot = logits.view(*logits.shape[:-1], -1, tokens).logsumexp(-1)
            log_mass[:, :, row : row + high, slot : slot + wide] = by_slot
    return log_mass.softmax(-1).mean(2)


def region_mass(q: Tensor, segments: Sequence[Segment], rows: Tensor, label: Labels, count: int) -> Tensor:
    """Measure the share of attention that each head spends on each region of frames, in one attention call.

    Args:
        q: Queries of the current chunk, RoPE applied, `(B, L, H, D)`.
        segments: What they attend to.
        rows: The query rows to look at, `(R,)` int64.
        label: Tells the region of each frame.
        count: How many regions there are.

    Returns:
        Mean over the rows, `(B, H, count)` float32; the regions sum to 1.
    """
    # Copies to a GPU wait for nothing here: the rollout runs on while heads are watched.
    chosen = q.index_select(1, rows.to(q.device, non_blocking=True))
    out = torch.empty(q.shape[0], 1, q.shape[2], count, device=q.device)
    for segment in segments:
        slots = len(segment.frames[0])
        current = q.shape[1] * slots // segment.k.shape[1]
        regions = F.one_hot(label(torch.tensor(segment.frames), current), count).float()
        mass = attention_mass(segment.select(chosen), segment.k, slots)
        part = torch.einsum("bhs,hsr->bhr", mass, regions.to(q.device, non_blocking=True))
        segment.scatter(out, part[:, None])
    return out[:, 0]


class HeadScorer:
    """Accumulates where heads look, over the scored calls of one chunk."""

    def __init__(
        self, batch: int, layers: int, heads: int, first_frames: int, rows: RowSampler, last_frames: int = 0
    ) -> None:
        self.rows = rows
        self._label = partial(frame_regions, first=first_frames, last=last_frames)
        self._sum = torch.zeros(batch, layers, heads, 3)
        self._calls = [0] * layers

    def observe(self, layer: int, q: Tensor, segments: Sequence[Segment]) -> None:
        """Score one attention call.

        Args:
            layer: Its layer.
            q: Queries of the current chunk, RoPE applied, `(B, L, H, D)`.
            segments: What the queries attend to.
        """
        self._sum = self._sum.to(q.device)
        self._sum[:, layer] += region_mass(q, segments, self.rows(layer, q.shape[1]), self._label, 3)
        self._calls[layer] += 1

    def scores(self) -> Tensor:
        """Attention mass on first, middle and current frames, `(B, layers, heads, 3)` float32, on the CPU."""
        return self._sum.cpu() / torch.tensor(self._calls)[:, None, None]


def frame_regions(frames: Tensor, current: int, first: int, last: int = 0) -> Tensor:
    """Tell for each frame slot whether it holds a first frame (0), a middle one (1) or a current one (2).

    Args:
        frames: Absolute frame number in each slot, `(H, slots)` int64, in any order.
        current: How many frames, the newest ones, are the current chunk.
        first: How many of the oldest past frames count as first.
        last: How many of the newest past frames count as current.

    Returns:
        `(H, slots)` int64.
    """
    age_rank = frames.argsort(1).argsort(1)
    regions = torch.where(age_rank < first, 0, 1)
    return regions.masked_fill(age_rank >= frames.shape[1] - current - last, 2)


def make_plan(policy: Policy, scores: Tensor, chunk: int, fingerprint: str | None = None) -> Plan:
    """Turn scores into a plan.

    Args:
        policy: With roles.
        scores: Of one sample, `(layers, heads, 3)`.
        chunk: The chunk that was scored.
        fingerprint: Of the model.

    Returns:
        The context of every head, and how it was found.
    """
    assert policy.roles is not None
    total, contexts = scores.shape[0] * scores.shape[1], dict(policy.roles)
    if policy.budget is None:
        roles = assign_roles(scores, policy.dummy_heads(total), policy.criterion, policy.seed)
    else:
        cap = policy.roles[Role.NEIGHBOR].recent
        assert cap is not None
        roles, recent = fit_heads(scores, cap, floor(policy.budget * total))
        contexts[Role.NEIGHBOR] = HeadContext(0, recent)
    return Plan(
        roles=roles,
        table={str(role): context for role, context in contexts.items()},
        policy=policy.name,
        chunk=chunk,
        score_pass=policy.score_pass,
        seed=policy.seed,
        num_dummy=sum(row.count(Role.DUMMY) for row in roles),
        scores=tuple(tuple(tuple(round(x, 7) for x in head) for head in row) for row in scores.tolist()),
        fingerprint=fingerprint,
    )
