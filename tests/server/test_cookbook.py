"""What docs/guides/api.md tells to copy works, against a real server."""

import json
import re
import shlex
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import pytest

from dummyforcing.pipeline.pipeline import DummyForcingPipeline
from tests.server.browser import Watching, chromium
from tests.server.serving import Serving, serving

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "api.md"
ADDRESS = "127.0.0.1:8000"


def recipes(language: str, server: Serving) -> list[str]:
    """The blocks of a language, with the address of the server."""
    text = GUIDE.read_text(encoding="utf-8").replace(ADDRESS, server.url.removeprefix("http://"))
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.mark.slow
def test_curl(bundled_server: Serving, tmp_path: Path) -> None:
    first, second = recipes("bash", bundled_server)
    create, status, content, sheet, delete = first.strip().splitlines()

    def run(command: str) -> str:
        done = subprocess.run(
            shlex.split(command, comments=True), cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout

    video = json.loads(run(create))
    assert video["seconds"].startswith("5")
    for number in range(600):
        told = json.loads(run(status.replace("VIDEO_ID", video["id"])))
        if told["status"] == "completed":
            break
        assert told["status"] in ("queued", "in_progress")
        assert number < 599
        subprocess.run(["sleep", "0.2"], check=True)
    run(content.replace("VIDEO_ID", video["id"]))
    run(sheet.replace("VIDEO_ID", video["id"]))
    with av.open(str(tmp_path / "ball.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 81
    assert len(list(tmp_path.iterdir())) == 2
    assert json.loads(run(delete.replace("VIDEO_ID", video["id"])))["deleted"]
    story = json.loads(run(second.replace("\n", " ")))
    assert story["status"] in ("queued", "in_progress")
    run(delete.replace("VIDEO_ID", story["id"]))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
def test_openai(bundled_server: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = recipes("python", bundled_server)
    names: dict[str, object] = {}
    exec(code, names)
    with av.open("ball.mp4") as container:
        assert sum(1 for _ in container.decode(video=0)) == 81


@pytest.mark.slow
def test_javascript(bundled: DummyForcingPipeline) -> None:
    """From a page of another site, which the server was told of."""

    class Site(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(pages[0].encode())

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        origin = f"http://127.0.0.1:{site.server_port}"
        with serving(bundled, cors=origin) as server, chromium() as browser:
            pages = recipes("html", server)
            opened = Watching(browser.new_page())
            opened.listen()
            opened.page.goto(origin)
            clock = "document.getElementById('video').currentTime > 4"
            opened.page.wait_for_function(clock, timeout=90_000)
            assert len([message for message in opened.heard if message["type"] == "chunk"]) >= 6
            assert len([message for message in opened.sent if message["type"] == "ack"]) >= 5
        site.shutdown()
