"""The VAE of the bundled model: whole clips in one call each way, its training, encoded clips.

diffusers runs the VAE group by group of frames with a feature cache, which costs thousands of small kernels.
Over a whole clip the same function is a plain causal network: the first frame passes the temporal resampling
unchanged, the later ones go through causal convolutions. Both agree to rounding (`tests/test_training.py`).
"""

import json
import time
from functools import partial
from types import MethodType

import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample, patchify, unpatchify
from torch import Tensor, nn

from dummyforcing.evaluation.world.scene import Scene
from research.training.data import Pool, render, tell_in_batches, tell_many
from research.training.optim import Optimizer, Recorder, timed_steps
from research.training.run import SIZE, Run, Span, autocast, load_sharded, save_picture, save_sharded
from research.training.text import TextReader

VAE = dict(
    base_dim=16, decoder_base_dim=24, z_dim=16, dim_mult=[1, 2, 4], num_res_blocks=1, in_channels=12,
    temperal_downsample=[True, True], out_channels=12, patch_size=2,
    scale_factor_temporal=4, scale_factor_spatial=8,
)  # fmt: skip


def _resample(self: WanResample, x: Tensor, feat_cache: None = None, feat_idx: None = None) -> Tensor:
    batch, channels = x.shape[:2]
    if self.mode == "upsample3d" and x.shape[2] > 1:
        later = self.time_conv(x[:, :, 1:]).unflatten(1, (2, channels))
        later = later.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)
        x = torch.cat([x[:, :, :1], later], 2)
    frames = x.shape[2]
    x = self.resample(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (batch, frames)).transpose(1, 2)
    if self.mode == "downsample3d" and frames > 1:
        x = torch.cat([x[:, :, :1], self.time_conv(x)], 2)
    return x


