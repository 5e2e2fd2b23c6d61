"""The tree of errors: one sentence each, of the class that fits what went wrong."""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan

from dummyforcing import errors
from dummyforcing.checkpoints.hub import find_base, find_weights
from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.checkpoints.vae import load_small_decoder, load_vae
from dummyforcing.errors import BadFile, BadRequest, NoSuchDevice, UserError
from dummyforcing.evaluation.generate import parse_shard
from dummyforcing.evaluation.vbench import read_results, require_dimensions, scores
from dummyforcing.files.text import read_prompts, split_number
from dummyforcing.files.writing import new_folder, replacing
from dummyforcing.media.story import Story
from dummyforcing.method.plan import HeadContext, Plan
from dummyforcing.method.policy import parse_policy
from dummyforcing.models.text_encoder import TextEncoder
from dummyforcing.pipeline.devices import choose_device, choose_dtype
from dummyforcing.presets.catalog import find_preset
from dummyforcing.presets.preset import parse_size
from dummyforcing.sampling.teacache import Calibration
from dummyforcing.vae.codec import VideoDecoder

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, UserError)]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_is_a_sentence(kind: type[UserError]) -> None:
    error = kind("Nothing is there", "give something", "image")
    assert str(error) == "Nothing is there; give something."
    assert (error.problem, error.remedy, error.option) == ("Nothing is there", "give something", "image")
    assert isinstance(error, ValueError)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (str(again), again.option) == (str(error), "image")
    assert f" {kind.__name__} " in str(errors.__doc__).replace("\n", " ")


def writing(path: Path) -> None:
    with replacing(path):
        pass


def filling(path: Path) -> None:
    with new_folder(path):
        pass


@pytest.mark.parametrize(
    ("kind", "act"),
    [
        (BadRequest, lambda folder: parse_shard("4/4")),
        (BadRequest, lambda folder: split_number("a.pt:much", "scale", "LoRA")),
        (BadRequest, lambda folder: require_dimensions(["beauty"])),
        (BadRequest, lambda folder: scores({"scene": 40.0})),
        (BadRequest, lambda folder: parse_policy("magic")),
        (BadRequest, lambda folder: parse_size("large")),
        (BadRequest, lambda folder: HeadContext(-1, 0)),
        (BadRequest, lambda folder: Plan.uniform(1, 2, HeadContext(0, 1)).require(2, 2)),
        (BadRequest, lambda folder: find_preset("sora")),
        (BadRequest, lambda folder: ModelFiles.open(folder / "bare.json")),
        (BadRequest, lambda folder: Story(5.0, ())),
        (BadRequest, lambda folder: choose_dtype("int4", torch.device("cpu"))),
        (BadRequest, lambda folder: TextEncoder(None, lambda texts, **_: None, 4).encode(" ")),
        (BadRequest, lambda folder: load_small_decoder(folder / "taew2_1.pth", other_latents())),
        (NoSuchDevice, lambda folder: choose_device("abacus")),
        (NoSuchDevice, lambda folder: choose_device("meta")),
        (BadFile, lambda folder: find_preset(folder)),
        (BadFile, lambda folder: find_preset(folder / "missing.toml")),
        (BadFile, lambda folder: find_preset(folder / "broken.json")),
        (BadFile, lambda folder: find_base(str(folder / "missing"))),
        (BadFile, lambda folder: find_weights("missing.pt")),
        (BadFile, lambda folder: load_vae(folder)),
        (BadFile, lambda folder: load_vae(folder / "vae")),
        (BadFile, lambda folder: read_results(folder)),
        (BadFile, lambda folder: read_prompts(folder / "missing.txt")),
        (BadFile, lambda folder: Plan.load(folder / "bare.json")),
        (BadFile, lambda folder: Calibration.load(folder / "bare.json")),
        (BadFile, lambda folder: Story.load(folder / "broken.json")),
        (BadFile, lambda folder: Story.load(folder / "empty.yaml")),
        (BadFile, lambda folder: writing(folder)),
        (BadFile, lambda folder: filling(folder)),
    ],
)
def test_an_error_is_of_the_class_that_fits(
    kind: type[UserError], act: Callable[[Path], object], tmp_path: Path
) -> None:
    """Exactly of it: a bad file is no bad request, nor the other way round."""
    bare = '{"description": "", "licence": "", "chunk_frames": 3, "schedule": {"steps": [1000], "shift": 5}}'
    (tmp_path / "bare.json").write_text(bare)
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "empty.yaml").write_text("{seconds: 5, scenes: []}")
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text('{"base_dim": "wide"}')
    with pytest.raises(UserError) as caught:
        act(tmp_path)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


def other_latents() -> VideoDecoder:
    """A VAE whose latents are not those of Wan 2.1."""
    sizes = {"base_dim": 4, "z_dim": 16, "num_res_blocks": 1, "latents_mean": [0.5] * 16}
    return VideoDecoder(AutoencoderKLWan(**sizes))
