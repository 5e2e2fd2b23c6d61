"""Runs a checkout of a public repository with and without an attachment, and compares.

    python -m tests.integrations.run_checkout longlive-interactive PATH

A program of its own, because the repositories call their packages alike. Its transformer is small, random and
in float32, and its kernels are those of torch.
"""

import builtins
import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import dummyforcing
from dummyforcing.integrations.attach.buffers import is_kv_cache
from dummyforcing.integrations.attach.families import recognise
from dummyforcing.integrations.attach.fused import shared_model
from dummyforcing.pipeline.choices import choose_policy
from dummyforcing.presets.catalog import find_preset
from dummyforcing.sampling.samplers import SAMPLERS
from dummyforcing.sampling.schedule import make_schedule
from research.upstream import TextEncoder, pipeline, put_on_path, transformer
from tests.integrations.standins import Pipeline

TOLERANCE = 2e-5
CHANNELS = 16
SIZES: dict[str, Any] = {"ffn_dim": 64, "text_dim": 16, "freq_dim": 32}
CASES = {
    "self-forcing": ("self-forcing", 15, 3),
    "causal-forcing": ("causal-forcing", 15, 3),
    "causal-forcing-frame": ("causal-forcing-frame", 8, 1),
    "longlive": ("longlive", 24, 3),
    "longlive-interactive": ("longlive", 30, 3),
    "longlive-infinite": ("longlive-infinite", 24, 3),
    "rolling-forcing": ("rolling-forcing", 36, 3),
    "causvid": ("causvid", 15, 3),
    "krea": ("krea-realtime", 9, 3),
}
"""The public model, latent frames of the video, and of a chunk."""
LATENTS = {"krea": (60, 104)}
"""Height and width of the latents, where they are not 8x8: its positions count 1560 tokens a frame."""
SWITCHES = (6, 18)


