"""Whether the server lives, whether it takes work, and its metrics.

`/health` is for who restarts it, `/ready` for who sends it requests, `/metrics` for Prometheus.
"""

from contextlib import suppress

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from dummyforcing.server.parts import Server
from dummyforcing.server.web.problems import Problem
from dummyforcing.server.web.refusals import DOCUMENTED

router = APIRouter(tags=["health"], responses=DOCUMENTED)


class Status(BaseModel):
    """How the server is."""

    status: str


@router.get("/health")
async def health(request: Request) -> Status:
    """Whether the server is alive; if not, it is to be started again."""
    server: Server = request.app.state.server
    if server.has_failed:
        raise Problem(503, "failed", "The model's work has ended with an error; the log has it.")
    return Status(status="alive")


@router.get("/ready")
async def ready(request: Request) -> Status:
    """Whether new work is taken: the model is loaded and warm, and the queue is not full."""
    server: Server = request.app.state.server
    reason = await server.why_not_ready()
    if reason:
        raise Problem(503, "not_ready", reason, **{"Retry-After": "5"})
    return Status(status="ready")


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Everything that is counted and measured, in Prometheus' text format."""
    server: Server = request.app.state.server
    with suppress(Problem):  # if the database fails, the rest is all the more worth knowing
        server.metrics.waiting_jobs.set(await server.store.queued())
    return Response(server.metrics.text(), media_type=CONTENT_TYPE_LATEST)
