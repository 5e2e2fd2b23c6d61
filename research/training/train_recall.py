"""Teach the bundled model to keep objects in mind: a LoRA for long clips in which one leaves and comes back.

    torchrun --nproc-per-node gpu tools/train_recall.py --seconds 420 --folder runs/recall

As LongLive does with Self-Forcing, the distilled model is tuned on long clips with prompts that change on the
way, at the noise levels of its four steps. A third of the passes are made from the model's own reconstruction
of the latest chunks, against drift. The first chunk, which no long clip trains, is held at what it was.
"""

import argparse
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from dummyforcing.models.wan import CausalWan
from research.benchmarks.tiles import ASSETS
from research.training.networks import MODEL, Networks, noised, velocity
from research.training.optim import timed_steps
from research.training.recall import Clips, SomeChunks, add_lora, lora_tensors, take_phases
from research.training.run import CHUNK, Run, autocast
from research.training.stages import STUDENT_SIGMAS
from research.training.vae import Encoder

RANK = 32
SIZES = ((18, 2400, 12), (38, 1200, 6))
"""Chunks of a clip, clips per process, batch per process."""
LAST = 5
"""Chunks of the return, always trained."""


def choices(chunks: int) -> list[tuple[int, ...]]:
    """Sets of chunks to train in a pass: the last ones, and as many others in four ways."""
    others = range(1, chunks - LAST)
    found = []
    for way in range(4):
        spread = [others[way + i * (len(others) - way - 1) // (LAST - 1)] for i in range(LAST)]
        found.append((*sorted(set(spread)), *range(chunks - LAST, chunks)))
    return found


def train(run: Run, seconds: float, resume: Path | None) -> None:
    """Train the LoRA, and write it to the run folder."""
    networks, encoder = Networks(run), Encoder(run)
    model, base = networks.model, CausalWan(MODEL).to(run.device).requires_grad_(False)
    base.load_state_dict(model.state_dict())
    trained = add_lora(model.cpu(), RANK)
    model.to(run.device)
    if resume is not None:
        known = {
            n.removeprefix("base_model.model.").removesuffix(".weight"): t
            for n, t in load_file(resume).items()
        }
        for name, parameter in model.named_parameters():
            if name in known:
                parameter.data.copy_(known[name])
    if dist.is_initialized():
        for parameter in trained:
            dist.broadcast(parameter.data, 0)
    take_phases(model)
    networks.text.requires_grad_(False)
    sizes = SIZES if not run.small else ((12, 4, 2), (14, 4, 2))
    pools = [
        Clips(run, networks, encoder, f"recall {n} {resume}", n, max(4 * b, int(count * run.pool)), b)
        for n, count, b in sizes
    ]
    passes = [[SomeChunks(n, noisy, run.device) for noisy in choices(n)] for n, _, _ in sizes]
    optimizer = torch.optim.AdamW(
        trained, lr=2e-3, betas=(0.9, 0.95), weight_decay=0.0, fused=run.device.type == "cuda"
    )
    levels = torch.tensor(STUDENT_SIGMAS, device=run.device)
    averages: dict[int | str, float] = dict.fromkeys(("first", *(n for n, _, _ in sizes)), 0.0)
    for step, rate in timed_steps(seconds, decay=0.6, device=run.device):
        which = (step % len(sizes)) if run.small else (0, 1, 1, 1)[step % 4]
        n, _, batch = sizes[which]
        tf = passes[which][step // 4 % 4]
        x0, tokens, phases = pools[which].sample(batch)
        picks = torch.randint(len(levels), (batch, len(tf.noisy)), device=run.device)
        sigma = levels[picks].repeat_interleave(CHUNK, 1)
        target = tf.chosen(x0)
        with autocast(run):
            with torch.no_grad():
                text = torch.unflatten(networks.embed(tokens.flatten(0, 1)), 0, tokens.shape[:2])
            level = 0.2 * torch.rand(batch, n, device=run.device).square()
            past = noised(x0, level.repeat_interleave(CHUNK, 1), torch.randn_like(x0))
            if step % 3 == 2:
                own = 0.85 * torch.rand(batch, len(tf.noisy), device=run.device).repeat_interleave(CHUNK, 1)
                x = noised(target, own, torch.randn_like(target))
                made = (x - own[:, :, None, None, None] * tf(model, past, x, own, text, phases)).detach()
                past = (
                    torch.unflatten(past, 1, (n, CHUNK))
                    .index_copy(1, tf.noisy, torch.unflatten(made, 1, (-1, CHUNK)).to(past.dtype))
                    .flatten(1, 2)
                )
            noise = torch.randn_like(target)
            out = tf(model, past, noised(target, sigma, noise), sigma, text, phases)
        loss = (out - (noise - target)).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        first = first_chunk(run, networks, base, x0, text, levels)
        first.backward()  # type: ignore[no-untyped-call]
        if dist.is_initialized():
            grads = [cast(Tensor, p.grad) for p in trained]
            flat = torch.cat([grad.flatten() for grad in grads])
            dist.all_reduce(flat, op=dist.ReduceOp.AVG)
            for grad, mean in zip(grads, torch.split(flat, [g.numel() for g in grads]), strict=True):
                grad.copy_(mean.view_as(grad))
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.param_groups[0]["lr"] = 2e-3 * rate
        optimizer.step()
        optimizer.zero_grad()
        if step % 4 < 3 and step % 40 < 4:
            newest: dict[int | str, Tensor] = {n: loss, "first": first}
            for key, value in newest.items():
                averages[key] = 0.8 * averages[key] + 0.2 * value.item() if averages[key] else value.item()
        if step % 100 == 0:
            run.log(f"recall {step}:", ", ".join(f"{name} {value:.4f}" for name, value in averages.items()))
            save(run, model)
    run.log(f"recall: {step} steps")
    save(run, model)


def first_chunk(
    run: Run, networks: Networks, base: CausalWan, x0: Tensor, text: Tensor, levels: Tensor
) -> Tensor:
    """How far the first chunk's velocity is from that of the model before."""
    x0 = x0[:, :CHUNK]
    sigma = levels[torch.randint(len(levels), (len(x0), 1), device=x0.device)].expand(-1, CHUNK)
    x = noised(x0, sigma, torch.randn_like(x0))
    with autocast(run), torch.compiler.set_stance("force_eager"):
        with torch.no_grad():
            target = velocity(base, x, sigma, text[:, 0])
        out = velocity(networks.model, x, sigma, text[:, 0])
    return (out - target).square().mean()


def save(run: Run, model: CausalWan) -> None:
    """Write the LoRA."""
    if run.rank == 0:
        save_file(lora_tensors(model), run.folder / "lora.safetensors", metadata={"format": "pt"})


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, required=True, help="how long to train")
    parser.add_argument("--folder", type=Path, default=Path("runs/recall"), help="folder of the run")
    parser.add_argument("--resume", type=Path, help="LoRA to begin with")
    parser.add_argument("--small", action="store_true", help="tiny batches and clips, to try the logic")
    parser.add_argument("--pool", type=float, default=1.0, help="fraction of the usual number of clips")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for part in ("transformer", "text_encoder", "vae"):
        link = args.folder / part
        if not link.exists():
            link.symlink_to(ASSETS / "tiny" / part)
    run = Run(args.folder, args.small, args.pool)
    train(run, args.seconds, args.resume)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
