"""Finds models by name, folder or preset file.

The public models are tables of `public.toml`. Bundled models are folders beside it, each with a
`preset.json`. A preset file of the user's own, TOML or JSON, has the same fields.

    like = "self-forcing"
    source = { file = "my.pt", key = "generator_ema" }

With `like = "tiny"`, a bundled model, the weights need not be named: they are those of that model.
"""

import reprlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dummyforcing.errors import BadFile, BadRequest
from dummyforcing.files.reading import read_json, read_toml
from dummyforcing.files.records import build, nearest
from dummyforcing.presets.preset import Preset

FOLDER = Path(__file__).parent
RENAMED = {"reach": "local_attention_size"}
"""Fields of preset files of version 0.1 and earlier, and what they are called now."""


def bundled_folders() -> dict[str, Path]:
    """The folders of the models that come with the package, by name."""
    return {path.parent.name: path.parent for path in sorted(FOLDER.glob("*/preset.json"))}


def read_preset(path: Path) -> Preset:
    """Read a preset file: TOML, or JSON as in model folders.

    Args:
        path: The file. Its fields are those of `Preset`, and `like`: the name of a public or bundled model
            whose values hold where the file has none (tables are replaced as a whole).

    Returns:
        The preset; without a `name`, it has that of the file, or of the folder of a `preset.json`.

    Raises:
        BadFile: If the file is not such a preset; names the field.
    """
    try:
        data = read_toml(path) if path.suffix == ".toml" else read_json(path)
    except (OSError, ValueError) as error:
        raise BadFile(f"{path} is not a preset ({error})", "mend it there") from error
    if not isinstance(data, dict):
        raise BadFile(f"{path} is not a preset, it holds no fields", "give a file as docs/models.md shows it")
    if renamed := RENAMED.keys() & data.keys():
        old = min(renamed)
        raise BadFile(f"{path}: field '{old}' is called '{RENAMED[old]}' by now", "rename it there")
    name = path.parent.name if path.name == "preset.json" else path.stem
    data = {"name": name, **data}
    if "like" in data:
        data = _complete(data, _tables(), str(path))
    preset = build(Preset, data, str(path))
    if preset.base and (path.parent / preset.base).is_dir():
        preset = replace(preset, base=str(path.parent / preset.base))
    source = preset.source
    if source is None or source.repo:
        return preset
    # A public source has its repository, so this one is a file beside the preset.
    lora = source.lora and str(path.parent / source.lora)
    return replace(preset, source=replace(source, file=str(path.parent / source.file), lora=lora))


def find_preset(name_or_path: str | Path) -> tuple[Preset, Path | None]:
    """Find a model by name, folder or preset file.

    Args:
        name_or_path: A bundled or public model, a folder with a `preset.json`, or a `.toml` or `.json` file.

    Returns:
        The preset, and the folder if the model is one.

    Raises:
        UserError: If there is no such model; says how to use weights without a preset.
    """
    name, path = str(name_or_path), Path(name_or_path)
    bundled = bundled_folders()
    if name in bundled:
        path = bundled[name]
    elif name in PUBLIC:
        return PUBLIC[name], None
    if (path / "preset.json").is_file():
        return read_preset(path / "preset.json"), path
    if path.suffix in (".toml", ".json"):
        return read_preset(path), None
    if may_be_weights(path):
        raise BadFile(
            f"{path} holds no preset.json that says how to run it",
            f"name the model that its weights are for "
            f'and give them beside it, such as model="self-forcing" weights="{path}"',
        )
    raise BadRequest(f"There is no model or folder '{name}'", f"{nearest(name, [*bundled, *PUBLIC])}")


def may_be_weights(name_or_path: str | Path) -> bool:
    """Whether a file or folder is there that is no model by itself, but may be weights of one."""
    path = Path(name_or_path)
    is_model = path.suffix in (".toml", ".json") or (path / "preset.json").is_file()
    is_model = is_model and not path.name.endswith(".index.json")  # lists files of weights
    return path.exists() and not is_model and str(name_or_path) not in {*bundled_folders(), *PUBLIC}


def _complete(data: dict[str, Any], tables: Mapping[str, dict[str, Any]], where: str) -> dict[str, Any]:
    """Put what `like` names below the fields of a table."""
    if "like" not in data:
        return data
    like = data["like"]
    if not isinstance(like, str) or like not in tables:
        raise BadFile(
            f"{where}: like {reprlib.repr(like)} names no bundled and no public model",
            nearest(str(like), tables),
        )
    below = _complete(tables[like], tables, where)
    return {**below, **{name: value for name, value in data.items() if name != "like"}}


def _tables() -> dict[str, dict[str, Any]]:
    """What `like` can name: tables of public models, and of bundled ones with the places of their files."""
    tables = dict(PUBLIC_TABLES)
    for name, folder in bundled_folders().items():
        table = read_json(folder / "preset.json")
        source = table.get("source", {"file": "transformer"})
        places = {key: str((folder / source[key]).resolve()) for key in ("file", "lora") if key in source}
        base = str((folder / table.get("base", "")).resolve())
        tables[name] = {**table, "source": {**source, **places}, "base": base}
    return tables


PUBLIC_TABLES: dict[str, dict[str, Any]] = read_toml(FOLDER / "public.toml")
PUBLIC: dict[str, Preset] = {
    name: build(Preset, {**_complete(table, PUBLIC_TABLES, name), "name": name}, name)
    for name, table in PUBLIC_TABLES.items()
}
