"""The small decoder, against a plain formulation of its layers: whole clips, and frame by frame."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch import Tensor

from dummyforcing.checkpoints.vae import load_small_decoder
from dummyforcing.errors import UserError
from dummyforcing.pipeline.pipeline import load
from dummyforcing.vae.codec import VideoDecoder
from dummyforcing.vae.small_decoder import SmallLayers
from tests.vae.test_codec import LAYOUTS, latents_of

MEMORY, UPSAMPLE, GROW = (3, 4, 5, 9, 10, 11, 15, 16, 17), (6, 12, 18), {7: 1, 13: 2, 19: 2}
CONVOLUTIONS, RELU = (1, 8, 14, 20, 22), (2, 21)


def write_weights(path: Path, seed: int = 0) -> dict[str, Tensor]:
    """A random file under the names and in the shapes that are public, with a part of an encoder."""
    torch.manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {}
    for i in MEMORY:
        width = 256 if i < 6 else 128 if i < 12 else 64
        shapes[f"{i}.conv.0.weight"] = (width, 2 * width, 3, 3)
        shapes |= {f"{i}.conv.{j}.weight": (width, width, 3, 3) for j in (2, 4)}
        shapes |= {f"{i}.conv.{j}.bias": (width,) for j in (0, 2, 4)}
    shapes |= {"1.weight": (256, 16, 3, 3), "1.bias": (256,), "22.weight": (3, 64, 3, 3), "22.bias": (3,)}
    shapes |= {"8.weight": (128, 256, 3, 3), "14.weight": (64, 128, 3, 3), "20.weight": (64, 64, 3, 3)}
    shapes |= {"7.conv.weight": (256, 256, 1, 1), "13.conv.weight": (256, 128, 1, 1)}
    shapes |= {"19.conv.weight": (128, 64, 1, 1)}
    weights = {f"decoder.{name}": torch.randn(s) * s[-1] / s[0] ** 0.5 / 9 for name, s in shapes.items()}
    torch.save({"encoder.0.weight": torch.zeros(64, 3, 3, 3), **weights}, path)
    return weights


def oracle(weights: dict[str, Tensor], latents: Tensor) -> Tensor:
    """Frame by frame, by a recursion over the layers: `(F, C, h, w)` to `(n, H, W, 3)`."""
    w = {name.removeprefix("decoder."): tensor for name, tensor in weights.items()}
    memory: dict[int, Tensor] = {}
    out: list[Tensor] = []

    def visit(x: Tensor, i: int) -> None:
        if i == 23:
            out.append(x)
            return
        if i in MEMORY:
            y = torch.cat([x, memory.get(i, torch.zeros_like(x))])[None]
            memory[i] = x
            for j in (0, 2, 4):
                y = F.conv2d(y, w[f"{i}.conv.{j}.weight"], w[f"{i}.conv.{j}.bias"], padding=1)
                y = y.relu() if j < 4 else y
            visit((y[0] + x).relu(), i + 1)
        elif i in GROW:
            for part in F.conv2d(x[None], w[f"{i}.conv.weight"])[0].chunk(GROW[i]):
                visit(part, i + 1)
        elif i in UPSAMPLE:
            visit(x.repeat_interleave(2, 1).repeat_interleave(2, 2), i + 1)
        elif i in CONVOLUTIONS:
            visit(F.conv2d(x[None], w[f"{i}.weight"], w.get(f"{i}.bias"), padding=1)[0], i + 1)
        else:
            visit(x.relu() if i in RELU else 3 * torch.tanh(x / 3), i + 1)

    for frame in latents:
        visit(frame, 0)
    return torch.stack(out).clamp(0, 1).permute(0, 2, 3, 1)[3:]


@pytest.fixture(scope="module")
def vae() -> VideoDecoder:
    torch.manual_seed(0)
    return VideoDecoder(AutoencoderKLWan(**LAYOUTS["wan"]).eval())


@pytest.mark.parametrize("split", [[5], [1, 1, 3], [3, 2]])
def test_streaming_is_the_recursion(vae: VideoDecoder, split: list[int], tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "tiny.pth")
    decoder = load_small_decoder(tmp_path / "tiny.pth", vae)
    latents = latents_of(5, batch=2)
    stream = decoder.stream()
    pieces = [stream.decode_float(part) for part in latents.split(split, dim=1)]
    assert [piece.shape[1] for piece in pieces] == [4 * n - 3 * (i == 0) for i, n in enumerate(split)]
    pixels = torch.cat(pieces, 1)
    assert pixels.shape == (2, 17, 32, 48, 3)
    assert pixels.std() > 0.01
    for sample, expected in zip(pixels, latents, strict=True):
        torch.testing.assert_close(sample, oracle(weights, expected), atol=1e-5, rtol=0)
    assert stream.frames == 5


def test_it_encodes_with_the_vae(vae: VideoDecoder, tmp_path: Path) -> None:
    write_weights(tmp_path / "tiny.pth")
    decoder = load_small_decoder(tmp_path / "tiny.pth", vae)
    pixels = torch.randint(0, 256, (1, 5, 32, 32, 3), dtype=torch.uint8)
    assert torch.equal(decoder.encode(pixels), vae.encode(pixels))
    assert decoder.decode(latents_of(2)).dtype == torch.uint8
    assert not torch.equal(decoder.decode(latents_of(2)), vae.decode(latents_of(2)))


def test_files_that_do_not_fit(vae: VideoDecoder, model_folder: Path, tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "tiny.pth")
    del weights["decoder.1.bias"]
    torch.save(weights, tmp_path / "less.pth")
    with pytest.raises(UserError, match=r"1 missing \(decoder\.1\.bias\)"):
        load_small_decoder(tmp_path / "less.pth", vae)
    with pytest.raises(UserError, match="no file"):
        load_small_decoder(tmp_path / "nothing.pth", vae)


def test_only_for_latents_of_wan(model_folder: Path, tmp_path: Path) -> None:
    write_weights(tmp_path / "tiny.pth")
    with pytest.raises(UserError, match=r"decodes latents of Wan 2\.1, and this model's are others"):
        load("tiny", device="cpu", vae=tmp_path / "tiny.pth")
    fitting = load(model_folder, device="cpu", vae=tmp_path / "tiny.pth")  # has the default statistics
    video = fitting.generate("a red ball", num_frames=21)
    assert video.frames.shape == (21, 32, 48, 3)


def test_names() -> None:
    assert len(SmallLayers().state_dict()) == 9 * 6 + 4 + 3 + 3
