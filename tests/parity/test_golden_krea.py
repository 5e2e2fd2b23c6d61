"""Krea Realtime of the public code: a context that is recomputed before every block, prompts that fade."""

import pytest
import torch

from dummyforcing.method.policy import dense
from dummyforcing.sampling import denoise
from dummyforcing.sampling.recompute import RecomputeSampler
from dummyforcing.sampling.schedule import make_schedule
from tests.parity.goldenfile import TOLERANCE, assert_near, cases, files_of, read
from tests.parity.rollout import in_order, schedule_tensors, show_commits, show_estimates


def schedule_of(golden, name):
    variant = golden.meta["variants"][name]
    steps = torch.linspace(1000, 0, variant["num_denoising_steps"]).long().tolist()
    return make_schedule(steps, golden.meta.get("timestep_shift", 5.0))


class NotingRecompute(RecomputeSampler):
    def __init__(self, golden, name, **options):
        variant = golden.meta["variants"][name]
        self.noted, self.used, self.golden, self.name = {}, set(), golden, name
        self.step = 0
        schedule = schedule_of(golden, name)
        super().__init__(
            golden.model,
            golden["prompt_embeds/p0"],
            dense(),
            schedule,
            golden.latent_shape,
            chunk_frames=golden.meta["frames_per_block"],
            context_frames=variant["kv_cache_num_frames"],
            first_latent=None if variant["keep_first_frame"] else self.stored_latent,
            seeds=in_order(draws(golden, name, len(schedule.sigmas))),
            **options,
        )
        show_commits(self, self.note_context)

    def stored_latent(self):
        self.used.add(f"first_frame_latent/{self.block}")
        return self.golden[f"{self.name}/first_frame_latent/{self.block}"]

    @property
    def block(self):
        return f"block{self.frames // self.chunk_frames}"

    def next_chunk(self, received=None):
        self.step = 0
        with show_estimates(denoise, self.note_step):
            return super().next_chunk(received)

    def note_context(self, x0, velocity, time):
        for name, part in (("context_latents", x0), ("flow", velocity)):
            key = f"recompute_before_{self.block}/{name}"
            before = [self.noted[key]] if key in self.noted else []
            self.noted[key] = torch.cat([*before, part], 1)

    def note_step(self, velocity, x0, sigma):
        assert sigma == self.schedule.sigmas[self.step]
        self.noted[f"{self.block}/step{self.step}/flow"] = velocity
        self.noted[f"{self.block}/step{self.step}/x0"] = x0
        self.step += 1


def draws(golden, name, steps):
    for block, noise in enumerate(golden[f"{name}/noise"].split(golden.meta["frames_per_block"], dim=1)):
        yield noise
        for step in range(steps - 1):
            yield golden[f"{name}/renoise/block{block}/step{step}"]


@pytest.mark.parametrize("known_length", [True, False])
@pytest.mark.parametrize(("path", "name"), cases("krea"))
def test_rollout(path, name, known_length):
    golden = read(path)
    variant, stored = golden.meta["variants"][name], golden.under(name)
    sampler = NotingRecompute(golden, name, frames=stored["latents"].shape[1] if known_length else None)
    fade = variant["interpolate"]
    chunks, prompts = [], []
    for block in range(variant["blocks"]):
        # The public code counts the old prompt as the first step of a fade, which changes nothing.
        if fade and block == fade["before_block"] + 1:
            sampler.set_prompt(golden[f"prompt_embeds/{fade['target']}"], chunks=fade["steps"] - 1)
        chunks.append(sampler.next_chunk())
        prompts.append(sampler.prompts.embeds)
    noted = {**sampler.noted, "latents": torch.cat(chunks, 1)}
    noted |= {f"schedule/{key}": t for key, t in schedule_tensors(schedule_of(golden, name)).items()}
    if variant["interpolate"]:
        faded = prompts[fade["before_block"] :][: fade["steps"]]
        noted |= {f"interpolated_prompt_embeds/{i}": prompt for i, prompt in enumerate(faded)}
    inputs = {key for key in stored if key.startswith("renoise/")} | sampler.used | {"noise"}
    assert set(stored) == set(noted) | inputs
    for key, value in noted.items():
        assert_near(value, stored[key], f"{name}/{key}", 0 if "schedule" in key else TOLERANCE)


@pytest.mark.parametrize("path", files_of("krea"))
def test_every_tensor_of_the_file_is_used(path):
    golden = read(path)
    variants = golden.meta["variants"]
    prefixes = ("model.", *(f"{name}/" for name in variants))
    targets = {v["interpolate"]["target"] for v in variants.values() if v["interpolate"]}
    prompts = {f"prompt_embeds/{name}" for name in targets | {"p0"}}
    assert {n for n in golden.tensors if not n.startswith(prefixes)} == prompts
