"""A server runs no code that a request names; policies that its operator installed can be asked for."""

import json
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import httpx2
import pytest
from websockets.sync.client import connect

from dummyforcing.method import policy as policies
from dummyforcing.pipeline.pipeline import DummyForcingPipeline
from tests.server.serving import Serving, serving

PROMPT = "a red ball bounces"
CODE = """
from pathlib import Path
from dummyforcing import HeadContext

(Path(__file__).parent / "it_ran").touch()

class Halves:
    roles = {"near": HeadContext(0, 1), "far": HeadContext(1, 3)}

    def assign(self, scores):
        return [["near", "far"] * (scores.shape[1] // 2) for _ in scores]
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of a policy in the folder that the server runs in."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "own_of_server_test.py"
    path.write_text(CODE)
    return path


@pytest.mark.parametrize(
    "policy", ["own_of_server_test.py:Halves", "{file}:Halves", "own_of_server_test:Halves", "os:getcwd"]
)
def test_files_and_modules_are_refused(server: Serving, mine: Path, policy: str) -> None:
    name = policy.format(file=mine)
    asked = {"prompt": PROMPT, "num_frames": 33, "policy": name}
    answer = httpx2.post(f"{server.url}/v1/videos", json=asked, trust_env=False)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "policy")
    with connect(f"{server.url.replace('http', 'ws')}/v1/realtime", proxy=None) as socket:
        socket.send(json.dumps({"type": "start", **asked}))
        heard = json.loads(socket.recv(10))
    assert heard["type"] == "error"
    if len(name) <= 100:  # longer ones are no policies in any case
        assert "There is no policy" in error["message"]
        assert "There is no policy" in heard["message"]
    assert not (mine.parent / "it_ran").exists()


def test_installed_policies_can_be_asked_for(
    pipeline: DummyForcingPipeline, mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(mine.parent))
    added = EntryPoints([EntryPoint("halves", "own_of_server_test:Halves", policies.GROUP)])
    monkeypatch.setattr(policies, "entry_points", lambda group: added)
    with serving(pipeline, data=mine.parent / "data") as server:
        models = httpx2.get(f"{server.url}/v1/models", trust_env=False).json()
        assert models["data"][0]["policies"][-1] == "halves"
        asked = {"prompt": PROMPT, "num_frames": 33, "policy": "halves"}
        with connect(f"{server.url.replace('http', 'ws')}/v1/realtime", proxy=None) as socket:
            socket.send(json.dumps({"type": "start", **asked}))
            for text in socket:
                message = json.loads(text) if isinstance(text, str) else {}
                assert message.get("type") != "error", message
                if message.get("roles", [["uniform"]])[0][0] != "uniform":  # the heads are classified
                    break
    assert message["roles"] == [["near", "far"] * 2] * 3
    assert message["policy"] == "halves"
