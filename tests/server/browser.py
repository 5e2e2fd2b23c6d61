"""Drives the page in a real browser: types, looks at pixels, listens at the socket."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Error,
    Page,
    WebSocket,
    sync_playwright,
)

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update"
)
PATIENCE = 30_000
"""Milliseconds for what takes its time on a busy machine."""

SHARE = """([color]) => {
  const video = [...document.querySelectorAll('.screen:not([hidden]) video')].at(-1);
  if (!video?.videoWidth) return 0;
  const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
  const context = canvas.getContext('2d');
  context.drawImage(video, 0, 0);
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  const others = [0, 1, 2].filter((channel) => channel !== color);
  let count = 0;
  for (let i = 0; i < data.length; i += 4) {
    if (data[i + color] > 110 && others.every((other) => data[i + color] > 1.5 * data[i + other])) count++;
  }
  return count / (data.length / 4);
}"""
"""The share of the watched video's pixels in which a channel is much stronger than the two others."""
RED, GREEN, BLUE = 0, 1, 2


@dataclass
class Watching:
    """A page that is open."""

    page: Page
    sent: list[dict[str, Any]] = field(default_factory=list)
    """Messages to the server, of all sockets in their order."""
    heard: list[dict[str, Any]] = field(default_factory=list)
    """Messages of the server."""
    errors: list[str] = field(default_factory=list)
    """What the console says is wrong: scripts that break, and what the content security policy forbids."""

    def listen(self) -> None:
        """Note what goes over the sockets that the page opens."""

        def opened(socket: WebSocket) -> None:
            socket.on("framesent", lambda frame: self._note(self.sent, frame))
            socket.on("framereceived", lambda frame: self._note(self.heard, frame))

        self.page.on("websocket", opened)

        def broke(error: Error) -> None:
            self.errors.append(str(error))

        def said(message: ConsoleMessage) -> None:
            if message.type == "error":
                self.errors.append(message.text)

        self.page.on("pageerror", broke)
        self.page.on("console", said)

    @staticmethod
    def _note(messages: list[dict[str, Any]], frame: str | bytes) -> None:
        if isinstance(frame, str):
            messages.append(json.loads(frame))

    def open(self, url: str) -> None:
        """Open the page, and wait until it knows the model."""
        self.page.goto(url)
        self.page.wait_for_selector("#examples button", timeout=PATIENCE)

    def type(self, prompt: str) -> None:
        """Type a prompt in place of what is there, and press Enter."""
        self.page.focus("#prompt")
        self.page.keyboard.press("ControlOrMeta+a")
        self.page.keyboard.type(prompt)
        self.page.keyboard.press("Escape")  # the list of words
        self.page.keyboard.press("Enter")

    def times(self) -> list[float]:
        """The clocks of all videos."""
        times: list[float] = self.page.eval_on_selector_all(
            ".screen video", "all => all.map(v => v.currentTime)"
        )
        return times

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait until something holds."""
        deadline = time.monotonic() + PATIENCE / 1000
        while not condition():
            assert time.monotonic() < deadline, f"not within {PATIENCE / 1000:.0f} s: {what}; {self.state()}"
            self.page.wait_for_timeout(50)

    def until_plays(self, seconds: float, video: int = -1) -> None:
        """Wait until a video's clock is there."""
        self.until(lambda: (self.times() or [0])[video] >= seconds, f"the clock at {seconds} s")

    def until_shows(self, color: int, least: float = 0.02) -> None:
        """Wait until the watched video has pixels of a color."""
        self.until(lambda: self.page.evaluate(SHARE, [color]) > least, f"pixels of channel {color}")

    def of(self, kind: str, messages: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
        """The messages of one kind, of the server unless told otherwise."""
        return [one for one in (self.heard if messages is None else messages) if one["type"] == kind]

    def state(self) -> str:
        """What the page says, for somebody who reads a failed test."""
        said = [self.page.text_content(selector) for selector in ("#status", "#notice-text", "#problem")]
        return f"clocks {self.times()}, says {said}, errors {self.errors}"


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser of this machine."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield browser
        browser.close()


@contextmanager
def watching(browser: Browser, url: str, **settings: Any) -> Iterator[Watching]:
    """A page in a profile of its own; `settings` are those of Playwright's contexts."""
    context: BrowserContext = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **settings})
    watching = Watching(context.new_page())
    watching.listen()
    try:
        watching.open(url)
        yield watching
    finally:
        context.close()
