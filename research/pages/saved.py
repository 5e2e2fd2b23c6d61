"""What saved memory buys: claims on long contexts, memory, stories, large pictures, TeaCache and more.

`page.py` puts them into docs/reproduction.md as a table of their own.
"""

from research.pages.claims import Claim, bench_rows
from research.pages.verdicts import AGREES, APART, DIFFERS, OPEN, Result

KEY_FRAMES = "key frames 1+4+4"


def _longer(results: dict[str, Result]) -> tuple[str, str]:
    rows = bench_rows(results, "bench-long")
    long, window = (rows[name, "none", False]["fps"] for name in ("long:24,117", "window:3,6"))
    here = results["long-context"]["policies"]
    slower = here["long:120"]["chunk_ms"]["240"] / here["window:3,6"]["chunk_ms"]["240"]
    text = (
        f"{here['long:120']['context_ratio']:.1f} times in some heads at as many keys: chunks take "
        f"{slower:.2f} times the window's at 240 frames on a CPU (bundled model); on an H200 {long:.1f} and "
        f"{window:.1f} FPS (1.3B sizes, second half of 240 frames)"
    )
    return text, AGREES if long >= 0.995 * window else DIFFERS


def _recall_rows(results: dict[str, Result]) -> dict[tuple[str, float, bool], Result]:
    rows = [*results["recall-5s"]["rows"], *results.get("recall", {"rows": []})["rows"]]
    return {(row["variant"], row["seconds"], row["enters"]): row for row in rows}


def _share(row: Result) -> str:
    return f"{row['same']['right']} of {row['valid']}"


def _keeps(results: dict[str, Result]) -> tuple[str, str]:
    """Dense against windows, for objects that are there from the start."""
    rows, parts = _recall_rows(results), []
    lowest = 1.0
    for seconds in (5, 10, 20):
        for enters in (False, True):
            if ("dense", seconds, enters) not in rows:
                continue
            dense, window = (rows[name, seconds, enters] for name in ("dense", "window 0+9"))
            where = "entering later" if enters else "there at first"
            parts.append(f"{seconds} s, {where}: {_share(dense)} (window 0+9: {_share(window)})")
            lowest = min(lowest, dense["same"]["right"] / dense["valid"])
    return "the same in color, shape and size after " + "; ".join(parts), AGREES if lowest > 0.5 else DIFFERS


def _equal_cost(results: dict[str, Result]) -> tuple[str, str]:
    """Policy `long` against windows of its cost."""
    rows, parts = _recall_rows(results), []
    gains = []
    for seconds in (5, 10, 20):
        for enters in (False, True):
            names = ("long", "window 0+9", "window 3+6")
            if not all((name, seconds, enters) in rows for name in names):
                continue
            found = [rows[name, seconds, enters] for name in names]
            where = "later" if enters else "at first"
            parts.append(f"{seconds} s, {where}: {', '.join(map(_share, found))}")
            shares = [row["same"]["right"] / max(1, row["valid"]) for row in found]
            gains.append(shares[0] > max(shares[1:]))
    text = f"the same object, long / window 0+9 / window 3+6: {'; '.join(parts)}"
    return text, AGREES if all(gains) else OPEN if any(gains) else DIFFERS


def _key_frames(results: dict[str, Result]) -> tuple[str, str]:
    """Policy `keyframes` against a window of its cost, in one run."""
    rows = {
        (row["variant"], row["seconds"], row["enters"]): row for row in results["recall-keyframes"]["rows"]
    }
    parts, more = [], []
    for name, seconds, enters in rows:
        if name != KEY_FRAMES:
            continue
        found = [rows[one, seconds, enters] for one in (KEY_FRAMES, "window 3+6")]
        shares = [
            f"{row['color']['right']} of {row['valid']} in color, {row['same']['right']} in all"
            for row in found
        ]
        where = "entering later" if enters else "there at first"
        parts.append(f"{seconds:g} s, {where}: {shares[0]} (window 3+6: {shares[1]})")
        # Intervals that do not overlap.
        more.append(found[0]["color"]["interval"][0] > found[1]["color"]["interval"][1])
    text = f"the same object after {'; '.join(parts)}"
    return text, AGREES if all(more) else OPEN if any(more) else DIFFERS


def _how_many(results: dict[str, Result]) -> tuple[str, str]:
    rows = {row["variant"]: row for row in results["recall-5s"]["rows"] if row["enters"]}
    parts = [
        f"{name.removeprefix('watched, ')} heads: {_share(row)}"
        for name, row in rows.items()
        if name.startswith("watched")
    ]
    text = f"{', '.join(parts)}, all 96: {_share(rows['dense'])} (absent for 5 s, entering later)"
    return text, APART


def _forgets(results: dict[str, Result]) -> tuple[str, str]:
    rows = _recall_rows(results)
    parts = []
    for seconds in (5, 20):
        found = [rows.get((name, seconds, False)) for name in ("dummy", "anchored")]
        if all(found):
            parts.append(f"{seconds} s: {', '.join(_share(row) for row in found if row)}")
    return f"the same object, dummy, anchored: {'; '.join(parts)}", DIFFERS


def _switch(results: dict[str, Result]) -> tuple[str, str]:
    parts, most = [], 0.0
    for row in results["switches"]["rows"]:
        how = f"{row['recache_frames']} frames written again" if row["recache_frames"] else "no re-cache"
        parts.append(f"{row['policy']}, {how}: {row['cost_chunks']:.2f}")
        most = max(most, row["most_chunks"])
    text = f"chunks' time, {'; '.join(parts)}; {most:.2f} at most (CPU, bundled model)"
    return text, AGREES if most <= 1 else DIFFERS


