"""A small stand-in for the parts of ComfyUI that the pack uses: its schema, progress, folders and wrappers.

What a node says of itself is kept as it is, and words that ComfyUI does not know are refused.
"""

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from PIL import Image

PACK = Path(__file__).parents[2] / "integrations" / "comfyui"
EVERY = ("optional", "tooltip")
NUMBER = (*EVERY, "default", "min", "max", "step")
WIDGETS = {
    "Int": (*NUMBER, "control_after_generate"),
    "Float": NUMBER,
    "String": (*EVERY, "default", "multiline"),
    "Boolean": (*EVERY, "default"),
    "Combo": (*EVERY, "options", "default"),
}
"""What ComfyUI draws in a node, and the words with which a node describes it."""
SOCKETS = ("Image", "Video", "Model")
"""What only links bring."""


class Interrupted(Exception):
    """What ComfyUI raises in a node that the user has stopped."""


@dataclass(frozen=True)
class Progress:
    """A report of a node."""

    value: float
    most: float
    preview: Image.Image


@dataclass
class Comfy:
    """What the nodes were told, and what they did."""

    folder: Path
    """With `models/` and `output/`."""
    reports: list[Progress] = field(default_factory=list)
    stop_after: int | None = None
    """Reports after which the user stops the node."""
    room: list[float] = field(default_factory=list)
    """Bytes that the nodes asked for."""
    given_back: int = 0
    """How often memory was handed back."""
    model_folders: dict[str, list[str]] = field(default_factory=dict)

    def check_stop(self) -> None:
        if self.stop_after is not None and len(self.reports) >= self.stop_after:
            raise Interrupted

    def report(self, value: float, max_value: float, *, preview_image: Image.Image) -> None:
        self.reports.append(Progress(value, max_value, preview_image))

    def hand_back(self) -> None:
        self.given_back += 1

    def files(self, kind: str) -> list[str]:
        folder = self.folder / "models" / kind
        return sorted(path.name for path in folder.glob("*") if path.is_file())

    def file(self, kind: str, name: str) -> str:
        path = self.folder / "models" / kind / name
        if not path.is_file():
            raise FileNotFoundError(path)
        return str(path)


class Patcher:
    """A MODEL: its copies share the network, and each has wrappers of its own."""

    def __init__(self, network: object) -> None:
        self.model = SimpleNamespace(diffusion_model=network)
        self.wrappers: dict[tuple[str, str], list[Callable[..., Any]]] = {}

    def clone(self) -> "Patcher":
        other = copy(self)
        other.wrappers = {key: [*found] for key, found in self.wrappers.items()}
        return other

    def add_wrapper_with_key(self, kind: str, key: str, wrapper: Callable[..., Any]) -> None:
        self.wrappers.setdefault((kind, key), []).append(wrapper)

    def remove_wrappers_with_key(self, kind: str, key: str) -> None:
        self.wrappers.pop((kind, key), None)

    def sample(self, sampling: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Sample as ComfyUI does: each wrapper is called with the next one, the innermost is the sampling."""
        for wrapper in [one for found in self.wrappers.values() for one in found]:
            sampling = _wrapped(wrapper, sampling)
        return sampling(*args, **kwargs)


def _wrapped(wrapper: Callable[..., Any], inner: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: wrapper(inner, *args, **kwargs)


@dataclass(frozen=True, kw_only=True)
class Schema:
    """What a node says of itself."""

    node_id: str
    display_name: str
    category: str
    description: str
    inputs: Sequence[Any]
    outputs: Sequence[Any]
    is_output_node: bool = False


class NodeOutput:
    """What a node gives."""

    def __init__(self, *args: Any) -> None:
        self.args = args


class ComfyNode:
    """The base of nodes."""


class ComfyExtension:
    """The base of packs."""


def _kind(name: str, words: Sequence[str]) -> Any:
    """A type of ComfyUI: its inputs and outputs."""
    given = [("id", str, field()), *((word, Any, field(default=None, kw_only=True)) for word in words)]
    known = make_dataclass(f"{name}Input", given, frozen=True, namespace={"kind": name})
    made = make_dataclass(
        f"{name}Output",
        [("display_name", str), ("tooltip", Any, None)],
        kw_only=True,
        frozen=True,
        namespace={"kind": name},
    )
    return SimpleNamespace(Input=known, Output=made)


def modules(comfy: Comfy) -> Mapping[str, ModuleType]:
    """ComfyUI's modules by name."""

    def module(name: str, **content: Any) -> ModuleType:
        made = ModuleType(name)
        vars(made).update(content)
        return made

    kinds = {name: _kind(name.upper(), words) for name, words in WIDGETS.items()}
    kinds |= {name: _kind(name.upper(), EVERY) for name in SOCKETS}
    io = SimpleNamespace(
        ComfyNode=ComfyNode,
        NodeOutput=NodeOutput,
        Schema=Schema,
        Custom=lambda name: _kind(name, EVERY),
        **kinds,
    )
    components = make_dataclass("VideoComponents", ["images", "audio", "frame_rate"], kw_only=True)
    latest = module(
        "comfy_api.latest",
        io=io,
        ComfyExtension=ComfyExtension,
        ComfyAPISync=lambda: SimpleNamespace(execution=SimpleNamespace(set_progress=comfy.report)),
        InputImpl=SimpleNamespace(VideoFromComponents=make_dataclass("VideoFromComponents", ["components"])),
        Types=SimpleNamespace(VideoComponents=components),
    )
    management = module(
        "comfy.model_management",
        get_torch_device=lambda: torch.device("cpu"),
        free_memory=lambda size, device: comfy.room.append(size),
        soft_empty_cache=comfy.hand_back,
        throw_exception_if_processing_interrupted=comfy.check_stop,
    )
    extension = module("comfy.patcher_extension", WrappersMP=SimpleNamespace(OUTER_SAMPLE="outer_sample"))
    folders = module(
        "folder_paths",
        models_dir=str(comfy.folder / "models"),
        add_model_folder_path=lambda kind, path: comfy.model_folders.setdefault(kind, []).append(path),
        get_folder_paths=comfy.model_folders.__getitem__,
        get_filename_list=comfy.files,
        get_full_path_or_raise=comfy.file,
        get_output_directory=lambda: str(comfy.folder / "output"),
    )
    package = module("comfy", model_management=management, patcher_extension=extension)
    found = (package, management, extension, module("comfy_api", latest=latest), latest, folders)
    return {one.__name__: one for one in found}


def import_pack(name: str = "custom_nodes_dummyforcing") -> ModuleType:
    """Import the pack as ComfyUI does: from its folder, under a name that ComfyUI makes up."""
    for known in [known for known in sys.modules if known.partition(".")[0] == name]:
        del sys.modules[known]
    spec = importlib.util.spec_from_file_location(
        name, PACK / "__init__.py", submodule_search_locations=[str(PACK)]
    )
    assert spec is not None
    assert spec.loader is not None
    pack = importlib.util.module_from_spec(spec)
    sys.modules[name] = pack
    spec.loader.exec_module(pack)
    return pack
