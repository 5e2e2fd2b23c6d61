import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.errors import NotEnoughMemory
from dummyforcing.pipeline.memory import (
    SCRATCH,
    MemoryEstimate,
    estimate,
    estimates,
    require_memory,
)
from dummyforcing.pipeline.request import Request, make_request
from dummyforcing.vae.memory import available_memory, fewest_tiles

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
CPU, GPU = torch.device("cpu"), torch.device("cuda")
SMALL = MemoryEstimate(text_encoder=8, transformer=4, vae=1, cache=3, denoising=5, decoding=6, frames=20)


def test_estimates_are_what_was_measured_and_little_more() -> None:
    """On an H200, of intermediate values; what libraries take besides is not in there."""
    measured = json.loads((RESULTS / "memory.json").read_text())
    files = ModelFiles.open(measured["model"])
    for row in measured["rows"]:
        request = make_request(files, "a fox", size=row["size"], num_frames=None)
        need = estimate(files, request, torch.bfloat16, loaded=True)
        for estimated, taken in (
            (need.denoising - SCRATCH, row["denoising"]["scored"]),
            (need.decoding - SCRATCH, row["decoding"]["taken"]),
        ):
            assert 0.98 * estimated < taken < estimated
        assert row["denoising"]["fused"] < row["denoising"]["scored"]


def test_parts_add_up() -> None:
    assert SMALL.weights == 13
    assert SMALL.total == 13 + 3 + 6 + 20
    assert SMALL.on_gpu().total == 13 + 3 + 5 + 6  # a GPU decodes and denoises at the same time
    # The VAE comes to decode, while nothing is denoised.
    assert SMALL.on_gpu().offloaded() == SMALL.offloaded().on_gpu()
    assert SMALL.on_gpu().offloaded().total == 4 + 3 + max(5, 6 + 1)
    assert replace(SMALL, denoising=9).on_gpu().offloaded().total == 4 + 3 + 9