class WholeClipVAE:
    """A VAE whose modules now work on whole clips; its weights are trained in place."""

    def __init__(self, vae: AutoencoderKLWan) -> None:
        self.vae = vae
        for module in vae.modules():
            if isinstance(module, WanResample):
                module.forward = MethodType(_resample, module)

    def encode(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance `(B, C, F, h, w)` of clips `(B, 3, 1 + 4 (F - 1), H, W)` in [-1, 1]."""
        features = self.vae.encoder(patchify(clips, self.vae.config.patch_size))
        mean, logvar = self.vae.quant_conv(features).chunk(2, 1)
        return mean.float(), logvar.float().clamp(-30, 20)

    def decode(self, latents: Tensor) -> Tensor:
        """Clips of latents, not clamped."""
        pixels: Tensor = unpatchify(
            self.vae.decoder(self.vae.post_quant_conv(latents)), self.vae.config.patch_size
        )
        return pixels.float()


def build_vae(run: Run) -> AutoencoderKLWan:
    """The VAE, from the run folder if it is there."""
    folder = run.folder / "vae"
    new = VAE if not run.small else VAE | {"base_dim": 4, "decoder_base_dim": 4}
    config = json.loads((folder / "config.json").read_text()) if folder.exists() else new
    vae = AutoencoderKLWan(**{k: v for k, v in config.items() if not k.startswith("_")})
    if folder.exists():
        vae.load_state_dict(load_sharded(folder))
    for module in vae.modules():
        if isinstance(module, nn.Conv3d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
    return vae.to(run.device)


def train_vae(run: Run, span: Span) -> None:
    """L1 on pixels and on their gradients, plus a light KL; the latents' statistics go into the config.

    Clips are short at first. From a third of the time on every second one is longer than what the decoder's
    causal convolutions see at once: a VAE that knows short clips alone loses 4 dB on 5 s. Once there is a
    transformer, latents stay what they are to it: only the decoder goes on then.
    """
    vae, rng, device = build_vae(run), run.rng("vae"), run.device
    keeps_latents = (run.folder / "transformer").exists()
    if keeps_latents:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    if not (run.folder / "vae").exists():
        with torch.no_grad():  # begin with clean latents: noise of the posterior would hide them for long
            vae.quant_conv.bias[16:] = -5.0
    if dist.is_initialized():
        for p in vae.parameters():
            dist.broadcast(p.data, 0)
    is_new = not (run.folder / "vae").exists()
    optimizer = Optimizer([vae], 4e-3 if is_new else 5e-4, {id(p) for p in vae.parameters() if p.ndim >= 4})
    short, long = (25, 57) if not run.small else (9, 13)  # pixel frames
    told_clips = tell_in_batches(run.seed("vae"), run.scaled(int(1600 * run.pool)), run.scaled(20), run.small)
    drawn = (
        render([one.scene for one in told], long, SIZE, device, int(rng.integers(0, 100)))
        for told in told_clips
    )
    pool = torch.cat([(clip * 127.5 + 127.5).round().byte() for clip in drawn])
    run.log(f"{len(pool)} clips of {long} pixel frames")
    batches = [torch.zeros(n, 3, f, SIZE, SIZE, device=device) for n, f in ((2, short), (1, long))]
    whole = WholeClipVAE(vae)

    def work(clips: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with autocast(run):
            mean, logvar = whole.encode(clips)
            out = whole.decode(mean + (0.5 * logvar).exp() * torch.randn_like(mean))
        error = out - clips
        l1, mse = error.abs().mean(), error.square().mean()
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        (l1 + 2 * mse + 0.5 * edges + 2e-4 * kl).backward()  # type: ignore[no-untyped-call]
        return l1.detach(), mse.detach(), kl.detach()

    record = Recorder(device)
    works = [record(partial(work, clips)) for clips in batches]
    optimizer.buffer.zero_()
    run.log("recorded")
    for step, rate, progress in timed_steps(run, span):
        is_long = progress > 0.33 and step % 2 == 1
        clips = batches[is_long]
        picks = torch.randint(len(pool), (len(clips),), device=device)
        clips.copy_(pool[picks, :, : clips.shape[2]]).div_(127.5).sub_(1)
        l1, mse, kl = works[is_long]()
        optimizer.rate.fill_(rate)
        optimizer.step()
        if step % 500 == 0:
            psnr = 10 * (4 / mse).log10().item()
            run.curve("vae", step, {"L1": l1.item(), "PSNR": psnr, "KL": kl.item()})
    vae.eval()
    with torch.no_grad(), autocast(run):
        scenes = [one.scene for one in tell_many(run.seed("vae test"), run.scaled(32))]
        clip = render(scenes, 81 if not run.small else 9, SIZE, device)
        latents = whole.encode(clip)[0]
        again = whole.decode(latents[:8]).clamp(-1, 1)
        error = (again - clip[:8]) / 2
    psnr = -10 * error.square().mean().log10().item()
    run.curve("vae, 81 frames", step, {"PSNR": psnr})
    if run.rank == 0:
        both = (torch.stack([clip[:8, :, -1], again[:8, :, -1]]) * 127.5 + 127.5).byte()
        save_picture(run.folder / "vae.png", both.movedim(2, -1))
        sizes = {name: value for name, value in vae.config.items() if not name.startswith("_")}
        config = {"_class_name": "AutoencoderKLWan", **sizes}
        if not keeps_latents:
            mean, std = latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4))
            config |= {"latents_mean": mean.tolist(), "latents_std": std.tolist()}
        save_sharded(run.folder / "vae", vae.state_dict(), config)


def places(clips: Tensor) -> Tensor:
    """Which latent pixels objects touch, `(B, F, 1, h, w)`, of rendered clips `(B, 3, 1 + 4 (F - 1), H, W)`.

    Objects are brighter than all scenery.
    """
    bright = (clips.amax(1, keepdim=True) > 2 * 0.47 - 1).float()
    first = F.max_pool3d(bright[:, :, :1], (1, 8, 8))
    later = F.max_pool3d(bright[:, :, 1:], (4, 8, 8)) if bright.shape[2] > 1 else bright[:, :, :0, ::8, ::8]
    both = torch.cat([first, later], 2)
    return F.max_pool3d(both, (1, 3, 3), 1, (0, 1, 1)).transpose(1, 2) > 0


class Encoder:
    """Turns scenes into normalised latents."""

    def __init__(self, run: Run, reader: TextReader) -> None:
        self.run, self.reader, self.vae = run, reader, build_vae(run).eval()
        self.whole, shape = WholeClipVAE(self.vae), (1, -1, 1, 1, 1)
        self.mean = torch.tensor(self.vae.config.latents_mean, device=run.device).view(shape)
        self.std = torch.tensor(self.vae.config.latents_std, device=run.device).view(shape)

    def encode(self, scenes: list[Scene], frames: int) -> Tensor:
        """Normalised latents of scenes, `(B, frames, C, h, w)` bfloat16."""
        return self.encode_with_places(scenes, frames)[0]

    @torch.no_grad()
    def encode_with_places(self, scenes: list[Scene], frames: int) -> tuple[Tensor, Tensor]:
        """The same, and `(B, frames, 1, h, w)` bool: where there are objects, or edges of objects."""
        clips = render(scenes, 1 + 4 * (frames - 1), SIZE, self.run.device)
        with autocast(self.run):
            z = self.whole.encode(clips)[0]
        return ((z - self.mean) / self.std).transpose(1, 2).bfloat16(), places(clips)

    def pool(self, count: int, frames: int, stage: str) -> Pool:
        """Render and encode `count` clips of `frames` latent frames; made once per run folder and rank."""
        if frames in self.run.pools:
            return self.run.pools[frames]
        kept = self.run.folder / "pools" / f"{stage}-{self.run.data}-{self.run.rank}.pt"
        if kept.exists():
            out = Pool(*torch.load(kept, map_location=self.run.device))
        else:
            out = self._new_pool(count, frames, stage)
            kept.parent.mkdir(exist_ok=True)
            torch.save((out.latents, out.places, out.text, out.empty), kept)
        self.run.pools[frames] = out
        return out

    def _new_pool(self, count: int, frames: int, stage: str) -> Pool:
        began, batch = time.monotonic(), self.run.scaled(max(1, 756 // frames))
        count = self.run.scaled(int(count * self.run.pool))
        encoded, prompts = [], []
        for told in tell_in_batches(self.run.seed(stage), count, batch, self.run.small):
            encoded.append(self.encode_with_places([one.scene for one in told], frames))
            prompts += [one.scene.prompt for one in told]
        latents, where = (torch.cat(parts) for parts in zip(*encoded, strict=True))
        out = Pool(latents, where, self.reader.embed(prompts), self.reader.embed([""]))
        self.run.log(f"{len(out.latents)} clips of {frames} frames in {time.monotonic() - began:.1f} s")
        return out
