"""The claims of the paper and of its critics, each with a rule that compares it with our results.

A verdict is `agrees`, `does not agree` or `open` (the interval is too wide to tell): the rules decide. What
this model cannot tell is `not comparable`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Result = dict[str, Any]

AGREES, DIFFERS, OPEN = "agrees", "does not agree", "open"
APART, NONE = "not comparable", "not measured"
MARGIN = 0.005
"""The paper's tables move by up to half a point: less than that is no loss."""


@dataclass(frozen=True)
class Claim:
    """One row of the table."""

    text: str
    """What is claimed."""
    paper: str
    """The figure that was published; a dash if it is a question of ours."""
    part: str
    """Of the results that the finding needs."""
    finding: Callable[[dict[str, Result]], tuple[str, str]]
    """Our figure and the verdict."""
    why: dict[str, str] = field(default_factory=dict)
    """What there is to say, by verdict; under the empty key, whatever the verdict."""

    def row(self, results: dict[str, Result]) -> tuple[str, str, str]:
        """Our figure, the verdict and the reason."""
        parts = self.part.split("+")
        if not all(part in results for part in parts):
            return "-", NONE, self.why.get(NONE, "")
        ours, verdict = self.finding(results)
        return ours, verdict, self.why.get(verdict, self.why.get("", ""))


def number(estimate: Result, scale: float = 1, digits: int = 1, signed: bool = False) -> str:
    """A mean with its 95% interval."""
    low, high = estimate["interval"]
    sign = "+" if signed else ""
    mean, low, high = (f"{scale * x:{sign}.{digits}f}" for x in (estimate["mean"], low, high))
    return f"{mean} ({low} to {high})"


def exceeds(estimate: Result, bound: float) -> str:
    """Whether a figure lies above a bound."""
    low, high = estimate["interval"]
    return AGREES if low > bound else DIFFERS if high < bound else OPEN


def no_loss(difference: Result, margin: float = MARGIN) -> str:
    """Whether a difference lies above minus the margin."""
    return exceeds(difference, -margin)


def worst(*verdicts: str) -> str:
    """Of several verdicts that must all hold."""
    return next(v for v in (DIFFERS, OPEN, AGREES) if v in verdicts)


def order(results: dict[str, Result], name: str, key: str, percent: int = 50, kept: str = "none") -> Result:
    """A figure of the removal study: `damage` or `factor`."""
    removal = results["removal"]
    found: Result = removal["orders"][name][kept][key][removal["percents"].index(percent)]
    return found


def against(results: dict[str, Result], name: str, other: str, measure: str, run: str = "5 s") -> Result:
    """A paired difference of the free rollouts."""
    found: Result = _run(results, run)["variants"][name][f"against_{other}"][measure]
    return found


def cost(results: dict[str, Result], name: str, run: str = "5 s") -> float:
    """Past frames that a head sees, mean."""
    mean: float = _run(results, run)["variants"][name]["measures"]["past_frames"]["mean"]
    return mean


def _run(results: dict[str, Result], run: str) -> Result:
    found: Result = {
        **results.get("study", {}).get("runs", {}),
        **results.get("long", {}).get("runs", {}),
    }[run]
    return found


def _points(difference: Result) -> str:
    return f"{number(difference, 100, 1, signed=True)} points"


def _above_80(results: dict[str, Result]) -> tuple[str, str]:
    above = results["removal"]["above"]
    near = abs(above["mean"] - 0.25) <= 0.1
    return f"{number(above, 100)}% of the heads", AGREES if near else DIFFERS


def _core(results: dict[str, Result]) -> tuple[str, str]:
    core = results["removal"]["core"]
    text = (
        f"{core['all']:.2f} over all steps and videos; {core['steps of a video']:.2f} over the steps "
        f"of a video, {core['videos at a step']:.2f} over videos at one step"
    )
    return text, AGREES if core["all"] >= 0.85 else DIFFERS


def _removal_free(results: dict[str, Result]) -> tuple[str, str]:
    difference = against(results, "removal", "dense", "semantic")
    return f"{_points(difference)} of color, shape, motion, count", no_loss(difference)


def _beats(name: str, bound: float = 1.0) -> Callable[[dict[str, Result]], tuple[str, str]]:
    def finding(results: dict[str, Result]) -> tuple[str, str]:
        factors = {p: order(results, name, "factor", p) for p in _percents(results)}
        text = ", ".join(f"{number(f, 1, 2)} at {p}%" for p, f in factors.items())
        return f"times the damage: {text}", worst(*(exceeds(f, bound) for f in factors.values()))

    return finding


def _no_worse(name: str) -> Callable[[dict[str, Result]], tuple[str, str]]:
    """Whether a way to score or to choose does at most a tenth more damage than ours."""

    def finding(results: dict[str, Result]) -> tuple[str, str]:
        text, verdict = _beats(name, 1.1)(results)
        return text, {AGREES: DIFFERS, DIFFERS: AGREES}.get(verdict, OPEN)

    return finding


def _percents(results: dict[str, Result]) -> list[int]:
    return [p for p in (20, 50) if p in results["removal"]["percents"]]


def _packing(results: dict[str, Result]) -> tuple[str, str]:
    none, last = (order(results, "dhp, denoise", "damage", 50, kept) for kept in ("none", "last"))
    text = f"damage at 50%: {number(none, 100, 2)}% of the variance without, {number(last, 100, 2)}% with it"
    return text, AGREES if none["interval"][0] > last["interval"][1] else OPEN


