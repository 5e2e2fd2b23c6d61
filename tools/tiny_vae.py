"""Whole clips through diffusers' Wan VAE in one call each way, for training.

diffusers runs the VAE group by group of frames with a feature cache, which costs thousands of small kernels.
Over a whole clip the same function is a plain causal network: the first frame passes the temporal resampling
unchanged, the later ones go through causal convolutions. Both agree to rounding (run this file to see it).
"""

from types import MethodType

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample, patchify, unpatchify
from torch import Tensor


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
        return unpatchify(
            self.vae.decoder(self.vae.post_quant_conv(latents)), self.vae.config.patch_size
        ).float()


if __name__ == "__main__":
    from train_tiny import VAE

    torch.manual_seed(0)
    plain = AutoencoderKLWan(**VAE).eval()
    whole = AutoencoderKLWan(**VAE).eval()
    whole.load_state_dict(plain.state_dict())
    clips = torch.rand(2, 3, 17, 32, 48) * 2 - 1
    with torch.no_grad():
        mean = plain.encode(clips).latent_dist.mean
        print(
            "encode:",
            (mean - WholeClipVAE(whole).encode(clips)[0]).abs().max().item(),
            "of",
            mean.abs().max().item(),
        )
        out = plain.decode(mean).sample
        print("decode:", (out - WholeClipVAE(whole).decode(mean).clamp(-1, 1)).abs().max().item())
