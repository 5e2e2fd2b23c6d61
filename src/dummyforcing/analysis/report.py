"""The report of an atlas: one HTML file that needs nothing else, for screens, phones and paper."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from dummyforcing.analysis import figures
from dummyforcing.analysis.atlas import Atlas, policy_codes
from dummyforcing.analysis.plots import head_map
from dummyforcing.analysis.stability import agreement, findings, single_videos, stability
from dummyforcing.files.writing import replacing
from dummyforcing.method.plan import Plan
from dummyforcing.method.policy import Policy

PAPER_ABOVE, PAPER_CORE = 0.25, 0.92
"""Of the paper (arXiv:2601.20499), on a 1.3B model: heads above 80%, and the core ratio of the dummy "
"heads."""

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: #222;
  background: #fff; max-width: 54rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .4rem; }
p { margin: .5rem 0; } .lead { color: #555; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .75rem;
  margin: 1.5rem 0; }
.tile { border: 1px solid #ddd; border-radius: .5rem; padding: .7rem .9rem; }
.tile b { display: block; font-size: 1.6rem; font-weight: 600; line-height: 1.25; }
.tile span, .tile i { font-size: .85rem; color: #444; display: block; line-height: 1.4; }
.tile i { color: #777; margin-top: .25rem; font-style: normal; }
figure { margin: 1rem 0; text-align: center; } img { max-width: 100%; height: auto; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; margin: .8rem 0; font-size: .92rem; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #e4e4e4;
  vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
code { font: .88em ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
.paper { border-left: 3px solid #3b76af; padding-left: .8rem; color: #444; }
@media print { body { max-width: none; padding: 0; font-size: 11pt; } h2 { break-after: avoid; }
  figure, table, .tiles { break-inside: avoid; } details > * { display: block; } }
"""


def write_report(path: str | Path, atlas: Atlas, policy: Policy) -> None:
    """Write the report of what was measured, and of the plan that `policy` finds in it.

    Raises:
        UserError: If the policy has no roles or scores what was not watched, or the file cannot be written.
    """
    text = report(atlas, policy)
    with replacing(Path(path)) as part:
        part.write_text(text, encoding="utf-8")


def report(atlas: Atlas, policy: Policy) -> str:
    """The report as HTML."""
    plan = atlas.plan(policy)
    title = f"Head atlas of {escape(atlas.settings.model)}"
    body = [
        f"<h1>{title}</h1>",
        f"<p class=lead>{_scope(atlas)}</p>",
        _tiles(atlas, policy, plan),
        *_roles(policy, plan),
        *_current(atlas, policy, plan),
        *_distances(atlas, policy, plan),
        *_stability(atlas, policy, plan),
        *_agreement(atlas, policy),
        *_settings(atlas, policy),
    ]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<title>{title}</title><style>{STYLE}</style></head>\n'
        f"<body>\n{chr(10).join(body)}\n</body></html>\n"
    )


def above(atlas: Atlas, policy: Policy) -> float:
    """The share of heads that spend more than 80% on the current chunk, in the mean over all conditions."""
    return float((atlas.scored(policy).mean((0, 1, 2, 3))[..., 2] > figures.DUMMY_MASS).mean())


def _scope(atlas: Atlas) -> str:
    videos, chunks = atlas.mass.shape[0] * atlas.mass.shape[1], atlas.settings.chunks
    passes = [_count(len(atlas.denoising), "denoising step")] + ["the commit pass"] * bool(atlas.commit)
    layers, heads = atlas.mass.shape[4:6]
    return (
        f"Where the {layers} x {heads} attention heads look, measured on {_count(videos, 'video')} made with "
        f"the model's native cache ({escape(atlas.settings.native)}): {_count(len(chunks), 'chunk')} of each "
        f"({', '.join(map(str, chunks))}), {' and '.join(passes)}. The method (Dummy Forcing, "
        "arXiv:2601.20499) knows three roles: dummy heads hardly use the past, sink heads look at the first "
        "frames, neighbor heads at the latest ones."
    )


def _tiles(atlas: Atlas, policy: Policy, plan: Plan) -> str:
    quarter = stability(atlas.regions[:, :, :, atlas.denoising or atlas.commit], _heads(plan) // 4)
    same, _ = single_videos(atlas, policy)
    tiles = (
        (
            f"{above(atlas, policy):.0%}",
            "of the heads spend over 80% on the current chunk",
            f"paper: about {PAPER_ABOVE:.0%}",
        ),
        (
            f"{quarter.overall:.2f}",
            "core ratio of the dummiest quarter over all conditions",
            f"paper: {PAPER_CORE}",
        ),
        (
            f"{plan.num_dummy} / {_heads(plan)}",
            f"heads are dummy under policy {escape(plan.policy)}",
            "paper: a half, with the packed frame",
        ),
        (f"{same:.0%}", "of the roles found in a single video are those of the plan", "mean over videos"),
    )
    cells = (
        f"<div class=tile><b>{figure}</b><span>{what}</span><i>{note}</i></div>"
        for figure, what, note in tiles
    )
    return f"<div class=tiles>{''.join(cells)}</div>"


def _roles(policy: Policy, plan: Plan) -> Iterable[str]:
    counts = ", ".join(f"{count} {escape(role)}" for role, count in plan.counts.items())
    found = "dynamic head programming picks the heads whose past costs least to lose"
    if policy.assign is not None:
        found = f"policy '{escape(policy.name)}' assigns the roles"
    yield "<h2>The plan: what every head is</h2>"
    yield _picture(head_map(plan), "Map of layers and heads, colored by role")
    yield (
        f"<p>One plan for all videos: {counts}. The scores of all conditions are averaged, then {found}. "
        "The average, not a vote of single plans: it keeps the number of dummy heads, and is the optimum for "
        "the average video.</p>"
    )
    yield "<p class=paper>Paper: with the packed frame, 180 of the 360 heads of a 1.3B model are dummy.</p>"


def _current(atlas: Atlas, policy: Policy, plan: Plan) -> Iterable[str]:
    yield "<h2>How much the heads look at the current chunk</h2>"
    yield _picture(figures.current_curve(atlas, policy, plan), "Sorted mass on the current chunk")
    yield (
        "<p>Every bar is a head: the share of its attention that stays in the chunk being denoised, mean "
        "over all conditions; the thin lines span 10% to 90% of them. The farther left, the less the head "
        f"uses its past. Here <b>{above(atlas, policy):.0%}</b> of the heads are above the dashed line at "
        "80%. Roles weigh what a head looks at against what all others do, so the colors need not be "
        "sorted.</p>"
    )
    yield f"<p class=paper>Paper: about {PAPER_ABOVE:.0%} of the heads are above 80%.</p>"
    yield _picture(figures.mass_maps(atlas, policy), "Maps of the mass on first, middle and current frames")
    first = atlas.settings.first_frames
    yield (
        f"<p>The same mean shares, head by head: on the first {'frame' if first == 1 else f'{first} frames'} "
        "of the video, on all others before the chunk, and on the chunk itself. The three add up to 100%.</p>"
    )


def _distances(atlas: Atlas, policy: Policy, plan: Plan) -> Iterable[str]:
    yield "<h2>How far back the heads look</h2>"
    yield _picture(figures.distance_maps(atlas, policy, plan), "Mass by frame distance")
    yield (
        "<p>Attention by frame: from the first frame of the video (left) over the frame so many latent "
        f"frames back to the current chunk (right, its {_count(atlas.settings.chunk_frames, 'frame')} "
        "together). Left: mean over the heads of each role. Right: every head, those of a role from high to "
        "low mass on the current chunk. A frame counts in the chunks in which it exists. Mass is on "
        "logarithmic scales. A neighbor head whose line falls off quickly needs no more frames than the plan "
        "gives it.</p>"
    )
    yield "<p class=paper>Paper: sink heads look at the first frame, neighbor heads at the latest ones.</p>"


def _stability(atlas: Atlas, policy: Policy, plan: Plan) -> Iterable[str]:
    scores = atlas.regions[:, :, :, atlas.denoising or atlas.commit]
    heads = _heads(plan)
    compared = plan.num_dummy or heads // 4  # roles of the user's own may have no dummy heads
    counts = sorted({max(1, round(share * heads)) for share in (0.1, 0.25, 0.5)} | {compared})
    rows = []
    for count in counts:
        found = stability(scores, count)
        axes = {name: f"{ratio:.2f}" for name, (_, ratio) in found.along.items()}
        lengths = {name: length for name, (length, _) in found.along.items()}
        rows.append([f"{count} ({count / heads:.0%})", f"{found.overall:.2f}", *axes.values(),
                     f"{found.similarity:.2f}", f"{found.chance:.2f}"])  # fmt: skip
    title = [f"over {_count(length, name)}" for name, length in lengths.items()]
    yield "<h2>Whether the same heads are dummy everywhere</h2>"
    yield _picture(
        figures.condition_matrix(atlas, compared), "Similarity of the dummy sets of all conditions"
    )
    yield (
        "<p>Each condition (a video, a chunk, a step) has its own dummy heads; the picture compares all of "
        f"them with all ({compared} dummy heads each): bright where two conditions agree. Conditions "
        "are ordered by step, within a step by chunk, then by video. One bright square: the heads depend on "
        "nothing. Bright squares on the diagonal alone: they depend on the step.</p>"
    )
    columns = ["dummy heads", "core ratio", *title, "mean Jaccard", "Jaccard by chance"]
    yield _table(columns, rows)
    yield (
        "<p>The core ratio is the number of heads that are dummy under <i>all</i> conditions, divided by the "
        f"number under one: over all {np.prod(scores.shape[:4])} conditions of the denoising steps, then "
        "with one thing varying and the rest fixed (mean over the rest). It can only fall with more "
        "conditions; random sets would give almost 0.</p>"
    )
    yield f"<p class=paper>Paper: core ratio {PAPER_CORE} over prompts, steps and chunks.</p>"


def _agreement(atlas: Atlas, policy: Policy) -> Iterable[str]:
    found = list(findings(atlas, policy))
    rows = []

    def compare(name: str, pair: tuple[float, float]) -> None:
        rows.append([name, f"{pair[0]:.0%}", f"{pair[1]:.2f}"])

    merged = {
        name: policy_codes(atlas.regions[:, :, :, calls].mean((0, 1, 2, 3), dtype=np.float64), policy)
        for name, calls in (("denoising", atlas.denoising), ("commit", atlas.commit))
        if calls
    }
    by_name = {finding.name: finding.codes for finding in found}
    compare("plan of a single video / merged plan (mean over videos)", single_videos(atlas, policy))
    first, last = atlas.settings.chunks[0], atlas.settings.chunks[-1]
    for name, codes in merged.items():
        if first != last:
            a, b = (by_name[f"{name}, chunk {chunk}"] for chunk in (first, last))
            compare(f"{name}: chunk {first} / chunk {last}", agreement(a, b))
            compare(f"{name}: chunk {first} / all chunks", agreement(a, codes))
    if len(merged) == 2:
        both = [by_name[f"{name}, chunk {first}"] for name in merged]
        compare(f"denoising / commit pass (the official choice), chunk {first}", agreement(*both))
        compare("denoising / commit pass, all chunks", agreement(*merged.values()))
    yield "<h2>Whether it matters where the heads are scored</h2>"
    yield _table(["roles found in", "equal roles", "Jaccard of dummy heads"], rows)
    yield _picture(figures.agreement_maps(found), "Agreement between chunks and passes")
    yield (
        "<p>Roles found in one chunk (mean over all videos), compared with those found in every other chunk, "
        "and in the commit pass instead of the denoising steps. Left: the share of heads with the same role; "
        "right: how far the dummy heads are the same.</p>"
    )
    yield (
        "<p class=paper>The official code scores the commit pass of an early chunk. Where the two agree "
        "little, it finds other heads than those that ignore their past while the video is made.</p>"
    )


def _settings(atlas: Atlas, policy: Policy) -> Iterable[str]:
    settings = atlas.settings
    height, width = settings.size
    made = dict(settings.made)
    versions = made.pop("versions", {})
    facts = {
        "model": f"{settings.model} (fingerprint {settings.fingerprint})",
        "videos": f"{_count(len(settings.prompts), 'prompt')}, seed {', '.join(map(str, settings.seeds))}",
        "size": f"{width} x {height} pixels, chunks of {_count(settings.chunk_frames, 'latent frame')}",
        "cache while watching": settings.native,
        "plan": f"policy {policy.name}, scored in the {policy.score_pass} pass",
        "queries": f"{settings.rows} rows per call (seed {settings.row_seed})",
        "computed": f"{settings.device}, {settings.dtype}",
        **{key: str(value) for key, value in made.items()},
    }
    if isinstance(versions, Mapping):
        facts["versions"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    rows = [
        [name, f"<code>{escape(text)}</code>" if name == "command" else escape(text)]
        for name, text in facts.items()
    ]
    yield "<h2>How this was measured</h2>"
    yield _table(["", ""], rows, numbers=False)
    prompts = "".join(f"<li>{escape(prompt)}</li>" for prompt in settings.prompts)
    yield f"<details open><summary>The prompts</summary><ol>{prompts}</ol></details>"


def _heads(plan: Plan) -> int:
    return len(plan.roles) * len(plan.roles[0])


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _picture(figure: Figure, text: str) -> str:
    """A figure as an SVG inside the page."""
    file = io.BytesIO()
    with rc_context({"svg.hashsalt": "atlas", "font.size": 9}):
        figure.savefig(file, format="svg", dpi=200, metadata={"Date": None})
    data = base64.b64encode(file.getvalue()).decode()
    return f'<figure><img alt="{escape(text)}" src="data:image/svg+xml;base64,{data}"></figure>'


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = True) -> str:
    """A table; all columns but the first hold numbers."""

    def line(tag: str, cells: Sequence[str]) -> str:
        kinds = [" class=n" if numbers and i else "" for i in range(len(cells))]
        return "".join(f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))

    head = f"<tr>{line('th', columns)}</tr>" if any(columns) else ""
    body = "".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    return f"<div class=scroll><table>{head}{body}</table></div>"
