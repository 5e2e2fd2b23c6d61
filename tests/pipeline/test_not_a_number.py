"""NaN and infinite numbers that come up while a video is made: an error that names the chunk, and no file."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dummyforcing.errors import BadRequest, NotFinite
from dummyforcing.method.policy import parse_policy
from dummyforcing.method.programming import make_plan
from dummyforcing.pipeline.finite import FiniteCheck
from dummyforcing.pipeline.pipeline import DummyForcingPipeline, load
from dummyforcing.sampling.passes import Passes
from dummyforcing.vae.codec import DecoderStream

PROMPT = "a red ball bounces"
NAN, INF = float("nan"), float("inf")
WIDE: dict[str, Any] = {"num_frames": 57, "policy": "dense"}  # 5 chunks of 3 latent frames


@pytest.fixture
def pipe(model_folder: Path) -> DummyForcingPipeline:
    """One for each test, so that it may be spoilt."""
    return load(model_folder, device="cpu")


def with_preset(pipe: DummyForcingPipeline, **changes: Any) -> DummyForcingPipeline:
    files = dataclasses.replace(pipe.files, preset=dataclasses.replace(pipe.files.preset, **changes))
    return DummyForcingPipeline.from_parts(files, pipe.model, pipe.text, pipe.vae)


def spoil_latents(monkeypatch: pytest.MonkeyPatch, chunk: int, value: float = NAN) -> None:
    """The network goes wrong by one number, from its first step of a chunk of 3 latent frames on."""
    whole = Passes.velocity

    def velocity(self: Passes, hidden: Tensor, time: Any) -> Tensor:
        made = whole(self, hidden, time)
        if self.cache.frames >= 3 * chunk:
            made[-1, -1, 0, 0, 0] = value
        return made

    monkeypatch.setattr(Passes, "velocity", velocity)


def spoil_pixels(pipe: DummyForcingPipeline, value: float) -> None:
    """A bias behind which nothing is normalised any more."""
    with torch.no_grad():
        pipe.vae.vae.decoder.conv_out.bias[1] = value


def watch(chunks: Iterator[Any], seen: list[np.ndarray]) -> None:
    for chunk in chunks:
        seen.append(chunk.frames[0])


def says(chunk: int, maker: str = "transformer") -> str:
    frames = f"latent frames {3 * chunk} to {3 * chunk + 2}"
    return (
        rf"^Chunk {chunk} of the video \({frames}\) cannot be shown: the {maker} made NaN or infinite numbers"
    )


@pytest.mark.parametrize("chunk", [0, 1, 3])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_the_chunk_is_named(
    chunk: int, value: float, pipe: DummyForcingPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_latents(monkeypatch, chunk, value)
    makers: dict[str, Callable[[], object]] = {
        "generate": lambda: pipe.generate(PROMPT, **WIDE),
        "call": lambda: pipe(PROMPT, **WIDE),
        "stream": lambda: list(pipe.stream(PROMPT, **WIDE)),
        "latents": lambda: pipe(PROMPT, output_type="latent", **WIDE),
    }
    for make in makers.values():
        with pytest.raises(NotFinite, match=says(chunk)):
            make()


def test_what_is_sound_is_handed_out(pipe: DummyForcingPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    right = pipe.generate(PROMPT, seed=3, **WIDE).frames
    spoil_latents(monkeypatch, 2)
    seen: list[np.ndarray] = []
    with pytest.raises(NotFinite, match=says(2)):
        watch(pipe.stream(PROMPT, seed=3, **WIDE), seen)
    assert np.array_equal(np.concatenate(seen), right[: 1 + 4 * 5])


def test_a_batch(pipe: DummyForcingPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sample of it is enough."""
    spoil_latents(monkeypatch, 1)
    with pytest.raises(NotFinite, match=says(1)):
        pipe.generate([PROMPT, PROMPT], **WIDE)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_the_vae_is_named(value: float, pipe: DummyForcingPipeline) -> None:
    """What is infinite was clipped, to a white or a black video that looked like one."""
    spoil_pixels(pipe, value)
    with pytest.raises(NotFinite, match=says(0, "VAE")):
        pipe.generate(PROMPT, **WIDE)
    latents = pipe(PROMPT, output_type="latent", **WIDE).frames
    assert torch.isfinite(latents).all()


