"""Dummy Forcing as a modular pipeline, which diffusers loads and runs; the oracle is our own pipeline."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ModularPipeline
from diffusers.modular_pipelines import ModularPipelineBlocks, SequentialPipelineBlocks
from diffusers.modular_pipelines.wan.decoders import WanVaeDecoderStep

from dummyforcing.errors import BadRequest
from dummyforcing.integrations.diffusers import FOLDER
from dummyforcing.integrations.diffusers.block import (
    DenoiseChunk,
    DummyForcingBlocks,
    EncodePrompt,
    JoinFrames,
    MakeChunks,
)
from dummyforcing.pipeline.pipeline import DummyForcingPipeline
from tests.conftest import link_model

PROMPT, OTHER = "a red ball bounces", "a blue cube spins"


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Diffusers copies code that it runs into a folder of its own."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture(scope="module")
def pipe(model_folder: Path) -> DummyForcingPipeline:
    return DummyForcingPipeline.from_pretrained(model_folder, device="cpu")


def modular(
    pipe: DummyForcingPipeline, preset: Path | str, blocks: ModularPipelineBlocks | None = None
) -> ModularPipeline:
    """That of our folder, or of some blocks, with the components that they want."""
    if blocks is None:
        made = ModularPipeline.from_pretrained(FOLDER, trust_remote_code=True)
    else:
        made = blocks.init_pipeline()
    parts = {name: part for name, part in pipe.components.items() if name in made.component_names}
    made.update_components(**parts, preset=str(preset))
    return made


@pytest.mark.parametrize("kind", ["np", "pt", "pil"])
def test_it_is_the_video_of_our_own_pipeline(
    kind: str, pipe: DummyForcingPipeline, model_folder: Path
) -> None:
    options: dict[str, Any] = {"num_frames": 21, "seed": 3, "output_type": kind}
    state = modular(pipe, model_folder)(prompt=PROMPT, **options)
    ours = pipe(PROMPT, **options)
    assert np.array_equal(np.asarray(state.videos), np.asarray(ours.frames))
    assert state.plans == ours.plans
    latents = pipe(PROMPT, **{**options, "output_type": "latent"}).frames
    assert torch.equal(state.latents.transpose(1, 2), latents)


def test_options_are_ours(pipe: DummyForcingPipeline, model_folder: Path) -> None:
    """A batch, another size, a generator and a policy; what is not given is as the model has it."""
    made = modular(pipe, model_folder)
    options: dict[str, Any] = {"num_frames": 21, "height": 48, "width": 32, "policy": "window:1,2"}

    def noise() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in (5, 9)]

    videos = made(prompt=[PROMPT, OTHER], generator=noise(), output="videos", **options)
    assert np.array_equal(videos, pipe([PROMPT, OTHER], generator=noise(), **options).frames)
    switched = made(prompt=PROMPT, switches=[(0.5, OTHER)], num_frames=33, output="videos")
    assert np.array_equal(switched, pipe(PROMPT, switches=[(0.5, OTHER)], num_frames=33).frames)
    with pytest.raises(BadRequest, match="take 9 or 21"):
        made(prompt=PROMPT, num_frames=10)


def test_the_folder_is_what_diffusers_writes(tmp_path: Path) -> None:
    blocks = DummyForcingBlocks()
    blocks.save_pretrained(tmp_path)
    ModularPipeline(blocks=blocks).save_config(tmp_path)
    for path in tmp_path.glob("*.json"):
        right, found = json.loads(path.read_text()), json.loads(Path(FOLDER, path.name).read_text())
        assert {**found, "_diffusers_version": ""} == {**right, "_diffusers_version": ""}
    assert len(list(tmp_path.glob("*.json"))) == 2


def test_decoded_by_a_block_of_diffusers(pipe: DummyForcingPipeline, model_folder: Path) -> None:
    """Latents are as diffusers has them, so its own decoder takes them; it differs by rounding."""
    chunks = MakeChunks.from_blocks_dict({"denoise": DenoiseChunk()})
    parts = {"text": EncodePrompt, "chunks": chunks, "decode": WanVaeDecoderStep}
    made = modular(pipe, model_folder, SequentialPipelineBlocks.from_blocks_dict(parts))
    videos = made(prompt=PROMPT, num_frames=21, output="videos")
    np.testing.assert_allclose(videos, pipe(PROMPT, num_frames=21).frames, atol=0.6 / 255)


class Steer(ModularPipelineBlocks):  # type: ignore[misc]
    """Changes the prompt when two chunks are made."""

    def __call__(self, components: Any, block: Any) -> tuple[Any, Any]:
        if block.rollout.frames == 6:
            block.rollout.set_prompt(OTHER)
        return components, block


def test_steered_by_a_block_of_ones_own(pipe: DummyForcingPipeline, model_folder: Path) -> None:
    steps = {"steer": Steer(), **MakeChunks().sub_blocks}
    parts = {"text": EncodePrompt, "chunks": MakeChunks.from_blocks_dict(steps), "video": JoinFrames}
    made = modular(pipe, model_folder, SequentialPipelineBlocks.from_blocks_dict(parts))
    right = pipe.start(PROMPT, num_frames=33)
    frames = [right.next_chunk().frames, right.next_chunk().frames]
    right.set_prompt(OTHER)
    frames.append(right.next_chunk().frames)
    videos = made(prompt=PROMPT, num_frames=33, output="videos")
    assert np.array_equal(np.rint(videos * 255), np.concatenate(frames, 1))


def test_without_a_text_encoder(pipe: DummyForcingPipeline, model_folder: Path) -> None:
    """Embeddings that were made before need no text encoder in the memory."""
    parts = {"chunks": MakeChunks, "video": JoinFrames}
    made = modular(pipe, model_folder, SequentialPipelineBlocks.from_blocks_dict(parts))
    assert set(made.component_names) == {"transformer", "vae"}
    embeds = modular(pipe, model_folder, EncodePrompt())(prompt=PROMPT, output="prompt_embeds")
    videos = made(prompt_embeds=embeds, num_frames=21, output="videos")
    assert np.array_equal(videos, pipe(PROMPT, num_frames=21).frames)


def test_what_is_missing_or_wrong_is_named(pipe: DummyForcingPipeline, model_folder: Path) -> None:
    for name, part, said in (
        ("text_encoder", None, "text_encoder is None, and no loaded UMT5EncoderModel"),
        ("tokenizer", None, "tokenizer is None"),
        ("vae", None, "vae=None is no loaded vae"),
        ("preset", "tyni", "no model or folder 'tyni'"),
    ):
        made = modular(pipe, model_folder)
        made.update_components(**{name: part})
        with pytest.raises(BadRequest, match=said):
            made(prompt=PROMPT, num_frames=9)
    with pytest.raises(BadRequest, match="output_type 'gif'"):
        modular(pipe, model_folder)(prompt=PROMPT, num_frames=9, output_type="gif")


def test_parts_that_overlap_are_refused(
    pipe: DummyForcingPipeline, model_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    link_model(model_folder, folder, max_frames=9, overlap_frames=3)
    made = modular(pipe, folder)
    assert made(prompt=PROMPT, num_frames=33, output="videos").shape[1] == 33
    with pytest.raises(BadRequest, match="12 latent frames in parts that overlap; take 33 pixel frames"):
        made(prompt=PROMPT, num_frames=45)


def test_a_saved_model_is_a_repository_of_its_own(pipe: DummyForcingPipeline, tmp_path: Path) -> None:
    """With our folder's files in it, diffusers loads everything from it."""
    pytest.importorskip("accelerate")  # without it, diffusers loads no Wan transformer
    folder = tmp_path / "model"
    pipe.save_pretrained(folder)
    shutil.copytree(FOLDER, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__*"))
    made = ModularPipeline.from_pretrained(folder, trust_remote_code=True)
    made.update_components(preset=str(folder))
    made.load_components()
    videos = made(prompt=PROMPT, num_frames=9, output="videos")
    assert np.array_equal(videos, pipe(PROMPT, num_frames=9).frames)


@pytest.mark.slow
def test_the_bundled_model() -> None:
    pipe = DummyForcingPipeline.from_pretrained("tiny", device="cpu")
    videos = modular(pipe, "tiny")(prompt=PROMPT, num_frames=21, seed=1, output="videos")
    assert np.array_equal(videos, pipe(PROMPT, num_frames=21, seed=1).frames)


@pytest.mark.slow
def test_the_code_of_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One block after the other, with a shorter video."""
    pytest.importorskip("accelerate")
    guide = Path(__file__).parents[2] / "docs" / "guides" / "diffusers.md"
    code = "".join(re.findall(r"```python\n(.*?)```", guide.read_text(encoding="utf-8"), re.DOTALL))
    assert code.count("num_frames=81") == 1
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code.replace("num_frames=81", "num_frames=45"), names)
    again, prompt = names["again"], "a red ball bounces on a green floor"
    assert np.array_equal(again, names["pipe"](prompt, num_frames=33, seed=3).frames)
    assert np.array_equal(names["videos"][:, :33], again)
    assert names["videos"].shape == (1, 45, 160, 160, 3)
