"""The claims of the paper and of its critics, and our own questions, each with its answer."""

from collections.abc import Callable
from dataclasses import dataclass, field

from research.pages.verdicts import (
    AGREES,
    APART,
    DIFFERS,
    NONE,
    OPEN,
    Result,
    against,
    cost,
    exceeds,
    negated,
    no_loss,
    number,
    order,
    runs,
    worst,
)

CHECKPOINTS = {"selfforcing": "Self-Forcing", "longlive": "LongLive", "realtime_14b": "Krea Realtime 14B"}
"""The checkpoints that published head lists are of, by the names of their files."""

Finding = Callable[[dict[str, Result]], tuple[str, str]]
"""Our figure, in words, and the verdict, from the results by part."""


@dataclass(frozen=True)
class Claim:
    """One row of the table."""

    text: str
    """What is claimed."""
    paper: str
    """The figure that was published; a dash if it is a question of ours."""
    part: str
    """Of the results that the finding needs; empty: none of ours can tell."""
    finding: Finding | None = None
    why: dict[str, str] = field(default_factory=dict)
    """What there is to say, by verdict."""

    def row(self, results: dict[str, Result]) -> tuple[str, str, str]:
        """Our figure, the verdict and the reason."""
        if self.finding is None or self.part not in results:
            return "-", NONE, self.why.get(NONE, "")
        ours, verdict = self.finding(results)
        return ours, verdict, self.why.get(verdict, "")


def _points(difference: Result) -> str:
    return f"{number(difference, 100, 1, signed=True)} points"


def _above_80(results: dict[str, Result]) -> tuple[str, str]:
    above = results["removal"]["above"]
    near = abs(above["mean"] - 0.25) <= 0.1
    return f"{number(above, 100, unit='%')} of the heads", AGREES if near else DIFFERS


def _core(results: dict[str, Result]) -> tuple[str, str]:
    core = results["removal"]["core"]
    text = (
        f"{core['all']:.2f} over all steps and videos; {core['steps of a video']:.2f} over the steps "
        f"of a video, {core['videos at a step']:.2f} over videos at one step"
    )
    return text, AGREES if core["all"] >= 0.85 else DIFFERS


def _static_heads(results: dict[str, Result]) -> tuple[str, str]:
    """Lists of real checkpoints; one that has as many heads of every layer is a quota, and tells nothing."""
    lists = results["head-lists"]["lists"]
    found = {name: one for name, one in lists.items() if one["per_layer"][0] < one["per_layer"][1]}
    parts = [
        f"{CHECKPOINTS[name]} {one['static']} of {one['layers'] * one['heads']} ({one['share']:.0%}), "
        f"{one['per_layer'][0]} to {one['per_layer'][1]} of {one['heads']} in a layer"
        for name, one in found.items()
    ]
    quotas = [CHECKPOINTS[name] for name in lists if name not in found]
    text = "; ".join(parts) + f" ({', '.join(quotas)}: as many in every layer, a quota)" * bool(quotas)
    return text, AGREES if min(one["share"] for one in found.values()) >= 0.25 else DIFFERS


def _common_heads(results: dict[str, Result]) -> tuple[str, str]:
    (pair,) = results["head-lists"]["pairs"]
    one, other = (CHECKPOINTS[name] for name in pair["lists"])
    text = (
        f"{one} and {other} have {pair['both']} of them in common: {pair['common']:.2f} of the mean set "
        f"({pair['common_if_drawn']:.2f} if they were drawn), {pair['jaccard']:.2f} of all that are in either"
    )
    return text, AGREES if pair["common"] >= 0.85 else DIFFERS


def _removal_free(results: dict[str, Result]) -> tuple[str, str]:
    difference = against(results, "removal", "dense", "semantic")
    return f"{_points(difference)} of color, shape, motion, count", no_loss(difference)


def _factor(name: str, bound: float, more: bool, kept: str = "none") -> Finding:
    """Whether an order of heads does more (or less) than so many times the damage of ours, at each share."""

    def finding(results: dict[str, Result]) -> tuple[str, str]:
        factors = {p: order(results, name, "factor", p, kept) for p in _percents(results)}
        text = ", ".join(f"{number(f, 1, 2)} at {p}%" for p, f in factors.items())
        signed = [(f, bound) if more else (negated(f), -bound) for f in factors.values()]
        return f"times the damage: {text}", worst(*(exceeds(f, limit) for f, limit in signed))

    return finding


def _beats(name: str) -> Finding:
    return _factor(name, 1.0, more=True)


