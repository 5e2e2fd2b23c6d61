"""Files of weights as people have them: right ones in every wrapping, wrong ones, and what downloads left.

docs/guides/models.md has the same rows, which `tests/checkpoints/test_wild_files.py` compares.
"""

import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save, save_file
from torch import Tensor

from tests.layouts import SMALL, State, other, random_state, sharded, under

Write = Callable[[State, Path], object]
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


@dataclass(frozen=True)
class Wild:
    """A kind of file."""

    what: str
    """As the guide says it."""
    files: Mapping[str, Write]
    """How to write it, by the name of the file or folder."""
    remedy: str = ""
    """What the error ends with; empty: it loads."""
    problem: str = ""
    """What the error says about it."""


def is_linear(name: str) -> bool:
    """Whether quantisers take a tensor: matrices inside of blocks."""
    return name.startswith("blocks.") and name.endswith(".weight") and "norm" not in name


def scaled(
    state: State,
    scale_name: str,
    largest: Callable[[Tensor], Tensor],
    extras: Callable[[str], State] = lambda layer: {},
) -> State:
    """Float8 with the scale of each matrix beside it; `largest` gives the largest value below each scale."""
    result: State = {}
    for name, weight in state.items():
        if not is_linear(name):
            result[name] = weight
            continue
        layer = name.removesuffix("weight")
        scale = largest(weight.abs()) / 448
        parts = weight.reshape(scale.numel(), -1) / scale.reshape(-1, 1)
        result[name] = parts.reshape(weight.shape).to(E4M3)
        result[layer + scale_name] = scale
        result |= extras(layer)
    return result


def comfy_scaled(state: State) -> State:
    """ComfyUI's fp8_scaled, its first form."""
    found = scaled(state, "scale_weight", torch.max, lambda layer: {layer + "scale_input": torch.ones(())})
    return {**found, "scaled_fp8": torch.zeros(0, dtype=E4M3)}


