"""The application: every part of the server, put together once.

app = create_app(settings, OneReplica(LocalReplica(pipeline)))      # an ASGI application: see `run`
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from dummyforcing.errors import RankFailed
from dummyforcing.pipeline.expander import PromptExpander
from dummyforcing.server import models
from dummyforcing.server.fleet import Fleet, Replicas
from dummyforcing.server.jobs.jobs import Jobs
from dummyforcing.server.live.messages import Chunk
from dummyforcing.server.live.sessions import Sessions
from dummyforcing.server.models import Models
from dummyforcing.server.parts import Server
from dummyforcing.server.routes import health, pages, realtime, videos
from dummyforcing.server.settings import Settings, several
from dummyforcing.server.storage import uploads
from dummyforcing.server.storage.store import Store
from dummyforcing.server.storage.uploads import Uploads
from dummyforcing.server.web import access
from dummyforcing.server.web.access import Access, Keys, SafeHeaders, read_keys
from dummyforcing.server.web.limits import BodyLimit, Rates
from dummyforcing.server.web.logs import RequestLog
from dummyforcing.server.web.metrics import Metrics
from dummyforcing.server.web.refusals import DOCUMENTED, add_refusals

logger = logging.getLogger(__name__)


def create_app(settings: Settings, replicas: Replicas) -> FastAPI:
    """Put the server together.

    Args:
        settings: See there.
        replicas: Where the model is loaded.

    Returns:
        An ASGI application; what runs beside its requests begins and ends with it.

    Raises:
        UserError: If the settings let others in unasked, the keys cannot be read, or the folder of its data
            cannot be used.
    """
    keys, metrics, store = read_keys(settings), Metrics(), Store(settings.data)
    url = settings.expand_prompts
    expander = PromptExpander(url, settings.expand_model) if url else None

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        fleet = Fleet(replicas.facts, metrics)
        server = Server(
            settings,
            fleet,
            Sessions(fleet, settings, store.folder),
            store,
            Uploads(settings, store),
            Jobs(settings, fleet, store),
            Models(settings, replicas.facts),
            keys,
            metrics,
            expander,
        )
        app.state.server = server
        _observe(server, replicas)
        working = asyncio.create_task(_watched(server, replicas.run(fleet)), name="replicas")
        watching = asyncio.create_task(server.sessions.watch(), name="sessions")
        making = asyncio.create_task(_watched(server, server.jobs.run()), name="jobs")
        yield
        watching.cancel()
        making.cancel()
        await server.begin_closing()
        await asyncio.wait([making])
        await fleet.close()
        await working
        store.close()

    # The pages that show the API fetch their code from elsewhere.
    app = FastAPI(
        title="Dummy Forcing",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses=DOCUMENTED,
        generate_unique_id_function=lambda route: route.name,
    )
    for part in (pages, realtime, videos, uploads, models, access, health):
        app.include_router(part.router)
    add_refusals(app, metrics)
    _guard(app, settings, keys, metrics)
    return app


async def _watched(server: Server, work: Coroutine[Any, Any, None]) -> None:
    """Do the work of the server, and note if it ends with an error."""
    try:
        await work
    except RankFailed as error:  # whoever started the server starts it again
        server.has_failed = True
        logger.error("the server ends: %s", error.problem)
    except Exception:
        server.has_failed = True
        logger.exception("the server's work has ended")


def _observe(server: Server, replicas: Replicas) -> None:
    """Let the metrics read what changes all the time, whenever somebody asks for them."""
    sessions, metrics, fleet = server.sessions, server.metrics, server.fleet
    metrics.sessions.set_function(lambda: len(sessions.running))
    metrics.waiting.set_function(lambda: len(sessions.waiting))

    def latest() -> list[Chunk]:
        tracks = [live for session in sessions.running for live in session.tracks.values()]
        return [live.recording.entries[-1].chunk for live in tracks if live.recording.entries]

    metrics.cache_bytes.set_function(lambda: sum(chunk.cache_bytes for chunk in latest()))
    metrics.held_bytes.set_function(lambda: sum(len(chunk.held) * chunk.cache_bytes for chunk in latest()))
    metrics.claimed_bytes.set_function(lambda: sum(engine.claimed for engine in fleet.engines))
    metrics.device_bytes.set_function(lambda: sum(engine.memory_in_use for engine in fleet.engines))
    metrics.replicas.labels("ready").set_function(lambda: sum(one.is_ready for one in fleet.engines))
    metrics.replicas.labels("loading").set_function(
        lambda: replicas.coming + sum(not one.is_ready for one in fleet.engines)
    )


def _guard(app: FastAPI, settings: Settings, keys: Keys, metrics: Metrics) -> None:
    """Put around the application what every request goes through; the last of these comes first."""
    app.add_middleware(BodyLimit, settings=settings)
    app.add_middleware(Access, settings=settings, keys=keys, rates=Rates(settings.requests_per_minute))
    if settings.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(several(settings.cors)),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["X-Request-ID", "Content-Range"],
        )
    app.add_middleware(SafeHeaders)
    app.add_middleware(RequestLog, metrics=metrics)
