"""The stages of `train_tiny.py` that train and judge the transformer; its docstring says what each does."""

import json
import time

import torch
from torch import Tensor

from dummyforcing.evaluation.world.detect import judge as judge_clip
from dummyforcing.evaluation.world.detect import summary
from dummyforcing.method.policy import parse_policy
from dummyforcing.models.wan import CausalWan
from dummyforcing.sampling.block import BlockSampler
from dummyforcing.sampling.schedule import make_schedule
from dummyforcing.vae.codec import VideoDecoder
from research.training.data import tokenize
from research.training.networks import MODEL, SHIFT, Networks, TeacherForcing, draw_sigma, noised, velocity
from research.training.optim import Optimizer, timed_steps
from research.training.run import CHUNK, LATENT, Run, autocast, save_picture
from research.training.vae import Encoder, build_vae
from research.world.prompts import benchmark_scenes

SIZES = ((21, 8_000, 8), (42, 2_000, 3))  # latent frames, clips per process, batch per process
STUDENT_SIGMAS = (1.0, 0.9, 0.75, 0.5)  # steps 1000, 750, 500, 250 under SHIFT


def pretrain(run: Run, seconds: float) -> None:
    """Bidirectional flow matching on single frames (at first mostly) and first chunks."""
    networks = Networks(run)
    pool = Encoder(run).pool(networks.tokenizer, 50_000, CHUNK, "pretrain")
    optimizer = Optimizer([networks.model, networks.text], 2e-3, networks.matrices())
    losses = {1: 0.0, CHUNK: 0.0}
    began = time.monotonic()
    for step, rate in timed_steps(seconds, device=run.device):
        early = (time.monotonic() - began) / seconds < 0.35
        frames = 1 if step % 4 < (3 if early else 1) else CHUNK
        x0, tokens = pool.sample(run.scaled(384 if frames == 1 else 128))
        x0 = x0[:, :frames]
        sigma = draw_sigma(len(x0), 1, run.device)[:, :frames]
        noise = torch.randn_like(x0)
        with autocast(run):
            out = velocity(networks.model, noised(x0, sigma, noise), sigma, networks.embed(tokens))
        loss = (out - (noise - x0)).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step(rate)
        losses[frames] = 0.98 * losses[frames] + 0.02 * loss.item() if step % 20 < 4 else losses[frames]
        if step % 200 == 0:
            run.log(f"pretrain {step}: loss of images {losses[1]:.4f}, of chunks {losses[CHUNK]:.4f}")
    run.log(f"pretrain: {step} steps")
    networks.save()
    preview(run, networks)


def preview(run: Run, networks: Networks) -> None:
    """A picture of first chunks by many guided steps: what the next stages can build on."""
    scenes = benchmark_scenes()[: run.scaled(32)]
    with torch.no_grad(), autocast(run), torch.compiler.set_stance("force_eager"):
        text = networks.embed(
            tokenize(networks.tokenizer, ["", *(scene.prompt for scene in scenes)]).to(run.device)
        )
        noise = torch.randn(len(scenes), CHUNK, MODEL.in_dim, LATENT, LATENT, device=run.device)
        level = torch.ones(len(scenes), CHUNK, device=run.device)
        latents = guided_end(networks.model, noise, level, text[1:], text[:1], steps=24)
    if run.rank == 0:
        clips = VideoDecoder(build_vae(run).eval()).stream().decode(latents.float())
        grid = clips[:, [0, -1]].transpose(1, 2).flatten(2, 3)  # first and last pixel frame side by side
        save_picture(run.folder / "pretrain.png", torch.unflatten(grid, 0, (-1, 4 if not run.small else 1)))


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