def comfy_quant(state: State) -> State:
    """ComfyUI's fp8_scaled as of late 2025, below the name of the model."""
    about = torch.frombuffer(bytearray(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)

    def extras(layer: str) -> State:
        return {layer + "comfy_quant": about.clone(), layer + "input_scale": torch.ones(())}

    return under("model.diffusion_model.", scaled(state, "weight_scale", torch.max, extras))


def by_row(weight: Tensor) -> Tensor:
    return weight.amax(1, keepdim=True)


def by_part(weight: Tensor) -> Tensor:
    """Sixteen columns share a scale, (rows, parts, 1), as in musubi-tuner."""
    return weight.reshape(len(weight), -1, 16).amax(2, keepdim=True)


def whole(state: State) -> State:
    """A checkpoint of ComfyUI with VAE and text encoder inside."""
    vae = {"first_stage_model.decoder.conv1.weight": torch.zeros(2), "vae.decoder.conv1.bias": torch.zeros(2)}
    text = {"text_encoders.umt5xxl.transformer.shared.weight": torch.zeros(2)}
    return {**under("model.diffusion_model.", state), **vae, **text}


def nested(path: tuple[str | int, ...]) -> Write:
    """Below these keys, from the top; 0 is a list of one. Beside them is what is no weight."""

    def write(state: State, file: Path) -> None:
        data: object = OrderedDict(under("model.", state))
        for key in reversed(path):
            data = [data] if key == 0 else {key: data, "epoch": 3, "optimizer": {"lr": 0.1}}
        torch.save(data, file)

    return write


def safe(change: Callable[[State], State] = lambda state: state) -> Write:
    return lambda state, path: save_file({n: t.contiguous() for n, t in change(state).items()}, path)


def torch_file(change: Callable[[State], State] = lambda state: state) -> Write:
    return lambda state, path: torch.save(change(state), path)


def cut(write: Write, share: float = 0.5) -> Write:
    """A download that stopped."""

    def written(state: State, path: Path) -> None:
        write(state, path)
        data = path.read_bytes()
        path.write_bytes(data[: int(share * len(data))])

    return written


def data(content: bytes) -> Write:
    return lambda _, path: path.write_bytes(content)


def zipped(state: State, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("model.safetensors", save(state))


def folder(*files: tuple[str, Write]) -> Write:
    def write(state: State, path: Path) -> None:
        path.mkdir()
        for name, inner in files:
            (path / name).parent.mkdir(exist_ok=True)
            inner(state, path / name)

    return write


def without(shard: int, index: bool) -> Write:
    """Several files, of which one is missing."""

    def write(state: State, path: Path) -> None:
        sharded(state, path)
        (path / f"model-0000{shard}-of-00003.safetensors").unlink()
        if not index:
            (path / "model.safetensors.index.json").unlink()

    return write


def torchscript(_: State, path: Path) -> None:
    """The program of a layer, traced: what `torch.jit.save` writes."""
    import warnings

    with warnings.catch_warnings(action="ignore"):
        torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(str(path))


def nf4(state: State) -> State:
    """What diffusers saves of a model in 4 bits."""
    found: State = {}
    for name, weight in state.items():
        if is_linear(name):
            found[name] = torch.zeros(weight.numel() // 2, 1, dtype=torch.uint8)
            found[f"{name}.absmax"] = torch.zeros(weight.numel() // 64 + 1)
            found[f"{name}.quant_map"] = torch.zeros(16)
            found[f"{name}.quant_state.bitsandbytes__nf4"] = torch.zeros(80, dtype=torch.uint8)
        else:
            found[name] = weight
    return found


def int8(state: State) -> State:
    found: State = {}
    for name, weight in state.items():
        if is_linear(name):
            found[name] = weight.to(torch.int8)
            found[name.replace(".weight", ".SCB")] = torch.zeros(len(weight))
            found[name.replace(".weight", ".weight_format")] = torch.zeros((), dtype=torch.uint8)
        else:
            found[name] = weight
    return found


def gptq(state: State) -> State:
    kinds = {"qweight": torch.int32, "qzeros": torch.int32, "scales": torch.float16, "g_idx": torch.int32}
    found = {name: weight for name, weight in state.items() if not is_linear(name)}
    for name in filter(is_linear, state):
        found |= {
            name.replace(".weight", f".{kind}"): torch.zeros(4, dtype=dtype) for kind, dtype in kinds.items()
        }
    return found


def nvfp4(state: State) -> State:
    found = {name: t.to(torch.uint8) if is_linear(name) else t for name, t in state.items()}
    for name in filter(is_linear, state):
        found |= {
            name.replace(".weight", ".weight_scale"): torch.zeros(4).to(E4M3),
            name.replace(".weight", ".weight_scale_2"): torch.zeros(()),
        }
    return found


def int8_scaled(state: State) -> State:
    found = {name: t.to(torch.int8) if is_linear(name) else t for name, t in state.items()}
    return found | {n.replace(".weight", ".weight_scale"): torch.ones(()) for n in filter(is_linear, state)}


def channels(count: int, out: int = 16) -> Callable[[State], State]:
    """Another number of latent channels, such as with a picture beside the latents."""

    def change(state: State) -> State:
        return {
            **state,
            "patch_embedding.weight": torch.zeros(SMALL.dim, count, 1, 2, 2),
            "head.head.weight": torch.zeros(4 * out, SMALL.dim),
            "head.head.bias": torch.zeros(4 * out),
        }

    return change


def image_to_video(state: State) -> State:
    more = {"img_emb.proj.0.weight": torch.zeros(8), "img_emb.proj.1.weight": torch.zeros(8, 8)}
    more |= {
        f"blocks.{i}.cross_attn.{n}.weight": torch.zeros(4, 4) for i in range(3) for n in ("k_img", "v_img")
    }
    return {**channels(36)(state), **more}


def vace(state: State) -> State:
    more = {
        "vace_blocks.0.before_proj.weight": torch.zeros(4, 4),
        "vace_blocks.0.self_attn.q.weight": torch.zeros(4),
    }
    return {**state, **more, "vace_patch_embedding.weight": torch.zeros(4, 96, 1, 2, 2)}


def names(*known: str) -> Callable[[State], State]:
    return lambda _: {name: torch.zeros(2, 2) for name in known}


SDXL = names(
    "model.diffusion_model.input_blocks.0.0.weight",
    "model.diffusion_model.middle_block.1.proj_in.weight",
    "first_stage_model.decoder.conv_in.weight",
    "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight",
)
UNET = names("conv_in.weight", "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight")
FLUX = names("double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight", "img_in.weight")
CLIP = names("vision_model.embeddings.patch_embedding.weight", "vision_model.post_layernorm.weight")
LORA = names("diffusion_model.blocks.0.ffn.0.lora_A.weight", "diffusion_model.blocks.0.ffn.0.lora_B.weight")
VAE = names("decoder.conv1.weight", "encoder.conv1.weight", "conv1.weight")
UMT5 = names("token_embedding.weight", "blocks.0.attn.q.weight")
TAEHV = names("decoder.1.weight", "decoder.3.conv.0.weight", "encoder.0.weight")

AGAIN = "download it again"
CAUSAL = "take a causal text-to-video model; dummyforcing models lists them"
FEWER = 'take the model in bfloat16 or float8; fp8="linear" computes in float8'
OWN_CODE = type("Config", (), {"__module__": "tests.wild", "__reduce__": lambda _: (print, ("code ran",))})()

WILD = [
    Wild(
        "a file of `torch.save`, of torch before 1.6, too",
        {
            "flat.pt": torch_file(),
            "a.pth": lambda s, p: torch.save(s, p, _use_new_zipfile_serialization=False),
            "a.bin": torch_file(),
            "A.CKPT": torch_file(),
        },
    ),
    Wild(
        "safetensors, by any name",
        {"a.safetensors": safe(), "A.SAFETENSORS": safe(), "a.bin": safe(), "a.pt": safe(), "a": safe()},
    ),
    Wild("a folder of several safetensors, with or without their index", {"sharded": sharded}),
    Wild(
        "what training saved: in `generator`, `generator_ema`, `model`, `state_dict`, `module`, `ema`, ...",
        {
            "a.pt": nested(("generator",)),
            "b.pt": nested(("state_dict",)),
            "c.pt": nested(("model", "module")),
            "d.pt": nested((0, "model_ema", "state_dict")),
            "e.pt": nested(("ema",)),
            "f.pt": nested(("state_dict", "generator_ema")),
            "g.pt": lambda s, p: torch.save(
                {"generator": other(s), "generator_ema": {"module": s}, "step": 3}, p
            ),
        },
    ),
    Wild(
        "names that begin with `model.`, `module.`, `transformer.`, `model.diffusion_model.`, ...",
        {
            "a.safetensors": safe(lambda s: under("model.diffusion_model.", s)),
            "b.pt": torch_file(lambda s: under("module.model._orig_mod.", s)),
            "c.safetensors": safe(lambda s: under("transformer.", s)),
        },
    ),
    Wild(
        "a whole checkpoint of ComfyUI, with VAE and text encoder",
        {"whole.safetensors": safe(whole)},
    ),
    Wild(
        "float8 without scales",
        {
            "e4m3.safetensors": safe(lambda s: {n: t.to(E4M3) for n, t in s.items()}),
            "e5m2.pt": torch_file(lambda s: {n: t.to(E5M2) for n, t in s.items()}),
        },
    ),
    Wild(
        "float8 with scales (`scale_weight` or `weight_scale`): of a matrix, of its rows, of parts of rows",
        {
            "comfy.safetensors": safe(comfy_scaled),
            "comfy_quant.safetensors": safe(comfy_quant),
            "rows.safetensors": safe(lambda s: scaled(s, "weight_scale", by_row)),
            "parts.pt": torch_file(lambda s: scaled(s, "scale_weight", by_part)),
            "one.safetensors": safe(lambda s: scaled(s, "scale_weight", lambda t: t.max().reshape(1))),
        },
    ),
    Wild(
        "a download that stopped",
        {
            "a.safetensors": cut(safe()),
            "b.safetensors": cut(safe(), 0.01),
            "c.pt": cut(torch_file()),
            "d.pt": data(b""),
            "e.safetensors": data(b""),
            "f.pt": data(bytes(5000)),
            "g.safetensors": data(bytes(5000)),
        },
        AGAIN,
        r"ends early|is empty, it has 0 bytes|begins with zeros",
    ),
    Wild(
        "`.part`, `.crdownload`, `.incomplete`, ...",
        {
            "a.safetensors.part": cut(safe()),
            "b.pt.crdownload": cut(torch_file()),
            "c.incomplete": data(b"x" * 99),
        },
        "let it finish, or download it again",
        "is a download that has not finished",
    ),
    Wild(
        "a web page, or a Git LFS pointer, saved under the file's name",
        {
            "a.pt": data(b"<!DOCTYPE html><html><title>Sign in</title>"),
            "b.safetensors": data(b"\n\n<html>\n<h1>404</h1>"),
            "c.safetensors": data(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"),
            "d.pth": data(b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>AccessDenied</Code>'),
        },
        "download the file itself",
        "instead of weights",
    ),
    Wild(
        "an archive (`.zip`, `.gz`, `.7z`, ...)",
        {
            "a.zip": zipped,
            "b.pt.gz": data(b"\x1f\x8b\x08" + b"x" * 99),
            "c.7z": data(b"7z\xbc\xaf\x27\x1c\0\4"),
        },
        "unpack it",
        "is packed with|is an archive of model.safetensors",
    ),
    Wild(
        "a pickle with objects of a program in it",
        {
            "a.pt": lambda s, p: torch.save({"generator": s, "config": OWN_CODE}, p),
            "b.pth": lambda s, p: torch.save({**s, "c": Path("x")}, p, _use_new_zipfile_serialization=False),
        },
        "save its tensors alone, as .safetensors, where you trust it",
        r"holds Python objects besides weights, (pathlib\.\w+|print), and reading them could run anything",
    ),
    Wild(
        "a TorchScript program",
        {"a.pt": torchscript},
        "take a file of tensors alone, as .safetensors",
        "is a TorchScript program",
    ),
    Wild(
        "GGUF",
        {"model-Q4_K_M.gguf": data(b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + bytes(99))},
        "take the model as .safetensors, in bfloat16 or float8",
        "is a GGUF file, whose weights are quantised",
    ),
    Wild(
        "4-bit or 8-bit weights: bitsandbytes, GPTQ, AWQ, NVFP4, SVDQuant, quanto",
        {
            "nf4.safetensors": safe(nf4),
            "int8.safetensors": safe(int8),
            "gptq.safetensors": safe(gptq),
            "nvfp4.safetensors": safe(nvfp4),
            "int8_scaled.safetensors": safe(int8_scaled),
        },
        FEWER,
        r"holds ([48]-bit weights of bits|weights of GPTQ or AWQ|NVFP4 weights|weights in I8 with)",
    ),
    Wild(
        "image-to-video, VACE, Wan 2.2's 5B; Stable Diffusion, Flux, HunyuanVideo; CLIP",
        {
            "i2v.safetensors": safe(image_to_video),
            "i2v.pt": torch_file(lambda s: under("model.diffusion_model.", image_to_video(s))),
            "a14b.safetensors": safe(channels(36)),
            "5b.safetensors": safe(channels(48, 48)),
            "vace.safetensors": safe(vace),
            "sdxl.safetensors": safe(SDXL),
            "unet.safetensors": safe(UNET),
            "flux.safetensors": safe(FLUX),
            "clip.safetensors": safe(CLIP),
        },
        CAUSAL,
        r"is (a Wan image-to|an image-to-video|a VACE|Wan 2\.2's 5B|a model of (Stable|Flux)|a CLIP)",
    ),
    Wild(
        "one of several files of a model",
        {"model-00001-of-00003.safetensors": safe(), "MODEL-00002-OF-00003.safetensors": safe()},
        "give their folder",
        "is one of 3 files of a model",
    ),
    Wild(
        "several files, and one is missing",
        {"a": without(2, index=True), "b": without(3, index=False), "c": without(1, index=False)},
        "download it",
        r"model-0000\d-of-00003\.safetensors is missing",
    ),
    Wild(
        "their index alone",
        {"model.safetensors.index.json": data(b'{"weight_map": {}}')},
        "give its folder",
        "lists weights and holds none",
    ),
    Wild(
        "a folder of files of `torch.save`",
        {
            "a": folder(("pytorch_model.bin", torch_file())),
            "b": folder(("self_forcing_dmd.pt", torch_file())),
        },
        "give the file, such as",
        "holds no weights, no \\*\\.safetensors file",
    ),
    Wild(
        "a folder of diffusers, with `transformer/` in it",
        {"a": folder(("model_index.json", data(b"{}")), ("transformer/a.safetensors", safe()))},
        "give its transformer, ",
        "holds no weights",
    ),
    Wild(
        "a folder of `torch.distributed.checkpoint`",
        {"a": folder((".metadata", data(pickle.dumps({}))), ("__0_0.distcp", data(b"x")))},
        "make one file of it: python -m torch.distributed.checkpoint.format_utils dcp_to_torch",
        "is a checkpoint of torch.distributed",
    ),
]

PARTS = [
    Wild("a LoRA", {"a.safetensors": safe(LORA)}, 'give it as lora="', "is a LoRA, not a Wan transformer"),
    Wild(
        "a VAE",
        {"a.pth": torch_file(VAE)},
        'put it into a folder with the text encoder, base="FOLDER"',
        "is a Wan VAE, not a Wan transformer",
    ),
    Wild(
        "a text encoder",
        {"a.pth": torch_file(UMT5)},
        'put it into a folder with the VAE, base="FOLDER"',
        "is a UMT5 text encoder, not a Wan transformer",
    ),
    Wild(
        "TAEHV's small decoder",
        {"a.pth": torch_file(TAEHV)},
        'give it as vae="',
        "is a small decoder, not a Wan transformer",
    ),
]
"""Parts of a model, given as its transformer; `models check` takes them for what they are."""


def write(wild: Wild, name: str, to: Path) -> tuple[Path, State]:
    """Write a file, with the sizes of its transformer beside it, or in it if it is a folder.

    Returns:
        The file, and the weights that went into it.
    """
    state = random_state()
    (to / "config.json").write_text(json.dumps(vars(SMALL)))
    wild.files[name](state, to / name)
    if (to / name).is_dir():
        (to / name / "config.json").write_text(json.dumps(vars(SMALL)))
    return to / name, state
