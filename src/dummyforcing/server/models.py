"""The model that is loaded, `/v1/models`, and what its heads are, `/v1/heads`."""

import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from dummyforcing.method.plan import Plan
from dummyforcing.method.policy import POLICIES, installed
from dummyforcing.server.replicas.facts import Facts
from dummyforcing.server.settings import Settings
from dummyforcing.server.web.problems import Problem

router = APIRouter(tags=["models"])

EXAMPLES = {"window": "window:3,6"}
"""Policies that mean nothing without numbers."""
ALIASES = ("default",)
"""Further names of the model that is loaded."""


class Model(BaseModel):
    """A model, and what can be asked of it."""

    id: str
    object: Literal["model"] = "model"
    created: int
    """When the server began."""
    owned_by: str = "dummyforcing"
    description: str
    words: list[str] | None
    """All words that it knows; null: it reads any text."""
    policies: list[str]
    size: Annotated[list[int], Field(min_length=2, max_length=2)]
    """Its own width and height in pixels."""
    fps: int
    chunk_frames: int
    """Pixel frames of a chunk; the first one of a video has 3 fewer."""
    start: Literal["frame", "clip", "chunk"] | None
    """What a video can begin with: an image (`frame`, `chunk`) or a clip; null: nothing but its prompt."""
    expands: bool
    """Whether short prompts can be written out."""
    license: str
    """Of its weights."""
    max_frames: int
    """Pixel frames of the longest video that can be asked for."""


class ModelList(BaseModel):
    """All models that can be asked for."""

    object: Literal["list"] = "list"
    data: list[Model]


class HeadMap(BaseModel):
    """The plan of a model's attention heads."""

    object: Literal["heads"] = "heads"
    model: str
    source: Literal["shipped", "found"]
    """Whether it comes with the model, or is that of the newest video."""
    layers: int
    heads: int
    """Per layer."""
    counts: dict[str, int]
    """Heads of each role."""
    roles: list[list[str]]
    """The role of each head, layer by layer."""
    plan: dict[str, Any]
    """The whole plan: what `--plan FILE.json` reads."""


class Models:
    """What is known of the model."""

    def __init__(self, settings: Settings, facts: Facts) -> None:
        """Look at a loaded model; nothing is computed later.

        Args:
            settings: Limits.
            facts: The model.
        """
        preset = facts.preset
        height, width = preset.size
        self.model = Model(
            id=preset.name,
            created=int(time.time()),
            description=preset.description,
            words=facts.text.known_words() or None,
            policies=["native", *(EXAMPLES.get(name, name) for name in POLICIES), *installed()],
            size=[width, height],
            fps=preset.fps,
            chunk_frames=preset.chunk_pixel_frames,
            start=preset.start,
            expands=settings.expand_prompts is not None,
            license=preset.licence,
            max_frames=settings.max_frames,
        )
        path = facts.files.shipped("plan.json")
        self._shipped = Plan.load(path) if path else None

    def require(self, name: str | None) -> None:
        """Refuse a model that is not loaded.

        Raises:
            Problem: If it is another one.
        """
        if name not in (None, self.model.id, *ALIASES):
            raise Problem(
                404,
                "model_not_found",
                f"The model loaded here is '{self.model.id}'; ask for that, or for none.",
                "model",
            )

    def heads(self, newest: Plan | None) -> HeadMap:
        """The plan that comes with the model, else the one of the newest video.

        Raises:
            Problem: If there is none.
        """
        plan = self._shipped or newest
        if plan is None:
            raise Problem(
                404, "no_plan", "No heads were classified yet; ask again after a video with policy dummy."
            )
        return HeadMap(
            model=self.model.id,
            source="shipped" if self._shipped else "found",
            layers=len(plan.roles),
            heads=len(plan.roles[0]),
            counts=plan.counts,
            roles=[list(row) for row in plan.roles],
            plan=plan.to_fields(),
        )


@router.get("/v1/models")
async def list_models(request: Request) -> ModelList:
    """The model that is loaded."""
    return ModelList(data=[request.app.state.server.models.model])


@router.get("/v1/models/{model}")
async def retrieve_model(request: Request, model: str) -> Model:
    """The model that is loaded, by its name."""
    models: Models = request.app.state.server.models
    models.require(model)
    return models.model


@router.get("/v1/heads")
async def heads(request: Request) -> HeadMap:
    """What every attention head of the model is: the shipped plan, or the newest one that was found."""
    server = request.app.state.server
    found: HeadMap = server.models.heads(server.fleet.newest_plan)
    return found
