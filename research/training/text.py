"""The text encoder's training: it reads what a sentence says into the registers before it.

Whatever the words and their order, the same things end up in the same registers, so the transformer sees one
wording of everything. It is trained before the transformer, which then takes it as it is.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from research.training.data import REGISTERS, SLOT_REGISTERS, build_tokenizer, tokenize, told_prompts
from research.training.optim import timed_steps
from research.training.run import Run, Span, autocast, load_sharded, save_sharded
from research.world.wording import SLOTS

TEXT_DIM = 192
TEXT: dict[str, Any] = dict(
    d_model=TEXT_DIM, d_kv=32, d_ff=320, num_layers=3, num_heads=6, feed_forward_proj="gated-gelu",
    dropout_rate=0.0,
)  # fmt: skip


class TextReader:
    """The tokenizer and the text encoder of the run folder, or new ones."""

    def __init__(self, run: Run) -> None:
        self.run = run
        if run.rank == 0:
            build_tokenizer(run.folder / "tokenizer")
        run.wait()
        self.tokenizer: PreTrainedTokenizerFast = build_tokenizer(run.folder / "tokenizer")
        torch.manual_seed(0)
        self.model = UMT5EncoderModel(UMT5Config(vocab_size=len(self.tokenizer), **TEXT))
        torch.manual_seed(1234 + run.rank)
        if (run.folder / "text_encoder").exists():
            state = load_sharded(run.folder / "text_encoder")
            state["encoder.embed_tokens.weight"] = state["shared.weight"]
            self.model.load_state_dict(state)
        self.model.to(run.device)

    def hidden(self, tokens: Tensor) -> Tensor:
        """Embeddings of tokens, zero in padded rows, `(B, TEXT_LEN, text_dim)`."""
        mask = (tokens != 0).long()
        hidden: Tensor = self.model(input_ids=tokens, attention_mask=mask).last_hidden_state
        return hidden * mask[..., None]

    @torch.no_grad()
    def embed(self, prompts: list[str]) -> Tensor:
        """Embeddings of prompts, bfloat16."""
        tokens = tokenize(self.tokenizer, prompts).to(self.run.device)
        return torch.cat([self.hidden(part).bfloat16() for part in torch.split(tokens, 2048)])

    def save(self) -> None:
        """Write the run folder's text_encoder."""
        if self.run.rank == 0:
            state = {k: v for k, v in self.model.state_dict().items() if k != "encoder.embed_tokens.weight"}
            save_sharded(self.run.folder / "text_encoder", state, self.model.config.to_dict())


def train_text(run: Run, span: Span) -> None:
    """Cross-entropy of every slot, read from its register by a linear layer that is not kept."""
    reader = TextReader(run)
    prompts, slots = told_prompts(1, run.scaled(200_000), run.small)
    tokens = torch.cat(
        [tokenize(reader.tokenizer, prompts[i : i + 20_000]) for i in range(0, len(prompts), 20_000)]
    )
    held, held_slots = tokens[-4000:].to(run.device), slots[-4000:].to(run.device)
    tokens, slots = tokens[:-4000].short().to(run.device), slots[:-4000].to(run.device)
    if run.small:
        tokens, slots = held.short(), held_slots
    run.log(
        f"text: {len(tokens)} sentences, {(tokens != 0).sum(1).float().mean() - REGISTERS:.1f} tokens each"
    )
    heads = nn.ModuleList(nn.Linear(TEXT_DIM, 1 + len(v)) for v in SLOTS.values()).to(run.device)
    params = [*reader.model.parameters(), *heads.parameters()]
    on_gpu = run.device.type == "cuda"
    optimizer = torch.optim.AdamW(params, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01, fused=on_gpu)

    def logits(ids: Tensor) -> list[Tensor]:
        hidden = reader.hidden(ids)
        return [head(hidden[:, register]) for head, register in zip(heads, SLOT_REGISTERS, strict=True)]

    for step, rate, _ in timed_steps(run, span, decay=0.5):
        picks = torch.randint(len(tokens), (run.scaled(768),), device=run.device)
        with autocast(run):
            out = logits(tokens[picks].long())
        loss = sum(F.cross_entropy(o.float(), t) for o, t in zip(out, slots[picks].unbind(1), strict=True))
        loss.backward()  # type: ignore[union-attr]
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.param_groups[0]["lr"] = 1e-3 * rate
        optimizer.step()
        optimizer.zero_grad()
        if step % 200 == 0:
            run.curve("text", step, {"slots": loss.item()})  # type: ignore[union-attr]
    reader.model.eval()
    with torch.no_grad():
        guesses = torch.cat(
            [torch.stack([o.argmax(1) for o in logits(part)], 1) for part in torch.split(held, 1000)]
        )
    right = guesses == held_slots
    worst = sorted(zip(right.float().mean(0).tolist(), SLOTS, strict=True))[:4]
    run.log(
        f"text: {step} steps; all slots right in {right.all(1).float().mean():.2%} of new sentences; worst",
        ", ".join(f"{name} {share:.2%}" for share, name in worst),
    )
    reader.save()
