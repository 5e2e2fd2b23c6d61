"""`dummyforcing serve`: the live page, and the HTTP API of video models."""

import signal
import sys
import warnings
import webbrowser
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import FlagCreatePairsOff, arg

from dummyforcing.cli.common import LOAD, Model, cache_dtype, load_for, open_files
from dummyforcing.cli.flags import FlagsOf, Given, command
from dummyforcing.cli.terminal import VOICE, say
from dummyforcing.errors import BadRequest
from dummyforcing.pipeline.expander import PromptExpander
from dummyforcing.server.settings import Settings, parse_range, read_settings

if TYPE_CHECKING:
    from dummyforcing.checkpoints.model_files import ModelFiles
    from dummyforcing.server.fleet import Replicas

NEEDED = ("fastapi", "uvicorn", "websockets", "pydantic", "python_multipart", "prometheus_client")


@command(load=LOAD, given=FlagsOf(Settings))
def serve(
    *,
    model: Model = "tiny",
    config: Annotated[Path | None, arg(metavar="FILE.toml", help_behavior_hint="(default: none)")] = None,
    open: FlagCreatePairsOff[bool] = False,
    load: Given,
    given: Given,
) -> None:
    """Serve a page on which videos are watched while they are made, and the API of video models.

    The bundled model at http://127.0.0.1:8000, for this machine alone:
      dummyforcing serve --open

    For others: with keys, and a folder that outlives the server:
      openssl rand -hex 32 > keys.txt
      dummyforcing serve --host 0.0.0.0 --api-key-file keys.txt --data /var/lib/dummyforcing

    A public model on a GPU, for several viewers at once:
      dummyforcing serve --model self-forcing --fp8 linear

    All GPUs of a Ray cluster behind one address (extra ray), as many of them as there is work for:
      dummyforcing serve --model self-forcing --fp8 linear --ray auto --replicas 1:8

    Its API, as the openai package and others speak it:
      curl http://127.0.0.1:8000/v1/videos -F "prompt=a red ball bounces on a green floor"

    Every setting of the server (not of the model) is also a line of a TOML file, and an environment variable;
    flags win over variables, and these over the file. --max-disk 50GB is the same as
      max_disk = "50GB"
      DUMMYFORCING_MAX_DISK=50GB

    Ctrl-C, SIGTERM, SIGHUP: viewers are told, the chunk in hand is finished, jobs go on at the next start.

    Args:
        model: A model of `dummyforcing models`, a folder in the layout of the bundled one, or a preset file.
        config: Settings of the server, a TOML file.
        open: Show the page in a browser.
        load: Flags of the model.
        given: Settings of the server.
    """
    settings = read_settings(given, config)
    require_server_packages()
    if settings.ray is not None:
        from dummyforcing.integrations.ray.cluster import require_ray

        require_ray()

    from dummyforcing.server.run import listening, run
    from dummyforcing.server.storage.store import Store
    from dummyforcing.server.web.access import read_keys
    from dummyforcing.server.web.logs import logging_to_stderr

    read_keys(settings)
    if settings.expand_prompts is not None:
        PromptExpander(settings.expand_prompts)
    files = open_files(model, load)
    with ExitStack() as stack:
        stack.enter_context(_ending_at_sigterm())
        if settings.data is not None:
            Store(settings.data).close()
        listener = stack.enter_context(listening(settings.host, settings.port))
        address = _address(settings.host, listener.getsockname()[1])

        from dummyforcing.server.app import create_app

        replicas = _replicas(stack, settings, files, load)
        facts = replicas.facts
        _tell(f"Loaded it on {facts.device}, in {str(facts.dtype).removeprefix('torch.')}.")
        stack.enter_context(logging_to_stderr(settings))
        app = create_app(settings, replicas)

        def started() -> None:
            store = app.state.server.store
            kept = " (temporary: give --data to keep videos)" if store.is_temporary else ""
            print(f"Data: {store.folder}{kept}\nDummy Forcing is at {address}", flush=True)
            if open:
                webbrowser.open(address)

        # Of prompts: viewers are told, and the log shall not have them.
        stack.enter_context(warnings.catch_warnings(action="ignore"))
        run(app, listener, started, trust_proxy=settings.trust_proxy)


def _replicas(stack: ExitStack, settings: Settings, files: "ModelFiles", load: Given) -> "Replicas":
    """Load the model, in this process or in others, which end with the stack."""
    from dummyforcing.pipeline.request import make_request

    if settings.ray is None:
        from dummyforcing.runtime.apart import run_apart
        from dummyforcing.server.fleet import OneReplica
        from dummyforcing.server.replicas.replica import LocalReplica

        request = make_request(files, "a video", cache_dtype=cache_dtype(load))
        _tell(f"Loading {files.preset.name} ...")
        # The videos are made in a thread of the server.
        return OneReplica(LocalReplica(run_apart(lambda: load_for(files, request, load))))

    from dummyforcing.integrations.ray.cluster import LOCAL, connected
    from dummyforcing.pipeline.options import LoadOptions, choose
    from dummyforcing.server.ray_replicas import RayReplicas

    is_local = settings.ray == LOCAL
    _tell("Starting Ray on this machine ..." if is_local else "Connecting to the Ray cluster ...")
    cluster = stack.enter_context(connected(settings.ray))
    options, counts = choose(LoadOptions, load), parse_range(settings.replicas)
    request = make_request(files, "a video", cache_dtype=cache_dtype(load, cluster.device(options.device)))
    replicas = stack.enter_context(RayReplicas(cluster, files, options, counts, request, settings.max_chunk))
    _tell(f"Loading {files.preset.name} in {counts[0]} process{'es' * (counts[0] > 1)} of Ray ...")
    replicas.start()
    return replicas


def require_server_packages() -> None:
    """Refuse to go on without the packages of the server.

    Raises:
        BadRequest: If one is not installed.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise BadRequest(
            f"Packages of the server are not installed: {', '.join(missing)}",
            "get them with pip install 'dummyforcing[server]'",
        )


@contextmanager
def _ending_at_sigterm() -> Iterator[None]:
    """Let SIGTERM end the process in order, also while the model is loaded and nothing is at work yet."""

    def end(*_: object) -> None:
        sys.exit(0)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _address(host: str, port: int) -> str:
    """What a browser on this machine is to open."""
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{port}"


def _tell(text: str) -> None:
    if VOICE.get().shows_progress:
        say(text)
