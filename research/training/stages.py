"""The stages of `train_tiny.py` that train the teacher; its docstring says what each does."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from dummyforcing.models.wan import CausalWan
from dummyforcing.vae.codec import VideoDecoder
from research.training.networks import (
    MODEL,
    Networks,
    TeacherForcing,
    draw_sigma,
    follow_guided,
    noised,
    velocity,
)
from research.training.optim import Optimizer, Recorder, timed_steps
from research.training.run import CHUNK, LATENT, Run, Span, autocast, save_picture
from research.training.text import TextReader
from research.training.vae import Encoder, build_vae
from research.world.prompts import benchmark_scenes, two_object_scenes

SIZES = ((21, 5_000, 8), (42, 1_500, 4))  # latent frames, clips per process, batch
FIRST_CHUNKS = 50_000
OBJECTS = 2.0
"""What a latent pixel of an object counts more than one of the scenery, in chunks that follow from others."""


class Losses:
    """Averages of losses, kept on the device; the run's log gets them now and then."""

    def __init__(self, run: Run, stage: str, *names: str) -> None:
        self.run, self.stage = run, stage
        self.values = {name: torch.zeros((), device=run.device) for name in names}

    def take(self, name: str, loss: Tensor) -> None:
        """Backpropagate a loss and let it count."""
        loss.backward()  # type: ignore[no-untyped-call]
        self.values[name].lerp_(loss.detach(), 0.02)

    def log(self, step: int, every: int) -> None:
        """Write them down."""
        if step % every == 0:
            self.run.curve(self.stage, step, {name: value.item() for name, value in self.values.items()})


def flow_loss(run: Run, model: CausalWan, x0: Tensor, text: Tensor) -> Tensor:
    """Of the velocity of frames that see each other, `(B, F, C, h, w)`, all at one noise level."""
    sigma = draw_sigma(len(x0), 1, run.device)[:, : x0.shape[1]]
    noise = torch.randn_like(x0)
    with autocast(run):
        out = velocity(model, noised(x0, sigma, noise), sigma, text)
    return (out - (noise - x0)).square().mean()


def pretrain(run: Run, span: Span) -> None:
    """Bidirectional flow matching on single frames (at first mostly) and first chunks."""
    networks, encoder = Networks(run), Encoder(run, TextReader(run))
    pool = encoder.pool(FIRST_CHUNKS, CHUNK, "pretrain")
    optimizer = Optimizer([networks.model], 2e-3, networks.matrices())
    record = Recorder(run.device)
    losses = Losses(run, "pretrain", "image", "chunk")

    def work(frames: int, batch: int, name: str) -> None:
        x0, _, text = pool.sample(batch)
        losses.take(name, flow_loss(run, networks.model, x0[:, :frames], text))
        optimizer.step()

    image = record(partial(work, 1, run.share(256), "image"))
    chunk = record(partial(work, CHUNK, run.share(96), "chunk"))
    run.log("recorded")
    for step, rate, progress in timed_steps(run, span):
        early = progress < 0.25
        optimizer.rate.fill_(rate)
        (image if step % 4 < (3 if early else 1) else chunk)()
        losses.log(step, 500)
    run.log(f"pretrain: {step} steps")
    networks.save()
    preview(run, networks, encoder)


def preview(run: Run, networks: Networks, encoder: Encoder) -> None:
    """A picture of first chunks by many guided steps: what the next stages can build on."""
    scenes = (benchmark_scenes(40) + two_object_scenes(8))[: run.scaled(48)]
    with torch.no_grad(), autocast(run), torch.compiler.set_stance("force_eager"):
        text = encoder.reader.embed(["", *(scene.prompt for scene in scenes)]).float()
        noise = torch.randn(len(scenes), CHUNK, MODEL.in_dim, LATENT, LATENT, device=run.device)
        latents = follow_guided(networks.model, noise, 1.0, 0.0, text[1:], text[:1], steps=24)
    if run.rank == 0:
        clips = VideoDecoder(build_vae(run).eval()).stream().decode(latents.float())
        grid = clips[:, [0, -1]].transpose(1, 2).flatten(2, 3)  # first and last pixel frame side by side
        save_picture(
            run.folder / "first_chunks.png", torch.unflatten(grid, 0, (-1, 4 if not run.small else 1))
        )


