"""Take a training run from machine to machine, in few files of at most 15 MiB.

    python -m research.training.carry pack runs/tiny $OUT                # after each call
    python -m research.training.carry pack runs/tiny $OUT --only vae     # or only what is new
    python -m research.training.carry unpack runs/tiny FOLDER            # before the next one

Weights are float16, as they are shipped: 40 MB for all, three files. What is not carried: pools of encoded
clips, which each call renders again; what networks were before a stage (`teacher`, `student`), which only
that stage's own continuation asks for; and the optimizers' state, whose averages are over the last 20 steps.
"""

import argparse
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

PART_BYTES = 15 * 2**20
PARTS = ("tokenizer", "text_encoder", "vae", "transformer")


def pack(run: Path, out: Path, only: Sequence[str] = PARTS) -> list[Path]:
    """Write some parts of a run, its curves, figures and pictures as `carry-0`, `carry-1` and so on.

    Args:
        run: Folder of the run.
        out: Folder for the files; those of an earlier time go.
        only: Names of folders in it.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in (name for name in only if (run / name).exists()):
            tar.add(run / name, name)
        for path in sorted(path for path in run.iterdir() if path.is_file()):
            tar.add(path, path.name)
    data = buffer.getvalue()
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("carry-*"):
        old.unlink()
    paths = []
    for number, start in enumerate(range(0, len(data), PART_BYTES)):
        paths.append(out / f"carry-{number}")
        paths[-1].write_bytes(data[start : start + PART_BYTES])
    return paths


def unpack(run: Path, source: Path) -> None:
    """Read what `pack` wrote into a run's folder; what is there already is replaced part by part."""
    paths = sorted(source.glob("carry-*"), key=lambda path: int(path.name.partition("-")[2]))
    data = b"".join(path.read_bytes() for path in paths)
    run.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for name in {member.name.partition("/")[0] for member in tar if "/" in member.name}:
            for old in (run / name).glob("*.safetensors*"):  # there may be fewer shards now
                old.unlink()
        tar.extractall(run, filter="data")


def main(arguments: list[str] | None = None) -> None:
    """Pack or unpack."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("pack", "unpack"))
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("carried", type=Path, help="folder of the files")
    parser.add_argument("--only", nargs="+", default=list(PARTS), metavar="PART", help="folders to pack")
    args = parser.parse_args(arguments)
    if args.what == "unpack":
        unpack(args.run, args.carried)
        return
    for path in pack(args.run, args.carried, args.only):
        print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
