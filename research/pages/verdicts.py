"""Verdicts: rules that compare our results with a claim, and the ways to look a result up.

A verdict is `agrees`, `does not agree` or `open` (the interval is too wide to tell): the rules decide. What
this model cannot tell is `not comparable`.
"""

from typing import Any

Result = dict[str, Any]

AGREES, DIFFERS, OPEN = "agrees", "does not agree", "open"
APART, NONE = "not comparable", "not measured"
MARGIN = 0.005
"""The paper's tables move by up to half a point: less than that is no loss."""


def number(estimate: Result, scale: float = 1, digits: int = 1, signed: bool = False, unit: str = "") -> str:
    """A mean with its 95% interval."""
    low, high = estimate["interval"]
    sign = "+" if signed else ""
    # Adding 0 makes a negative zero positive.
    mean, low, high = (
        f"{round(scale * x, digits) + 0.0:{sign}.{digits}f}" for x in (estimate["mean"], low, high)
    )
    return f"{mean}{unit} ({low} to {high})"


def exceeds(estimate: Result, bound: float) -> str:
    """Whether a figure lies above a bound."""
    low, high = estimate["interval"]
    return AGREES if low > bound else DIFFERS if high < bound else OPEN


def no_loss(difference: Result, margin: float = MARGIN) -> str:
    """Whether a difference lies above minus the margin."""
    return exceeds(difference, -margin)


def negated(estimate: Result) -> Result:
    """The same with the other sign."""
    low, high = estimate["interval"]
    return {"mean": -estimate["mean"], "interval": [-high, -low]}


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
    found: Result = runs(results)[run]["variants"][name][f"against_{other}"][measure]
    return found


def cost(results: dict[str, Result], name: str, run: str = "5 s") -> float:
    """Past frames that a head sees, mean."""
    mean: float = runs(results)[run]["variants"][name]["measures"]["past_frames"]["mean"]
    return mean


def runs(results: dict[str, Result]) -> dict[str, Result]:
    """The runs of free rollouts by name."""
    return {**results.get("study", {}).get("runs", {}), **results.get("long", {}).get("runs", {})}
