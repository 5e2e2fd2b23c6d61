"""The stages of `train_tiny.py` that train the student; its docstring says what each does."""

import shutil
import time
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from dummyforcing.models.wan import CausalWan
from research.training.data import Pool
from research.training.networks import MODEL, Networks, follow_guided, load_model, noised, velocity
from research.training.onpolicy import OnPolicy
from research.training.optim import Optimizer, Recorder, timed_steps
from research.training.run import CHUNK, LATENT, Run, Span, autocast
from research.training.stages import FIRST_CHUNKS, Clips, Losses
from research.training.text import TextReader
from research.training.vae import Encoder

SIGMAS = (1.0, 0.9, 0.75, 0.5)  # steps 1000, 750, 500, 250 under SHIFT
_STEPS = 3  # of the teacher, from each level to the next, and from the last to the end
_WAYS = ((False, False), (False, True), (True, True), (False, True))  # long, with a reconstructed past


class GuidedPaths:
    """Pairs of a noisy first chunk and the end to which the guided teacher takes it, learned from many times.

    A path of twelve guided steps gives a pair for each of the student's levels that it passes: to make one
    costs as much as to learn from it twice.
    """

    def __init__(
        self, run: Run, pool: Pool, teacher: CausalWan, student: CausalWan, record: Recorder
    ) -> None:
        self.run, self.pool, self.teacher, self.student = run, pool, teacher, student
        self.batch = run.scaled(128)
        room = 1600 * self.batch if not run.small else 24
        shape = (room, CHUNK, MODEL.in_dim, LATENT, LATENT)
        self.x, self.end = (torch.zeros(shape, device=run.device, dtype=torch.bfloat16) for _ in "xe")
        self.level, self.row = (torch.zeros(room, device=run.device, dtype=torch.long) for _ in "lr")
        self.filled = torch.zeros((), device=run.device)
        """Number of pairs, on the device: recorded steps read it."""
        self.sigmas = torch.tensor(SIGMAS, device=run.device)
        self.made = 0
        self.paths = [record(partial(self._path, level)) for level in range(len(SIGMAS))]

    @torch.no_grad()
    def _path(self, level: int) -> tuple[Tensor, list[Tensor]]:
        """Rows of the pool, and the states of their paths from a level on.

        Below the first level the paths begin where the student's own steps lead: there it learns to mend what
        it does wrong before.
        """
        rows = torch.randint(len(self.pool.text), (self.batch,), device=self.run.device)
        text = self.pool.text[rows].float()
        x = torch.randn(self.batch, *self.x.shape[1:], device=self.run.device)
        with autocast(self.run):
            for now, later in pairwise(SIGMAS[: level + 1]):
                sigma = torch.full((len(x), CHUNK), now, device=x.device)
                guess = x - now * velocity(self.student, x, sigma, text)
                x = (1 - later) * guess + later * torch.randn_like(x)
            states = [x]
            for now, later in pairwise((*SIGMAS[level:], 0.0)):
                x = follow_guided(self.teacher, x, now, later, text, self.pool.empty.float(), _STEPS)
                states.append(x)
        return rows, states

    def make(self, seconds: float, levels: tuple[int, ...]) -> None:
        """Make paths for so long, from these levels in turn; the oldest pairs make room."""
        start, before = time.monotonic(), self.made
        while time.monotonic() - start < seconds:
            for level in levels:
                rows, states = self.paths[level]()
                for offset, x in enumerate(states[:-1]):
                    self._keep(x, states[-1], level + offset, rows)
            if self.run.device.type == "cuda":
                torch.cuda.synchronize()
            if self.run.small or self.made - before >= len(self.x):
                break
        self.run.log(f"{self.made - before} pairs in {time.monotonic() - start:.1f} s")

    def _keep(self, x: Tensor, end: Tensor, level: int, rows: Tensor) -> None:
        at = self.made % len(self.x)
        here = slice(at, at + len(x))
        self.x[here], self.end[here], self.level[here], self.row[here] = x, end, level, rows
        self.made += len(x)
        self.filled.fill_(min(self.made, len(self.x)))

    def sample(self, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Noisy chunks `(B, F, C, h, w)`, their `sigma (B, F)`, the velocity to the end, and the text."""
        picks = (torch.rand(count, device=self.run.device) * self.filled).long()
        x, sigma = self.x[picks].float(), self.sigmas[self.level[picks]]
        target = (x - self.end[picks].float()) / sigma[:, None, None, None, None]
        return x, sigma[:, None].expand(-1, CHUNK), target, self.pool.text[self.row[picks]].float()


class LaterChunks:
    """The student's recorded steps on chunks that follow from the ones before them."""

    def __init__(
        self,
        run: Run,
        encoder: Encoder,
        model: CausalWan,
        optimizer: Optimizer,
        losses: Losses,
        record: Recorder,
    ) -> None:
        clips, levels = Clips(run, encoder), torch.tensor(SIGMAS, device=run.device)

        def sigma_of(batch: int, chunks: int) -> Tensor:
            picks = torch.randint(len(levels), (batch, chunks), device=run.device)
            return levels[picks].repeat_interleave(CHUNK, 1)

        def work(long: bool, resample: bool) -> None:
            loss = clips.loss(model, long, resample, sigma_of, 0.0)[:, CHUNK:].mean()
            losses.take("long" if long else "short", loss)
            optimizer.step()

        self.steps = {way: record(partial(work, *way)) for way in set(_WAYS)}

    def __call__(self, step: int) -> None:
        """Learn from a batch, with all gradients that are there already."""
        self.steps[_WAYS[step % len(_WAYS)]]()


def frozen(run: Run, networks: Networks, folder: str) -> CausalWan:
    """A network of the run folder that is only asked."""
    model = load_model(run.folder / folder).to(run.device).requires_grad_(False)
    networks.compile(model)
    return model


def distill(run: Run, span: Span) -> None:
    """Make four steps enough; at the beginning of the stage the transformer becomes the teacher."""
    if span.begin == 0 and run.rank == 0:
        shutil.copytree(run.folder / "transformer", run.folder / "teacher", dirs_exist_ok=True)
    run.wait()
    networks, encoder = Networks(run), Encoder(run, TextReader(run))
    model, teacher = networks.model, frozen(run, networks, "teacher")
    pool = encoder.pool(FIRST_CHUNKS, CHUNK, "pretrain")
    optimizer = Optimizer([model], 8e-4, networks.matrices())
    record = Recorder(run.device)
    losses = Losses(run, "distill", "first", "short", "long")
    paths = GuidedPaths(run, pool, teacher, model, record)

    def first_chunk() -> None:
        x, sigma, target, text = paths.sample(run.share(128))
        with autocast(run):
            out = velocity(model, x, sigma, text)
        losses.take("first", (out - target).square().mean())

    first = record(first_chunk)
    later = LaterChunks(run, encoder, model, optimizer, losses, record)
    optimizer.buffer.zero_()
    run.log("recorded")
    seconds = run.within(span.seconds)
    paths.make(0.22 * seconds, (0,))
    refreshed = False
    for step, rate, progress in timed_steps(run, Span(0.78 * seconds, span.begin, span.end), decay=0.5):
        if progress > 0.5 and not refreshed:
            paths.make(0.12 * seconds, (1, 2, 3, 1))
            refreshed = True
        optimizer.rate.fill_(rate)
        first()
        later(step)
        losses.log(step, 200)
    run.log(f"distill: {step} steps")
    networks.save()


def own(run: Run, span: Span) -> None:
    """Go on with the student's own videos; its first chunks are held to what they are.

    What the student was stays in the folder `student`: judge both.
    """
    if span.begin == 0 and run.rank == 0:
        shutil.copytree(run.folder / "transformer", run.folder / "student", dirs_exist_ok=True)
    run.wait()
    networks, encoder = Networks(run), Encoder(run, TextReader(run))
    model, before = networks.model, frozen(run, networks, "student")
    pool = encoder.pool(FIRST_CHUNKS, CHUNK, "pretrain")
    optimizer = Optimizer([model], 3e-4, networks.matrices())
    record = Recorder(run.device)
    losses = Losses(run, "own", "first", "short", "long", "own")
    levels = torch.tensor(SIGMAS, device=run.device)

    def first_chunk() -> None:
        x0, _, text = pool.sample(run.share(96), 0.0)
        sigma = levels[torch.randint(len(levels), (len(x0), 1), device=run.device)].expand(-1, CHUNK)
        x = noised(x0, sigma, torch.randn_like(x0))
        with autocast(run):
            with torch.no_grad():
                target = velocity(before, x, sigma, text)
            out = velocity(model, x, sigma, text)
        losses.take("first", (out - target).square().mean())

    first = record(first_chunk)
    later = LaterChunks(run, encoder, model, optimizer, losses, record)
    optimizer.buffer.zero_()
    run.log("recorded")
    videos = OnPolicy(run, encoder, model, SIGMAS)
    for step, rate, _ in timed_steps(run, span, decay=0.5):
        optimizer.rate.fill_(rate)
        if step % 2:
            losses.take("own", videos.next_loss())
            optimizer.step()
        else:
            first()
            later(step // 2)
        losses.log(step, 200)
    run.log(f"own: {step} steps")
    networks.save()