def _no_worse(name: str) -> Finding:
    return _factor(name, 1.1, more=False)


def _percents(results: dict[str, Result]) -> list[int]:
    return [p for p in (20, 50) if p in results["removal"]["percents"]]


def _packing(results: dict[str, Result]) -> tuple[str, str]:
    none, last = (order(results, "dhp, denoise", "damage", 50, kept) for kept in ("none", "last"))
    text = (
        f"damage at 50%: {number(none, 100, 2, unit='%')} without, {number(last, 100, 2, unit='%')} with it"
    )
    return text, AGREES if none["interval"][0] > last["interval"][1] else OPEN


def _against(name: str, other: str = "dense", measure: str = "semantic", run: str = "5 s") -> Finding:
    def finding(results: dict[str, Result]) -> tuple[str, str]:
        difference = against(results, name, other, measure, run)
        return _points(difference), no_loss(difference)

    return finding


def _all_no_loss(*names: str) -> Finding:
    def finding(results: dict[str, Result]) -> tuple[str, str]:
        found = {name: against(results, name, "dummy", "semantic") for name in names}
        text = "; ".join(f"{name}: {_points(difference)}" for name, difference in found.items())
        return text, worst(*(no_loss(difference) for difference in found.values()))

    return finding


def _role_gain(run: str) -> Finding:
    def finding(results: dict[str, Result]) -> tuple[str, str]:
        gain = negated(against(results, "window 1+1", "dummy", "semantic", run))
        return f"{_points(gain)}, {run}", exceeds(gain, 0)

    return finding


def _free_choice(results: dict[str, Result]) -> tuple[str, str]:
    gain = negated(against(results, "random heads", "dummy", "semantic"))
    return _points(gain), exceeds(gain, 0)


def _quarter(results: dict[str, Result]) -> tuple[str, str]:
    gain = against(results, "25% dummy", "dummy", "semantic")
    loss = negated(gain)
    return f"{_points(loss)} for the second quarter", no_loss(loss)


def _measured_plan(results: dict[str, Result]) -> tuple[str, str]:
    right, psnr = (
        against(results, "measured plan", "mass plan", measure) for measure in ("semantic", "psnr")
    )
    return f"{_points(right)}; PSNR to dense {number(psnr, 1, 2, signed=True)} dB", exceeds(psnr, 0)


def _search(results: dict[str, Result]) -> tuple[str, str]:
    dhp = results["search"]["criteria"]["dhp, denoise"]
    text = (
        f"{number(dhp['better'], 100, unit='%')} of all choices are better; "
        f"{number(dhp['reached'], 100, unit='%')} of the way from the mean choice to the best"
    )
    return text, exceeds(dhp["reached"], 0.8)


def _changes(
    name: str, other: str, measure: str, run: str, unit: str, scale: float = 1, more: bool = True
) -> Finding:
    """Whether a measure is more (or less) than under another variant."""

    def finding(results: dict[str, Result]) -> tuple[str, str]:
        difference = against(results, name, other, measure, run)
        verdict = exceeds(difference if more else negated(difference), 0)
        return f"{number(difference, scale, 3, signed=True)} {unit}, {run}", verdict

    return finding


def recommendation(results: dict[str, Result]) -> str:
    """Whether to take `anchored` in place of `dummy`, and what it costs, from seams and right verdicts."""
    lines = []
    for run in ("5 s", "10 s", "30 s"):
        if run not in runs(results):
            continue
        seam = against(results, "anchored", "dummy", "seam_excess", run)
        right = against(results, "anchored", "dummy", "semantic", run)
        better = seam["interval"][1] < 0 and right["interval"][1] >= 0
        costs = ", ".join(f"{cost(results, name, run):.2f} ({name})" for name in ("anchored", "dummy"))
        lines.append(
            f"- {run}: **{'take' if better else 'no reason to take'} `anchored`**: seams "
            f"{number(seam, 1, 3, signed=True)} gray levels, right {_points(right)}; past frames per head: "
            f"{costs}."
        )
    return "\n".join(lines)


def bench_rows(results: dict[str, Result], part: str) -> dict[tuple[str, str, bool], Result]:
    """Configurations of a benchmark by policy, float8 mode and whether steps are left out."""
    rows = results[part]["configurations"]
    return {(row["policy"], row["fp8"], bool(row["skip_steps"])): row for row in rows}


