"""Files of VAEs: Wan's own, diffusers' folders, and the small decoder of TAEHV.

decoder = load_vae(folder / "vae")
decoder = load_small_decoder(Path("taew2_1.pth"), decoder)
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan

from dummyforcing.checkpoints.components import quiet, read_component_config
from dummyforcing.checkpoints.names import vae_name
from dummyforcing.checkpoints.stored import StoredTensor
from dummyforcing.checkpoints.tensor_files import open_tensors
from dummyforcing.checkpoints.weights import check_names, fill
from dummyforcing.errors import BadFile, BadRequest
from dummyforcing.files.reading import read_json
from dummyforcing.vae.codec import VideoDecoder
from dummyforcing.vae.memory import DecoderSizes
from dummyforcing.vae.small_decoder import SmallDecoder, SmallLayers

WAN_VAE: dict[str, Any] = {}
"""The VAE of every Wan 2.1 model is what diffusers' class makes of no arguments."""


def open_vae(path: Path) -> tuple[AutoencoderKLWan, dict[str, StoredTensor]]:
    """Build a VAE without weights, and find them.

    Args:
        path: Wan's own file, or a folder of diffusers with its `config.json`.

    Returns:
        The module on the meta device, and exactly its tensors by name.

    Raises:
        BadFile: If a file is missing or damaged, or the tensors are not exactly those of the config.
    """
    sizes = read_component_config(path) if path.is_dir() else WAN_VAE
    try:
        with torch.device("meta"), quiet():
            vae = AutoencoderKLWan.from_config(sizes)
    except Exception as error:  # whatever a nonsensical size causes
        raise BadFile(
            f"{path / 'config.json'} does not describe a Wan VAE ({error})", "give the folder of one"
        ) from error
    tensors = {vae_name(name): tensor for name, tensor in open_tensors(path).items()}
    check_names(tensors, vae, path)
    return vae, tensors


def load_vae(
    path: Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    offload: bool = False,
    fp8: bool = False,
) -> VideoDecoder:
    """Load a VAE, as `open_vae` finds it.

    Args:
        path: File or folder.
        device: Where it runs.
        dtype: What it runs in.
        offload: Whether its weights are in the main memory between calls.
        fp8: Whether it decodes in float8; see `VideoDecoder`.

    Raises:
        BadFile: If it is missing or damaged.
    """
    return VideoDecoder(fill(*open_vae(path), "cpu" if offload else device, dtype), device, fp8=fp8)


def load_small_decoder(path: Path, vae: VideoDecoder) -> SmallDecoder:
    """Load a small decoder for the latents of a VAE.

    Args:
        path: `taew2_1.pth` or the same as `.safetensors`.
        vae: Encodes; says on which device and in which dtype to decode, too.

    Raises:
        BadFile: If the file is missing or damaged, or holds something else.
        BadRequest: If the VAE has other latents than Wan 2.1's.
    """
    with torch.device("meta"):
        wan = AutoencoderKLWan(num_res_blocks=1, base_dim=8).config
    if vae.vae.config.latents_mean != wan.latents_mean or vae.vae.config.z_dim != wan.z_dim:
        raise BadRequest(
            f"{path} decodes latents of Wan 2.1, and this model's are others", "leave it out", "vae"
        )
    return SmallDecoder(fill(*open_small_decoder(path), vae.device, vae.vae.dtype), vae)


def open_small_decoder(path: Path) -> tuple[SmallLayers, dict[str, StoredTensor]]:
    """Build the layers of a small decoder without weights, and find them.

    Raises:
        BadFile: If the file is missing or damaged, or holds something else.
    """
    with torch.device("meta"):
        layers = SmallLayers()
    tensors = {name: t for name, t in open_tensors(path).items() if not name.startswith("encoder.")}
    check_names(tensors, layers, path)
    return layers, tensors


def decoder_sizes(folder: Path) -> DecoderSizes:
    """Sizes of a VAE's decoder; without a folder, those of Wan 2.1.

    Raises:
        BadFile: If its `config.json` describes no Wan VAE.
    """
    if not folder.exists():
        return DecoderSizes()
    config = folder / "config.json"
    try:
        return DecoderSizes.of(read_json(config))
    except (OSError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
        raise BadFile(f"{config} does not describe a Wan VAE ({error})", "give the folder of one") from error