def attention(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Stands for kernels that want a GPU, or compute in bfloat16."""
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def small(model: Any) -> Any:
    """A transformer with random weights that are large enough for every part to matter."""
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        weight.data = torch.randn_like(weight) * (weight[0].numel() ** -0.5 if weight.dim() > 1 else 0.2)
        if "norm" in name and name.endswith("weight"):
            weight.data += 1
    return model.eval().requires_grad_(False)


def masked_attention(query: Tensor, key: Tensor, value: Tensor, block_mask: Any, **options: Any) -> Tensor:
    """Stands for compiled flex attention, `(B, H, L, D)`."""
    rows, columns = torch.arange(query.shape[2])[:, None], torch.arange(key.shape[2])
    seen = block_mask.mask_mod(0, 0, rows, columns)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=seen)


def sizes(case: str) -> tuple[int, int, int, int, int]:
    """Height and width of the latents, tokens of a latent frame, layers, and heads."""
    height, width = LATENTS.get(case, (8, 8))
    layers, heads = (1, 2) if case in LATENTS else (2, 12)  # caches of the others are made for 12 heads
    return height, width, height * width // 4, layers, heads


def prompt(text: str) -> Tensor:
    return TextEncoder(SIZES["text_dim"]).forward([text])["prompt_embeds"]


def build(case: str, chunk: int, steps: list[float]) -> tuple[Any, Any]:
    """The pipeline of the checkout that is on the path, and a function that makes its video."""
    *_, tokens, layers, heads = sizes(case)
    window: dict[str, Any] = {"local_attn_size": 12, "sink_size": 3} if case.startswith("longlive") else {}
    infinite = case == "longlive-infinite"
    places: dict[str, Any] = {"package": "wan.modules", "base": ""}
    if case == "causvid":
        places = {"package": "causvid.models.wan", "base": "causvid.models.wan.wan_base.modules"}
    counts: dict[str, Any] = {"num_layers": layers, "num_heads": heads, "dim": 128 * heads}
    model = small(
        transformer(kernel=attention, tokens=tokens, infinite=infinite, **counts, **places, **SIZES, **window)
    )
    if case in ("causvid", "krea"):  # their pipelines load weights where they are made
        model.family = case
        preset = find_preset(CASES[case][0])[0]
        pipe: Any = Pipeline(model, chunk, list(steps), sizes=(layers, heads, 128), tokens=tokens)
        pipe.schedule = make_schedule(steps, preset.schedule.shift, preset.schedule.warp)
        if case == "krea":
            sys.modules[type(model).__module__].flex_attention = masked_attention  # type: ignore[attr-defined]
            pipe.context_mask = lambda: model._prepare_blockwise_causal_attn_mask(
                "cpu", num_frames=chunk, frame_seqlen=tokens, num_frame_per_block=chunk, local_attn_size=-1
            )
        return pipe, lambda noise: pipe.inference(noise, [prompt("a")])
    options: dict[str, Any] = {**window, "use_infinite_attention": infinite}
    if case == "rolling-forcing":
        options["module"] = "rolling_forcing_inference"
    if case == "longlive-interactive":
        options |= {"module": "interactive_causal_inference", "kind": "InteractiveCausalInferencePipeline"}
    pipe = pipeline(model, steps, chunk, tokens, **options)
    if case == "rolling-forcing":
        return pipe, lambda noise: pipe.inference_rolling_forcing(noise, ["a"], return_latents=True)[1]
    if case == "longlive-interactive":
        prompts = {"text_prompts_list": [["a"], ["b"], ["c"]], "switch_frame_indices": list(SWITCHES)}
        return pipe, lambda noise: pipe.inference(noise, **prompts, return_latents=True)[1]
    return pipe, lambda noise: pipe.inference(noise, ["a"], return_latents=True)[1]


def our_video(case: str, pipe: Any, policy: str, noise: Tensor) -> Tensor:
    """The video of our own engine from the same noise."""
    name, frames, chunk = CASES[case]
    preset = find_preset(name)[0]
    steps, chunks, drawn = len(preset.schedule.steps), torch.split(noise, chunk, 1), 0

    def source(shape: Any) -> Tensor:
        nonlocal drawn
        number, step = divmod(drawn, steps)
        drawn += 1
        return torch.randn(shape) if step else chunks[number]

    options: dict[str, Any] = {}
    if preset.sampler == "block":
        options = {"recache_frames": preset.recache_frames, "global_sink": True}
    if preset.sampler == "recompute":
        options = {"context_frames": preset.context_frames}
    sampler = SAMPLERS[preset.sampler](
        shared_model(recognise(pipe)),
        prompt("a"),
        choose_policy(preset, policy),
        make_schedule(preset.schedule.steps, preset.schedule.shift, preset.schedule.warp),
        (1, CHANNELS, *sizes(case)[:2]),
        chunk_frames=chunk,
        seeds=source,
        frames=frames,
        local_attention_size=preset.local_attention_size,
        **options,
    )
    made = []
    while sampler.frames < frames:
        if case == "longlive-interactive" and sampler.frames in SWITCHES:
            sampler.set_prompt(prompt("bc"[SWITCHES.index(sampler.frames)]))
        made.append(sampler.next_chunk())
    return torch.cat(made, 1)


def main(case: str, path: str) -> None:
    """Compare; raises an AssertionError where something differs."""
    put_on_path(path)
    # Asked for where some modules are imported, and by Krea's as the device of a tensor.
    cuda: Any = torch.cuda
    cuda.current_device = lambda: "cpu" if case == "krea" else 0
    say, builtins.print = print, lambda *args, **kwargs: None
    name, frames, chunk = CASES[case]
    pipe, make = build(case, chunk, list(find_preset(name)[0].schedule.steps))
    noise = torch.randn(1, frames, CHANNELS, *sizes(case)[:2], generator=torch.Generator().manual_seed(1))

    def video() -> Tensor:
        torch.manual_seed(5)
        return make(noise)  # type: ignore[no-any-return]

    with torch.no_grad():
        alone = video()
        for engine in ("attention", "fused"):
            for policy in ("native", "dummy") if case not in LATENTS else ("native",):
                with dummyforcing.attach(pipe, policy, engine=engine) as handle:
                    found = video()
                    apart = (found - alone).abs().max().item()
                    say(f"{case}, {engine}, {policy}: {apart:.1e} from its own code, {handle}")
                    assert handle.engine == engine, handle.note
                    assert apart <= TOLERANCE if policy == "native" else apart > 1e-3
                    torch.testing.assert_close(video(), found, rtol=0, atol=TOLERANCE)
                    caches = next(value for value in vars(pipe).values() if is_kv_cache(value))
                    assert all(cache["k"].nbytes == cache["v"].nbytes == 0 for cache in caches)
                if case != "rolling-forcing":  # which draws its noise in an order of its own
                    torch.manual_seed(5)
                    ours = our_video(case, pipe, policy, noise)
                    say(
                        f"{case}, {engine}, {policy}: {(found - ours).abs().max().item():.1e} from our engine"
                    )
                    torch.testing.assert_close(found, ours, rtol=0, atol=TOLERANCE)
        assert torch.equal(video(), alone)


if __name__ == "__main__":
    main(*sys.argv[1:])
