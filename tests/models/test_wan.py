"""The transformer: chunks through a cache, one pass with a mask, permuted heads, dtypes."""

import dataclasses

import pytest
import torch

from dummyforcing.attention.attend import attend
from dummyforcing.cache.kv_cache import KVCache
from dummyforcing.method.plan import HeadContext, Plan
from dummyforcing.models.wan import Block, CausalWan, fingerprint
from tests.oracles import SHAPE, random_plan, small_model, small_text, softmax_attention

TOKENS = SHAPE[1] * SHAPE[2] // 4


def cached_velocities(model, text, latents, timesteps, plan, chunk):
    """All chunks in turn, each committed as it is."""
    cache = KVCache(
        [plan] * len(latents), head_dim=model.config.head_dim, tokens_per_frame=TOKENS, chunk_frames=chunk
    )
    out = []
    for start in range(0, latents.shape[1], chunk):
        frames = torch.arange(start, start + chunk)
        time = model.embed_time(timesteps[:, frames])

        def attention(layer, q, k, v):
            return attend(q, cache.write(layer, k, v))

        out.append(model(latents[:, frames], time, text, frames, attention))
        cache.commit()
    return torch.cat(out, 1)


@pytest.mark.parametrize("chunk", [1, 2, 3])
@pytest.mark.parametrize("heads", [2, 5])
@pytest.mark.parametrize("batch", [1, 2])
def test_dense_chunks_equal_one_pass_with_a_block_causal_mask(chunk, heads, batch):
    model = small_model(heads=heads)
    text = small_text(model, batch)
    latents = torch.randn(batch, 4 * chunk, *SHAPE)
    timesteps = (torch.rand(batch, 4) * 1000).repeat_interleave(chunk, 1)
    plan = Plan.uniform(2, heads, HeadContext(0, None))
    chunked = cached_velocities(model, text, latents, timesteps, plan, chunk)

    group = torch.arange(4 * chunk).repeat_interleave(TOKENS) // chunk
    mask = group[:, None] >= group[None]
    whole = model(
        latents,
        model.embed_time(timesteps),
        text,
        torch.arange(4 * chunk),
        lambda layer, q, k, v: softmax_attention(q, k, v, mask),
    )
    torch.testing.assert_close(chunked, whole, atol=2e-5, rtol=0)


def permute_heads(model: CausalWan, orders: list[torch.Tensor]) -> CausalWan:
    """The same function with the self-attention heads of each layer in another order."""
    other = CausalWan(model.config).requires_grad_(False)
    other.load_state_dict(model.state_dict())
    for block, order in zip(other.blocks, orders, strict=True):
        assert isinstance(block, Block)
        attention = block.self_attn
        rows = torch.arange(model.config.dim).view(model.config.num_heads, -1)[order].flatten()
        for layer in (attention.q, attention.k, attention.v):
            layer.weight.copy_(layer.weight[rows])
            layer.bias.copy_(layer.bias[rows])
        for norm in (attention.norm_q, attention.norm_k):
            norm.weight.copy_(norm.weight[rows])
        attention.o.weight.copy_(attention.o.weight[:, rows])
    return other


def test_permuting_heads_permutes_the_plan_and_leaves_the_output():
    model = small_model(layers=3, heads=4)
    text, latents = small_text(model), torch.randn(1, 12, *SHAPE)
    timesteps = torch.full((1, 12), 500.0)
    plan = random_plan(3, 4, 5, [HeadContext(0, 1), HeadContext(1, 0), HeadContext(0, 4)])
    orders = [torch.tensor(order) for order in ([3, 1, 0, 2], [1, 0, 3, 2], [2, 3, 1, 0])]
    permuted = dataclasses.replace(
        plan, roles=tuple(tuple(row[i] for i in order) for row, order in zip(plan.roles, orders, strict=True))
    )
    plain = cached_velocities(model, text, latents, timesteps, plan, 3)
    other = permute_heads(model, orders)
    torch.testing.assert_close(
        cached_velocities(other, text, latents, timesteps, permuted, 3), plain, atol=2e-5, rtol=0
    )
    assert (cached_velocities(other, text, latents, timesteps, plan, 3) - plain).abs().max() > 1e-3


def test_one_time_embedding_serves_all_frames_and_samples():
    model = small_model()
    text, latents, frames = small_text(model, 2), torch.randn(2, 3, *SHAPE), torch.arange(3)
    full, single = (model.embed_time(torch.full(shape, 625.0)) for shape in ((2, 3), (1, 1)))
    out = [
        model(latents, time, text, frames, lambda layer, q, k, v: softmax_attention(q, k, v))
        for time in (full, single)
    ]
    torch.testing.assert_close(*out, atol=1e-6, rtol=0)


def test_frame_numbers_matter_only_by_their_distance():
    model = small_model()
    text, latents = small_text(model), torch.randn(1, 3, *SHAPE)
    time = model.embed_time(torch.full((1, 1), 300.0))
    out = [
        model(latents, time, text, frames, lambda layer, q, k, v: softmax_attention(q, k, v))
        for frames in (torch.arange(3), torch.arange(3) + 1000, torch.arange(3) * 2)
    ]
    torch.testing.assert_close(out[0], out[1], atol=2e-4, rtol=0)
    assert (out[0] - out[2]).abs().max() > 1e-3


def test_kv_only_leaves_out_what_follows_the_last_attention():
    model = small_model()
    calls: dict[bool, list[tuple[torch.Tensor, torch.Tensor]]] = {True: [], False: []}
    after: list[int] = []
    model.get_submodule("blocks.1.ffn").register_forward_hook(lambda *_: after.append(1))
    model.get_submodule("blocks.0.ffn").register_forward_hook(lambda *_: after.append(0))
    tokens, rope = model.patchify(torch.randn(1, 3, *SHAPE)), model.rope(torch.arange(3), *SHAPE[1:])
    for kv_only, seen in calls.items():

        def attention(layer, q, k, v, seen=seen):
            seen.append((k, v))
            return softmax_attention(q, k, v)

        model.transform(
            tokens, model.embed_time(torch.zeros(1, 1)), small_text(model), rope, attention, kv_only
        )
    assert after == [0, 0, 1]
    torch.testing.assert_close(calls[True], calls[False])


def test_fingerprint_names_the_weights_in_any_dtype():
    model = small_model()
    name = fingerprint(model)
    assert name == fingerprint(model.to(torch.bfloat16).float())
    assert name != fingerprint(small_model(seed=1))
    assert name != fingerprint(permute_heads(model, [torch.tensor([1, 0, 2])] * 2))
    model.config = dataclasses.replace(model.config, patch_size=[1, 2, 2])  # type: ignore[arg-type]
    assert name == fingerprint(model)
    model.get_parameter("blocks.1.self_attn.k.weight").neg_()
    assert name != fingerprint(model)
