"""Make a preset of a training run: its four parts, preset.json, and PROVENANCE.md with all hashes.

    python -m research.training.assemble runs/tiny src/dummyforcing/presets/tiny --note "one NVIDIA H100, ..."

A plan and a TeaCache table of other weights are removed. Once the commands that PROVENANCE.md names have made
new ones, the same command again writes down their hashes.
"""

import argparse
import hashlib
import json
import shutil
from pathlib import Path

from dummyforcing.files.reading import read_json
from dummyforcing.files.records import to_json
from dummyforcing.models.wan import fingerprint
from research.training.carry import PARTS
from research.training.judge import STEPS
from research.training.networks import SHIFT, load_model
from research.training.run import CHUNK, SIZE

MEGABYTE = 10**6
MOST, MOST_OF_A_FILE = 40 * MEGABYTE, 16 * MEGABYTE
PRESET: dict[str, object] = {
    "name": "tiny",
    "description": "bundled model of a rendered world: colored shapes that move",
    "licence": "Apache-2.0",
    "chunk_frames": CHUNK,
    "schedule": {"steps": STEPS, "shift": SHIFT, "warp": True},
    "start": "clip",
    "fps": 16,
    "size": [SIZE, SIZE],
    "rendered_world": True,
    "dummy": {"classify_at_chunk": 1, "neighbor_frames": 6, "dummy_fraction": 0.5},
}
_PROVENANCE = """# How the files of the bundled model were made

Everything here was trained from nothing by `research/training/train_tiny.py` on rendered scenes
(`research.world`); no other data, weights or teacher models took part. Licence: Apache-2.0. Weights are
float16.
{note}
| part | what it is |
|---|---|
| `tokenizer/` | byte-pair pieces of the world's sentences, after 16 tokens that every prompt begins with |
| `text_encoder/` | `UMT5EncoderModel`, trained to read what a prompt says into those 16 |
| `vae/` | `AutoencoderKLWan`, 16 channels, 8x8x4 compression |
| `transformer/` | causal Wan transformer, {layers} layers x {heads} heads, width {width} |

Stages are timed, and the learning rate follows the clock. Each call has its own line.

| stage | steps | seconds since its call began | losses at its end |
|---|---|---|---|
{stages}

The held-out combinations of color, shape and motion (`world.held_out_kinds`) never occur in training.

`plan.json` is the head plan for any video (`--plan shipped`), `teacache.json` says which denoising steps
can be left out (`--teacache shipped`), both measured in float32 on a CPU on prompts of training scenes:

```
dummyforcing heads --prompts research/training/plan_prompts.txt --steps all --chunks all --save-plan plan.json
dummyforcing teacache calibrate "a red square grows" "a blue triangle spins on a red floor" \\
    "a cyan ball leaves and comes back" "an orange ball slides to the right" -o teacache.json
```

## SHA-256

```
{hashes}
```
"""


def assemble(run: Path, preset: Path, note: str = "") -> None:
    """Make a preset of a run.

    Args:
        run: Folder of the run.
        preset: Folder of the preset; its preset.json stays if there is one.
        note: A sentence about where and when it was trained.

    Raises:
        ValueError: If the files are too large.
    """
    for name in PARTS:
        shutil.rmtree(preset / name, ignore_errors=True)
        shutil.copytree(run / name, preset / name)
    if not (preset / "preset.json").exists():
        (preset / "preset.json").write_text(to_json(PRESET, indent=1), encoding="utf-8")
    model = load_model(preset / "transformer")
    for path in (preset / "plan.json", preset / "teacache.json"):
        if path.exists() and read_json(path)["fingerprint"] != fingerprint(model):
            path.unlink()
    (preset / "PROVENANCE.md").unlink(missing_ok=True)
    files = sorted(path for path in preset.rglob("*") if path.is_file() and path.name != "preset.json")
    digests = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(preset).as_posix()}"
        for path in files
    ]
    (preset / "PROVENANCE.md").write_text(
        _PROVENANCE.format(
            note=f"{note}\n" if note else "",
            layers=model.config.num_layers,
            heads=model.config.num_heads,
            width=model.config.dim,
            stages="\n".join(stage_rows(run)),
            hashes="\n".join(digests),
        ),
        encoding="utf-8",
    )
    sizes = [path.stat().st_size for path in preset.rglob("*") if path.is_file()]
    if sum(sizes) > MOST or max(sizes) > MOST_OF_A_FILE:
        raise ValueError(f"{sum(sizes)} bytes in all, {max(sizes)} in the largest file: too large")


def stage_rows(run: Path) -> list[str]:
    """A row of the table for each stage of each call: the last line of its loss curve."""
    lines = (run / "curves.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    ends = [
        row
        for row, later in zip(rows, [*rows[1:], None], strict=True)
        if later is None or later["stage"] != row["stage"] or later["step"] <= row["step"]
    ]
    return [
        f"| {row['stage']} | {row['step']} | {row['seconds']} | "
        + ", ".join(f"{k} {v:.4g}" for k, v in row.items() if k not in ("stage", "step", "seconds"))
        + " |"
        for row in ends
    ]


def main(arguments: list[str] | None = None) -> None:
    """Make a preset."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("preset", type=Path, help="folder of the preset")
    parser.add_argument("--note", default="", help="where and when it was trained")
    args = parser.parse_args(arguments)
    assemble(args.run, args.preset, args.note)


if __name__ == "__main__":
    main()