def _tiles(results: dict[str, Result]) -> tuple[str, str]:
    rows = results["tiles"]["rows"]
    height, width = results["tiles"]["size"]
    parts = [f"in {row['tiles']}: {row['peak_bytes'] / 1e9:.2f} GB, {row['seconds']:.0f} s" for row in rows]
    change = max(row["largest_change"] for row in rows)
    text = (
        f"{width}x{height}, bundled model's decoder on a CPU, {'; '.join(parts)}; largest change {change} "
        "of 255 gray levels"
    )
    smaller = rows[-1]["peak_bytes"] < 0.75 * rows[0]["peak_bytes"]
    return text, AGREES if change <= 1 and smaller else DIFFERS


def _teacache_quality(results: dict[str, Result]) -> tuple[str, str]:
    rows = {(row["policy"], str(row["teacache"])): row for row in results["teacache"]["variants"]}
    parts = []
    for (policy, table), row in rows.items():
        seen = row["one_object"]
        name = policy if table == "None" else f"{policy} + {'measured' if 'shipped' in table else table}"
        right = "/".join(str(seen[kind]["right"]) for kind in ("color", "shape", "motion"))
        parts.append(f"{name} {row['speed_up']['mean']:.2f}x, {right}")
    count = results["teacache"]["prompts"]
    return f"{'; '.join(parts)} (color/shape/motion right of {count})", OPEN


def _snapshots(results: dict[str, Result]) -> tuple[str, str]:
    rows = {row["policy"]: row for row in results["snapshots"]["rows"]}
    dense, dummy = rows["dense"], rows["dummy"]
    how = "bit by bit" if all(row["identical"] for row in rows.values()) else "otherwise"
    text = (
        f"dummy: fork {dummy['fork_ms']:.1f} ms, save {dummy['save_ms']:.0f} ms, resume "
        f"{dummy['resume_ms']:.0f} ms, file {dummy['file_bytes'] / 1e6:.1f} MB, beside "
        f"{dummy['chunk_ms']:.0f} ms a chunk (dense: fork {dense['fork_ms']:.1f} ms, file "
        f"{dense['file_bytes'] / 1e6:.1f} MB); all go on {how}"
    )
    good = all(row["identical"] for row in rows.values()) and dummy["fork_ms"] < dummy["chunk_ms"]
    return text, AGREES if good else DIFFERS


def _guards(results: dict[str, Result]) -> tuple[str, str]:
    videos = results["guards"]["videos"]
    still = [score for _, score in videos["dummy, only probed"]["probes"]]
    changed = videos["dummy, only probed, new prompt"]
    moved = [score for second, score in changed["probes"] if second > changed["seconds"] / 2]
    guarded = next(video for name, video in videos.items() if video["classified_again"])
    ends = [video["measures"]["60 s"]["drift"] for video in (changed, guarded)]
    far, farther = (max(abs(score - still[0]) for score in scores) for scores in (still, moved))
    text = (
        f"a probe moves by {far:.3f} at most in 60 s of one scene, by up to {farther:.3f} after a new "
        f"prompt; classified again then: drift {ends[1]:.0f} in place of {ends[0]:.0f} gray levels"
    )
    return text, DIFFERS if ends[1] > ends[0] else AGREES


SAVED = (
    Claim(
        "Longer context at equal cost",
        "6.58 times",
        "long-context",
        _longer,
        {DIFFERS: "As many keys, in other places: see docs/speed.md."},
    ),
    Claim(
        "A long past keeps objects in mind",
        "-",
        "recall-5s",
        _keeps,
        {AGREES: "Shape is lost more often than color where the first frames do not show the object."},
    ),
    Claim(
        "At equal cost, few heads with a long past remember more than a window",
        "-",
        "recall-5s",
        _equal_cost,
        {
            status: "Nearly all heads of this model look back at the object when it returns, each a little: "
            "six of 96 carry too little of it."
            for status in (DIFFERS, OPEN)
        },
    ),
    Claim(
        "At equal cost, key frames bring objects back that a window has lost",
        "-",
        "recall-keyframes",
        _key_frames,
        {
            AGREES: "Every head sees the same few frames of the past, those least like each other, and gives "
            "them the attention that it would give to all of it."
        },
    ),
    Claim("How many heads must see far back to remember", "-", "recall-5s", _how_many),
    Claim(
        "Dummy Forcing keeps objects in mind",
        "-",
        "recall-5s",
        _forgets,
        {DIFFERS: "Its heads see six frames at most, and few of them the first one."},
    ),
    Claim("A change of the prompt costs one chunk's time at most", "-", "switches", _switch),
    Claim(
        "Decoding in tiles of rows bounds memory, without seams",
        "-",
        "tiles",
        _tiles,
        {
            AGREES: "Tiles have the rows around them that they depend on, so it is exact. On a GPU, where "
            "tiles save more, it is not measured yet."
        },
    ),
    Claim(
        "Dummy Forcing, TeaCache and both: 1.4, 1.2 and 1.7 times",
        "1.4x, 1.2x, 1.7x",
        "teacache",
        _teacache_quality,
        {
            OPEN: "The speed agrees. Too few prompts to tell verdicts apart; the public threshold loses "
            "detail, steps chosen by measured error lose little."
        },
    ),
    Claim("Rollouts branch cheaply and go on bit by bit", "-", "snapshots", _snapshots),
    Claim(
        "Classifying heads again helps very long videos",
        "-",
        "guards",
        _guards,
        {DIFFERS: "One prompt, a small model. It is off by default."},
    ),
)