def _faster(size: str, published: float) -> Finding:
    def finding(results: dict[str, Result]) -> tuple[str, str]:
        rows = bench_rows(results, f"bench-{size}")
        dense, dummy = rows["dense", "none", False]["fps_video"], rows["dummy", "none", False]["fps_video"]
        times = dummy / dense
        text = (
            f"{times:.2f} times ({dense:.1f} to {dummy:.1f} FPS) for 81 pixel frames, the same kernels, "
            "Self-Forcing's sizes with random weights on one H200"
        )
        return text, AGREES if times >= published - 0.05 else DIFFERS

    return finding


def _teacache(results: dict[str, Result]) -> tuple[str, str]:
    rows = bench_rows(results, "bench-480p")
    fps = [rows["dummy", mode, skips]["fps"] for mode in ("none", "linear") for skips in (False, True)]
    text = (
        f"without one of four steps {fps[0]:.1f} to {fps[1]:.1f} FPS, with float8 linear layers "
        f"{fps[2]:.1f} to {fps[3]:.1f}; speed only, random weights"
    )
    return text, AGREES if fps[1] > 1.15 * fps[0] else DIFFERS


def _speed_here(results: dict[str, Result]) -> tuple[str, str]:
    dense, dummy = (results["speed"][policy] for policy in ("dense", "dummy"))
    times = dummy["fps_without_vae"] / dense["fps_without_vae"]
    smaller = dense["cache_bytes"] / dummy["cache_bytes"]
    return f"{times:.2f} times, {smaller:.1f} times less cache, on a CPU", APART