def _against(
    name: str, other: str = "dense", measure: str = "semantic", run: str = "5 s"
) -> Callable[[dict[str, Result]], tuple[str, str]]:
    def finding(results: dict[str, Result]) -> tuple[str, str]:
        difference = against(results, name, other, measure, run)
        return _points(difference), no_loss(difference)

    return finding


def _all_no_loss(*names: str) -> Callable[[dict[str, Result]], tuple[str, str]]:
    def finding(results: dict[str, Result]) -> tuple[str, str]:
        found = {name: against(results, name, "dummy", "semantic") for name in names}
        text = "; ".join(f"{name}: {_points(difference)}" for name, difference in found.items())
        return text, worst(*(no_loss(difference) for difference in found.values()))

    return finding


def _quarter(results: dict[str, Result]) -> tuple[str, str]:
    gain = against(results, "25% dummy", "dummy", "semantic")
    loss = {"mean": -gain["mean"], "interval": [-end for end in reversed(gain["interval"])]}
    return f"{_points(loss)} for the second quarter", no_loss(loss)


def _measured_order(results: dict[str, Result]) -> tuple[str, str]:
    text, verdict = _beats("measured elsewhere")(results)
    return text, {AGREES: DIFFERS, DIFFERS: AGREES}.get(verdict, OPEN)


def _measured_plan(results: dict[str, Result]) -> tuple[str, str]:
    right, psnr = (against(results, "measured plan", "dummy", measure) for measure in ("semantic", "psnr"))
    return f"{_points(right)}; PSNR to dense {number(psnr, 1, 2, signed=True)} dB", exceeds(psnr, 0)


def _search(results: dict[str, Result]) -> tuple[str, str]:
    dhp = results["search"]["criteria"]["dhp, denoise"]
    text = (
        f"{number(dhp['better'], 100)}% of all choices are better; "
        f"{number(dhp['reached'], 100)}% of the way from the mean choice to the best"
    )
    return text, exceeds(dhp["reached"], 0.8)


def _worse_seams(run: str) -> Callable[[dict[str, Result]], tuple[str, str]]:
    def finding(results: dict[str, Result]) -> tuple[str, str]:
        difference = against(results, "dummy", "dense", "seam_excess", run)
        return f"{number(difference, 1, 3, signed=True)} gray levels, {run}", exceeds(difference, 0)

    return finding


def _less_motion(run: str) -> Callable[[dict[str, Result]], tuple[str, str]]:
    def finding(results: dict[str, Result]) -> tuple[str, str]:
        difference = against(results, "dummy", "dense", "dynamic", run)
        low, high = difference["interval"]
        text = f"{number(difference, 100, 2, signed=True)} points of moving pixels, {run}"
        return text, AGREES if high < 0 else DIFFERS if low >= 0 else OPEN

    return finding


def _anchored(run: str) -> Callable[[dict[str, Result]], tuple[str, str]]:
    def finding(results: dict[str, Result]) -> tuple[str, str]:
        difference = against(results, "anchored", "dummy", "seam_excess", run)
        low, high = difference["interval"]
        text = (
            f"{number(difference, 1, 3, signed=True)} gray levels, {run}, for "
            f"{cost(results, 'anchored', run):.1f} in place of {cost(results, 'dummy', run):.1f} past frames "
            "per head"
        )
        return text, AGREES if high < 0 else DIFFERS if low > 0 else OPEN

    return finding


def _speed(results: dict[str, Result]) -> tuple[str, str]:
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
            "scores are summed over all steps, anew for each video."
        },
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
    ),
    Claim(
        "Most mass on current and last frame would choose as well",
        "-",
        "removal",
        _no_worse("current and last"),
    ),
    Claim("The packed frame recovers what removal costs", "25% become 50% dummy heads", "removal", _packing),
    Claim(
        "Quality stays within half a point of dense",
        "84.00 to 83.90 (VBench)",
        "study",
        _against("dummy"),
        {OPEN: "The mean is what it is; with this many videos the interval is wider than half a point."},
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
    ),
    Claim(
        "Heads keep their roles, so that one plan serves all videos",
        "core ratio 0.92",
        "study",
        _all_no_loss("shipped plan"),
    ),
    Claim("A short window suffices for neighbor heads", "3 frames", "study", _all_no_loss("neighbor 3")),
    Claim("Critics: seams between chunks get worse", "no figure", "study", _worse_seams("5 s")),
    Claim("Critics: they do in long videos", "no figure", "long", _worse_seams("30 s")),
    Claim(
        "Critics: less motion in long videos",
        "dynamic degree 26.6, not 42.5 (LongLive, 30 s)",
        "long",
        _less_motion("30 s"),
    ),
    Claim("Ours: anchored contexts mend the seams", "-", "study", _anchored("5 s")),
    Claim("Ours: they do in long videos", "-", "long", _anchored("30 s")),
    Claim(
        "Faster at 480p",
        "1.4 times",
        "speed",
        _speed,
        {
            APART: "At 160x160 pixels attention is a minor part of the work. The gain "
            "grows with resolution and length."
        },
    ),
    Claim(
        "Longer context at equal cost",
        "6.58 times",
        "context",
        _speed,
        {NONE: "Needs longer videos of a model that was trained on them."},
    ),
    Claim(
        "Adds up with TeaCache",
        "more than 30 FPS",
        "teacache",
        _speed,
        {NONE: "Needs a full-size model and a GPU."},
    ),
)
