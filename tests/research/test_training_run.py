"""A whole training run on tiny sizes: each stage goes on from what the folder holds, elsewhere too."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dummyforcing.pipeline.pipeline import load
from research.training.assemble import assemble
from research.training.carry import PART_BYTES, pack, unpack
from research.training.data import REGISTERS, TEXT_LEN, build_tokenizer, tell_many, tokenize
from research.training.distill import GuidedPaths
from research.training.judge import main as judge
from research.training.networks import load_model
from research.training.optim import Recorder
from research.training.run import Run, load_sharded
from research.training.text import TextReader
from research.training.train_tiny import main as train
from research.training.vae import Encoder
from research.world.prompts import FREE

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of all stages."""
    folder = tmp_path_factory.mktemp("run")
    train(["text=1", "vae=1", "pretrain=1", "--small", "--folder", str(folder)])
    train(["causal=1@0-0.5", "--small", "--data", "1", "--folder", str(folder)])
    return folder


@pytest.mark.slow
def test_prompts_become_pieces(tmp_path: Path) -> None:
    """Registers first, then pieces of words; whatever is typed has pieces, and all told prompts have room."""
    tokenizer = build_tokenizer(tmp_path)
    ids = tokenize(tokenizer, [*(told.scene.prompt for told in tell_many((9,), 2000)), "a zebra-fish (42%)?"])
    slots = [tokenizer.convert_tokens_to_ids(f"<slot{i}>") for i in range(REGISTERS)]
    assert ids.shape == (2001, TEXT_LEN)
    assert (ids[:, :REGISTERS] == torch.tensor(slots)).all()
    assert not (ids == tokenizer.unk_token_id).any()
    assert ((ids == tokenizer.eos_token_id).sum(1) == 1).all()
    free = tokenize(tokenizer, [prompt for prompt, _ in FREE])
    assert ((free == tokenizer.eos_token_id).sum(1) == 1).all()
    again = build_tokenizer(tmp_path)
    assert torch.equal(tokenize(again, ["a red ball"]), tokenize(tokenizer, ["A red  ball!"]))


@pytest.mark.slow
def test_a_run_goes_on_elsewhere(trained: Path, tmp_path: Path) -> None:
    files = pack(trained, tmp_path / "out")
    assert len(files) <= 8
    assert all(path.stat().st_size <= PART_BYTES for path in files)
    elsewhere = tmp_path / "elsewhere"
    unpack(elsewhere, tmp_path / "out")
    before = load_sharded(elsewhere / "transformer")
    for call in ("causal=1@0.5-1", "distill=1", "own=1"):
        train([call, "--small", "--data", "2", "--folder", str(elsewhere)])
    after = load_sharded(elsewhere / "transformer")
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all(tensor.isfinite().all() for tensor in after.values())
    lines = [json.loads(line) for line in (elsewhere / "curves.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in lines} >= {"text", "vae", "pretrain", "causal", "distill", "own"}

    vae = load_sharded(elsewhere / "vae")
    train(["vae=1", "--small", "--folder", str(elsewhere)])  # with a transformer the decoder goes on alone
    tuned = load_sharded(elsewhere / "vae")
    encoder = [name for name in vae if name.startswith(("encoder", "quant_conv"))]
    assert encoder
    assert all(torch.equal(vae[name], tuned[name]) for name in encoder)
    assert any(not torch.equal(vae[name], tuned[name]) for name in vae)


@pytest.mark.slow
def test_processes_train_one_model(tmp_path: Path) -> None:
    """Of their own scenes: after each stage all have the same weights, and one has written them."""
    script = tmp_path / "train.py"
    script.write_text(
        """
import sys, torch, torch.distributed as dist
from research.training.networks import Networks
from research.training.train_tiny import main

save = Networks.save

def checked(self, folder="transformer"):
    save(self, folder)
    own = torch.cat([p.detach().flatten() for p in self.model.parameters()])
    seen = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(seen, own)
    assert len(seen) == 2 and torch.equal(*seen) and own.isfinite().all()
    assert self.run.seed("pretrain")[1] == dist.get_rank()
    if dist.get_rank() == 0:
        print("the same everywhere", flush=True)

Networks.save = checked
main(sys.argv[1:])
"""
    )
    stages = ["text=1", "vae=1", "pretrain=1", "causal=1", "distill=1", "own=1"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, script, *stages, "--small", "--folder", tmp_path / "run"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the same everywhere") == 4
    assert load_model(tmp_path / "run" / "transformer").state_dict()


@pytest.mark.slow
def test_paths_lead_to_their_ends(trained: Path) -> None:
    run = Run(trained, small=True, pool=1.0)
    encoder, model = Encoder(run, TextReader(run)), load_model(trained / "transformer")
    paths = GuidedPaths(run, encoder.pool(2, 3, "pretrain"), model, model, Recorder(run.device))
    paths.make(0.0, (0,))
    assert paths.made == 0
    for levels, made in (((0,), 8), ((1, 2, 3), 20)):
        paths.make(1.0, levels)
        assert paths.made == made
    assert paths.level[:20:2].tolist() == [0, 1, 2, 3, 1, 2, 3, 2, 3, 3]
    torch.testing.assert_close(paths.end[0], paths.end[6])  # of one path
    x, sigma, target, text = paths.sample(50)
    ends = x - sigma[:, :, None, None, None] * target
    assert text.shape[1:] == (TEXT_LEN, 192)
    distance = (ends[:, None] - paths.end[None, :20].float()).flatten(2).abs().amax(2)
    assert (distance.amin(1) < 1e-2).all()


@pytest.mark.slow
def test_a_run_is_judged_and_becomes_a_preset(trained: Path, tmp_path: Path) -> None:
    output = tmp_path / "judged.json"
    arguments = ["--folder", str(trained), "--limit", "1", "--seconds", "1", "--ceiling", "--batch", "2"]
    judge([*arguments, "--output", str(output)])
    found = json.loads(output.read_text())["found"]
    assert set(found) == {"dense", "truth", "truth after the VAE"}
    for groups in found.values():
        assert [groups[name]["count"] for name in ("one", "two", "free")] == [1, 1, 1]
        assert "all_right" in groups["one"]
    assert found["truth"]["one"]["failures"] == {}
    assert (tmp_path / "judged-dense-one-0.png").exists()

    preset = tmp_path / "preset"
    preset.mkdir()
    (preset / "plan.json").write_text('{"fingerprint": "of other weights"}')
    assemble(trained, preset, note="Trained in a test.")
    assert not (preset / "plan.json").exists()
    text = (preset / "PROVENANCE.md").read_text()
    assert "Trained in a test." in text
    assert "| causal |" in text
    pipeline = load(preset, device="cpu")
    video = pipeline.generate("a crimson sphere hops", num_frames=9, seed=1)
    assert video.frames.shape == (9, 160, 160, 3)
    assert video.frames.dtype == np.uint8
    (preset / "more").write_bytes(b"0" * 17_000_000)
    with pytest.raises(ValueError, match="too large"):
        assemble(trained, preset)


def test_training_and_judging_need_no_video_library() -> None:
    """On a bare machine there is no PyAV, and no command line."""
    script = """
import sys
for name in ("av", "tyro", "fastapi", "pydantic", "rich", "matplotlib"):
    sys.modules[name] = None
from research.training import assemble, carry, judge, train_tiny
"""
    path = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    subprocess.run(
        [sys.executable, "-c", script], check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}
    )