CLAIMS = (
    Claim(
        "Heads that give more than 80% of their attention to the current chunk",
        "about 25%",
        "removal",
        _above_80,
        {
            DIFFERS: "The share grows with a model's size and training. The method ranks heads and needs no "
            "head above 80%."
        },
    ),
    Claim(
        "The dummy heads are the same ones for other prompts and steps",
        "core ratio 0.92",
        "removal",
        _core,
        {
            DIFFERS: "Measured on the cheapest quarter. Here the set moves with step and video, which is why "
            "scores are summed over all steps, again for each video."
        },
    ),
    Claim(
        "On real weights, a large minority of heads can do with the first, the last and the current frames",
        "about 25%, current chunk alone",
        "head-lists",
        _static_heads,
        {
            AGREES: "Not our measurement: the head lists that [Forcing-KV]"
            "(https://github.com/zju-jiyicheng/Forcing-KV) publishes (arXiv:2605.09681, commit 50ac1f4). "
            "Static heads there have 80% of their mass on the current chunk and the frame before it, the "
            "first three frames left out: a wider rule, which more heads meet."
        },
    ),
    Claim(
        "On real weights, these are the same heads from one checkpoint to another that was trained from it",
        "core ratio 0.92 over prompts and steps",
        "head-lists",
        _common_heads,
        {AGREES: "The same source. Over prompts and steps of one checkpoint the lists tell nothing."},
    ),
    Claim(
        "Half of the heads can lose their whole past nearly for free",
        "no visible loss",
        "study",
        _removal_free,
        {DIFFERS: "Without the packed frame half of the heads are too many for this model."},
    ),
    Claim(
        "Dynamic head programming beats random heads",
        "shown in curves",
        "removal",
        _beats("random"),
        {
            DIFFERS: "Attention mass does not tell what a head's past is worth here.",
            OPEN: "Too close to tell.",
        },
    ),
    Claim(
        "It does where the last frame is left, too",
        "-",
        "removal",
        _factor("random", 1.0, more=True, kept="last"),
        {
            verdict: "Then only what older frames carry is lost, and attention mass hardly tells how much "
            "that is: the damage that was measured does (see the table)."
            for verdict in (DIFFERS, OPEN)
        },
    ),
    Claim("It beats the dearest heads", "-", "removal", _beats("dearest")),
    Claim(
        "Heads may be scored in the commit pass",
        "the public code does",
        "removal",
        _no_worse("dhp, commit"),
        {
            DIFFERS: "Heads look elsewhere in the commit pass, whose outputs no loss has ever seen. We score "
            "the denoising steps.",
            AGREES: "On this model the pass hardly matters; on an earlier one it decided everything.",
        },
    ),
    Claim(
        "The choice is nearly the best there is",
        "optimum of its objective",
        "search",
        _search,
        {
            DIFFERS: "The objective counts attention mass, not what the values under it carry, and adds "
            "heads up as if their damages were independent."
        },
    ),
    Claim(
        "Most current mass would choose as well",
        "-",
        "removal",
        _no_worse("current"),
        {
            DIFFERS: "A head with little past in all may have it all in one place. Among the first heads "
            "to go that matters; from half of them on it does not, and this criterion is as good or better."
        },
    ),
    Claim(
        "Most mass on current and last frame would choose as well",
        "-",
        "removal",
        _no_worse("current and last"),
        {DIFFERS: "It picks heads that look at the last frame much, and here they lose that, too."},
    ),
    Claim(
        "What counts is the damage, measured head by head",
        "-",
        "removal",
        _factor("measured elsewhere", 1.0, more=False),
        {
            AGREES: "Measured once on training prompts, it carries over to all videos. In free rollouts with "
            "the last frame left the gain is small, and gone after 10 s."
        },
    ),
    Claim("The packed frame recovers what removal costs", "25% become 50% dummy heads", "removal", _packing),
    Claim(
        "Quality stays within half a point of dense",
        "84.00 to 83.90 (VBench)",
        "study",
        _against("dummy"),
        {
            OPEN: "It loses a little: the interval reaches from above half a point to well below it. More "
            "videos would decide."
        },
    ),
    Claim(
        "It does in videos of 30 s",
        "-",
        "long",
        _against("dummy", run="30 s"),
        {
            DIFFERS: "Dense keeps the first seconds in sight, which most heads do not here: small errors add "
            "up. The wall gains contrast and outlines melt; a window with first frames holds much longer."
        },
    ),
    Claim(
        "At its cost, roles beat one window of the first and the last frame: 5 s",
        "-",
        "study",
        _role_gain("5 s"),
    ),
    Claim(
        "They do in videos of 30 s",
        "-",
        "long",
        _role_gain("30 s"),
        {
            DIFFERS: "The first frame seems to hold a long video together, and with roles most heads do not "
            "see it: a case for roles that all keep it."
        },
    ),
    Claim(
        "In free rollouts too, its choice beats random heads",
        "-",
        "study",
        _free_choice,
        {
            verdict: "Half of the heads keep the last frame: then it hardly matters which ones they are "
            "(above), too little for the detectors."
            for verdict in (OPEN, DIFFERS)
        },
    ),
    Claim(
        "With the packed frame, half of the heads are as good as a quarter",
        "50% by default",
        "study",
        _quarter,
    ),
    Claim(
        "The heads can be classified at a later chunk as well",
        "chunk 1 or 2",
        "study",
        _all_no_loss("chunk 2", "chunk 3"),
        {OPEN: "Chunk 2 is better here: its past is longer, so more is known of where heads look."},
    ),
    Claim(
        "Heads keep their roles, so that one plan serves all videos",
        "core ratio 0.92",
        "study",
        _all_no_loss("mass plan"),
        {OPEN: "Plans per video are a little better, or equal."},
    ),
    Claim("A short window suffices for neighbor heads", "3 frames", "study", _all_no_loss("neighbor 3")),
    Claim(
        "Critics: seams between chunks get worse",
        "no figure",
        "study",
        _changes("dummy", "dense", "seam_excess", "5 s", "gray levels"),
    ),
    Claim(
        "Critics: they do in long videos",
        "no figure",
        "long",
        _changes("dummy", "dense", "seam_excess", "30 s", "gray levels"),
        {DIFFERS: "By then many of these videos have lost their object: there is less to jump."},
    ),
    Claim(
        "Critics: less motion in long videos",
        "dynamic degree 26.6, not 42.5 (LongLive, 30 s)",
        "long",
        _changes("dummy", "dense", "dynamic", "30 s", "points of moving pixels", 100, more=False),
    ),
    Claim(
        "Ours: anchored contexts mend the seams",
        "-",
        "study",
        _changes("anchored", "dummy", "seam_excess", "5 s", "gray levels", more=False),
    ),
    Claim(
        "Ours: they do in long videos",
        "-",
        "long",
        _changes("anchored", "dummy", "seam_excess", "30 s", "gray levels", more=False),
    ),
    Claim("Faster at 480p", "1.4 times", "bench-480p", _faster("480p", 1.4)),
    Claim("Faster at 720p", "1.6 times", "bench-720p", _faster("720p", 1.6)),
    Claim("Faster at 1080p", "2.0 times", "bench-1080p", _faster("1080p", 2.0)),
    Claim(
        "Faster on the bundled model",
        "-",
        "speed",
        _speed_here,
        {
            APART: "At 160x160 pixels attention is a minor part of the work. The gain "
            "grows with resolution and length."
        },
    ),
    Claim("Adds up with TeaCache", "more than 30 FPS", "bench-480p", _teacache),
)
