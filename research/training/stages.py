"""The stages of `train_tiny.py` that train and judge the transformer; its docstring says what each does."""

import json
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from dummyforcing.evaluation.world.detect import judge as judge_clip
from dummyforcing.evaluation.world.detect import summary
from dummyforcing.files.records import to_json
from dummyforcing.method.policy import parse_policy
from dummyforcing.models.wan import CausalWan
from dummyforcing.sampling.block import BlockSampler
from dummyforcing.sampling.schedule import make_schedule
from dummyforcing.vae.codec import VideoDecoder
from research.training.networks import MODEL, SHIFT, Networks, TeacherForcing, draw_sigma, noised, velocity
from research.training.onpolicy import OnPolicy
from research.training.optim import Optimizer, Recorder, timed_steps
from research.training.run import CHUNK, LATENT, Run, autocast, load_sharded, save_picture
from research.training.text import TextReader
from research.training.vae import Encoder, build_vae
from research.world.prompts import benchmark_scenes, two_object_scenes

SIZES = ((21, 5_000, 8), (42, 1_500, 4))  # latent frames, clips per process, batch per process
STUDENT_SIGMAS = (1.0, 0.9, 0.75, 0.5)  # steps 1000, 750, 500, 250 under SHIFT


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


def pretrain(run: Run, seconds: float) -> None:
    """Bidirectional flow matching on single frames (at first mostly) and first chunks."""
    networks, encoder = Networks(run), Encoder(run, TextReader(run))
    pool = encoder.pool(50_000, CHUNK, "pretrain")
    optimizer = Optimizer([networks.model], 2e-3, networks.matrices())
    record = Recorder(run.device)
    losses = Losses(run, "pretrain", "image", "chunk")

    def work(frames: int, batch: int, name: str) -> None:
        x0, text = pool.sample(batch)
        losses.take(name, flow_loss(run, networks.model, x0[:, :frames], text))
        optimizer.step()

    image = record(partial(work, 1, run.scaled(256), "image"))
    chunk = record(partial(work, CHUNK, run.scaled(96), "chunk"))
    run.log("recorded")
    for step, rate, progress in timed_steps(seconds, device=run.device):
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


