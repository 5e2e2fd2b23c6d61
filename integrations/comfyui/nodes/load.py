"""Load an AR video model: a bundled or public one by its name, or files of the user's own."""

from collections.abc import Mapping
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from dummyforcing.pipeline.options import LoadOptions, choose
from dummyforcing.presets.catalog import PUBLIC, bundled_folders

from .memory import device, make_room
from .schema import CATEGORY, Model, tip

OWN_MODELS = "dummyforcing"
"""The folder below ComfyUI's `models/` with models of the user's own, and its name in a file of paths."""
USUAL = "the model's own"
NONE = "none"


def add_model_folder() -> None:
    """Tell ComfyUI of the folder for models of the user's own."""
    folder_paths.add_model_folder_path(OWN_MODELS, str(Path(folder_paths.models_dir, OWN_MODELS)))


def models() -> Mapping[str, str]:
    """What can be chosen: the name of each model, and what the library finds it by."""
    found = {name: name for name in [*bundled_folders(), *PUBLIC]}
    for folder in map(Path, folder_paths.get_folder_paths(OWN_MODELS)):
        folders = (path.parent for path in folder.glob("*/preset.json"))
        files = (path for path in folder.glob("*") if path.suffix in (".toml", ".json"))
        found |= {path.name: str(path) for path in sorted([*folders, *files])}
    return found


def _files(kind: str, otherwise: str) -> list[str]:
    """The files that ComfyUI finds in one of its folders of models, after what stands for none of them."""
    return [otherwise, *folder_paths.get_filename_list(kind)]


class LoadModel(io.ComfyNode):
    """Loads a model; ComfyUI keeps it until one of the inputs changes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The inputs are options of the library."""
        return io.Schema(
            node_id="DummyForcingLoadModel",
            display_name="Load AR Video Model",
            category=CATEGORY,
            description=(
                "Loads a model that makes video chunk by chunk, such as Self-Forcing or LongLive. It stays "
                "loaded until an input changes."
            ),
            inputs=[
                io.Combo.Input(
                    "model",
                    options=[*models()],
                    default="tiny",
                    tooltip="'tiny' comes along and runs anywhere. Public models are fetched from the "
                    "Hugging Face Hub when they are first used; their weights have licences of their own. "
                    f"Folders and preset files in models/{OWN_MODELS}/ are listed, too.",
                ),
                io.Combo.Input(
                    "torch_dtype",
                    options=["auto", "bfloat16", "float32"],
                    tooltip=tip(LoadOptions, "torch_dtype") + " auto: bfloat16 on a GPU, float32 elsewhere.",
                ),
                io.Combo.Input(
                    "fp8", options=["none", "vae", "linear", "all"], tooltip=tip(LoadOptions, "fp8")
                ),
                io.Boolean.Input("offload", default=False, tooltip=tip(LoadOptions, "offload")),
                io.Combo.Input(
                    "weights",
                    options=_files("diffusion_models", USUAL),
                    tooltip="A file of models/diffusion_models/ to use instead of the model's weights and "
                    "its LoRA. The model above says how it is run.",
                ),
                io.Combo.Input(
                    "lora",
                    options=_files("loras", NONE),
                    tooltip="A file of models/loras/ to merge into the transformer.",
                ),
                io.Float.Input("lora_strength", default=1.0, min=-10.0, max=10.0, step=0.05),
                io.Combo.Input(
                    "vae",
                    options=_files("vae_approx", USUAL),
                    tooltip=tip(LoadOptions, "vae") + " A file of models/vae_approx/.",
                ),
                io.String.Input(
                    "base",
                    default="",
                    tooltip=tip(LoadOptions, "base") + " Empty: the model's own.",
                ),
            ],
            outputs=[Model.Output(display_name="model")],
        )

    @classmethod
    def execute(
        cls,
        model: str,
        torch_dtype: str,
        fp8: str,
        offload: bool,
        weights: str,
        lora: str,
        lora_strength: float,
        vae: str,
        base: str,
    ) -> io.NodeOutput:
        """Load it, once there is room."""
        from dummyforcing.checkpoints.model_files import ModelFiles
        from dummyforcing.pipeline.devices import choose_dtype
        from dummyforcing.pipeline.pipeline import DummyForcingPipeline

        place = device()
        given: dict[str, object] = {"device": place, "fp8": fp8, "offload": offload}
        if torch_dtype != "auto":
            given["torch_dtype"] = torch_dtype
        if weights != USUAL:
            given["weights"] = folder_paths.get_full_path_or_raise("diffusion_models", weights)
        if lora != NONE:
            given["lora"] = f"{folder_paths.get_full_path_or_raise('loras', lora)}:{lora_strength}"
        if vae != USUAL:
            given["vae"] = folder_paths.get_full_path_or_raise("vae_approx", vae)
        if base:
            given["base"] = base
        options = choose(LoadOptions, given)
        files = ModelFiles.open(
            models()[model], weights=options.weights, base=options.base, lora=options.lora
        )
        parts = ["transformer"] if offload else [*files.parameters]
        size = sum(files.parameters[part] for part in parts)
        make_room(size * choose_dtype(options.torch_dtype, place).itemsize)
        return io.NodeOutput(DummyForcingPipeline.from_files(files, options))
