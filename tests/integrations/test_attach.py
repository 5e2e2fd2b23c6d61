"""Attached transformers against our own samplers, and against the dense attention of the stand-ins."""

import copy
import dataclasses
import gc
import json
import pickle
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dummyforcing
from dummyforcing.errors import BadRequest, UserError
from dummyforcing.integrations.attach.families import FAMILIES, recognise
from dummyforcing.integrations.attach.fused import shared_model
from dummyforcing.method.plan import HeadContext, Plan
from dummyforcing.method.policy import Policy, dummy
from dummyforcing.models.wan import fingerprint
from dummyforcing.pipeline.choices import choose_policy
from dummyforcing.presets.catalog import find_preset
from dummyforcing.runtime.fused import FusedWan
from dummyforcing.runtime.heads import LocalHeads
from dummyforcing.sampling.samplers import SAMPLERS
from tests.integrations.standins import (
    CAPACITY,
    CHANNELS,
    HEIGHT,
    TOKENS,
    WIDTH,
    Pipeline,
    noise_of,
    prompt_of,
    transformer,
)
from tests.oracles import random_plan

NAMES = [family.name for family in FAMILIES]
FRAMES = {"rolling-forcing": 36, "longlive": 24}
TOLERANCE = 2e-5


def pipeline(family: str, chunk: int = 3, seed: int = 0, **options: Any) -> Pipeline:
    window = {"local_attn_size": 12, "sink_size": 3} if family == "longlive" else {}
    return Pipeline(transformer(family, seed, **window), chunk, **options)


def video(pipe: Pipeline, frames: int = 0, batch: int = 1, seed: int = 5, **options: Any) -> Tensor:
    frames = frames or FRAMES.get(pipe.family, 15)
    torch.manual_seed(seed)
    prompts = options.pop("prompts", [prompt_of(pipe.model, batch=batch)])
    with torch.no_grad():
        return pipe.inference(noise_of(frames, batch), prompts, **options)


def shared(pipe: Pipeline) -> Any:
    """Our model over the weights of a stand-in."""
    model = shared_model(recognise(pipe))
    assert not isinstance(model, str), model
    return model


def preset_of(pipe: Pipeline) -> Any:
    """The public model that a stand-in is like."""
    frame_wise = {"self-forcing": "causal-forcing-frame", "comfyui": "causal-forcing-frame"}
    names = {family.name: family.presets[0] for family in FAMILIES}
    name = frame_wise[pipe.family] if pipe.num_frame_per_block == 1 else names[pipe.family]
    return find_preset(name)[0]


def draws(pipe: Pipeline, noise: Tensor) -> Any:
    """The noise of a stand-in's video, in the order in which our samplers ask for it."""
    chunk, steps = pipe.num_frame_per_block, len(pipe.schedule.sigmas)
    chunks = list(torch.split(noise, chunk, 1))

    def blocks() -> Iterator[Tensor]:
        for one in chunks:
            yield one
            for _ in range(steps - 1):
                yield torch.randn(one.shape)

    def windows() -> Iterator[Tensor]:
        begun = finished = 0
        while finished < len(chunks):
            if begun < len(chunks):
                yield chunks[begun]
                begun += 1
            oldest_step = min(begun - 1, steps - 1) if finished == 0 and begun < steps else steps - 1
            again = begun - finished if oldest_step < steps - 1 else begun - finished - 1
            for _ in range(again):
                yield torch.randn(chunks[0].shape)
            finished += oldest_step == steps - 1

    source = windows() if pipe.family == "rolling-forcing" else blocks()
    return lambda shape: next(source)


