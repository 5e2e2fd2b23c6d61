"""The pack in a ComfyUI that is installed here: its folder is named in the environment.

DUMMYFORCING_COMFYUI=/path/to/ComfyUI pytest -m slow tests/comfyui
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dummyforcing.media.clips import read_mp4
from dummyforcing.method.plan import Plan
from dummyforcing.pipeline.pipeline import load
from tests.comfyui.standin import PACK

COMFYUI = os.environ.get("DUMMYFORCING_COMFYUI")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(COMFYUI is None, reason="needs a ComfyUI, named by DUMMYFORCING_COMFYUI"),
]
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


def python() -> str:
    """ComfyUI's Python: that of an environment in its folder, else the one of the tests."""
    assert COMFYUI
    found = (Path(COMFYUI) / name / "bin" / "python" for name in (".venv", "venv"))
    return next((str(path) for path in found if path.exists()), sys.executable)


def environment() -> dict[str, str]:
    """That of the tests, with this library and ComfyUI to be found; threads do not spin beside others."""
    path = f"{PACK.parents[1] / 'src'}{os.pathsep}{COMFYUI}"
    return {**os.environ, "PYTHONPATH": path, "GOMP_SPINCOUNT": "3000"}


class Server:
    """A ComfyUI that runs, as its page sees it."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder

    def ask(self, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def queue(self, prompt: object) -> str:
        identity: str = self.ask("/prompt", {"prompt": prompt})["prompt_id"]
        return identity

    def finished(self, identity: str) -> Any:
        """What became of a prompt."""
        for _ in range(1200):
            if found := self.ask(f"/history/{identity}"):
                return found[identity]
            time.sleep(0.25)
        raise TimeoutError(identity)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    assert COMFYUI
    folder = tmp_path_factory.mktemp("comfyui")
    (folder / "custom_nodes").mkdir()
    (folder / "custom_nodes" / "dummyforcing").symlink_to(PACK)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--cpu", "--disable-api-nodes", "--base-directory", str(folder), "--port", str(port)]
    options += ["--database-url", f"sqlite:///{folder}/comfyui.db"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [python(), "main.py", *options], cwd=COMFYUI, stdout=log, stderr=log, env=environment()
        )
    server = Server(f"http://127.0.0.1:{port}", folder)
    try:
        for _ in range(240):
            try:
                server.ask("/system_stats")
                break
            except (urllib.error.URLError, ConnectionError):
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.5)
        yield server
    finally:
        process.terminate()
        process.wait(timeout=60)


def prompt_of(name: str, described: Any, **given: Any) -> dict[str, Any]:
    """An example workflow as the page sends it, with other values of Make AR Video."""
    workflow = json.loads((PACK / "example_workflows" / f"{name}.json").read_text())
    ends = {link: [str(source), slot] for link, source, slot, *_ in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        values, inputs = iter(node["widgets_values"]), {}
        told = described[node["type"]]["input"]
        options = {**told.get("required", {}), **told.get("optional", {})}
        for one in node["inputs"]:
            if one["type"] in WIDGETS:
                inputs[one["name"]] = next(values)
                if options[one["name"]][1].get("control_after_generate"):
                    next(values)
            elif one["link"] is not None:
                inputs[one["name"]] = ends[one["link"]]
        if node["type"] == "DummyForcingMakeVideo":
            inputs |= given
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


@pytest.mark.parametrize("name", ["text_to_video", "change_and_continue", "compare_policies"])
def test_example_workflows_run(server: Server, name: str) -> None:
    prompt = prompt_of(name, server.ask("/object_info"), num_frames=33, width=64, height=64, changes="")
    done = server.finished(server.queue(prompt))
    assert done["status"]["status_str"] == "success", done["status"]
    saved = {key for key, node in prompt.items() if node["class_type"] == "SaveVideo"}
    for key in saved:
        (file,) = done["outputs"][key]["images"]
        frames = read_mp4(server.folder / "output" / file["subfolder"] / file["filename"])
        assert frames.shape == (33, 64, 64, 3)


def test_a_video_is_that_of_the_library(server: Server) -> None:
    prompt = prompt_of(
        "text_to_video", server.ask("/object_info"), num_frames=33, seed=7, width=96, height=96
    )
    done = server.finished(server.queue(prompt))
    expected = load("tiny").generate(
        "a red ball bounces on a green floor", num_frames=33, seed=7, size=(96, 96)
    )
    (file,) = done["outputs"]["3"]["images"]
    frames = read_mp4(server.folder / "output" / file["subfolder"] / file["filename"])
    error = np.mean((frames.astype(float) - expected.frames) ** 2)  # of the mp4 alone
    assert 10 * np.log10(255**2 / error) > 30
    assert Plan.load(server.folder / "output" / "plan.json") == expected.plan
    assert done["outputs"]["4"]["text"][0].startswith("33 frames of 96x96 (2.1 s), made at ")


def test_stop_and_refusals_reach_the_page(server: Server) -> None:
    described = server.ask("/object_info")
    identity = server.queue(prompt_of("text_to_video", described, num_frames=2049, seed=8))
    time.sleep(10)
    server.ask("/interrupt", {})
    done = server.finished(identity)
    assert [kind for kind, _ in done["status"]["messages"]][-1] == "execution_interrupted"
    done = server.finished(server.queue(prompt_of("text_to_video", described, num_frames=20)))
    ((told),) = [message for kind, message in done["status"]["messages"] if kind == "execution_error"]
    assert told["exception_type"].endswith("BadRequest")
    assert told["exception_message"].startswith("20 pixel frames cannot be made in chunks of 3 latent frames")


def test_only_the_patched_copy_samples_with_dummy_forcing() -> None:
    check = Path(__file__).with_name("sampling_check.py")
    done = subprocess.run(
        [python(), str(check), "--cpu"],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("sampled with ")]
    names = ["nothing", "dummy", "dense", "dummy", "nothing"]
    assert lines == [f"sampled with {name}" for name in names], done.stderr
