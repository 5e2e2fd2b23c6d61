"""Reads golden files: numbers that the public implementations produced on small random models.

The folder is `tests/golden`, or the one that DUMMYFORCING_GOLDEN names. Nothing is assumed about a file but
its layout (tests/golden/README.md): sizes, counts, seeds and variants come from its metadata.
"""

import dataclasses
import json
import os
from functools import cache
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from dummyforcing.method.criteria import Role
from dummyforcing.models.wan import CausalWan, ModelConfig
from dummyforcing.sampling.schedule import Schedule, make_schedule

OWN_FOLDER = Path(__file__).parents[1] / "golden"
FOLDER = Path(os.environ.get("DUMMYFORCING_GOLDEN") or OWN_FOLDER)
FILES = sorted(FOLDER.glob("*.safetensors"))
TOLERANCE = 2e-5
ROLES: list[str] = [Role.SINK, Role.NEIGHBOR, Role.DUMMY]
"""In the order of the files' numbers."""


class Golden:
    """One golden file."""

    def __init__(self, path: Path) -> None:
        with safe_open(path, framework="pt") as file:
            self.meta = json.loads(file.metadata()["meta"])
            names = file.keys()
            self.tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in names}

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """All tensors whose names begin with `prefix/`, without it."""
        start = prefix + "/"
        return {name[len(start) :]: t for name, t in self.tensors.items() if name.startswith(start)}

    def chunks(self, variant: str) -> int:
        """How many chunks a variant has."""
        return int(self[f"{variant}/latents"].shape[1]) // int(self.meta["frames_per_chunk"])

    @property
    def model(self) -> CausalWan:
        """The model of the file."""
        sizes = {f.name: self.meta["config"][f.name] for f in dataclasses.fields(ModelConfig)}
        model = CausalWan(ModelConfig(**{**sizes, "patch_size": tuple(sizes["patch_size"])}))
        weights = {n.removeprefix("model."): t for n, t in self.tensors.items() if n.startswith("model.")}
        model.load_state_dict(weights, strict=True)
        return model.eval().requires_grad_(False)

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """`(B, C, h, w)` of one latent frame."""
        config = self.meta["config"]
        return 1, config["latent_channels"], config["latent_height"], config["latent_width"]

    @property
    def schedule(self) -> Schedule:
        """The denoising steps of the file."""
        meta = self.meta
        return make_schedule(meta["denoising_step_list"], meta["timestep_shift"], meta["warp_denoising_step"])


@cache
def read(path: Path) -> Golden:
    """Read a file once."""
    return Golden(path)


@cache
def family(path: Path) -> str:
    """The implementation that a file comes from."""
    with safe_open(path, framework="pt") as file:
        return str(json.loads(file.metadata()["meta"])["model"])


def files_of(name: str) -> list[Path]:
    """The files of one family."""
    return [path for path in FILES if family(path) == name]


def cases(name: str, key: str = "variants") -> list[tuple[Path, str]]:
    """Every variant (or other entry of the metadata) of every file of a family."""
    return [(path, variant) for path in files_of(name) for variant in read(path).meta[key]]


def assert_near(actual: Tensor, expected: Tensor, name: str, tolerance: float = TOLERANCE) -> None:
    """Compare two tensors of the same shape, absolutely."""
    assert actual.shape == expected.shape, name
    torch.testing.assert_close(
        actual, expected, atol=tolerance, rtol=0, msg=lambda text: f"{name}: {text}", check_dtype=False
    )