def our_video(
    pipe: Pipeline,
    policy: str | Policy,
    frames: int = 0,
    batch: int = 1,
    seed: int = 5,
    switches: tuple[int, ...] = (),
    prompts: Any = None,
    **options: Any,
) -> tuple[Tensor, Any]:
    """The video that our own sampler makes of the same weights and the same noise, and the sampler."""
    frames = frames or FRAMES.get(pipe.family, 15)
    preset = preset_of(pipe)
    model = shared(pipe)
    prompts = prompts or [prompt_of(pipe.model, batch=batch)]
    torch.manual_seed(seed)
    if preset.sampler == "block":
        options |= {"recache_frames": preset.recache_frames, "global_sink": pipe.global_sink}
    if preset.sampler == "recompute":
        options |= {"context_frames": preset.context_frames}
    sampler = SAMPLERS[preset.sampler](
        model,
        prompts[0],
        policy if isinstance(policy, Policy) else choose_policy(preset, policy),
        pipe.schedule,
        (batch, CHANNELS, HEIGHT, WIDTH),
        chunk_frames=pipe.num_frame_per_block,
        seeds=draws(pipe, noise_of(frames, batch)),
        frames=frames,
        local_attention_size=preset.local_attention_size,
        **options,
    )
    made = []
    while sampler.frames < frames:
        if sampler.frames in switches:
            sampler.set_prompt(prompts[1 + switches.index(sampler.frames)])
        made.append(sampler.next_chunk())
    return torch.cat(made, 1), sampler


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Heads go to their places at once, as on a GPU; the layers in which they did."""
    layers: list[int] = []
    attend = LocalHeads.attend

    def counted(self: LocalHeads, *args: Any, **options: Any) -> Tensor | None:
        layers.append(0)
        return attend(self, *args, **options)

    monkeypatch.setattr("dummyforcing.integrations.attach.follower.runs_in_triton", lambda x: True)
    monkeypatch.setattr(LocalHeads, "attend", counted)
    return layers


@pytest.mark.parametrize("family", NAMES)
@pytest.mark.parametrize("policy", ["native", "dummy", "anchored", "dense"])
def test_heads_may_go_to_their_places_at_once(family, policy, placed):
    pipe = pipeline(family)
    if family == "krea" and policy == "anchored":
        pytest.skip("three frames of context have no room for it")
    expected, _ = our_video(pipe, policy)
    with dummyforcing.attach(pipe, policy):
        for _ in range(2):
            torch.testing.assert_close(video(pipe), expected, rtol=0, atol=TOLERANCE)
    assert placed


def test_heads_of_a_batch_may_go_to_their_places_at_once(placed):
    pipe = pipeline("self-forcing")
    expected, sampler = our_video(pipe, "dummy", batch=2)
    assert len({plan.contexts for plan in sampler.plans}) == 2
    with dummyforcing.attach(pipe, "dummy"):
        torch.testing.assert_close(video(pipe, batch=2), expected, rtol=0, atol=TOLERANCE)
    assert placed


@pytest.mark.parametrize("engine", ["attention", "fused"])
@pytest.mark.parametrize("policy", ["native", "dummy", "anchored", "long:4", "window:1,2", "dense"])
@pytest.mark.parametrize("family", NAMES)
def test_attached_code_gives_what_our_engine_gives(family, policy, engine):
    pipe = pipeline(family)
    if family == "krea" and policy in ("long:4", "anchored"):
        pytest.skip("three frames of context have no room for it")
    expected, sampler = our_video(pipe, policy)
    with dummyforcing.attach(pipe, policy, engine=engine) as handle:
        found = video(pipe)
        torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)
        again = video(pipe)  # begins with nothing
        torch.testing.assert_close(again, expected, rtol=0, atol=TOLERANCE)
        wanted = "attention" if family == "comfyui" else engine
        assert (handle.engine, bool(handle.note)) == (wanted, wanted != engine)
        assert handle.plan.roles == sampler.plan.roles
        assert handle.plan.fingerprint == sampler.plan.fingerprint
        if policy not in (
            "native",
            "dense",
        ):  # these make room for the whole video, if they know how long it is
            assert handle.cache_bytes == sampler.cache.nbytes


@pytest.mark.parametrize("family", ["self-forcing", "longlive", "causvid"])
def test_native_gives_what_the_code_itself_gives(family):
    pipe = pipeline(family)
    alone = video(pipe)
    with dummyforcing.attach(pipe, "native"):
        torch.testing.assert_close(video(pipe), alone, rtol=0, atol=TOLERANCE)
    with dummyforcing.attach(pipe, "window:0,1"):
        assert (video(pipe) - alone).abs().max() > 0.01  # else the past would not matter
    assert torch.equal(video(pipe), alone)


def test_a_window_of_the_code_itself_is_its_native_policy():
    pipe = Pipeline(transformer("self-forcing", local_attn_size=9, sink_size=2))
    alone = video(pipe, frames=24)
    with dummyforcing.attach(pipe, "native") as handle:
        torch.testing.assert_close(video(pipe, frames=24), alone, rtol=0, atol=TOLERANCE)
        assert handle.plan.table["uniform"] == HeadContext(2, 4)


@pytest.mark.parametrize("global_sink", [True, False])
@pytest.mark.parametrize("policy", ["native", "dummy"])
@pytest.mark.parametrize("switches", [(6, 18), (12,), (3, 9)])
def test_a_prompt_change_writes_the_newest_frames_again(policy, global_sink, switches):
    pipe = pipeline("longlive", global_sink=global_sink)
    prompts = [prompt_of(pipe.model, seed) for seed in range(3)]
    expected, _ = our_video(pipe, policy, switches=switches, prompts=prompts)
    for engine in ("attention", "fused"):
        with dummyforcing.attach(pipe, policy, engine=engine):
            found = video(pipe, switches=switches, prompts=prompts)
        torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("engine", ["attention", "fused"])
def test_models_of_one_frame_a_chunk(engine):
    pipe = pipeline("self-forcing", chunk=1)
    expected, sampler = our_video(pipe, "dummy", frames=8)
    with dummyforcing.attach(pipe, engine=engine) as handle:
        torch.testing.assert_close(video(pipe, frames=8), expected, rtol=0, atol=TOLERANCE)
        assert handle.plan.chunk == sampler.plan.chunk == 3
        assert len(handle.timings) == 7
        assert all(seconds > 0 for seconds in handle.timings)


def test_a_video_that_goes_on_from_given_frames():
    pipe = pipeline("self-forcing")
    given = noise_of(6, seed=9)
    with torch.no_grad(), dummyforcing.attach(pipe, "dummy") as handle:
        found = video(pipe, frames=9, initial_latent=given)
        # Given frames are not scored: the first chunk that was made classifies the heads.
        assert handle.plan.chunk == 2
    model = shared(pipe)
    torch.manual_seed(5)
    sampler = SAMPLERS["block"](
        model,
        prompt_of(pipe.model),
        choose_policy(preset_of(pipe), "dummy"),
        pipe.schedule,
        (1, CHANNELS, HEIGHT, WIDTH),
        seeds=draws(pipe, noise_of(9)),
    )
    sampler.extend(given)
    expected = torch.cat([given, *(sampler.next_chunk() for _ in range(3))], 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("engine", ["attention", "fused"])
def test_a_batch_gives_what_its_samples_give_alone(engine):
    pipe = pipeline("self-forcing")
    noise, prompts = noise_of(15, 3), prompt_of(pipe.model, batch=3)
    one_step = Pipeline(pipe.model, steps=[1000])  # no draws: samples are the same alone
    with torch.no_grad(), dummyforcing.attach(one_step, engine=engine) as handle:
        together = one_step.inference(noise, [prompts])
        plans = handle.plans
        assert len({plan.roles for plan in plans}) > 1
        for sample, plan in enumerate(plans):
            alone = one_step.inference(noise[sample : sample + 1], [prompts[sample : sample + 1]])
            torch.testing.assert_close(alone[0], together[sample], rtol=0, atol=TOLERANCE)
            assert handle.plan.roles == plan.roles


def test_a_plan_that_is_given_holds_from_the_first_chunk_on():
    pipe = pipeline("self-forcing")
    plan = random_plan(2, 4, seed=3, contexts=[HeadContext(0, 1), HeadContext(1, 2), HeadContext(0, 4)])
    expected, _ = our_video(pipe, "dummy", plan=plan)
    with dummyforcing.attach(pipe, plan=plan) as handle:
        torch.testing.assert_close(video(pipe), expected, rtol=0, atol=TOLERANCE)
        assert handle.plan is plan


def test_a_plan_is_saved_and_used_by_our_own_engine(tmp_path):
    pipe = pipeline("self-forcing")
    with dummyforcing.attach(pipe) as handle:
        video(pipe)
        handle.plan.save(tmp_path / "plan.json")
    plan = Plan.load(tmp_path / "plan.json")
    with dummyforcing.attach(pipe, plan=tmp_path / "plan.json") as handle:
        video(pipe)
        assert handle.plan == plan
    model = shared(pipe)
    plan.require(2, 4, fingerprint(model))
    assert json.loads((tmp_path / "plan.json").read_text())["policy"] == "dummy"


def test_official_scores_the_commit_pass():
    pipe = pipeline("self-forcing")
    expected, sampler = our_video(pipe, "official")
    with dummyforcing.attach(pipe, "official") as handle:
        torch.testing.assert_close(video(pipe), expected, rtol=0, atol=TOLERANCE)
        scores = [torch.tensor(plan.scores) for plan in (handle.plan, sampler.plan)]
        torch.testing.assert_close(*scores, rtol=0, atol=TOLERANCE)
        assert handle.plan.score_pass == "commit"


def test_videos_longer_than_the_buffers_and_the_tables_of_angles():
    pipe = Pipeline(transformer("self-forcing", layers=1), chunk=3, steps=[1000])
    with pytest.raises(RuntimeError):
        video(pipe, frames=CAPACITY + 3)
    pipe.kv_cache1 = None
    expected, _ = our_video(pipe, "window:1,2", frames=1032)
    with dummyforcing.attach(pipe, "window:1,2"):
        torch.testing.assert_close(video(pipe, frames=1032), expected, rtol=0, atol=TOLERANCE)


def test_other_sizes_need_no_setting():
    """The code counts 6 tokens a frame whatever the size, as the public ones count 1560."""
    pipe = pipeline("self-forcing")
    noise = torch.randn(1, 12, CHANNELS, 8, 10, generator=torch.Generator().manual_seed(1))
    prompt = prompt_of(pipe.model)
    with torch.no_grad():
        pipe.frame_seq_length = 20
        torch.manual_seed(5)
        right = pipe.inference(noise, [prompt])
        pipe.frame_seq_length, pipe.kv_cache1 = TOKENS, None
        for engine in ("attention", "fused"):
            with dummyforcing.attach(pipe, "dense", engine=engine):
                torch.manual_seed(5)
                found = pipe.inference(noise, [prompt])
            torch.testing.assert_close(found, right, rtol=0, atol=TOLERANCE)


def test_dense_buffers_take_no_memory():
    pipe = pipeline("self-forcing")
    video(pipe)
    assert pipe.kv_cache1[0]["k"].device.type == "cpu"
    with dummyforcing.attach(pipe):
        caches = pipe.kv_cache1
        assert caches is None
        video(pipe)
        for cache in pipe.kv_cache1:
            assert cache["k"].nbytes == cache["v"].nbytes == 0
            assert cache["k"].shape == (1, 0, 4, 8)
            assert int(cache["global_end_index"]) == 0
    caches = pipe.kv_cache1
    assert caches is None
    video(pipe)
    assert pipe.kv_cache1[0]["k"].abs().sum() > 0


@pytest.mark.parametrize("engine", ["attention", "fused"])
def test_an_error_in_the_middle_leaves_a_clean_state(engine):
    pipe = pipeline("self-forcing")
    alone = video(pipe)
    with dummyforcing.attach(pipe, engine=engine):
        expected = video(pipe)
        for pass_number in (1, 4, 8):
            with pytest.raises(ZeroDivisionError), failing(pipe, engine, pass_number):
                video(pipe)
            torch.testing.assert_close(video(pipe), expected, rtol=0, atol=TOLERANCE)
    assert torch.equal(video(pipe), alone)


class failing:
    """Lets a pipeline fail at its n-th pass."""

    def __init__(self, pipe: Pipeline, engine: str, number: int) -> None:
        self._left = number
        # In the middle of a pass where its own blocks run, else between two of them.
        self._module = pipe.model.blocks[1].ffn if engine == "attention" else pipe.generator

    def _count(self, module: nn.Module, inputs: Any) -> None:
        self._left -= 1
        if not self._left:
            raise ZeroDivisionError

    def __enter__(self) -> None:
        self._hook = self._module.register_forward_pre_hook(self._count)

    def __exit__(self, *error: object) -> None:
        self._hook.remove()


def test_two_pipelines_in_one_process():
    one, other = pipeline("self-forcing"), pipeline("self-forcing", seed=1)
    alone = [our_video(pipe, "dummy")[0] for pipe in (one, other)]
    untouched = pipeline("self-forcing", seed=2)
    plain = video(untouched)
    with dummyforcing.attach(one), dummyforcing.attach(other):
        for pipe, expected in zip((one, other), alone, strict=True):
            torch.testing.assert_close(video(pipe), expected, rtol=0, atol=TOLERANCE)
        assert torch.equal(video(untouched), plain)


def state_of(pipe: Pipeline) -> Any:
    """All that an attachment could leave behind."""
    modules = [
        (name, sorted(vars(module)), list(module._forward_hooks), list(module._forward_pre_hooks))
        for name, module in pipe.model.named_modules()
    ]
    return modules, sorted(vars(pipe)), {n: p.clone() for n, p in pipe.model.named_parameters()}


@pytest.mark.parametrize("engine", ["attention", "fused"])
@pytest.mark.parametrize("family", NAMES)
def test_detached_objects_are_as_they_were(family, engine):
    pipe = pipeline(family)
    *before, weights = state_of(pipe)
    handle = dummyforcing.attach(pipe, engine=engine)
    video(pipe)
    assert state_of(pipe)[0] != before[0]
    handle.detach()
    handle.detach()
    *after, others = state_of(pipe)
    assert after == before
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert "detached" in repr(handle)
    with dummyforcing.attach(pipe):  # again
        video(pipe)


def test_engine_fused_shares_the_weights():
    pipe = pipeline("self-forcing")
    model = shared(pipe)
    theirs = dict(pipe.model.named_parameters())
    assert all(parameter is theirs[name] for name, parameter in model.named_parameters())


def test_fused_projections_are_shared_and_used():
    pipe = pipeline("krea")
    expected = our_video(pipe, "dummy")[0]
    for block in pipe.model.blocks:
        block.self_attn.fuse_projections()
    model = shared(pipe)
    whole = pipe.model.blocks[0].self_attn.to_qkv.weight
    assert model.blocks[0].self_attn.q.weight.data_ptr() == whole.data_ptr()
    FusedWan(model)  # arranges the three side by side, as they are already
    assert model.blocks[0].self_attn.q.weight.data_ptr() == whole.data_ptr()
    for engine in ("attention", "fused"):
        with dummyforcing.attach(pipe, engine=engine) as handle:
            torch.testing.assert_close(video(pipe), expected, rtol=0, atol=TOLERANCE)
            assert handle.engine == engine


def test_changed_blocks_fall_back_and_keep_their_changes():
    pipe = pipeline("self-forcing")
    with dummyforcing.attach(pipe, "dense", engine="fused"):
        plain = video(pipe)
    pipe.model.blocks[1].ffn[1] = nn.ReLU()
    alone = video(pipe)
    assert (alone - plain).abs().max() > 0.01
    with dummyforcing.attach(pipe, "dense", engine="fused") as handle:
        torch.testing.assert_close(video(pipe), alone, rtol=0, atol=TOLERANCE)
        assert handle.engine == "attention"
        assert "apart" in handle.note


def test_other_parameters_fall_back():
    pipe = pipeline("self-forcing")
    pipe.model.blocks[0].extra = nn.Linear(2, 2)
    with dummyforcing.attach(pipe, "dummy", engine="fused") as handle:
        video(pipe)
        assert "extra" in handle.note
        assert handle.engine == "attention"


def test_float8_on_the_fused_path():
    pipe = pipeline("self-forcing")
    fused = FusedWan(shared(pipe), "linear")
    expected = our_video(pipe, "dummy", fused=fused)[0]
    with dummyforcing.attach(pipe, engine="fused", fp8="linear") as handle:
        found = video(pipe)
        assert handle.engine == "fused"
    exact = our_video(pipe, "dummy")[0]
    # The pass that compares both ways is the code's own, in full precision; later ones are ours.
    assert (found - expected).abs().mean() < (exact - expected).abs().mean()


def test_teacache_on_the_fused_path():
    """Skips are those of our own table from the second chunk on; the first one runs whole."""
    pipe = Pipeline(transformer("self-forcing"), steps=[1000, 750, 500, 250])
    from dummyforcing.sampling.teacache import skip_table

    model = shared(pipe)
    times = [*pipe.schedule.timesteps, 0.0]
    embeddings = [model.embed_time(torch.tensor([[t]])) for t in times]
    tables = {
        threshold: skip_table(embeddings, times, threshold)
        for threshold in torch.logspace(-2, 6, 50).tolist()
    }
    threshold, skips = next((threshold, skips) for threshold, skips in tables.items() if 0 < sum(skips) < 3)
    expected = our_video(pipe, "dummy", skips=skips, first_schedule=pipe.schedule)[0]
    with dummyforcing.attach(pipe, engine="fused", teacache=threshold):
        torch.testing.assert_close(video(pipe), expected, rtol=0, atol=TOLERANCE)


def test_a_policy_of_ones_own():
    pipe = pipeline("self-forcing")
    mine = dataclasses.replace(
        dummy(),
        name="mine",
        roles={"a": HeadContext(1, 1), "b": HeadContext(0, 3)},
        assign=lambda scores: [["a", "b", "a", "b"]] * len(scores),
    )
    expected = our_video(pipe, mine)[0]
    with dummyforcing.attach(pipe, mine) as handle:
        torch.testing.assert_close(video(pipe), expected, rtol=0, atol=TOLERANCE)
        assert handle.plan.counts == {"a": 4, "b": 4}


def test_under_inference_mode_and_outside_of_it():
    pipe = pipeline("self-forcing")
    with dummyforcing.attach(pipe):
        expected = video(pipe)
        with torch.inference_mode():
            torch.manual_seed(5)
            assert torch.equal(pipe.inference(noise_of(15), [prompt_of(pipe.model)]), expected)
        assert torch.equal(video(pipe), expected)


# What wraps and what changes the transformer


class LoRALinear(nn.Module):
    """A linear layer with a low-rank change beside it, as peft wraps it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.a, self.b = (
            nn.Linear(base.in_features, 2, bias=False),
            nn.Linear(2, base.out_features, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.b(self.a(x))  # type: ignore[no-any-return]


def test_a_lora_beside_the_weights():
    pipe = pipeline("self-forcing")
    torch.manual_seed(3)
    for block in pipe.model.blocks:
        for name in "qkvo":
            setattr(block.self_attn, name, LoRALinear(getattr(block.self_attn, name)))
    pipe.model.requires_grad_(False)
    alone = video(pipe)
    with dummyforcing.attach(pipe, "dense", engine="fused") as handle:
        torch.testing.assert_close(video(pipe), alone, rtol=0, atol=TOLERANCE)
        assert handle.engine == "attention"
        assert "LoRA layers beside its weights" in handle.note


@pytest.mark.slow
@pytest.mark.parametrize("compiled_before", [False, True])
@pytest.mark.parametrize("engine", ["attention", "fused"])
def test_a_compiled_transformer(engine, compiled_before):
    pipe = pipeline("self-forcing")
    expected = our_video(pipe, "dummy", frames=9)[0]
    compiled: Any = torch.compile(pipe.model, backend="eager")
    pipe.generator.model = compiled
    if compiled_before:
        video(pipe, frames=3)
    with dummyforcing.attach(pipe, engine=engine):
        if compiled_before and engine == "attention":
            with pytest.raises(BadRequest, match="attach before"):
                video(pipe, frames=9)
            torch._dynamo.reset()
        found = video(pipe, frames=9)
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)
    torch._dynamo.reset()


def test_an_object_around_the_pipeline():
    class Session:
        def __init__(self) -> None:
            self.frames, self.pipe = 15, pipeline("self-forcing")

    session = Session()
    expected = our_video(session.pipe, "dummy")[0]
    with dummyforcing.attach(session):
        torch.testing.assert_close(video(session.pipe), expected, rtol=0, atol=TOLERANCE)


def test_an_object_with_several_ways_to_the_transformer():
    """Krea's models: the pipeline, whose buffers are left out, is not on the shortest one."""
    pipe = pipeline("self-forcing", chunk=1)
    models = SimpleNamespace(transformer=pipe.generator, pipeline=pipe)
    expected = our_video(pipe, "dummy", frames=8)[0]
    with dummyforcing.attach(models):
        torch.testing.assert_close(video(pipe, frames=8), expected, rtol=0, atol=TOLERANCE)
        assert all(cache["k"].nbytes == 0 for cache in pipe.kv_cache1)


@pytest.mark.parametrize("family", NAMES)
def test_the_transformer_alone(family):
    pipe = pipeline(family)
    expected = our_video(pipe, "dummy")[0]
    with dummyforcing.attach(pipe.model):
        torch.testing.assert_close(video(pipe), expected, rtol=0, atol=TOLERANCE)


# What changes while something is attached


def lora(pipe: Pipeline) -> None:
    """Put low-rank changes beside all projections."""
    torch.manual_seed(3)
    for block in pipe.model.blocks:
        for name in "qkvo":
            setattr(block.self_attn, name, LoRALinear(getattr(block.self_attn, name)))
    pipe.model.requires_grad_(False)


def another_activation(pipe: Pipeline) -> None:
    pipe.model.blocks[1].ffn[1] = nn.ReLU()


def other_weights(pipe: Pipeline) -> None:
    pipe.model.load_state_dict(transformer("self-forcing", seed=7).state_dict())


def other_parameters(pipe: Pipeline) -> None:
    pipe.model.load_state_dict(transformer("self-forcing", seed=7).state_dict(), assign=True)


@pytest.mark.parametrize("has_run", [False, True])
@pytest.mark.parametrize("engine", ["attention", "fused"])
@pytest.mark.parametrize("change", [lora, another_activation, other_weights, other_parameters])
def test_a_transformer_that_changes_while_something_is_attached(change, engine, has_run):
    pipe, changed = pipeline("self-forcing"), pipeline("self-forcing")
    change(changed)
    expected = video(changed)
    ours = change in (other_weights, other_parameters)
    with dummyforcing.attach(pipe, "dense", engine=engine) as handle:
        if has_run:
            video(pipe)
        change(pipe)
        torch.testing.assert_close(video(pipe), expected, rtol=0, atol=TOLERANCE)
        assert handle.engine == (engine if ours else "attention")
    assert torch.equal(video(pipe), expected)


def test_a_lora_that_is_taken_away_again():
    pipe = pipeline("self-forcing")
    plain = video(pipe)
    linear = pipe.model.blocks[0].self_attn.q
    with dummyforcing.attach(pipe, "dense", engine="fused") as handle:
        pipe.model.blocks[0].self_attn.q = LoRALinear(linear).requires_grad_(False)
        video(pipe)
        assert handle.note
        pipe.model.blocks[0].self_attn.q = linear
        torch.testing.assert_close(video(pipe), plain, rtol=0, atol=TOLERANCE)
        assert handle.engine == "fused"


def test_float8_weights_are_made_again_of_changed_ones():
    pipe, changed = pipeline("self-forcing"), pipeline("self-forcing")
    other_weights(changed)
    with dummyforcing.attach(changed, engine="fused", fp8="linear"):
        video(changed)
        expected = video(changed)
    with dummyforcing.attach(pipe, engine="fused", fp8="linear"):
        video(pipe)
        other_weights(pipe)
        video(pipe)  # its first pass verifies
        torch.testing.assert_close(video(pipe), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("engine", ["attention", "fused"])
def test_another_dtype(engine):
    pipe, half = pipeline("self-forcing"), pipeline("self-forcing")
    half.model.bfloat16()

    def made(pipe: Pipeline) -> Tensor:
        torch.manual_seed(5)
        with torch.no_grad():
            return pipe.inference(noise_of(9).bfloat16(), [prompt_of(pipe.model).bfloat16()])

    with dummyforcing.attach(half, engine=engine):
        expected = made(half), made(half)  # the first one begins with the code's own pass
    with dummyforcing.attach(pipe, engine=engine) as handle:
        video(pipe)
        pipe.model.bfloat16()
        assert torch.equal(made(pipe), expected[0])
        assert torch.equal(made(pipe), expected[1])
        assert handle.engine == engine


def test_hooks_on_blocks_are_called():
    pipe, calls = pipeline("self-forcing"), 0

    def count(*told: object) -> None:
        nonlocal calls
        calls += 1

    with dummyforcing.attach(pipe, engine="fused") as handle:
        video(pipe)
        assert handle.engine == "fused"
        hook = pipe.model.blocks[1].ffn.register_forward_hook(count)
        video(pipe)
        assert calls == 15
        assert handle.note == "its blocks.1.ffn has hooks, which would not be called"
        hook.remove()
        video(pipe)
        assert handle.engine == "fused"


def test_another_transformer_in_the_pipeline_is_noticed():
    pipe = pipeline("self-forcing")
    handle = dummyforcing.attach(pipe)
    pipe.generator.model = transformer("self-forcing", seed=7)
    with pytest.raises(BadRequest, match="another transformer"):
        video(pipe)
    with pytest.raises(BadRequest, match="already"):
        dummyforcing.attach(pipe)
    handle.detach()
    expected = our_video(pipe, "dummy")[0]
    with dummyforcing.attach(pipe):
        torch.testing.assert_close(video(pipe), expected, rtol=0, atol=TOLERANCE)


def test_memory_is_given_back():
    pipe = pipeline("self-forcing")
    handle = dummyforcing.attach(pipe, engine="fused")
    video(pipe)
    plan, timings = handle.plan, handle.timings
    assert handle._follower.video is not None
    cache = weakref.ref(handle._follower.video.cache)
    assert handle.cache_bytes
    handle.detach()
    assert (handle.plan, handle.timings, handle.cache_bytes) == (plan, timings, 0)
    gc.collect()
    assert cache() is None


@pytest.mark.parametrize("whole", [True, False])
def test_copies_are_refused_and_weights_can_be_saved(whole):
    pipe = pipeline("self-forcing")
    names = list(pipe.model.state_dict())
    one = pipe if whole else pipe.model
    with dummyforcing.attach(pipe):
        for copied in (copy.deepcopy, pickle.dumps):
            with pytest.raises(BadRequest, match="detach"):
                copied(one)
        assert list(pipe.model.state_dict()) == names
    copy.deepcopy(one)


def test_weights_that_come_after_attaching():
    pipe = pipeline("self-forcing")
    expected, weights = our_video(pipe, "dummy")[0], pipe.model.state_dict()
    pipe.model.to("meta")
    with dummyforcing.attach(pipe, engine="fused") as handle:
        pipe.model.load_state_dict(weights, assign=True)
        torch.testing.assert_close(video(pipe), expected, rtol=0, atol=TOLERANCE)
        assert handle.engine == "fused"
        assert handle.plan.fingerprint == fingerprint(shared(pipe))


# What is refused


class Other(nn.Module):
    def __init__(self, **changes: Any) -> None:
        super().__init__()
        self.patch_embedding = nn.Linear(2, 2)
        self.blocks = nn.ModuleList([nn.Module()])
        self.blocks[0].self_attn = transformer("self-forcing").blocks[0].self_attn


def no_cache() -> nn.Module:
    class Attention(nn.Module):
        q = k = v = o = norm_q = norm_k = num_heads = head_dim = 1

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return x

    other = Other()
    other.blocks[0].self_attn = Attention()
    return other


def unknown() -> nn.Module:
    class Attention(nn.Module):
        q = k = v = o = norm_q = norm_k = num_heads = head_dim = 1

        def forward(self, x: Tensor, kv_cache: Any = None) -> Tensor:
            return x

    other = Other()
    other.blocks[0].self_attn = Attention()
    return other


def headless() -> nn.Module:
    other = Other()
    attention: Any = other.blocks[0].self_attn
    del attention.num_heads, attention.q
    return other


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (None, "this NoneType"),
        ("self-forcing", "this str"),
        (torch, "this module"),
        (Pipeline, "Pipeline is a class"),
        (nn.Linear(2, 2), "this Linear"),
        (no_cache(), "takes no kv_cache, but x, mask"),
        (unknown(), "none of sink_recache_after_switch"),
        (headless(), "has no num_heads, q"),
        (nn.ModuleList([transformer("self-forcing"), transformer("causvid")]), "2 transformers"),
    ],
)
def test_what_is_not_recognised_is_refused(target, said):
    with pytest.raises(BadRequest, match=said):
        dummyforcing.attach(target)