class Clips:
    """Pools of whole clips of two lengths, with the passes over them."""

    def __init__(self, run: Run, encoder: Encoder) -> None:
        sizes = SIZES if not run.small else ((6, 2, 2), (9, 2, 2))
        self.run = run
        self.pools = [encoder.pool(count, frames, f"clips{frames}") for frames, count, _ in sizes]
        self.passes = [TeacherForcing(frames, run.device) for frames, _, _ in sizes]
        self.batches = [run.scaled(batch) for _, _, batch in sizes]

    def loss(
        self,
        model: CausalWan,
        long: bool,
        resample: bool,
        sigma_of: Callable[[int, int], Tensor],
        drop: float,
    ) -> Tensor:
        """Of the velocity of all chunks `(B, F, C, h, w)`, squared, at noise levels `sigma_of(B, chunks)`."""
        tf, batch = self.passes[long], self.batches[long]
        x0, text = self.pools[long].sample(batch, drop)
        sigma = sigma_of(batch, tf.frames // CHUNK)
        noise = torch.randn_like(x0)
        with autocast(self.run):
            past = make_past(tf, model, x0, text, resample, self.run)
            out = tf(model, past, noised(x0, sigma, noise), sigma, text)
        return (out - (noise - x0)).square()


def causal(run: Run, seconds: float) -> None:
    """Teacher forcing on whole clips, in turns with first chunks, which have all to invent.

    In the second half also long clips and reconstructed pasts.
    """
    networks, encoder = Networks(run), Encoder(run, TextReader(run))
    pool, clips = encoder.pool(50_000, CHUNK, "pretrain"), Clips(run, encoder)
    optimizer = Optimizer([networks.model], 1.5e-3, networks.matrices())
    record = Recorder(run.device)
    losses = Losses(run, "causal", "chunk", "short", "long")

    def first_chunk() -> None:
        x0, text = pool.sample(run.scaled(96))
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
    for step, rate, progress in timed_steps(seconds, decay=0.5, device=run.device):
        optimizer.rate.fill_(rate)
        if step % 2:
            first()
        else:
            steps[ways[step // 2 % 4] if progress > 0.3 else ways[0]]()
        losses.log(step, 500)
    run.log(f"causal: {step} steps")
    networks.save()
    networks.save("teacher")


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
    """Make four steps enough, then go on with the student's own videos; see the module's docstring."""
    networks, encoder = Networks(run), Encoder(run, TextReader(run))
    model, teacher = networks.model, CausalWan(MODEL).to(run.device).requires_grad_(False)
    teacher.load_state_dict(load_sharded(run.folder / "teacher"))
    networks.compile(teacher)
    clips = Clips(run, encoder)
    pool = encoder.pool(50_000, CHUNK, "pretrain")
    optimizer = Optimizer([model], 6e-4, networks.matrices())
    levels = torch.tensor(STUDENT_SIGMAS, device=run.device)
    empty = pool.empty.float()
    record = Recorder(run.device)
    losses = Losses(run, "distill", "first", "short", "long", "own")

    def student_sigma(batch: int, chunks: int) -> Tensor:
        picks = torch.randint(len(levels), (batch, chunks), device=run.device)
        return levels[picks].repeat_interleave(CHUNK, 1)

    def first_chunk() -> None:
        x0, text = pool.sample(run.scaled(64), 0.0)
        sigma = student_sigma(len(x0), 1)
        x = noised(x0, sigma, torch.randn_like(x0))
        with autocast(run):
            end = guided_end(teacher, x, sigma, text, empty)
            out = velocity(model, x, sigma, text)
        target = (x - end) / sigma[:, :, None, None, None]
        losses.take("first", (out - target).square().mean())

    def later_chunks(long: bool, resample: bool) -> None:
        loss = clips.loss(model, long, resample, student_sigma, 0.0)[:, CHUNK:].mean()
        losses.take("long" if long else "short", loss)
        optimizer.step()

    first = record(first_chunk)
    ways = ((False, False), (False, True), (True, True), (False, True))  # long, with a reconstructed past
    later = {way: record(partial(later_chunks, *way)) for way in set(ways)}
    optimizer.buffer.zero_()
    run.log("recorded")
    own = OnPolicy(run, encoder, model, STUDENT_SIGMAS)
    for step, rate, progress in timed_steps(seconds, decay=0.5, device=run.device):
        optimizer.rate.fill_(rate)
        is_own = progress > 0.4
        if not is_own or step % 4 == 0:
            first()
        if is_own and step % 2:
            losses.take("own", own.next_loss())
            optimizer.step()
        else:
            later[ways[step // 2 % 4]]()
        losses.log(step, 200)
    run.log(f"distill: {step} steps")
    networks.save()


def judge(run: Run, seconds: float) -> None:
    """Four-step videos of the benchmark's prompts with the dense cache and with Dummy Forcing, judged."""
    networks, reader = Networks(run), TextReader(run)
    if run.rank:
        return
    model = CausalWan(MODEL).to(run.device).eval()  # uncompiled: a rollout asks for the layer
    model.load_state_dict(networks.model.state_dict())
    decoder = VideoDecoder(build_vae(run).eval())
    schedule = make_schedule([1000, 750, 500, 250], SHIFT)
    groups = {"one": benchmark_scenes(96), "two": two_object_scenes(48)}
    chunks = 7 if not run.small else 2
    results = {}
    for policy in ("dense", "dummy"):
        for name, scenes in groups.items():
            verdicts, rows = [], []
            for first in range(0, run.scaled(len(scenes)), 16):
                part = scenes[first : first + 16][: run.scaled(16)]
                embeds = reader.embed([scene.prompt for scene in part]).float()
                sampler = BlockSampler(
                    model, embeds, parse_policy(policy), schedule, (len(part), 16, LATENT, LATENT),
                    seeds=range(len(verdicts), len(verdicts) + len(part)), frames=chunks * CHUNK,
                )  # fmt: skip
                stream = decoder.stream()
                clips = torch.cat([stream.decode(latents) for latents in sampler], 1)
                verdicts += [judge_clip(c.cpu().numpy(), s) for c, s in zip(clips, part, strict=True)]
                rows.append(clips[:, :: max(1, clips.shape[1] // 6)].cpu())
            results[f"{policy} {name}"] = summary(verdicts)
            run.log(policy, name, json.dumps(summary(verdicts)))
            for scene, verdict in zip(scenes, verdicts, strict=False):
                if not (verdict.color and verdict.shape and verdict.motion):
                    run.log("  failed:", scene.prompt, verdict.reasons)
            save_picture(run.folder / f"judge_{policy}_{name}.png", torch.cat(rows)[:48])
    (run.folder / "judged.json").write_text(to_json(results, indent=1))
