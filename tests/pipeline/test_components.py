"""Components of diffusers and transformers, in and out; the oracles are their own classes and loaders."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, UMT5EncoderModel

from dummyforcing.checkpoints.names import native_name
from dummyforcing.checkpoints.transformer import WAN_SIZES, config_of, open_transformer
from dummyforcing.checkpoints.weights import fill
from dummyforcing.errors import BadRequest, UserError
from dummyforcing.method.policy import parse_policy
from dummyforcing.models.wan import CausalWan
from dummyforcing.pipeline.pipeline import DummyForcingPipeline
from dummyforcing.sampling.block import BlockSampler
from tests.layouts import SMALL
from tests.oracles import SCHEDULE

PROMPT = "a red ball bounces"
VIDEO: dict[str, Any] = {"num_frames": 21, "output_type": "latent"}


def random_diffusers(seed: int = 0, **changes: Any) -> WanTransformer3DModel:
    """A transformer of diffusers with the sizes of `SMALL`."""
    torch.manual_seed(seed)
    sizes = {
        "num_attention_heads": SMALL.num_heads,
        "attention_head_dim": SMALL.head_dim,
        "ffn_dim": SMALL.ffn_dim,
        "num_layers": SMALL.num_layers,
        "text_dim": SMALL.text_dim,
        "freq_dim": SMALL.freq_dim,
    }
    return WanTransformer3DModel(**{**sizes, **changes}).eval()


def shared(transformer: WanTransformer3DModel, dtype: torch.dtype = torch.float32) -> CausalWan:
    return fill(*open_transformer(transformer, config_of(transformer, SMALL.text_len)), "cpu", dtype)


def state_of(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, whatever files they are in."""
    return {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}


@pytest.fixture(scope="module")
def pipe(model_folder: Path) -> DummyForcingPipeline:
    return DummyForcingPipeline.from_pretrained(model_folder, device="cpu")


@pytest.fixture(scope="module")
def saved(pipe: DummyForcingPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    pipe.save_pretrained(folder)
    return folder


def loaded(saved: Path) -> dict[str, Any]:
    """The components of a folder, by the loaders of their own libraries."""
    config = WanTransformer3DModel.load_config(saved / "transformer")
    # Its from_pretrained needs accelerate, which is tried below.
    transformer = WanTransformer3DModel.from_config(config).eval()
    transformer.load_state_dict(state_of(saved / "transformer"), strict=True)
    return {
        "transformer": transformer,
        "vae": AutoencoderKLWan.from_pretrained(saved, subfolder="vae", low_cpu_mem_usage=False),
        "text_encoder": UMT5EncoderModel.from_pretrained(saved, subfolder="text_encoder"),
        "tokenizer": AutoTokenizer.from_pretrained(saved, subfolder="tokenizer"),
    }


@pytest.mark.parametrize("timestep", SCHEDULE.timesteps)
def test_one_pass_is_that_of_diffusers(timestep: float) -> None:
    """All frames are one chunk of a dense policy; diffusers takes one timestep for each sample."""
    theirs = random_diffusers()
    ours, generator = shared(theirs), torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, 16, 8, 12, generator=generator)
    embeds = torch.randn(2, SMALL.text_len, SMALL.text_dim, generator=generator)
    sampler = BlockSampler(
        ours, embeds, parse_policy("dense"), SCHEDULE, (2, 16, 8, 12), chunk_frames=4, seeds=(0, 1)
    )
    passes = sampler.passes
    with torch.inference_mode():
        time, tokens = passes.time([timestep], 4), passes.tokens(latents)
        hidden = passes.transform(tokens, time, sampler.prompts.text, sampler.call(0))
        found = passes.velocity(hidden, time)
        (right,) = theirs(latents.transpose(1, 2), torch.full((2,), timestep), embeds, return_dict=False)
    torch.testing.assert_close(found, right.transpose(1, 2), atol=2e-5, rtol=0)


def test_weights_are_shared_and_nothing_of_the_object_changes() -> None:
    theirs = random_diffusers().train()
    ours = shared(theirs)
    weights = {native_name(name): weight for name, weight in theirs.named_parameters()}
    for name, weight in ours.named_parameters():
        assert weight.data_ptr() == weights[name].data_ptr()
    assert theirs.training
    assert all(weight.requires_grad for weight in theirs.parameters())
    assert not any(weight.requires_grad for weight in ours.parameters())