def test_require_memory(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1e6 < available_memory(CPU) < 1e14
    files = ModelFiles.open(model_folder)
    request = make_request(files, "a red ball")

    def require(need: MemoryEstimate, device: torch.device = CPU, least: str = "nothing") -> int:
        """Need so much, and little of what is the least that suffices."""

        def estimates(
            _: ModelFiles, asked: Request, dtype: torch.dtype, **options: bool
        ) -> list[MemoryEstimate]:
            shown = f"{asked.length} {asked.size} {dtype} {options['offload']}"
            return [need, replace(SMALL, frames=SMALL.frames + 1)] if re.search(least, shown) else [need]

        monkeypatch.setattr("dummyforcing.pipeline.memory.estimates", estimates)
        return require_memory(files, request, torch.float32, device)

    assert require(SMALL) == 1
    huge = MemoryEstimate(0, 1e12, 0, 2e12, 3e12, 0, 4e12)
    message = (
        r"about 10000\.0 GB .*4000\.0 GB decoded frames.*; "
        r'take a machine with more memory, since not even torch_dtype="bfloat16" \(10000\.0 GB\) fits\.$'
    )
    with pytest.raises(NotEnoughMemory, match=message):
        require(huge)
    for least, remedy in (
        ("bfloat16", 'torch_dtype="bfloat16"'),
        ("^9 .*float32", "num_frames=33"),
        (r"\(16, 16\).*float32", 'size="16x16"'),
        (r"^3 .*bfloat16", 'torch_dtype="bfloat16" num_frames=9'),
    ):
        with pytest.raises(NotEnoughMemory, match=rf"; take {remedy} \(0\.0 GB\)\.$"):
            require(huge, CPU, least)
    monkeypatch.setattr("dummyforcing.pipeline.memory.available_memory", lambda device: 5e12)
    with pytest.raises(NotEnoughMemory, match=r"; take offload=True \(0\.0 GB\)\.$"):
        require(replace(huge, frames=0, cache=9e12), GPU, "True$")
    monkeypatch.setattr("dummyforcing.pipeline.memory.available_memory", lambda device: 7e12)
    assert require(huge, GPU) == 1  # decoded frames are not on the GPU


def test_fewest_tiles() -> None:
    assert [fewest_tiles([9, 5, 4, 6], free) for free in (9, 8, 5, 4, 3)] == [1, 2, 2, 3, 3]


@pytest.mark.parametrize(("free", "tiles"), [(50e9, 1), (40e9, 2), (32e9, 6)])
def test_what_fits_only_in_tiles(free: float, tiles: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """1080p on a GPU; what waits in the main memory does not count there, and does on a CPU."""
    monkeypatch.setattr("dummyforcing.pipeline.memory.available_memory", lambda device: free)
    files = ModelFiles.open("self-forcing")
    request = make_request(files, "x", size=(1088, 1920))
    assert require_memory(files, request, torch.bfloat16, GPU) == tiles
    needs = [need.on_gpu().total for need in estimates(files, request, torch.bfloat16)]
    assert needs == sorted(needs, reverse=True)
    assert len(needs) == 136
    assert needs[tiles - 1] <= free
    assert tiles == 1 or needs[tiles - 2] > free


def test_what_fits_in_no_number_of_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU all tiles count, so many are no help; the message tells the least that would do."""
    monkeypatch.setattr("dummyforcing.pipeline.memory.available_memory", lambda device: 32e9)
    files = ModelFiles.open("self-forcing")
    request = make_request(files, "x", size=(1088, 1920))
    needs = [need.total for need in estimates(files, request, torch.bfloat16)]
    assert needs[0] > min(needs) > 32e9
    assert needs[-1] > needs[0]
    with pytest.raises(
        NotEnoughMemory, match=rf'needs about {min(needs) / 1e9:.1f} GB .*; take size="960x544"'
    ):
        require_memory(files, request, torch.bfloat16, CPU)


def test_estimates_of_the_public_models() -> None:
    """The bytes that are known of the public models at 480p, in bfloat16."""

    def needed(model: str, **options: Any) -> MemoryEstimate:
        files = ModelFiles.open(model)
        return estimate(files, make_request(files, "x", **options), torch.bfloat16)

    need = needed("self-forcing", policy="dense")
    assert need.transformer == 2_837_993_600
    assert need.text_encoder == 2 * 5_680_910_336
    assert need.vae == 2 * 126_892_531
    assert need.cache / 2**20 == pytest.approx(21 * 274.2, rel=1e-3)
    need = needed("longlive", num_frames=957, policy="native")
    assert need.cache / 2**20 == pytest.approx(12 * 274.2, rel=1e-3)
    need = needed("rolling-forcing", num_frames=501, policy="native")
    assert need.cache / 2**20 == pytest.approx(36 * 274.2, rel=1e-3)
    need = needed("krea-realtime", num_frames=501, policy="native")
    assert need.transformer == 28_576_983_168
    assert need.cache / 2**20 == pytest.approx(6 * 1218.75, rel=1e-3)
    need = needed("krea-block", policy="dense")
    assert need.cache / 2**20 == pytest.approx(21 * 1218.75, rel=1e-3)


@pytest.mark.parametrize(
    ("device", "free", "policy", "remedy"),
    [
        (CPU, 23e9, "dense", r'policy="dummy" \('),
        (GPU, 17.5e9, "dummy", r"offload=True \("),
        (GPU, 10e9, "dense", r'policy="dummy" offload=True \('),
        (CPU, 18e9, "dummy", r'size="416x240" \('),
        (CPU, 1e9, "dummy", r"a machine with more memory, since not even size=\"96x48\" \(14\.. GB\) fits\."),
    ],
)
def test_what_would_fit(
    device: torch.device, free: float, policy: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dummyforcing.pipeline.memory.available_memory", lambda device: free)
    files = ModelFiles.open("self-forcing")
    request = make_request(files, "x", policy=policy)
    with pytest.raises(NotEnoughMemory, match=f"take {remedy}"):
        require_memory(files, request, torch.bfloat16, device)


def test_the_remedy_for_weights_is_not_a_smaller_video(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a smaller video would be none: its weights in float32 alone are too much."""
    monkeypatch.setattr("dummyforcing.pipeline.memory.available_memory", lambda device: 22e9)
    files = ModelFiles.open("self-forcing")
    request = make_request(files, "x", size=(160, 160), num_frames=9)
    with pytest.raises(NotEnoughMemory, match=r'; take torch_dtype="bfloat16" \(15\.\d GB\)\.$'):
        require_memory(files, request, torch.float32, CPU)


def test_what_is_loaded_is_not_counted_again(model_folder: Path) -> None:
    files = ModelFiles.open(model_folder)
    request = make_request(files, "a red ball")
    whole, rest = (estimate(files, request, torch.float32, loaded=loaded) for loaded in (False, True))
    assert rest.weights == 0
    assert rest.total == whole.total - whole.weights
