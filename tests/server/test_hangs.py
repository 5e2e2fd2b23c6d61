"""A replica whose process is there and does nothing counts as lost; one that is slow does not."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from dummyforcing.integrations.ray import machines
from dummyforcing.integrations.ray.cluster import Node
from dummyforcing.integrations.ray.machines import Process, ProcessLost
from dummyforcing.pipeline.pipeline import DummyForcingPipeline
from dummyforcing.server.replicas import remote
from dummyforcing.server.replicas.facts import Facts
from dummyforcing.server.replicas.host import ModelHost
from dummyforcing.server.replicas.remote import RemoteReplica

BEAT = 0.02
PATIENCE = 10 * BEAT


class Asked(Process):
    """A process that is none: it answers, takes its time, or does not answer."""

    def __init__(self) -> None:
        super().__init__(None, Node("1", "127.0.0.1", 1, 0))
        self.__dict__.update(is_silent=False, takes=0.0, is_dead=False)

    async def call(self, name: str, *args: Any, **options: Any) -> Any:
        known: dict[str, Any] = self.__dict__
        while name == "stay" and not known["is_dead"]:
            await asyncio.sleep(BEAT)
        if known["is_dead"]:
            raise ProcessLost("it died")
        if name == "pulse":
            await asyncio.sleep(3600 if known["is_silent"] else 0)
        else:
            await asyncio.sleep(known["takes"])

    async def stream(self, name: str, *args: Any) -> AsyncIterator[Any]:
        yield None, None
        await self.call(name)
        yield b""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    monkeypatch.setattr(machines, "BEAT", BEAT)
    monkeypatch.setattr(remote, "SILENT", PATIENCE)
    monkeypatch.setattr(remote, "FIRST", 5 * PATIENCE)
    return Asked()


@pytest.fixture
def facts(pipeline: DummyForcingPipeline) -> Facts:
    return Facts.of(pipeline)


async def gone(replica: RemoteReplica, within: float = 20 * PATIENCE) -> str:
    """Why it counts as lost; empty: it does not."""
    try:
        async with asyncio.timeout(within):
            return await replica.gone()
    except TimeoutError:
        return ""


def test_a_process_that_answers_nothing(asked: Asked, facts: Facts) -> None:
    async def main() -> None:
        replica = RemoteReplica(asked, 1, facts, PATIENCE)
        assert await gone(replica, 4 * PATIENCE) == ""
        asked.__dict__["is_silent"] = True
        assert await gone(replica) == "it has answered nothing for 0 s"

    asyncio.run(main())


def test_a_process_that_dies(asked: Asked, facts: Facts) -> None:
    async def main() -> None:
        asked.__dict__["is_dead"] = True
        assert await gone(RemoteReplica(asked, 1, facts, PATIENCE)) == "it died"

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["call", "pixels"])
def test_a_call_that_never_returns(asked: Asked, facts: Facts, kind: str) -> None:
    async def main() -> None:
        replica = RemoteReplica(asked, 1, facts, PATIENCE)
        replica.is_warm = True
        asked.__dict__["takes"] = 3600
        hanging: asyncio.Future[Any]
        if kind == "call":
            hanging = asyncio.ensure_future(replica.call(ModelHost.rewind, 1, 2))
        else:
            hanging = asyncio.ensure_future((await replica.make(1, "segment")).pixels())
        start = time.monotonic()
        assert "it has been at one thing for" in await gone(replica)
        assert time.monotonic() - start >= PATIENCE
        hanging.cancel()

    asyncio.run(main())


def test_what_is_slow_does_not_hang(asked: Asked, facts: Facts) -> None:
    async def main() -> None:
        replica = RemoteReplica(asked, 1, facts, PATIENCE)

        async def survives(seconds: float, method: Any = ModelHost.rewind) -> bool:
            asked.__dict__["takes"] = seconds
            watching = asyncio.ensure_future(gone(replica, seconds + PATIENCE))
            async with asyncio.timeout(seconds + 20 * PATIENCE):
                await replica.call(method, 1, 2)
            return not await watching

        assert await survives(3 * PATIENCE)  # graphs are recorded
        replica.is_warm = True
        assert await survives(6 * PATIENCE)  # no more than a few times as long as before
        fresh = RemoteReplica(asked, 1, facts, PATIENCE)
        fresh.is_warm = True
        replica = fresh
        assert await survives(0.5 * PATIENCE)
        assert await survives(3 * PATIENCE, ModelHost.resume)  # a snapshot is on its way

    asyncio.run(main())


def test_time_in_which_the_server_itself_was_stopped_does_not_count(asked: Asked, facts: Facts) -> None:
    async def main() -> None:
        replica = RemoteReplica(asked, 1, facts, PATIENCE)
        replica.is_warm = True
        asked.__dict__["takes"] = 4 * BEAT
        watching = asyncio.ensure_future(gone(replica, 8 * BEAT))
        await asyncio.sleep(2 * BEAT)
        calling = asyncio.ensure_future(replica.call(ModelHost.rewind, 1, 2))
        await asyncio.sleep(0)
        time.sleep(3 * PATIENCE)  # as with SIGSTOP, or a machine that sleeps
        await calling
        assert await watching == ""

    asyncio.run(main())