def test_an_arrangement_for_speed_leaves_the_object_alone(saved: Path) -> None:
    """Weights of queries, keys and values become parts of one matrix, as on every GPU."""
    parts = loaded(saved)
    weights = dict(parts["transformer"].named_parameters())
    before = {name: (weight.data_ptr(), weight.clone()) for name, weight in weights.items()}
    assert DummyForcingPipeline(**parts, preset=saved, fp8="linear").fused is not None
    for name, (place, values) in before.items():
        assert weights[name].data_ptr() == place
        assert torch.equal(weights[name], values)


def test_what_diffusers_keeps_in_float32_is_converted() -> None:
    """As `from_pretrained(..., torch_dtype=torch.bfloat16)` leaves a transformer."""
    theirs = random_diffusers().to(torch.bfloat16)
    kept = ("time_embedder", "scale_shift_table", "norm2")
    for name, weight in theirs.named_parameters():
        if any(part in kept for part in name.split(".")):
            weight.data = weight.data.float()
    ours = shared(theirs, torch.bfloat16)
    assert {weight.dtype for weight in ours.parameters()} == {torch.bfloat16}
    assert ours.blocks[0].ffn[0].weight.data_ptr() == theirs.blocks[0].ffn.net[0].proj.weight.data_ptr()  # type: ignore[index, union-attr]


def test_the_libraries_load_what_is_saved(pipe: DummyForcingPipeline, saved: Path, tmp_path: Path) -> None:
    parts = loaded(saved)
    ours = {
        "transformer": pipe.model.state_dict(),
        "vae": pipe.vae.vae.state_dict(),
        "text_encoder": pipe.text.model.state_dict(),
    }
    for part, state in ours.items():
        for name, weight in parts[part].state_dict().items():
            assert torch.equal(weight, state[native_name(name) if part == "transformer" else name])
    assert parts["tokenizer"](PROMPT).input_ids == pipe.text.tokenizer(PROMPT).input_ids
    config = json.loads((saved / "transformer" / "config.json").read_text())
    assert config["_class_name"] == "WanTransformer3DModel"
    # And back: what diffusers saves of it is the same model to us.
    parts["transformer"].save_pretrained(tmp_path / "again")
    assert state_of(tmp_path / "again").keys() == state_of(saved / "transformer").keys()
    again = DummyForcingPipeline.from_pretrained(saved, weights=tmp_path / "again", device="cpu")
    assert again.model.config == pipe.model.config
    assert all(torch.equal(w, ours["transformer"][n]) for n, w in again.model.state_dict().items())


def test_diffusers_own_from_pretrained(pipe: DummyForcingPipeline, saved: Path) -> None:
    pytest.importorskip("accelerate")  # without it, diffusers loads no Wan transformer
    theirs = WanTransformer3DModel.from_pretrained(saved, subfolder="transformer")
    state = pipe.model.state_dict()
    assert all(torch.equal(w, state[native_name(name)]) for name, w in theirs.state_dict().items())


def test_loaded_components_make_the_same_video(pipe: DummyForcingPipeline, saved: Path) -> None:
    right = pipe(PROMPT, **VIDEO).frames
    parts = loaded(saved)
    whole = DummyForcingPipeline(**parts, preset=saved)
    assert torch.equal(whole(PROMPT, **VIDEO).frames, right)
    assert whole.components["vae"] is parts["vae"]
    again = DummyForcingPipeline(**whole.components, preset=saved)
    assert torch.equal(again(PROMPT, **VIDEO).frames, right)
    some = DummyForcingPipeline.from_pretrained(saved, transformer=parts["transformer"])
    assert torch.equal(some(PROMPT, **VIDEO).frames, right)
    assert (
        some.model.patch_embedding.weight.data_ptr() == parts["transformer"].patch_embedding.weight.data_ptr()
    )
    assert np.array_equal(whole(PROMPT, num_frames=9).frames, pipe(PROMPT, num_frames=9).frames)


def test_a_loaded_transformer_keeps_its_dtype(saved: Path) -> None:
    transformer = loaded(saved)["transformer"].to(torch.bfloat16)
    assert DummyForcingPipeline.from_pretrained(saved, transformer=transformer).dtype == torch.bfloat16
    other = DummyForcingPipeline.from_pretrained(saved, transformer=transformer, torch_dtype="float32")
    assert other.dtype == torch.float32


def test_a_lora_is_merged_into_a_copy(saved: Path, tmp_path: Path) -> None:
    transformer = loaded(saved)["transformer"]
    before = transformer.blocks[0].attn1.to_q.weight.clone()
    lora = {f"blocks.0.self_attn.q.lora_{part}.weight": torch.ones(2, 48) for part in "A"}
    save_file(lora | {"blocks.0.self_attn.q.lora_B.weight": torch.ones(48, 2)}, tmp_path / "l.safetensors")
    pipe = DummyForcingPipeline.from_pretrained(
        saved, transformer=transformer, lora=f"{tmp_path / 'l.safetensors'}:0.5"
    )
    torch.testing.assert_close(pipe.model.blocks[0].self_attn.q.weight, before + 1)  # type: ignore[union-attr]
    assert torch.equal(transformer.blocks[0].attn1.to_q.weight, before)


