"""Sets of prompts: VBench's and MovieGen's files, tables of one's own, and plain lines of text.

    chosen = PromptSet.read(Path("all_dimension.txt"), extended=Path("all_dimension_longer.txt"))
    jobs = chosen.jobs(samples=5, seed=0)

A text file has a prompt per line. A table (`.csv`, `.tsv`, `.jsonl`, or `.json`, as VBench_full_info.json is)
has a column `prompt`, and perhaps `seed`, and `id` or `name`, which then names the videos.
"""

import csv
import hashlib
import io
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dummyforcing.errors import BadFile
from dummyforcing.files.reading import parse_json
from dummyforcing.files.text import read_prompt_file, read_prompts

_MAX_NAME = 220  # bytes; file systems allow 255, of which number, endings and temporary names take some
_CUT_NAME = 180  # characters of a prompt that is too long to name a file, as in VBench-2.0
_MAX_SEED = 2**62  # with room for the seeds of all samples

PROMPT, NAME, SEED = ("prompt", "prompt_en"), ("name", "id"), ("seed",)
"""Columns of tables, of which the first that is there counts; VBench writes `prompt_en`."""

Fields = Mapping[str, object]


@dataclass(frozen=True)
class Job:
    """One video to make."""

    prompt: str
    """Short prompt, or its name in a table; names the file."""
    text: str
    """What the model gets: the prompt or its extension."""
    index: int
    """Number of the sample."""
    seed: int

    @property
    def name(self) -> str:
        """Name of the file."""
        return f"{self.prompt}-{self.index}.mp4"


@dataclass(frozen=True)
class Prompt:
    """One prompt of a set."""

    name: str
    """Names the videos: the prompt as far as it can, or what its table says."""
    prompt: str
    """As the file has it."""
    text: str
    """What the model gets: the prompt or its extension."""
    seed: int | None = None
    """Of sample 0, where the table says so."""


@dataclass(frozen=True)
class PromptSet:
    """Prompts with what the model gets for each."""

    prompts: tuple[Prompt, ...]
    """Each name once."""
    hashes: Mapping[str, str | None]
    """Of the files that they are from, for the manifest."""
    repeated: tuple[str, ...] = ()
    """Names that were there more than once."""
    unused: tuple[str, ...] = ()
    """Columns that say nothing to `eval`."""

    @classmethod
    def read(cls, path: Path, extended: Path | None = None) -> "PromptSet":
        """Read prompts, and their extensions, one per line in the same order.

        A prompt that is there again makes no other videos. Of its extensions the last counts, as with VBench,
        whose lists have two such prompts: there a later video replaces the one before it.

        Args:
            path: Text or a table.
            extended: Text.

        Raises:
            BadFile: If a file cannot be read, a row is not as it should be, the two differ in length, or
                different prompts would have videos of the same name; names the line.
        """
        table = list(_rows(path))
        rows = [(where, _prompt(where, row)) for where, row in table]
        if not rows:
            raise BadFile(f"{path} holds no prompts", "write one per line")
        long = read_prompts(extended) if extended else [prompt.text for _, prompt in rows]
        if len(long) != len(rows):
            raise BadFile(
                f"{extended} has {len(long)} lines and {path} {len(rows)}", "give one extension per prompt"
            )
        found: dict[str, tuple[str, Prompt]] = {}
        repeated: dict[str, None] = {}
        for (where, prompt), text in zip(rows, long, strict=True):
            first, same = found.get(prompt.name, (where, prompt))
            if (same.prompt, same.seed) != (prompt.prompt, prompt.seed):
                raise BadFile(
                    f"{where}: its videos would have the names of those of {first.rpartition(', ')[2]}, "
                    f"'{prompt.name[:60]}'",
                    "write a table with a name of its own for each, in a column 'id'",
                )
            if prompt.name in found:
                repeated[prompt.name] = None
            found[prompt.name] = first, replace(prompt, text=text)
        hashes = {
            "prompts_sha256": file_hash(path),
            "extended_sha256": file_hash(extended) if extended else None,
        }
        columns = dict.fromkeys(name for _, row in table for name in row)
        unused = [name for name in columns if name not in (*PROMPT, *NAME, *SEED)]
        return cls(tuple(prompt for _, prompt in found.values()), hashes, tuple(repeated), tuple(unused))

    @property
    def names(self) -> list[str]:
        """The names of all prompts."""
        return [prompt.name for prompt in self.prompts]

    def only(self, wanted: Collection[str]) -> "PromptSet":
        """Those that are wanted by name, in the same order."""
        return replace(self, prompts=tuple(prompt for prompt in self.prompts if prompt.name in wanted))

    def jobs(self, samples: int, seed: int, more: Mapping[str, int] | None = None) -> list[Job]:
        """List all videos: sample i of each prompt has the seed of its row, or else `seed`, plus i.

        Args:
            samples: Videos per prompt.
            seed: Of sample 0.
            more: Names of prompts with another number of videos; None: all have `samples`.
        """
        return [
            Job(prompt.name, prompt.text, index, (seed if prompt.seed is None else prompt.seed) + index)
            for prompt in self.prompts
            for index in range((more or {}).get(prompt.name, samples))
        ]


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def file_name(prompt: str) -> str:
    """What a prompt can name a file by: itself, unless it is too long or has a character that no file has."""
    name = re.sub(r"[/\x00-\x1f]", "-", prompt)
    if len(name.encode()) <= _MAX_NAME:
        return name
    return name[:_CUT_NAME].encode()[:_MAX_NAME].decode(errors="ignore").rstrip()


