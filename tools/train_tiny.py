"""Train the bundled model from nothing: VAE, text encoder and causal Wan transformer for a rendered world.

Stages are resumable from the run folder; one command may do several, on any number of GPUs:

    torchrun --nproc-per-node gpu tools/train_tiny.py vae=220 pretrain=270 --folder runs/tiny
    torchrun --nproc-per-node gpu tools/train_tiny.py causal=270 distill=220 --folder runs/tiny

vae: reconstruction of short clips. pretrain: bidirectional flow matching on single frames and first chunks.
causal: teacher forcing on whole clips; each chunk is denoised given a past that is made imperfect, first by
noise, then by the model's own reconstructions, against drift. distill: the first chunk, the one with real
freedom, learns to jump to the end of the guided teacher's trajectory from each of the four noise levels; the
other chunks are trained at these levels.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, create_mask, flex_attention
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from dummyforcing.eval.detect import judge as judge_clip
from dummyforcing.eval.detect import summary
from dummyforcing.eval.prompts import benchmark_scenes
from dummyforcing.heads import parse_policy
from dummyforcing.model import Attention, CausalWan, ModelConfig
from dummyforcing.rope import rope_table
from dummyforcing.sampling import make_schedule
from dummyforcing.session import Session
from dummyforcing.vae import VideoDecoder
from tiny_data import TEXT_LEN, Pool, build_tokenizer, random_scenes, render, tokenize
from tiny_optim import Optimizer, graphed, timed_steps
from tiny_vae import WholeClipVAE

CHUNK = 3
SIZE = 160  # pixels, height and width
LATENT = SIZE // 8
TOKENS = (LATENT // 2) ** 2  # per latent frame
SHIFT = 3.0
SIZES = ((21, 8_000, 8), (42, 2_000, 3))  # latent frames, clips per process, batch per process
STUDENT_SIGMAS = (1.0, 0.9, 0.75, 0.5)  # steps 1000, 750, 500, 250 under SHIFT
SHARD_BYTES = 15_500_000
MODEL = ModelConfig(
    dim=384, ffn_dim=768, num_heads=12, num_layers=8, text_len=TEXT_LEN, text_dim=128, freq_dim=256
)
TEXT = dict(
    d_model=128,
    d_kv=32,
    d_ff=256,
    num_layers=2,
    num_heads=4,
    feed_forward_proj="gated-gelu",
    dropout_rate=0.0,
)
VAE = dict(
    base_dim=16, decoder_base_dim=24, z_dim=16, dim_mult=[1, 2, 4], num_res_blocks=1, in_channels=12,
    temperal_downsample=[True, True], out_channels=12, patch_size=2,
    scale_factor_temporal=4, scale_factor_spatial=8,
)  # fmt: skip


class Run:
    """Where this process runs, and what the stages share."""

    def __init__(self, folder: Path, small: bool, pool: float) -> None:
        self.folder, self.small, self.pool = folder, small, pool
        if "RANK" in os.environ:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            dist.init_process_group("nccl")
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(1234 + self.rank)
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        torch._dynamo.config.recompile_limit = 64  # one compiled block per shape
        self.started = time.monotonic()
        self.pools: dict[int, Pool] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def rng(self, stage: str) -> np.random.Generator:
        """A generator of scenes that differs between stages and processes."""
        return np.random.default_rng([self.rank, *stage.encode()])

    def log(self, *words: object) -> None:
        """Print once, with the time."""
        if self.rank == 0:
            print(f"[{time.monotonic() - self.started:6.1f}s]", *words, flush=True)

    def scaled(self, count: int) -> int:
        """A batch or pool size; tiny on a CPU, where only the logic is tried."""
        return 2 if self.small else count


def autocast(run: Run) -> torch.autocast:
    """bfloat16 matrix products on float32 weights."""
    on_gpu = run.device.type == "cuda"
    return torch.autocast(run.device.type, torch.bfloat16, enabled=on_gpu, cache_enabled=False)


def save_sharded(folder: Path, state: dict[str, Tensor], config: dict[str, object]) -> None:
    """Write config.json and float16 safetensors in files below 16 MB, as Hugging Face shards them."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.safetensors*"):
        old.unlink()
    shards: list[dict[str, Tensor]] = [{}]
    room = SHARD_BYTES
    for name, tensor in state.items():
        tensor = tensor.detach().to("cpu", torch.float16).contiguous()
        if tensor.nbytes > room:
            shards.append({})
            room = SHARD_BYTES
        shards[-1][name] = tensor
        room -= tensor.nbytes
    stem = "diffusion_pytorch_model" if folder.name != "text_encoder" else "model"
    names = [f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        names = [f"{stem}.safetensors"]
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, folder / name, metadata={"format": "pt"})
    if len(shards) > 1:
        where = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        total = sum(t.nbytes for shard in shards for t in shard.values())
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=1))
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def load_sharded(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, float32."""
    files = sorted(folder.glob("*.safetensors"))
    return {name: t.float() for file in files for name, t in load_file(file).items()}


# ---------------------------------------------------------------------------------------------------- the VAE


def build_vae(run: Run) -> AutoencoderKLWan:
    """The VAE, from the run folder if it is there."""
    folder = run.folder / "vae"
    config = json.loads((folder / "config.json").read_text()) if folder.exists() else VAE
    vae = AutoencoderKLWan(**{k: v for k, v in config.items() if not k.startswith("_")})
    if folder.exists():
        vae.load_state_dict(load_sharded(folder))
    for module in vae.modules():
        if isinstance(module, nn.Conv3d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
    return vae.to(run.device)


def train_vae(run: Run, seconds: float) -> None:
    """L1 on pixels and on their gradients, plus a light KL; the latents' statistics go into the config."""
    vae, rng, device = build_vae(run), run.rng("vae"), run.device
    if not (run.folder / "vae").exists():
        with torch.no_grad():  # begin with clean latents: noise of the posterior would hide them for long
            vae.quant_conv.bias[16:] = -5.0
    if dist.is_initialized():
        for p in vae.parameters():
            dist.broadcast(p.data, 0)
    optimizer = Optimizer([vae], 4e-3, {id(p) for p in vae.parameters() if p.ndim >= 4})
    frames = 25 if not run.small else 9  # long enough for the steady state of the causal convolutions
    pool = torch.cat(
        [
            (
                render(random_scenes(batch, rng), frames, SIZE, device, int(rng.integers(0, 100))) * 127.5
                + 127.5
            )
            .round()
            .byte()
            for batch in [run.scaled(40)] * run.scaled(int(60 * run.pool))
        ]
    )
    run.log(f"{len(pool)} clips of {frames} pixel frames")
    clips = torch.zeros(2, *pool.shape[1:], device=device)
    whole = WholeClipVAE(vae)

    def work() -> tuple[Tensor, Tensor, Tensor]:
        with autocast(run):
            mean, logvar = whole.encode(clips)
            out = whole.decode(mean + (0.5 * logvar).exp() * torch.randn_like(mean))
        error = out - clips
        l1, mse = error.abs().mean(), error.square().mean()
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        (l1 + 2 * mse + 0.5 * edges + 2e-4 * kl).backward()
        return l1.detach(), mse.detach(), kl.detach()

    step_work = graphed(work) if device.type == "cuda" else work
    optimizer.buffer.zero_()
    run.log("recorded")
    for step, rate in timed_steps(seconds, device=device):
        picks = torch.randint(len(pool), (len(clips),), device=device)
        clips.copy_(pool[picks]).div_(127.5).sub_(1)
        l1, mse, kl = step_work()
        optimizer.step(rate)
        if step % 500 == 0:
            run.log(f"vae {step}: L1 {l1:.4f} PSNR {10 * (4 / mse).log10():.2f} KL {kl:.2f}")
    vae.eval()
    with torch.no_grad(), autocast(run):
        clip = render(random_scenes(run.scaled(32), rng), 81 if not run.small else 9, SIZE, device)
        latents = whole.encode(clip)[0]
        again = whole.decode(latents[:8]).clamp(-1, 1)
        error = (again - clip[:8]) / 2
    run.log(f"vae: {step} steps, PSNR {-10 * error.square().mean().log10():.2f} dB")
    if run.rank == 0:
        both = (torch.stack([clip[:8, :, -1], again[:8, :, -1]]) * 127.5 + 127.5).byte()
        save_picture(run.folder / "vae.png", both.movedim(2, -1))
        mean, std = latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4))
        config = {"_class_name": "AutoencoderKLWan", **VAE}
        config |= {"latents_mean": mean.tolist(), "latents_std": std.tolist()}
        save_sharded(run.folder / "vae", vae.state_dict(), config)