def causal(run: Run, seconds: float) -> None:
    """Teacher forcing on whole clips; in the second half also long clips and reconstructed pasts."""
    networks, encoder = Networks(run), Encoder(run)
    model = networks.model
    sizes = SIZES if not run.small else ((6, 2, 2), (9, 2, 2))
    pools = [encoder.pool(networks.tokenizer, count, frames, f"clips{frames}") for frames, count, _ in sizes]
    passes = [TeacherForcing(frames, run.device) for frames, _, _ in sizes]
    optimizer = Optimizer([networks.model, networks.text], 1.5e-3, networks.matrices())
    began, average = time.monotonic(), 0.0
    for step, rate in timed_steps(seconds, decay=0.5, device=run.device):
        late = (time.monotonic() - began) / seconds > 0.4
        long = int(late and step % 4 == 3)
        tf = passes[long]
        x0, tokens = pools[long].sample(run.scaled(sizes[long][2]))
        sigma = draw_sigma(len(x0), tf.frames // CHUNK, run.device)
        noise = torch.randn_like(x0)
        with autocast(run):
            text = networks.embed(tokens)
            past = make_past(tf, model, x0, text.detach(), late and step % 2 == 1, run)
            out = tf(model, past, noised(x0, sigma, noise), sigma, text)
        loss = (out - (noise - x0)).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step(rate)
        if step % 20 == 0:
            average = 0.9 * average + 0.1 * loss.item()
        if step % 200 == 0:
            run.log(f"causal {step}: loss {average:.4f}")
    run.log(f"causal: {step} steps")
    networks.save()


@torch.no_grad()
def guided_end(
    model: CausalWan,
    x: Tensor,
    sigma: Tensor,
    text: Tensor,
    empty: Tensor,
    steps: int = 8,
    scale: float = 2.5,
) -> Tensor:
    """Follow the guided probability-flow ODE from `x` at `sigma (B, F)` to noise level 0, by Euler steps."""
    both = torch.cat([text, empty.expand_as(text)])
    start = sigma / (SHIFT - (SHIFT - 1) * sigma)
    for i in range(steps):
        now, later = (start * (1 - j / steps) for j in (i, i + 1))
        now, later = (SHIFT * u / (1 + (SHIFT - 1) * u) for u in (now, later))
        with_text, without = velocity(model, x.repeat(2, 1, 1, 1, 1), now.repeat(2, 1), both).chunk(2)
        x = x + (later - now)[:, :, None, None, None] * (without + scale * (with_text - without))
    return x


def distill(run: Run, seconds: float) -> None:
    """Make four steps enough; see the module's docstring."""
    networks, encoder = Networks(run), Encoder(run)
    model, teacher = networks.model, CausalWan(MODEL).to(run.device).requires_grad_(False)
    teacher.load_state_dict(model.state_dict())
    networks.compile(teacher)
    networks.text.requires_grad_(False)
    sizes = SIZES if not run.small else ((6, 2, 2), (9, 2, 2))
    pools = [encoder.pool(networks.tokenizer, count, frames, f"clips{frames}") for frames, count, _ in sizes]
    passes = [TeacherForcing(frames, run.device) for frames, _, _ in sizes]
    optimizer = Optimizer([model], 6e-4, networks.matrices())
    levels = torch.tensor(STUDENT_SIGMAS, device=run.device)
    with torch.no_grad():
        empty = networks.embed(pools[0].empty)

    def student_sigma(batch: int, chunks: int) -> Tensor:
        picks = torch.randint(len(levels), (batch, chunks), device=run.device)
        return levels[picks].repeat_interleave(CHUNK, 1)

    averages = [0.0, 0.0]
    for step, rate in timed_steps(seconds, decay=0.6, device=run.device):
        x0, tokens = pools[0].sample(run.scaled(64), drop_text=0.0)
        x0 = x0[:, :CHUNK]
        sigma = student_sigma(len(x0), 1)
        x = noised(x0, sigma, torch.randn_like(x0))
        with autocast(run):
            with torch.no_grad():
                text = networks.embed(tokens)
            end = guided_end(teacher, x, sigma, text, empty)
            out = velocity(model, x, sigma, text)
        target = (x - end) / sigma[:, :, None, None, None]
        loss_first = (out - target).square().mean()
        loss_first.backward()  # type: ignore[no-untyped-call]

        long = int(step % 4 == 3)
        tf = passes[long]
        x0, tokens = pools[long].sample(run.scaled(sizes[long][2]), drop_text=0.0)
        sigma = student_sigma(len(x0), tf.frames // CHUNK)
        noise = torch.randn_like(x0)
        with autocast(run):
            with torch.no_grad():
                text = networks.embed(tokens)
            past = make_past(tf, model, x0, text, step % 4 != 0, run)
            out = tf(model, past, noised(x0, sigma, noise), sigma, text)
        loss_rest = (out - (noise - x0))[:, CHUNK:].square().mean()
        loss_rest.backward()  # type: ignore[no-untyped-call]
        optimizer.step(rate)
        if step % 20 == 0:
            averages = [
                0.9 * a + 0.1 * b.item() for a, b in zip(averages, (loss_first, loss_rest), strict=True)
            ]
        if step % 100 == 0:
            run.log(f"distill {step}: first chunk {averages[0]:.4f}, later chunks {averages[1]:.4f}")
    run.log(f"distill: {step} steps")
    networks.save()


def judge(run: Run, seconds: float) -> None:
    """Four-step videos of the benchmark's prompts with the dense cache and with Dummy Forcing, judged."""
    networks = Networks(run)
    if run.rank:
        return
    model = CausalWan(MODEL).to(run.device).eval()  # uncompiled: a rollout asks for the layer
    model.load_state_dict(networks.model.state_dict())
    decoder = VideoDecoder(build_vae(run).eval())
    schedule = make_schedule([1000, 750, 500, 250], SHIFT)
    scenes = benchmark_scenes()[: run.scaled(64)]
    chunks = 7 if not run.small else 2
    for policy in ("dense", "dummy"):
        verdicts, rows = [], []
        for first in range(0, len(scenes), 16):
            part = scenes[first : first + 16]
            with torch.no_grad():
                tokens = tokenize(networks.tokenizer, [scene.prompt for scene in part]).to(run.device)
                embeds = networks.embed(tokens)
            seeds = range(first, first + len(part))
            sampler = BlockSampler(
                model, embeds, parse_policy(policy), schedule, (len(part), 16, LATENT, LATENT),
                seeds=list(seeds), frames=chunks * CHUNK,
            )  # fmt: skip
            stream = decoder.stream()
            clips = torch.cat([stream.decode(latents) for latents in sampler], 1)
            verdicts += [judge_clip(c.cpu().numpy(), s) for c, s in zip(clips, part, strict=True)]
            rows.append(clips[:, :: max(1, clips.shape[1] // 8)].cpu())
        run.log(policy, json.dumps(summary(verdicts)))
        for scene, verdict in zip(scenes, verdicts, strict=True):
            if not (verdict.color and verdict.shape and verdict.motion):
                run.log("  failed:", scene.prompt, verdict)
        save_picture(run.folder / f"judge_{policy}.png", torch.cat(rows)[:32])
