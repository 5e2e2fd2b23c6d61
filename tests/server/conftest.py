"""Real servers on loopback: uvicorn in a thread, with a small random model or the bundled one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dummyforcing.pipeline.pipeline import DummyForcingPipeline, load
from tests.server.serving import Serving, serving


@pytest.fixture(scope="session")
def pipeline(model_folder: Path) -> DummyForcingPipeline:
    """A small random model, loaded once; its videos are 48x32, and it knows the words of `WORDS`."""
    return load(model_folder)


@pytest.fixture(scope="session")
def server(pipeline: DummyForcingPipeline, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server of it that many tests share: clients that go without a word are forgotten soon."""
    folder = tmp_path_factory.mktemp("data")
    with serving(pipeline, data=folder, resume=5, max_sessions_per_key=64) as running:
        yield running


@pytest.fixture(scope="session")
def bundled() -> DummyForcingPipeline:
    """The bundled model, loaded once; a server uses it in one thread."""
    return load("tiny")


@pytest.fixture(scope="session")
def bundled_server(
    bundled: DummyForcingPipeline, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    """A server of it."""
    with serving(bundled, data=tmp_path_factory.mktemp("bundled")) as running:
        yield running