class Encoder:
    """Turns scenes into normalised latents."""

    def __init__(self, run: Run) -> None:
        self.run, self.vae = run, build_vae(run).eval()
        self.whole, shape = WholeClipVAE(self.vae), (1, -1, 1, 1, 1)
        self.mean = torch.tensor(self.vae.config.latents_mean, device=run.device).view(shape)
        self.std = torch.tensor(self.vae.config.latents_std, device=run.device).view(shape)

    @torch.no_grad()
    def pool(self, tokenizer: PreTrainedTokenizerFast, count: int, frames: int, stage: str) -> Pool:
        """Render and encode `count` clips of `frames` latent frames; made once per process."""
        if frames in self.run.pools:
            return self.run.pools[frames]
        rng, batch, began = self.run.rng(stage), self.run.scaled(1008 // frames), time.monotonic()
        latents, tokens = [], []
        for _ in range(0, self.run.scaled(int(count * self.run.pool)), batch):
            scenes = random_scenes(batch, rng)
            with autocast(self.run):
                clips = render(scenes, 1 + 4 * (frames - 1), SIZE, self.run.device)
                z = self.whole.encode(clips)[0]
            latents.append(((z - self.mean) / self.std).transpose(1, 2).bfloat16())
            tokens.append(tokenize(tokenizer, [scene.prompt for scene in scenes]))
        empty = tokenize(tokenizer, [""]).to(self.run.device)
        out = Pool(torch.cat(latents), torch.cat(tokens).to(self.run.device), empty)
        self.run.log(f"{len(out.latents)} clips of {frames} frames in {time.monotonic() - began:.1f} s")
        self.run.pools[frames] = out
        return out


# -------------------------------------------------------------------------------------------- the transformer


class Networks:
    """Text encoder and transformer under training, compiled block by block."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.tokenizer = build_tokenizer(run.folder / "tokenizer")
        self.text = UMT5EncoderModel(UMT5Config(vocab_size=len(self.tokenizer), **TEXT))
        self.model = CausalWan(MODEL)
        self.init_weights()
        if (run.folder / "transformer").exists():
            self.model.load_state_dict(load_sharded(run.folder / "transformer"))
            state = load_sharded(run.folder / "text_encoder")
            state["encoder.embed_tokens.weight"] = state["shared.weight"]
            self.text.load_state_dict(state)
        self.text.to(run.device)
        self.model.to(run.device)
        self.compile(self.model)
        if dist.is_initialized():
            for p in [*self.model.parameters(), *self.text.parameters()]:
                dist.broadcast(p.data, 0)

    def compile(self, model: CausalWan) -> None:
        """One compiled block serves all layers: while training, attention does not ask for the layer."""
        if self.run.device.type == "cuda":
            for block in model.blocks:
                block.layer = 0
                block.compile(dynamic=False)

    def init_weights(self) -> None:
        """Small normal weights, small gates, a zero output: every block starts near the identity."""
        torch.manual_seed(0)
        for module in self.model.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.zeros_(self.model.time_projection[1].weight)
        nn.init.zeros_(self.model.head.head.weight)
        for block in self.model.blocks:
            nn.init.zeros_(block.modulation)
            nn.init.zeros_(block.cross_attn.o.weight)
            with torch.no_grad():
                block.modulation[:, [2, 5]] = 0.2
        nn.init.zeros_(self.model.head.modulation)
        torch.manual_seed(1234 + self.run.rank)

    def matrices(self) -> set[int]:
        """The parameters that Muon handles."""
        return {id(p) for p in self.model.blocks.parameters() if p.ndim == 2}

    def embed(self, tokens: Tensor) -> Tensor:
        """Prompt embeddings, zero in padded rows, `(B, TEXT_LEN, text_dim)`."""
        mask = (tokens != 0).long()
        return self.text(input_ids=tokens, attention_mask=mask).last_hidden_state * mask[..., None]

    def save(self) -> None:
        """Write the run folder's text_encoder and transformer."""
        if self.run.rank == 0:
            config = {"_class_name": "CausalWan", **MODEL.__dict__}
            save_sharded(self.run.folder / "transformer", self.model.state_dict(), config)
            state = {k: v for k, v in self.text.state_dict().items() if k != "encoder.embed_tokens.weight"}
            save_sharded(self.run.folder / "text_encoder", state, self.text.config.to_dict())


def noised(x0: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """Latents `(B, F, C, h, w)` at noise levels `sigma (B, F)`."""
    s = sigma[:, :, None, None, None]
    return (1 - s) * x0 + s * noise


def draw_sigma(batch: int, chunks: int, device: torch.device) -> Tensor:
    """A noise level per chunk, `(B, F)`: uniform, then shifted towards more noise."""
    u = torch.rand(batch, chunks, device=device)
    return (SHIFT * u / (1 + (SHIFT - 1) * u)).repeat_interleave(CHUNK, 1)


def everything(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Bidirectional attention."""
    q, k, v = (t.transpose(1, 2).to(v.dtype) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def velocity(
    model: CausalWan, x: Tensor, sigma: Tensor, text: Tensor, attention: Attention = everything
) -> Tensor:
    """The network's velocity for latents that start at frame 0."""
    return predict(model, x, 1000 * sigma, text, tuple(range(x.shape[1])), attention)


def predict(
    model: CausalWan,
    x: Tensor,
    timesteps: Tensor,
    text: Tensor,
    frames: tuple[int, ...],
    attention: Attention,
) -> Tensor:
    """`CausalWan.forward` with a RoPE table that is computed once per set of frames."""
    height, width = x.shape[-2:]
    time = model.embed_time(timesteps)
    rope = rope_of(model.config.head_dim, frames, height, width, x.device)
    tokens = model.transform(model.patchify(x).float(), time, model.embed_text(text), rope, attention)
    return model.unpatchify(tokens, time, height, width).float()


@cache
def rope_of(
    head_dim: int, frames: tuple[int, ...], height: int, width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The RoPE table of some frames."""
    return rope_table(torch.tensor(frames), height // 2, width // 2, head_dim, device)


class TeacherForcing:
    """Denoise all chunks of a clip in one pass, each given the clean frames before it.

    The sequence is [clean frames | noisy frames]. A clean chunk sees the clean chunks up to itself, as in the
    commit pass; a noisy chunk sees the clean chunks before it and itself, as a denoising step does.
    """

    def __init__(self, frames: int, device: torch.device) -> None:
        self.frames = frames
        tokens = frames * TOKENS

        def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            q_noisy, k_noisy = q >= tokens, k >= tokens
            q_chunk, k_chunk = (q % tokens) // (CHUNK * TOKENS), (k % tokens) // (CHUNK * TOKENS)
            own = (q_chunk == k_chunk) & (q_noisy == k_noisy)
            return own | (~k_noisy & (k_chunk < q_chunk))

        size = 2 * tokens
        self.attention: Attention
        if device.type == "cuda":
            mask = create_block_mask(visible, None, None, size, size, device="cuda")

            compiled = torch.compile(flex_attention)

            def flex(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                q, k, v = (t.transpose(1, 2).to(v.dtype) for t in (q, k, v))
                return compiled(q, k, v, block_mask=mask).transpose(1, 2)

            self.attention = flex
        else:
            dense = create_mask(visible, None, None, size, size, device="cpu")

            def masked(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                q, k, v = (t.transpose(1, 2) for t in (q, k, v))
                return F.scaled_dot_product_attention(q, k, v, attn_mask=dense).transpose(1, 2)

            self.attention = masked

    def __call__(self, model: CausalWan, past: Tensor, x: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
        """Velocity of the noisy frames `x (B, F, C, h, w)` at `sigma (B, F)` given the frames `past`."""
        timesteps = 1000 * torch.cat([torch.zeros_like(sigma), sigma], 1)
        frames = (*range(self.frames), *range(self.frames))
        both = torch.cat([past, x], 1)
        return predict(model, both, timesteps, text, frames, self.attention)[:, self.frames :]


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
        loss.backward()
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
        save_picture(run.folder / "pretrain.png", grid.unflatten(0, (-1, 4 if not run.small else 1)))


def save_picture(path: Path, pictures: Tensor) -> None:
    """Write uint8 pictures `(rows, columns, H, W, 3)` as one PNG at half size."""
    rows = pictures[:, :, ::2, ::2].permute(0, 2, 1, 3, 4).flatten(2, 3).flatten(0, 1)
    Image.fromarray(rows.cpu().numpy()).save(path)


def judge(run: Run, seconds: float) -> None:
    """Four-step videos of the benchmark's prompts with the dense cache and with Dummy Forcing, judged."""
    networks = Networks(run)
    if run.rank:
        return
    model = CausalWan(MODEL).to(run.device).eval()  # uncompiled: a session asks for the layer
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
                text = model.embed_text(networks.embed(tokens))
            seeds = range(first, first + len(part))
            session = Session(
                model, text, parse_policy(policy), schedule, (len(part), 16, LATENT, LATENT),
                seeds=list(seeds), frames=chunks * CHUNK,
            )  # fmt: skip
            stream = decoder.stream()
            clips = torch.cat([stream.decode(latents) for latents in session], 1)
            verdicts += [judge_clip(c.cpu().numpy(), s) for c, s in zip(clips, part, strict=True)]
            rows.append(clips[:, :: max(1, clips.shape[1] // 8)].cpu())
        run.log(policy, json.dumps(summary(verdicts)))
        for scene, verdict in zip(scenes, verdicts, strict=True):
            if not (verdict.color and verdict.shape and verdict.motion):
                run.log("  failed:", scene.prompt, verdict)
        save_picture(run.folder / f"judge_{policy}.png", torch.cat(rows)[:32])


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
        loss.backward()
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
        loss_first.backward()

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
        loss_rest.backward()
        optimizer.step(rate)
        if step % 20 == 0:
            averages = [
                0.9 * a + 0.1 * b.item() for a, b in zip(averages, (loss_first, loss_rest), strict=True)
            ]
        if step % 100 == 0:
            run.log(f"distill {step}: first chunk {averages[0]:.4f}, later chunks {averages[1]:.4f}")
    run.log(f"distill: {step} steps")
    networks.save()


STAGES: dict[str, Callable[[Run, float], None]] = {
    "vae": train_vae,
    "pretrain": pretrain,
    "causal": causal,
    "distill": distill,
    "judge": judge,
}


def main() -> None:
    """Run the stages named on the command line, in order."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stages", nargs="+", help="STAGE=SECONDS ..., stages: " + ", ".join(STAGES))
    parser.add_argument("--folder", type=Path, default=Path("runs/tiny"), help="folder of the run")
    parser.add_argument("--small", action="store_true", help="tiny batches and clips, to try the logic")
    parser.add_argument("--pool", type=float, default=1.0, help="fraction of the usual number of clips")
    args = parser.parse_args()
    run = Run(args.folder, args.small, args.pool)
    for item in args.stages:
        stage, _, seconds = item.partition("=")
        STAGES[stage](run, float(seconds))
        if dist.is_initialized():
            dist.barrier()
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