def make_past(
    tf: TeacherForcing, model: CausalWan, x0: Tensor, text: Tensor, resample: bool, run: Run
) -> Tensor:
    """The past that chunks are trained on: slightly noisy, or the model's reconstruction of each chunk."""
    batch, frames = x0.shape[:2]
    noise = torch.randn_like(x0)
    if not resample:
        level = 0.15 * torch.rand(batch, frames // CHUNK, device=x0.device).square()
        return noised(x0, level.repeat_interleave(CHUNK, 1), noise)
    sigma = 0.85 * torch.rand(batch, frames // CHUNK, device=x0.device).repeat_interleave(CHUNK, 1)
    with autocast(run):  # with gradients, although nobody wants them: the compiled training pass serves
        x = noised(x0, sigma, noise)
        return (x - sigma[:, :, None, None, None] * tf(model, x0, x, sigma, text)).detach()


class Clips:
    """Pools of whole clips of two lengths, with the passes over them."""

    def __init__(self, run: Run, encoder: Encoder) -> None:
        sizes = SIZES if not run.small else ((6, 2, 2), (9, 2, 2))
        self.run = run
        self.pools = [encoder.pool(count, frames, f"clips{frames}") for frames, count, _ in sizes]
        self.passes = [TeacherForcing(frames, run.device) for frames, _, _ in sizes]
        self.batches = [run.share(batch) for _, _, batch in sizes]

    def loss(
        self,
        model: CausalWan,
        long: bool,
        resample: bool,
        sigma_of: Callable[[int, int], Tensor],
        drop: float,
    ) -> Tensor:
        """Of the velocity of all chunks `(B, F, C, h, w)`, squared, at noise levels `sigma_of(B, chunks)`.

        Objects weigh more than scenery where the past tells where they are. In first chunks it does not, and
        a weight of what is still unknown would teach to expect objects everywhere.
        """
        tf, batch = self.passes[long], self.batches[long]
        x0, places, text = self.pools[long].sample(batch, drop)
        weight = 1 + OBJECTS * places
        weight[:, :CHUNK] = 1
        sigma = sigma_of(batch, tf.frames // CHUNK)
        noise = torch.randn_like(x0)
        with autocast(self.run):
            past = make_past(tf, model, x0, text, resample, self.run)
            out = tf(model, past, noised(x0, sigma, noise), sigma, text)
        return (out - (noise - x0)).square() * (weight / weight.mean())


def causal(run: Run, span: Span) -> None:
    """Teacher forcing on whole clips, in turns with first chunks, which have all to invent.

    In the second half also long clips and reconstructed pasts.
    """
    networks, encoder = Networks(run), Encoder(run, TextReader(run))
    pool, clips = encoder.pool(FIRST_CHUNKS, CHUNK, "pretrain"), Clips(run, encoder)
    optimizer = Optimizer([networks.model], 1.5e-3, networks.matrices())
    record = Recorder(run.device)
    losses = Losses(run, "causal", "chunk", "short", "long")

    def first_chunk() -> None:
        x0, _, text = pool.sample(run.share(96))
        losses.take("chunk", flow_loss(run, networks.model, x0, text))
        optimizer.step()

    def work(long: bool, resample: bool) -> None:
        loss = clips.loss(networks.model, long, resample, partial(draw_sigma, device=run.device), 0.1)
        losses.take("long" if long else "short", loss.mean())
        optimizer.step()

    ways = ((False, False), (False, True), (False, False), (True, True))  # long, with a reconstructed past
    steps = {way: record(partial(work, *way)) for way in set(ways)}
    first = record(first_chunk)
    run.log("recorded")
    for step, rate, progress in timed_steps(run, span, decay=0.5):
        optimizer.rate.fill_(rate)
        if step % 2:
            first()
        else:
            steps[ways[step // 2 % 4] if progress > 0.3 else ways[0]]()
        losses.log(step, 500)
    run.log(f"causal: {step} steps")
    networks.save()
    preview(run, networks, encoder)
