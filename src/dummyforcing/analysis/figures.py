"""The pictures of an atlas, as matplotlib figures."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dummyforcing.analysis.atlas import Atlas, role_codes
from dummyforcing.analysis.plots import COLOURS, colours
from dummyforcing.analysis.stability import Finding, agreement, dummy_sets, jaccard
from dummyforcing.method.plan import Plan
from dummyforcing.method.policy import Policy

DUMMY_MASS = 0.8
"""The paper calls a head dummy-like if it spends more than this on the current chunk."""
WIDTH = 8.0
"""Of a figure over the whole page, in inches."""

Array = NDArray[np.floating]


def current_curve(atlas: Atlas, policy: Policy, plan: Plan) -> Figure:
    """Mass on the current chunk of every head, sorted: mean, and the 10% to 90% range over all conditions."""
    current = atlas.scored(policy)[..., 2]
    current = current.reshape(-1, current.shape[-2] * current.shape[-1])
    mean = current.mean(0)
    order = np.argsort(-mean)
    low, high = np.quantile(current, (0.1, 0.9), axis=0)
    roles = np.array([role for row in plan.roles for role in row])

    figure, axes = _figure(3.6)
    places = (np.arange(len(mean)) + 0.5) / len(mean)
    width = 1 / len(mean)
    for role, color in colours(plan).items():
        mine = roles[order] == role
        axes.bar(places[mine], mean[order][mine], width, color=color, edgecolor="white", lw=0.3, label=role)
    axes.vlines(places, low[order], high[order], color="#333333", lw=0.8)
    axes.axhline(DUMMY_MASS, color="#c0392b", lw=1, ls="--")
    axes.annotate(
        f"{DUMMY_MASS:.0%}", (1, DUMMY_MASS), (2, 0), textcoords="offset points", color="#c0392b", va="center"
    )
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="heads, sorted", ylabel="mass on the current chunk")
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.legend(frameon=False)
    return figure


def mass_maps(atlas: Atlas, policy: Policy) -> Figure:
    """Mean mass on first, middle and current frames, as maps of layers x heads."""
    mean = atlas.scored(policy).mean((0, 1, 2, 3))
    layers, heads, _ = mean.shape
    figure = Figure(figsize=(WIDTH, 0.9 + min(0.8 * layers / heads, 2.2) * WIDTH / 3), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for region, (axes, name) in enumerate(zip(panels, ("first", "middle", "current"), strict=True)):
        image = axes.imshow(mean[..., region], cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
        axes.set(title=name, xlabel="head")
        _whole_ticks(axes, layers, heads)
    panels[0].set_ylabel("layer")
    bar = figure.colorbar(image, ax=panels, shrink=0.85, pad=0.02)
    bar.ax.yaxis.set_major_formatter("{x:.0%}")
    return figure


def condition_matrix(atlas: Atlas, num_dummy: int) -> Figure:
    """Jaccard similarity of the dummy sets of all conditions: by step, then chunk, then video."""
    codes = role_codes(atlas.regions, num_dummy)
    prompts, seeds, chunks, calls = codes.shape[:4]
    sets = dummy_sets(codes).transpose(3, 2, 0, 1, 4).reshape(-1, codes[0, 0, 0, 0].size)
    figure, axes = _figure(6.6, width=7.4)
    image = axes.imshow(jaccard(sets), cmap="magma", vmin=0, vmax=1, interpolation="nearest")
    group = prompts * seeds * chunks
    names = [_call_name(call) for call in atlas.settings.calls]
    middles = [(i + 0.5) * group - 0.5 for i in range(calls)]
    axes.set_xticks(middles, names)
    axes.set_yticks(middles, names, rotation=90, va="center")
    axes.tick_params(length=0)
    for i in range(1, calls):
        for line in (axes.axhline, axes.axvline):
            line(i * group - 0.5, color="white", lw=1.2)
    figure.colorbar(image, ax=axes, shrink=0.85, label="Jaccard similarity")
    return figure


def distance_maps(atlas: Atlas, policy: Policy, plan: Plan) -> Figure:
    """Mass per frame distance: the mean of each role, and every head."""
    calls = atlas.commit if policy.score_pass == "commit" else atlas.denoising
    mass = atlas.mass[:, :, :, calls].reshape(-1, *atlas.mass.shape[4:])
    there = np.isfinite(mass).any((0, 1, 2))
    bins = np.flatnonzero(there)[::-1]  # the oldest frame is on the left
    mean = np.nanmean(mass[..., bins], axis=0).reshape(-1, len(bins))
    last = atlas.mass.shape[-1] - 1
    names = ["first" if b == last else "now" if b == 0 else str(b) for b in bins]
    roles = np.array([role for row in plan.roles for role in row])

    figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for role, colour in colours(plan).items():
        if (roles == role).any():
            line = mean[roles == role].mean(0)
            color = {COLOURS["dummy"]: "#8c8c8c"}.get(colour, colour)  # a line must be darker than an area
            left.plot(line, color=color, marker="o", ms=3.5, label=role)
    left.set(yscale="log", ylabel="mean mass of a head", title="by role")
    left.legend(frameon=False)
    left.grid(alpha=0.25)
    order = np.lexsort((-mean[:, -1], [list(plan.counts).index(role) for role in roles]))
    image = right.imshow(
        np.clip(mean[order], 1e-3, 1),
        cmap="viridis",
        norm=LogNorm(1e-3, 1),
        aspect="auto",
        interpolation="nearest",
    )
    right.set(title="every head")
    edges = np.cumsum([0, *plan.counts.values()])
    right.set_yticks((edges[:-1] + edges[1:]) / 2 - 0.5, plan.counts, rotation=90, va="center")
    right.tick_params(axis="y", length=0)
    for edge in edges[1:-1]:
        right.axhline(edge - 0.5, color="white", lw=1.2)
    every = 1 if len(names) <= 12 else 2
    for axes in (left, right):
        kept = sorted({0, *range(len(names) - 1, 0, -every)})
        axes.set_xticks(kept, [names[i] for i in kept], fontsize=8)
        axes.set_xlabel("frames back")
    figure.colorbar(image, ax=right, pad=0.02)
    return figure


def agreement_maps(found: list[Finding]) -> Figure:
    """Draw how far the roles agree that are found in other chunks and passes."""
    pairs = np.array([[agreement(a.codes, b.codes) for b in found] for a in found])
    names = [finding.name for finding in found]
    side = WIDTH / 2
    figure = Figure(figsize=(WIDTH, side + 0.9), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, values, title in zip(
        panels, np.moveaxis(pairs, -1, 0), ("equal roles", "Jaccard of the dummy heads"), strict=True
    ):
        axes.imshow(values, cmap="magma", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(title)
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.tick_params(length=0)
        for (row, column), value in np.ndenumerate(values):
            if len(names) <= 14:
                color = "white" if value < 0.6 else "black"
                text = f"{value:.2f}".lstrip("0") if value < 1 else "1"
                axes.text(column, row, text, ha="center", va="center", color=color, fontsize=6.5)
    return figure


def _call_name(call: int | None) -> str:
    return "commit" if call is None else f"step {call}"


def _figure(height: float, width: float = WIDTH) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _whole_ticks(axes: Axes, layers: int, heads: int) -> None:
    for axis, count in ((axes.xaxis, heads), (axes.yaxis, layers)):
        axis.set_ticks(range(0, count, 2 if count <= 16 else 5))