def test_pixels_that_go_wrong_later(pipe: DummyForcingPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = DecoderStream._note

    def note(self: DecoderStream, pixels: Tensor) -> None:
        if self.frames > 6:
            pixels[..., -1, -1, -1] = INF
        whole(self, pixels)

    monkeypatch.setattr(DecoderStream, "_note", note)
    with pytest.raises(NotFinite, match=says(2, "VAE")):
        pipe.generate(PROMPT, **WIDE)


@pytest.mark.parametrize("tiles", [1, 2])
def test_streams_of_pixels(tiles: int, pipe: DummyForcingPipeline) -> None:
    latents = torch.randn(1, 4, 16, 4, 6)
    stream = pipe.vae.stream(tiles)
    assert stream.is_finite is None
    stream.decode(latents)
    assert stream.is_finite is not None
    assert bool(stream.is_finite)
    latents[0, 0, 0, 0, 0] = NAN
    stream.decode(latents)
    assert not stream.is_finite
    stream.decode(torch.zeros_like(latents))
    assert not stream.is_finite  # of all so far


def test_rollouts(pipe: DummyForcingPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil_latents(monkeypatch, 1)
    run = pipe.start(PROMPT, **WIDE)
    run.next_chunk()
    fork = run.fork()
    run.save(tmp_path / "sound.rollout")
    for one in (run, fork, pipe.resume(tmp_path / "sound.rollout")):
        with pytest.raises(NotFinite, match=says(1)):
            one.next_chunk()
        with pytest.raises(NotFinite, match=says(1)):  # it waits there, still
            one.save(tmp_path / "spoilt.rollout")
    assert [path.name for path in tmp_path.iterdir()] == ["sound.rollout"]


def test_latents_that_nobody_decodes(
    pipe: DummyForcingPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_latents(monkeypatch, 1)
    run = pipe.start(PROMPT, **WIDE)
    run.next_latents()
    run.require_finite()
    fork = run.fork()
    for one in (run, fork):
        with pytest.raises(NotFinite, match=says(1)):
            one.next_latents()
        with pytest.raises(NotFinite, match=says(1)):
            one.require_finite()
        with pytest.raises(NotFinite, match=says(1)):
            one.save(tmp_path / "spoilt.rollout")
    assert not list(tmp_path.iterdir())


class LateEvent:
    """An event of a device that has not come so far."""

    happened: bool = False

    def __init__(self, device: torch.device) -> None:
        self.waited = False

    @property
    def has_happened(self) -> bool:
        return LateEvent.happened

    def wait(self) -> None:
        self.waited = True


def test_nothing_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU that is behind: answers are read when they are there, or when somebody waits for them."""
    monkeypatch.setattr("dummyforcing.pipeline.finite.Event", LateEvent)
    monkeypatch.setattr(LateEvent, "happened", False)
    check = FiniteCheck(1, torch.float32, "none")
    good, bad = torch.zeros(1, 1, 2), torch.full((1, 1, 2), NAN)
    for chunk, latents in enumerate((good, bad, good)):
        check.ask(chunk, latents)
    other = check.copy()
    LateEvent.happened = True
    with pytest.raises(NotFinite, match=r"^Chunk 1 of the video \(latent frame 1\) cannot be shown"):
        check.ask(3, good)
    with pytest.raises(NotFinite, match=r"^Chunk 1 "):
        other.wait()


@pytest.mark.parametrize(
    ("dtype", "fp8", "remedy"),
    [
        (torch.bfloat16, "none", r'load the model with torch_dtype="float32"\.$'),
        (torch.bfloat16, "linear", r'load the model with fp8="none"\.$'),
        (torch.float32, "none", r"such as prompt_embeds, or a LoRA that is too strong\.$"),
    ],
)
def test_remedies(dtype: torch.dtype, fp8: str, remedy: str) -> None:
    check = FiniteCheck(3, dtype, fp8)
    check.require(4, [True, True])
    with pytest.raises(NotFinite, match=remedy):
        check.require(4, [False, False])


@pytest.mark.parametrize(
    "changes",
    [
        {"sampler": "rolling", "native": "window:3,0", "local_attention_size": 12},
        {"sampler": "recompute", "native": "dense", "context_frames": 3},
        {"sampler": "recompute", "native": "dense", "context_frames": 3, "keep_first_frame": True},
        {"max_frames": 9, "overlap_frames": 3},
    ],
)
def test_other_loops(
    changes: dict[str, Any], pipe: DummyForcingPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = with_preset(pipe, **changes)
    other.generate(PROMPT, num_frames=81, policy="native")
    calls = [0]
    whole = Passes.velocity

    def velocity(self: Passes, hidden: Tensor, time: Any) -> Tensor:
        made = whole(self, hidden, time)
        calls[0] += 1
        return made + (NAN if calls[0] > 7 else 0)  # the second step of chunk 3; or the eighth window

    monkeypatch.setattr(Passes, "velocity", velocity)
    chunk = 6 if changes.get("sampler") == "rolling" else 3
    with pytest.raises(NotFinite, match=says(chunk)):
        other.generate(PROMPT, num_frames=81, policy="native")


def test_a_start_that_the_vae_spoils(
    pipe: DummyForcingPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    Image.new("RGB", (48, 32), "red").save(tmp_path / "a.png")
    with torch.no_grad():
        pipe.vae.vae.quant_conv.bias[0] = NAN
    other = with_preset(pipe, chunk_frames=1, start="frame")
    with pytest.raises(NotFinite, match=r"^Chunk 0 of the video \(latent frame 0\) cannot be shown"):
        other.generate(PROMPT, num_frames=9, image=tmp_path / "a.png")


def test_embeddings_that_are_given(pipe: DummyForcingPipeline) -> None:
    embeds = pipe.text.encode(PROMPT)
    assert pipe(None, prompt_embeds=embeds, num_frames=9).frames.shape == (1, 9, 32, 48, 3)
    for value, word in ((NAN, "NaN"), (INF, "infinite")):
        spoilt = embeds.clone()
        spoilt[0, 0, 0] = value
        with pytest.raises(BadRequest, match=f"Of prompt_embeds, 1 of 256 numbers is {word}") as caught:
            pipe(None, prompt_embeds=spoilt, num_frames=9)
        assert caught.value.option == "prompt_embeds"


def test_a_text_encoder_that_goes_wrong(pipe: DummyForcingPipeline) -> None:
    """Changed after it had been loaded."""
    with torch.no_grad():
        pipe.text.model.encoder.final_layer_norm.weight[0] = NAN
    with pytest.raises(NotFinite, match=says(0)):
        pipe.generate(PROMPT, **WIDE)


def test_frames_that_somebody_changed(pipe: DummyForcingPipeline, tmp_path: Path) -> None:
    for kind in ("np", "pt"):
        out = pipe(PROMPT, num_frames=9, output_type=kind)
        out.save(tmp_path / f"{kind}.mp4")
        out.frames[0, 0, 0, 0] = NAN
        with pytest.raises(NotFinite, match="These frames cannot be shown: they hold NaN or infinite"):
            out.save(tmp_path / "spoilt.mp4")
    assert {path.name for path in tmp_path.iterdir()} == {"np.mp4", "pt.mp4"}


# --- scores ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("criterion", ["dhp", "current", "threshold", "dearest", "random"])
def test_scores_that_sort_nothing(value: float, criterion: str) -> None:
    scores = torch.rand(3, 4, 3, generator=torch.Generator().manual_seed(0))
    policy = dataclasses.replace(parse_policy("dummy"), criterion=criterion)
    make_plan(policy, scores, 1)
    scores[1, 2, 0] = value
    word = "NaN" if value != value else "infinite"
    with pytest.raises(
        NotFinite, match=f"cannot be classified by chunk 1: of their scores, 1 of 36 numbers is {word};"
    ):
        make_plan(policy, scores, 1)


def test_scores_within_a_budget() -> None:
    from fractions import Fraction

    scores = torch.full((3, 4, 3), NAN)
    policy = dataclasses.replace(parse_policy("long"), budget=Fraction(6))
    with pytest.raises(NotFinite, match="36 of 36 numbers are NaN"):
        make_plan(policy, scores, 2)


@pytest.mark.parametrize("as_latents", [True, False])
def test_heads_that_look_nowhere(
    as_latents: bool, pipe: DummyForcingPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys of NaN: the chunk that is scored cannot be decoded either, but no plan is made of it."""
    with torch.no_grad():
        pipe.model.get_parameter("blocks.1.self_attn.k.weight")[0, 0] = NAN
    run = pipe.start(PROMPT, num_frames=57, policy="dummy")
    with pytest.raises(NotFinite, match=says(0)):
        run.next_latents() if as_latents else run.next_chunk()
    with pytest.raises(NotFinite):
        pipe.find_plan(pipe.request(PROMPT, _options(num_frames=57, policy="dummy")))


def test_a_probe_of_nan(pipe: DummyForcingPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """It compared false with every tolerance, so that heads were never classified again."""
    from dummyforcing.method.scoring import HeadScorer
    from dummyforcing.sampling.guard import Guard

    whole = HeadScorer.scores
    calls = [0]

    def scores(self: HeadScorer) -> Tensor:
        calls[0] += 1
        return whole(self) + (NAN if calls[0] > 1 else 0)

    monkeypatch.setattr(HeadScorer, "scores", scores)
    with pytest.raises(
        NotFinite, match="cannot be classified by chunk 3: of their scores, 36 of 36 numbers are NaN"
    ):
        pipe.generate(PROMPT, num_frames=81, policy="dummy", guard=Guard(every=2, tolerance=0.01))


def _options(**given: Any) -> Any:
    from dummyforcing.pipeline.options import VideoOptions, choose

    return choose(VideoOptions, given)


# --- on a GPU ----------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("policy", ["dense", "dummy"])
def test_a_gpu(value: float, policy: str, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks are asked for ahead there, and decoded in a stream of their own."""
    asked: dict[str, Any] = {"num_frames": 57, "policy": policy}
    pipe = load(model_folder, device="cuda")
    right = pipe.generate(PROMPT, **asked).frames
    spoil_pixels(pipe, value)
    with pytest.raises(NotFinite, match=says(0, "VAE")):
        pipe.generate(PROMPT, **asked)
    pipe = load(model_folder, device="cuda")
    spoil_latents(monkeypatch, 2, value)
    seen: list[np.ndarray] = []
    with pytest.raises(NotFinite, match=says(2)):
        watch(pipe.stream(PROMPT, **asked), seen)
    assert np.array_equal(np.concatenate(seen), right[: 1 + 4 * 5])
    with pytest.raises(NotFinite, match=says(2)):
        pipe(PROMPT, output_type="latent", **asked)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_is_not_waited_for(model_folder: Path) -> None:
    """Asking is allowed where CUDA forbids every wait."""
    latents = torch.randn(1, 3, 16, 60, 104, device="cuda")
    check = FiniteCheck(3, torch.bfloat16, "none")
    check.ask(0, latents)  # the kernels are loaded
    check.wait()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for chunk in range(20):
            check.ask(chunk, latents)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    check.wait()
    latents[0, 1, 3, 0, 0] = INF

    def ask_and_wait() -> None:  # the answer may be there at once
        check.ask(20, latents)
        check.wait()

    with pytest.raises(NotFinite, match=r"^Chunk 20 "):
        ask_and_wait()
