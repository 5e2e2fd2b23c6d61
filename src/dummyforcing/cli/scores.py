"""The tables and sentences that `dummyforcing eval` prints."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from dummyforcing.cli.terminal import tell
from dummyforcing.evaluation.vbench import DIMENSIONS, scores

if TYPE_CHECKING:
    from dummyforcing.evaluation.bootstrap import EstimateJson
    from dummyforcing.evaluation.judge import Judgement
    from dummyforcing.evaluation.prompts import Job
    from dummyforcing.evaluation.vbench_package import Outcome
    from dummyforcing.evaluation.world.measures import SceneMeasures
    from dummyforcing.presets.preset import Preset


def print_measures(measures: "Mapping[str, EstimateJson]", videos: int) -> None:
    """Print means and intervals.

    Args:
        measures: From `suite.aggregate`.
        videos: How many there are.
    """
    table = Table("measure", title=f"{videos} videos", title_justify="left")
    for title in ("mean", "95% interval", "prompts"):
        table.add_column(title, justify="right")
    for name, found in measures.items():
        low, high = found["interval"]
        table.add_row(name, f"{found['mean']:.4g}", f"{low:.4g} .. {high:.4g}", str(found["n"]))
    tell(table)


def print_vbench(outcome: "Outcome") -> None:
    """Print VBench's scores, and which dimensions are missing and why."""
    summary = scores(outcome.raw)  # first: it refuses scores that cannot be
    if outcome.raw:
        table = Table("VBench dimension")
        for title in ("raw", "normalised"):
            table.add_column(title, justify="right")
        for name, dimension in DIMENSIONS.items():
            if name in outcome.raw:
                raw = outcome.raw[name]
                table.add_row(name, f"{raw:.4f}", f"{100 * dimension.normalise(raw):.2f}%")
        tell(table)
        for title in ("quality", "semantic", "total"):
            value = getattr(summary, title)
            shown = "not all of its dimensions are there" if value is None else f"{value:.2f}"
            tell(f"VBench {title}: {shown}")
    for reason in dict.fromkeys(outcome.not_computed.values()):
        names = [name for name, why in outcome.not_computed.items() if why == reason]
        which = ", ".join(names) if len(names) < len(DIMENSIONS) else f"all {len(names)} dimensions"
        tell(f"VBench, not computed: {which}; {reason}.")


def print_differences(
    rows: "Sequence[SceneMeasures]",
    others: "Sequence[SceneMeasures]",
    prompts: Sequence[str],
    names: tuple[str, str],
) -> None:
    """Print the means of two sets of videos, and their differences pair by pair.

    Args:
        rows: One per video.
        others: Of the same prompts and noise, in the same order.
        prompts: What each video shows.
        names: Of the two.
    """
    from dummyforcing.evaluation.suite import aggregate, differences

    title = f"{len(rows)} pairs of videos, A {names[0]} and B {names[1]}"
    table = Table("measure", title=title, title_justify="left")
    for title in ("A", "B", "A - B", "95% interval", "prompts"):
        table.add_column(title, justify="right")
    mine, theirs = (aggregate(some, groups=prompts) for some in (rows, others))
    for name, found in differences(rows, others, groups=prompts).items():
        low, high = found["interval"]
        means = (f"{some[name]['mean']:.3g}" for some in (mine, theirs))
        interval = f"{low:+.3g} .. {high:+.3g}"
        table.add_row(name, *means, f"{found['mean']:+.3g}", interval, str(found["n"]))
    tell(table)


def print_detectors(preset: "Preset", jobs: "Sequence[Job]") -> None:
    """Print of which prompts exact detectors judge the videos.

    Args:
        preset: Of the model.
        jobs: One of each prompt.
    """
    from dummyforcing.evaluation.generate import scene_of

    if not preset.rendered_world:
        tell(
            f"Model '{preset.name}' does not show the rendered world of the bundled models: objects are not "
            "judged, only the measures of any video."
        )
        return
    others = [job.text for job in jobs if scene_of(job, preset) is None]
    judged = len(jobs) - len(others)
    tell(f"Exact detectors judge {judged} of {len(jobs)} prompts.")
    if others:
        tell(f"They do not know what to look for in '{others[0]}'{' and others' if others[1:] else ''}.")


def print_judgement(judgement: "Judgement", than: str = "dense") -> None:
    """Print in words what is worse, what is better, and in what no loss was found.

    Args:
        judgement: From `judge`.
        than: What was compared with.
    """
    from dummyforcing.evaluation.judge import FEWEST

    if judgement.is_told:
        titles = f"Worse than {than}", f"Better than {than}"
    else:
        count = f"{judgement.prompts} prompt{'s' * (judgement.prompts != 1)}"
        tell(f"{count} cannot tell loss from chance, {FEWEST} or more can. In these videos, as they are:")
        titles = "worse", "better"
    for title, sentences in zip(titles, (judgement.worse, judgement.better), strict=True):
        if sentences:
            tell(f"{title}:")
            for sentence in sentences:
                tell(f"- {sentence}")
    if not judgement.worse:
        tell(f"Nothing was found to be worse than {than}.")
    if judgement.no_loss:
        tell(f"No loss found in: {', '.join(judgement.no_loss)}.")