def test_without_a_text_encoder(pipe: DummyForcingPipeline, saved: Path, tmp_path: Path) -> None:
    parts = {name: part for name, part in loaded(saved).items() if name in ("transformer", "vae")}
    bare = DummyForcingPipeline(**parts, preset=saved)
    embeds = pipe.text.encode(PROMPT)
    assert torch.equal(bare(prompt_embeds=embeds, **VIDEO).frames, pipe(PROMPT, **VIDEO).frames)
    assert bare.components["text_encoder"] is bare.components["tokenizer"] is None
    assert bare.to(torch.bfloat16).dtype == torch.bfloat16
    for ask in (
        lambda: bare(PROMPT, **VIDEO),
        lambda: bare.start(prompt_embeds=embeds).set_prompt("a blue ball"),
        lambda: bare.save_pretrained(tmp_path / "new"),
    ):
        with pytest.raises(BadRequest, match="put together without a text encoder; give prompt_embeds"):
            ask()
    assert not (tmp_path / "new").exists()


def unmerged(model: WanTransformer3DModel) -> WanTransformer3DModel:
    """The names that PEFT gives to the layers that it wraps."""
    layer = torch.nn.Module()
    layer.base_layer = model.blocks[0].attn1.to_q
    model.blocks[0].attn1.to_q = layer
    return model


def quantised(model: WanTransformer3DModel) -> WanTransformer3DModel:
    weight = torch.zeros_like(model.proj_out.weight, dtype=torch.int8)
    model.proj_out.weight = torch.nn.Parameter(weight, requires_grad=False)
    return model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (unmerged, r"has LoRA layers that are not merged; call its fuse_lora\(\) and unload_lora\(\)"),
        (quantised, r"proj_out\.weight is of int8: the model is quantised; give one in bfloat16"),
        (
            lambda _: random_diffusers(image_dim=8, added_kv_proj_dim=48),
            "transformer= is a Wan image-to-video transformer",
        ),
        (lambda _: random_diffusers(cross_attn_norm=False), r"6 missing \(blocks\.0\.norm3\.weight"),
        (lambda _: random_diffusers(text_dim=8), "text encoder gives 16 channels, but model .* takes 8"),
        (lambda model: model.to("meta"), "is on the meta device, without values"),
        (lambda _: None, "transformer=None is no loaded transformer of Wan; give one"),
        (lambda _: "w.safetensors", r"transformer='w\.safetensors' is no loaded transformer of Wan"),
    ],
    ids=["unmerged", "quantised", "from images", "other norms", "other text", "no values", "none", "file"],
)
def test_transformers_that_are_refused(change: Callable[[Any], Any], message: str, saved: Path) -> None:
    parts = {**loaded(saved), "transformer": change(random_diffusers())}
    with pytest.raises(UserError, match=message):
        DummyForcingPipeline(**parts, preset=saved)


@pytest.mark.parametrize(("name", "kind"), [("text_encoder", "UMT5EncoderModel"), ("tokenizer", "Pre")])
def test_other_text_parts_are_refused(name: str, kind: str, saved: Path) -> None:
    parts = {**loaded(saved), name: torch.nn.Linear(2, 2)}
    with pytest.raises(BadRequest, match=f"{name} is of type Linear, and no loaded {kind}"):
        DummyForcingPipeline(**parts, preset=saved)


def test_two_transformers(saved: Path) -> None:
    with pytest.raises(BadRequest, match="weights= and transformer= say the same in other words"):
        DummyForcingPipeline.from_pretrained(
            saved, transformer=random_diffusers(), weights=saved / "transformer"
        )


def test_a_folder_on_the_hub(
    pipe: DummyForcingPipeline, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is asked of the Hub, and that its answer is used."""
    asked: list[tuple[str, list[str]]] = []

    def snapshot(repo: str, allow_patterns: list[str], local_files_only: bool) -> str:
        asked.append((repo, allow_patterns))
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setitem(WAN_SIZES, "1.3B", pipe.model.config)  # nothing is fetched to find out
    found = DummyForcingPipeline.from_pretrained(saved, weights="some-one/wan:transformer/", device="cpu")
    assert asked == [("some-one/wan", ["transformer/*.safetensors", "transformer/*.json"])]
    state = pipe.model.state_dict()
    assert all(torch.equal(weight, state[name]) for name, weight in found.model.state_dict().items())