@pytest.mark.parametrize("engine", ["attention", "fused"])
def test_two_caches_that_take_turns(engine):
    """As for guidance; or two videos at once."""
    pipe = pipeline("self-forcing")
    prompts = [prompt_of(pipe.model, seed) for seed in range(2)]
    with torch.no_grad(), dummyforcing.attach(pipe, engine=engine):
        caches = []
        for _ in prompts:
            pipe._initialize_kv_cache(1, torch.float32, torch.device("cpu"))
            pipe.forget_prompt()
            caches.append((pipe.kv_cache1, pipe.crossattn_cache))

        def both(timestep: float, start: int) -> None:
            for prompt, (pipe.kv_cache1, pipe.crossattn_cache) in zip(prompts, caches, strict=True):
                pipe.velocity(noise_of(3), prompt, timestep, start)

        both(500.0, 0)
        both(0.0, 0)
        with pytest.raises(BadRequest, match="another KV cache"):
            both(500.0, 3)
        expected = our_video(pipe, "dummy")[0]
        torch.testing.assert_close(video(pipe), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("engine", ["attention", "fused"])
def test_other_sizes_in_the_middle_of_a_video(engine):
    pipe = pipeline("self-forcing")
    with torch.no_grad(), dummyforcing.attach(pipe, engine=engine):
        for other in (noise_of(3, batch=2), torch.randn(1, 3, CHANNELS, 8, 10)):
            pipe.begin(noise_of(3))
            pipe.velocity(noise_of(3), prompt_of(pipe.model), 0.0, 0)
            with pytest.raises(
                BadRequest, match=r"latent frame 3 is .*, where the video is 1 x 2 x 3 float32"
            ):
                pipe.velocity(other, prompt_of(pipe.model, batch=len(other)), 0.0, 3)


def test_our_own_pipeline_needs_no_attachment():
    with pytest.raises(BadRequest, match="is ours"):
        dummyforcing.attach(dummyforcing.DummyForcingPipeline.from_pretrained("tiny"))


def test_options_that_do_not_go_together():
    pipe = pipeline("self-forcing")
    for options, said in (
        ({"engine": "magic"}, "no engine 'magic'"),
        ({"fp8": "linear"}, "has no fp8"),
        ({"teacache": 0.2}, "has no teacache"),
        ({"policy": "dumy"}, "dummy"),
        ({"preset": "self-farcing"}, "self-forcing"),
        ({"plan": random_plan(3, 4, 0)}, "3 layers"),
        ({"plan": {}}, "plan={}"),
        ({"plan": Path("nowhere.json")}, "nowhere.json cannot be read"),
        ({"policy": None}, "policy=None"),
        ({"policy": "keyframes"}, "no key frames"),
        ({"dummy_fraction": "x"}, "no number"),
        ({"engine": "fused", "teacache": "0.2"}, "by a threshold only"),
        ({"preset": "rolling-forcing"}, "has sampler 'rolling'"),
        ({"policy": "dense", "dummy_fraction": 0.2}, "no dummy heads"),
        ({"engine": "fused", "fp8": "half"}, "float8 mode"),
        ({"engine": "fused", "teacache": 0}, "threshold"),
        ({"backend": "flash9"}, "backend"),
    ):
        with pytest.raises(UserError, match=said):
            dummyforcing.attach(pipe, **options)
        *state, _ = state_of(pipe)
        with dummyforcing.attach(pipe):
            pass
        assert state_of(pipe)[:2] == tuple(state)
    with dummyforcing.attach(pipe), pytest.raises(BadRequest, match="already"):
        dummyforcing.attach(pipe.model)
    rolling = pipeline("rolling-forcing")
    with pytest.raises(BadRequest, match="TeaCache"):
        dummyforcing.attach(rolling, engine="fused", teacache=0.2)


def test_the_fused_path_refuses_gradients_after_its_first_pass_too():
    pipe = pipeline("self-forcing")
    with dummyforcing.attach(pipe, engine="fused") as handle:
        video(pipe)
        assert handle.engine == "fused"
        pipe.model.requires_grad_(True)
        with pytest.raises(BadRequest, match="no_grad"):
            pipe.inference(noise_of(3), [prompt_of(pipe.model)])


def test_gradients_are_refused_and_training_is_left_alone():
    pipe = pipeline("self-forcing")
    pipe.model.requires_grad_(True)
    with dummyforcing.attach(pipe):
        with pytest.raises(BadRequest, match="no_grad"):
            pipe.inference(noise_of(3), [prompt_of(pipe.model)])
        video(pipe)
        attention = pipe.model.blocks[0].self_attn
        with pytest.raises(TypeError):  # no cache: the code's own attention, which wants one here
            attention(torch.randn(1, TOKENS, 32), None, torch.tensor([[1, 2, 3]]), None, None)


def test_frames_that_do_not_follow_each_other():
    pipe = pipeline("self-forcing")
    pipe._initialize_kv_cache(1, torch.float32, torch.device("cpu"))
    pipe.forget_prompt()
    x, prompt = noise_of(3), prompt_of(pipe.model)
    with torch.no_grad(), dummyforcing.attach(pipe):
        pipe._initialize_kv_cache(1, torch.float32, torch.device("cpu"))
        with pytest.raises(BadRequest, match="begins at latent frame 3"):
            pipe.velocity(x, prompt, 0.0, 3)
        pipe.velocity(x, prompt, 0.0, 0)
        with pytest.raises(BadRequest, match="begins at latent frame 9, where 3 would follow"):
            pipe.velocity(x, prompt, 0.0, 9)
        pipe.velocity(x, prompt, 0.0, 0)
        with pytest.raises(BadRequest, match="6 latent frames, where 3"):
            pipe.velocity(noise_of(6), prompt, 0.0, 3)
    krea = pipeline("krea")
    with torch.no_grad(), dummyforcing.attach(krea):
        krea.begin(x)
        krea.velocity(x, prompt, 0.0, 0)
        krea.model.block_mask = krea.context_mask()
        with pytest.raises(BadRequest, match="Context of 6"):
            krea.velocity(noise_of(6), prompt, 0.0, 3)


def test_one_layer_that_is_passed_by_is_noticed():
    pipe = pipeline("self-forcing")
    with dummyforcing.attach(pipe):
        attention = pipe.model.blocks[1].self_attn
        attention.forward = lambda x, *rest, **told: x
        with pytest.raises(BadRequest, match="Of 2 layers, 1 came"):
            video(pipe)


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", ["wrapped", "sharded"])
@pytest.mark.parametrize("engine", ["attention", "fused"])
def test_a_transformer_under_fsdp(kind, engine, one_process):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    pipe = pipeline("self-forcing")
    expected = our_video(pipe, "dummy")[0]
    if kind == "wrapped":
        for number, block in enumerate(pipe.model.blocks):
            pipe.model.blocks[number] = FullyShardedDataParallel(block, device_id=torch.device("cpu"))
        pipe.generator.model = FullyShardedDataParallel(pipe.model, device_id=torch.device("cpu"))
    else:
        mesh = init_device_mesh("cpu", (1,))
        for block in pipe.model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(pipe.model, mesh=mesh)
    with dummyforcing.attach(pipe, engine=engine) as handle:
        torch.testing.assert_close(video(pipe), expected, rtol=0, atol=TOLERANCE)
        # Its parameters are whole within its own passes alone.
        assert handle.engine == "attention"
        assert bool(handle.note) == (engine == "fused")