def _prompt(where: str, row: Fields) -> Prompt:
    """Read a row.

    Args:
        where: The file and the line, for error messages.
        row: Its columns.
    """
    prompt, name, seed = (next((row[c] for c in of if c in row), None) for of in (PROMPT, NAME, SEED))
    if not isinstance(prompt, str) or not prompt.strip():
        raise BadFile(f"{where} has no prompt", "write one in its column 'prompt', or leave the row out")
    prompt = prompt.strip()
    named = prompt if name is None or not str(name).strip() else str(name).strip()
    return Prompt(file_name(named), prompt, prompt, _seed(where, seed))


def _seed(where: str, value: object) -> int | None:
    if value is None or value == "":
        return None
    text = str(value).strip().removesuffix(".0")  # spreadsheets and data frames write whole numbers so, too
    if isinstance(value, bool) or not text.isdecimal() or int(text) > _MAX_SEED:
        raise BadFile(f"{where}: seed '{value}' is no whole number from 0", "write one such as 7, or nothing")
    return int(text)


def _rows(path: Path) -> Iterator[tuple[str, Fields]]:
    """The rows of a file, each with the place where it is; names of columns in small letters."""
    text = read_prompt_file(path)
    match path.suffix.lower():
        case ".csv" | ".tsv":
            yield from _csv_rows(path, text)
        case ".jsonl" | ".ndjson":
            for number, line in enumerate(text.split("\n"), start=1):
                if line.strip():
                    where = f"{path}, line {number}"
                    yield where, _fields(where, _json(where, line))
        case ".json":
            entries = _json(str(path), text)
            if not isinstance(entries, list):
                raise BadFile(f"{path} is no list of prompts", "give one such as VBench_full_info.json")
            for number, entry in enumerate(entries, start=1):
                where = f"{path}, entry {number}"
                yield where, _fields(where, entry)
        case _:
            for number, line in enumerate(text.split("\n"), start=1):
                if line.strip():
                    yield f"{path}, line {number}", {"prompt": line}


def _csv_rows(path: Path, text: str) -> Iterator[tuple[str, Fields]]:
    heading = text.lstrip("\n").partition("\n")[0]
    reader = csv.reader(io.StringIO(text), delimiter=max(",;\t", key=heading.count), strict=True)
    columns: Sequence[str] = ()
    line = 1
    try:
        for row in reader:
            where, line = f"{path}, line {line}", reader.line_num + 1
            if not any(map(str.strip, row)):
                continue
            if not columns:
                columns = [name.strip().lower() for name in row]
                _require_columns(path, columns)
            elif len(row) != len(columns):
                raise BadFile(
                    f"{where} has {len(row)} columns, and the first line names {len(columns)}",
                    "put a prompt that has a comma in quotation marks",
                )
            else:
                yield where, dict(zip(columns, row, strict=True))
    except csv.Error as error:
        raise BadFile(f"{path}, line {reader.line_num}: it is no CSV ({error})", "mend it there") from error


def _require_columns(path: Path, columns: Sequence[str]) -> None:
    if not any(name in columns for name in PROMPT) or len(set(columns)) < len(columns):
        raise BadFile(
            f"{path}: its first line does not name the columns, one of them 'prompt', but is "
            f"'{', '.join(columns)[:80]}'",
            "begin it with such a line: id,prompt,seed",
        )


def _json(where: str, text: str) -> object:
    try:
        return parse_json(text)
    except ValueError as error:
        raise BadFile(f"{where}: it is no JSON ({error})", "mend it there") from error


def _fields(where: str, entry: object) -> Fields:
    """The columns of a JSON value: a table, or a prompt alone."""
    if isinstance(entry, str):
        return {"prompt": entry}
    if not isinstance(entry, dict):
        raise BadFile(f"{where} is no table", 'write one such as {"prompt": "a red ball", "seed": 7}')
    return {name.strip().lower(): value for name, value in entry.items()}
