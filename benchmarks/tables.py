"""Write the measured tables of the README, and docs/reproduction.md, from the committed results.

python benchmarks/tables.py           # rewrite them
python benchmarks/tables.py --check   # fail if they are out of date
"""

import argparse
import json
from pathlib import Path
from typing import Any

from page import page, read_results, table

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def load(name: str) -> dict[str, Any]:
    """A result file."""
    data: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return data


def source(name: str) -> str:
    """One line that says where a table comes from."""
    r = load(name)
    return (
        f"`{r['command']}` at {r['commit']}, {r['date']}, {r['device']}, torch {r['versions']['torch']}; "
        f"raw: `benchmarks/results/{name}.json`"
    )


def percent(part: dict[str, Any]) -> str:
    """A rate with its 95% interval."""
    low, high = part["interval"]
    return f"{part['percent']:.0f}% ({low:.0f}-{high:.0f})"


def speed() -> str:
    """What the default command takes as a whole, and the pipeline alone."""
    measured = load("tiny-speed")
    rows = [
        [
            policy,
            f"{r['wall_s']:.1f} s",
            f"{r['peak_memory_mb']:.0f} MB",
            f"{r['first_frame_s']:.2f} s",
            f"{r['fps_without_vae']:.1f}",
            f"{r['fps']:.1f}",
            f"{r['cache_bytes'] / 1e6:.1f} MB",
        ]
        for policy in ("dense", "dummy")
        for r in [measured[policy]]
    ]
    header = ["cache", "whole command", "peak memory", "first frame", "FPS without VAE", "FPS", "KV cache"]
    return f"{table(header, rows)}\n\nMedians of {measured['runs']} runs in turns: {source('tiny-speed')}."


def quality() -> str:
    """What the exact detectors say of the held-out prompts."""
    names = {(policy, s): f"tiny-quality-{policy}{s}" for s in ("", "-10s") for policy in ("dense", "dummy")}
    results = {key: load(name) for key, name in names.items()}
    ceiling = load("tiny-quality-ceiling")["ceiling"]
    parts = {
        "rendered truth": ceiling["renders"],
        "rendered truth after the VAE": ceiling["renders_after_vae"],
    }
    for (policy, suffix), result in results.items():
        parts[f"{policy}, {suffix.removeprefix('-') or '5s'}"] = result[policy]["one_object"]
    for policy in ("dense", "dummy"):
        parts[f"{policy}, 5s, two objects"] = results[policy, ""][policy]["two_objects"]
    keys = ("color", "shape", "color_and_shape", "motion")
    rows = [
        [title, str(part["count"]), *(percent(part[key]) for key in keys)] for title, part in parts.items()
    ]
    header = ["videos", "prompts", "color", "shape", "color and shape", "motion"]
    sources = "\n".join(f"- {source(name)}" for name in ("tiny-quality-ceiling", *names.values()))
    return f"{table(header, rows)}\n\n{sources}"


def main() -> None:
    """Fill every `<!-- name -->` ... `<!-- /name -->` of the README, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing; fail if anything would change")
    args = parser.parse_args()
    readme = ROOT / "README.md"
    new = readme.read_text()
    for name, make in {"speed": speed, "quality": quality}.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        head, rest = new.split(begin)
        new = f"{head}{begin}\n{make()}\n{end}{rest.split(end)[1]}"
    reproduction = ROOT / "docs" / "reproduction.md"
    for path, text in {readme: new, reproduction: page(read_results(RESULTS))}.items():
        if args.check and (not path.exists() or path.read_text() != text):
            raise SystemExit(f"{path.name} is out of date: run python benchmarks/tables.py")
        if not args.check:
            path.write_text(text)


if __name__ == "__main__":
    main()
