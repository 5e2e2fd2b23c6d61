"""The page, in a real browser, against real servers."""

import base64
import re
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import av
import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from playwright.sync_api import Browser

from dummyforcing.pipeline.pipeline import DummyForcingPipeline
from dummyforcing.server.routes import pages
from tests.footage import numbered, write_clip
from tests.server.browser import BLUE, RED, Watching, chromium, watching
from tests.server.serving import Serving, serving
from tests.server.test_expander import LONG, Endpoint, Handler

RED_BALL = "a red ball bounces on a green floor"
BLUE_BALL = "a blue ball bounces on a green floor"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def page(browser: Browser, bundled_server: Serving) -> Iterator[Watching]:
    with watching(browser, bundled_server.url) as opened:
        yield opened
        assert not opened.errors


# --- its files --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files() -> TestClient:
    app = FastAPI()
    app.include_router(pages.router)
    return TestClient(app, raise_server_exceptions=False)


def test_files_have_their_types_and_are_asked_for_again_only_when_changed(files: TestClient) -> None:
    types = {"/": "text/html", "/page/main.js": "text/javascript", "/page/theme.css": "text/css"}
    for path, kind in types.items():
        found = files.get(path)
        assert found.status_code == 200
        assert found.headers["content-type"] == f"{kind}; charset=utf-8"
        assert found.headers["cache-control"] == "no-cache"
        again = files.get(path, headers={"If-None-Match": found.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert files.get(path, headers={"If-None-Match": '"another"'}).content == found.content
        head = files.head(path)
        assert (head.content, head.headers["content-length"]) == (b"", str(len(found.content)))


@pytest.mark.parametrize(
    "name", ["../pages.py", "..%2Fpages.py", "%2e%2e/pages.py", "/etc/passwd", "", "no.js"]
)
def test_only_files_of_the_page_are_served(files: TestClient, name: str) -> None:
    assert files.get(f"/page/{name}").status_code == 404


def test_all_that_files_name_is_there(files: TestClient) -> None:
    html = files.get("/").text
    named = re.findall(r'(?:href|src)="(/page/[^"]+)"', html)
    assert len(named) > 3
    for script in [name for name in pages.FILES if name.endswith(".js")]:
        named += [
            f"/page/{name}" for name in re.findall(r'from "\./([^"]+)"', pages.FILES[script].content.decode())
        ]
    assert {files.get(path).status_code for path in named} == {200}
    assert {name for name in pages.FILES if name.endswith(".js")} == {
        Path(path).name for path in named if path.endswith(".js")
    }


class Inline(HTMLParser):
    """Finds what a strict content security policy forbids, and fields without a name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.fields: list[dict[str, str | None]] = []
        self.labelled: set[str | None] = set()
        self._in_label = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "style" or (tag == "script" and "src" not in given):
            self.found.append(tag)
        self.found += [name for name in given if name == "style" or name.startswith("on")]
        if tag == "label":
            self._in_label += 1
            self.labelled.add(given.get("for"))
        is_shown = "hidden" not in given and given.get("aria-hidden") != "true"
        if tag in ("input", "select", "textarea") and is_shown and not self._in_label:
            self.fields.append(given)

    def handle_endtag(self, tag: str) -> None:
        self._in_label -= tag == "label"


def test_nothing_is_inline_and_every_field_has_a_label(files: TestClient) -> None:
    parser = Inline()
    parser.feed(files.get("/").text)
    assert not parser.found
    assert parser.fields
    assert {field["id"] for field in parser.fields} <= parser.labelled


# --- what one sees ----------------------------------------------------------------------------------------


def test_a_prompt_becomes_moving_pictures(page: Watching) -> None:
    page.page.keyboard.type("a redd ball bounces on a green florr ")
    assert "redd" in page.page.inner_text("#unknown")
    assert not page.sent  # named before the video starts
    for _ in range(2):
        page.page.click("#unknown button")
    assert page.page.input_value("#prompt").strip() == RED_BALL
    assert page.page.inner_text("#unknown") == ""
    page.page.keyboard.press("Enter")
    page.until_plays(1.0)
    page.until_shows(RED)
    assert page.of("ack", page.sent)[0] == {"type": "ack", "track": 0, "chunk": 0}
    assert page.page.locator(".scene .prompt").all_inner_texts() == [RED_BALL]
    page.until(lambda: "MB" in page.page.inner_text("#cache"), "the size of the cache")
    page.until(lambda: page.page.locator("#heads-map rect").count() == 8 * 12, "the head map")


@pytest.mark.slow
def test_words_are_suggested(page: Watching) -> None:
    keys = page.page.keyboard
    keys.type("a red ba")
    assert page.page.locator("#words li").all_inner_texts() == ["back", "ball"]
    for key in ("ArrowDown", "ArrowDown", "Enter"):
        keys.press(key)
    assert page.page.input_value("#prompt") == "a red ball "
    keys.type("bou")
    keys.press("ArrowDown")
    assert page.page.get_attribute("#prompt", "aria-activedescendant") == "word-0"
    keys.press("Tab")
    assert page.page.input_value("#prompt") == "a red ball bounces "
    assert not page.sent


@pytest.mark.slow
def test_the_video_follows_another_prompt(page: Watching) -> None:
    page.type(RED_BALL)
    page.until_plays(2.5)
    page.until_shows(RED)
    page.type(BLUE_BALL)
    at = page.of("ack", page.sent)[-1]["chunk"]
    page.until_shows(BLUE)
    page.until(lambda: bool(page.of("prompt_active")), "that the prompt is active")
    active = page.of("prompt_active")[-1]
    assert active["chunk"] <= at + 3  # two chunks; a third if the viewer went on meanwhile
    page.until(lambda: "changed in" in page.page.inner_text("#strip"), "how long the change took")
    assert page.page.locator(".scene .prompt").all_inner_texts() == [RED_BALL, BLUE_BALL]
    colors = page.page.eval_on_selector_all(
        ".scene-head canvas",
        """all => all.map(canvas => {
          const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
          let [red, blue] = [0, 0];
          for (let i = 0; i < data.length; i += 4) {
            if (data[i] > 110 && data[i] > 1.5 * data[i + 1] && data[i] > 1.5 * data[i + 2]) red++;
            if (data[i + 2] > 110 && data[i + 2] > 1.5 * data[i] && data[i + 2] > 1.5 * data[i + 1]) blue++;
          }
          return red > blue ? 'red' : blue > red ? 'blue' : 'none';
        })""",
    )
    assert colors[0] == "red"


@pytest.mark.slow
def test_a_branch_is_watched_in_turns_and_side_by_side(page: Watching) -> None:
    page.type(RED_BALL)
    page.until_plays(3.0)
    page.page.locator(".cell.held").nth(2).click()
    page.page.fill("#cell-prompt", BLUE_BALL)
    page.page.keyboard.press("Enter")
    page.until(lambda: len(page.times()) == 2, "a second video")
    asked = page.of("branch", page.sent)[0]
    assert page.of("branched")[0]["chunk"] == asked["chunk"]
    start = (9 + 12 * asked["chunk"]) / 16
    page.until_plays(start + 1)
    page.until_shows(BLUE)

    stands = page.times()[0]
    count = len(page.of("ack", page.sent))
    page.until_plays(start + 2)
    assert page.times()[0] == stands
    assert {one["track"] for one in page.of("ack", page.sent)[count:]} == {1}

    page.page.click("#tab-0")
    page.until_plays(stands + 1, video=0)
    stands = page.times()[1]
    page.until_plays(page.times()[0] + 0.5, video=0)
    assert page.times()[1] == stands

    page.page.click("#side")
    first, second = page.times()
    page.until(lambda: page.times()[0] > first + 0.5 and page.times()[1] > second + 0.5, "both play")
    assert page.page.locator(".screen figcaption:visible").count() == 2


@pytest.mark.slow
def test_back_to_a_chunk(page: Watching) -> None:
    page.type(RED_BALL)
    page.until_plays(4.0)
    page.page.locator(".cell.held").nth(0).click()
    page.page.click("#cell-rewind")
    page.until(lambda: page.of("rewound"), "rewound")
    chunk = page.of("rewound")[0]["chunk"]
    page.until(lambda: page.times()[0] < 4.0, "the clock goes back")
    page.until_plays((9 + 12 * (chunk + 1)) / 16)
    assert page.of("chunk")[-1]["index"] > chunk
    assert page.page.inner_text("#problem") == ""


@pytest.mark.slow
def test_pause_and_go_on(page: Watching) -> None:
    page.type(RED_BALL)
    page.until_plays(1.5)
    page.page.click("#pause")

    def rests() -> bool:
        before = page.times()[0], len(page.of("chunk"))
        page.page.wait_for_timeout(2000)  # in which two chunks would be shown
        return before == (page.times()[0], len(page.of("chunk")))

    page.until(rests, "nothing is shown or made")  # but what was in the making arrives
    time = page.times()[0]
    page.page.click("#pause")
    page.until_plays(time + 2)


@pytest.mark.slow
def test_dense_beside_it_has_the_same_noise_and_a_larger_cache(page: Watching) -> None:
    page.type(RED_BALL)
    page.until_plays(1.0)
    page.page.click("#dense")
    page.until(lambda: len(page.times()) == 2 and min(page.times()) > 3.5, "both play")
    first, second = page.of("start", page.sent)
    assert (first["seed"], first["prompt"]) == (second["seed"], second["prompt"])
    assert second["beside"] == "dense"
    small, large = (
        float(re.findall(r"([\d.]+) MB", text)[0])
        for text in page.page.locator(".screen figcaption").all_inner_texts()
    )
    assert large > 2 * small
    page.page.click("#dense")
    assert page.page.locator(".screen:visible").count() == 1


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Endpoint(("127.0.0.1", 0), Handler) as running:
        running.asked = []
        threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True).start()
        yield running
        running.shutdown()


@pytest.mark.slow
def test_a_prompt_is_written_out_and_can_be_edited(
    browser: Browser, pipeline: DummyForcingPipeline, endpoint: Endpoint
) -> None:
    endpoint.writes(LONG)
    with serving(pipeline, expand_prompts=endpoint.url) as server, watching(browser, server.url) as page:
        page.page.check("#expand")
        page.type(RED_BALL)
        page.until_plays(1.0)
        assert page.of("chunk")[0]["prompt"] == LONG
        page.page.click("#written summary")
        assert page.page.input_value("#written-text") == LONG
        page.page.fill("#written-text", BLUE_BALL)
        page.page.click("#written-form button")
        page.until(lambda: page.of("prompt_active"), "the edited prompt")
        assert page.of("prompt_active")[0]["prompt"] == BLUE_BALL

        endpoint.says(500, b"{}")
        page.page.click("#new")
        page.type(RED_BALL)
        page.until(lambda: page.page.inner_text("#problem"), "that it was not written out")
        page.until_plays(1.0)
        assert page.of("chunk")[-1]["prompt"] == RED_BALL


# --- what goes wrong --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_lost_connection_comes_back_and_the_video_goes_on(
    browser: Browser, bundled_server: Serving
) -> None:
    with watching(browser, bundled_server.url) as page:
        page.type(RED_BALL)
        page.until_plays(2.0)
        page.page.context.set_offline(True)
        page.until(lambda: "No connection" in page.page.inner_text("#status"), "it says so")
        page.page.wait_for_timeout(3000)
        time = page.times()[0]
        page.page.context.set_offline(False)
        page.until_plays(time + 3)
        back = page.of("ready")[-1]
        assert back["is_back"]
        assert back["session"] == page.of("ready")[0]["session"]
        indices = [chunk["index"] for chunk in page.of("chunk")]
        assert indices == list(range(len(indices)))  # nothing is missing, nothing came twice


@pytest.mark.slow
def test_a_session_that_is_over_is_begun_again(browser: Browser, pipeline: DummyForcingPipeline) -> None:
    with serving(pipeline, resume=1) as server, watching(browser, server.url) as page:
        page.type(RED_BALL)
        page.until_plays(1.0)
        page.page.context.set_offline(True)
        page.page.wait_for_timeout(4000)
        page.page.context.set_offline(False)
        page.until(lambda: "over" in page.page.inner_text("#notice-text"), "it says so")
        page.page.click("#notice-button")
        page.until(lambda: len(page.of("ready")) == 2, "another session")
        page.until_plays(1.0)


@pytest.mark.slow
def test_the_end_of_a_server_is_told(browser: Browser, pipeline: DummyForcingPipeline) -> None:
    with serving(pipeline) as server, watching(browser, server.url) as page:
        page.type(RED_BALL)
        page.until_plays(1.0)
        server.stop()
        page.until(lambda: "shutting down" in page.page.inner_text("#status"), "it says so")
        page.until(lambda: "shutting down" in page.page.inner_text("#notice-text"), "after the last picture")
        page.page.click("#notice-button")
        page.until(lambda: "No connection" in page.page.inner_text("#notice-text"), "nobody is there")


@pytest.mark.slow
def test_a_full_server_tells_the_place(browser: Browser, pipeline: DummyForcingPipeline) -> None:
    with (
        serving(pipeline, max_sessions=1) as server,
        watching(browser, server.url) as first,
        watching(browser, server.url) as second,
    ):
        first.type(RED_BALL)
        first.until_plays(0.5)
        second.type(BLUE_BALL)
        second.until(lambda: "number 1" in second.page.inner_text("#notice-text"), "the place")
        first.page.click("#new")
        second.until_plays(1.0)


@pytest.mark.slow
def test_a_key_is_asked_for(browser: Browser, pipeline: DummyForcingPipeline, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("0123456789abcdef\n")
    with serving(pipeline, api_key_file=tmp_path / "keys") as server:
        context = browser.new_context()
        page = Watching(context.new_page())
        page.listen()
        page.page.goto(server.url)
        page.page.wait_for_selector("#login[open]")
        page.page.fill("#login-key", "fedcba9876543210")
        page.page.keyboard.press("Enter")
        page.until(lambda: page.page.inner_text("#login-problem"), "the key is wrong")
        page.page.fill("#login-key", "0123456789abcdef")
        page.page.keyboard.press("Enter")
        page.page.wait_for_selector("#examples button")
        page.type(RED_BALL)
        page.until_plays(1.0)
        context.close()


@pytest.mark.slow
def test_what_people_type_never_becomes_html(page: Watching) -> None:
    page.type("a <b id=bold>red</b> ball <img src=x onerror=alert(1)>")
    page.until_plays(1.0)
    assert page.page.locator("#bold, img[src=x]").count() == 0
    assert "<b id=bold>" in page.page.inner_text("#strip")


@pytest.mark.slow
def test_a_refusal_is_said_in_the_servers_words(page: Watching) -> None:
    page.page.click("#settings-open")
    page.page.fill("#set-policy", "dumy")
    page.page.keyboard.press("Enter")
    page.type(RED_BALL)
    page.until(lambda: "dumy" in page.page.inner_text("#problem"), "what is wrong")
    assert page.page.get_attribute("#stage", "data-state") == "empty"


# --- files ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_downloads_can_be_played(page: Watching, tmp_path: Path) -> None:
    page.type(RED_BALL)
    page.until_plays(2.0)
    page.type(BLUE_BALL)
    page.until_shows(BLUE)
    page.page.click("#pause")
    counts = {}
    for name in ("video", "scene"):
        page.page.click("#download")
        with page.page.expect_download() as download:
            page.page.click(f"#download-{name}")
        download.value.save_as(tmp_path / f"{name}.mp4")
        with av.open(tmp_path / f"{name}.mp4") as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        counts[name] = len(frames)
        assert frames[0].shape == (160, 160, 3)
        red, _, blue = np.moveaxis(np.stack(frames[-12:]).astype(int), 3, 0)
        assert ((blue > 110) & (blue > 1.5 * red)).mean((1, 2)).max() > 0.02
    assert 12 <= counts["scene"] < counts["video"]
    for name, text in (("story", BLUE_BALL), ("plan", "dummyforcing plan")):
        page.page.click("#download")
        with page.page.expect_download() as download:
            page.page.click(f"#download-{name}")
        assert text in Path(download.value.path()).read_text()


FILES = """(content) => {
  const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
  const files = new DataTransfer();
  files.items.add(new File([bytes], 'clip.mp4', { type: 'video/mp4' }));
  return files;
}"""


@pytest.mark.slow
@pytest.mark.parametrize("is_dropped", [False, True])
def test_a_clip_to_begin_with(page: Watching, tmp_path: Path, is_dropped: bool) -> None:
    frames = numbered(21, 160, 160)
    write_clip(
        tmp_path / "clip.mp4", frames, [round(i * 62.5) for i in range(21)], codec="libx264", pixels="yuv420p"
    )
    if is_dropped:
        content = base64.b64encode((tmp_path / "clip.mp4").read_bytes()).decode()
        files = page.page.evaluate_handle(FILES, content)
        page.page.dispatch_event("body", "dragenter", {"dataTransfer": files})
        assert page.page.is_visible("#drop")
        page.page.dispatch_event("body", "drop", {"dataTransfer": files})
        assert page.page.is_hidden("#drop")
    else:
        page.page.set_input_files("#begin-file", tmp_path / "clip.mp4")
    page.until(lambda: "begins with" in page.page.inner_text("#begin-chosen"), "the upload")
    page.type(RED_BALL)
    page.until_plays(1.0)
    assert page.of("start", page.sent)[0]["clip"]


# --- for everybody ----------------------------------------------------------------------------------------

FOCUS = """() => {
  const element = document.activeElement;
  const style = getComputedStyle(element);
  const box = getComputedStyle(element.closest('.box') ?? element);
  const isSeen = [style, box].some((one) => one.outlineStyle !== 'none' && parseFloat(one.outlineWidth) >= 2);
  return { id: element.id, name: element.className, isSeen };
}"""


@pytest.mark.slow
def test_the_keyboard_alone_will_do(page: Watching) -> None:
    keys = page.page.keyboard
    keys.type(RED_BALL)  # the prompt has the focus from the start
    keys.press("Escape")
    keys.press("Enter")
    page.until_plays(3.5)
    seen = {}
    for _ in range(40):
        keys.press("Tab")
        focus = page.page.evaluate(FOCUS)
        assert focus["isSeen"], focus
        seen[focus["id"] or focus["name"]] = True
        if "cell" in focus["name"]:
            break
    assert "go" in seen
    keys.press("ArrowLeft")
    keys.press("Enter")
    assert page.page.evaluate("document.querySelector('#cell').open")
    keys.press("Escape")
    assert "cell" in page.page.evaluate(FOCUS)["name"]  # the focus is where it was
    keys.press("Enter")
    keys.type(BLUE_BALL)
    keys.press("Enter")
    page.until(lambda: page.of("branched"), "a branch")
    page.until_shows(BLUE)
    page.page.focus("#tab-1")
    keys.press("ArrowLeft")
    assert page.page.evaluate(FOCUS)["id"] == "tab-0"
    page.page.focus("#pause")
    keys.press("Space")
    page.until(lambda: page.of("pause", page.sent), "a pause")


CONTRAST = """() => {
  const rgba = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    const [R, G, B] = [r, g, b].map((c) => linear(c / 255));
    return 0.2126 * R + 0.7152 * G + 0.0722 * B;
  };
  const found = [];
  for (const element of document.body.querySelectorAll('*')) {
    const hasText = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    const isApart = element.closest('.stage, .unseen, .skip, :disabled');
    if (!hasText || isApart || !element.checkVisibility()) continue;
    const ground = (one) => {
      const color = getComputedStyle(one).backgroundColor;
      return (rgba(color)[3] ?? 1) < 1 ? ground(one.parentElement) : color;
    };
    const pair = [getComputedStyle(element).color, ground(element)];
    const [dark, bright] = pair.map((text) => light(rgba(text))).sort((a, b) => a - b);
    const contrast = (bright + 0.05) / (dark + 0.05);
    if (contrast < 4.5) found.push([element.id || element.className || element.tagName, contrast]);
  }
  return found;
}"""


SMALL = """() => [...document.querySelectorAll('button')]
  .filter((one) => one.checkVisibility() && one.ariaDisabled !== 'true')
  .filter((one) => one.offsetHeight < 24 || one.offsetWidth < 24)
  .map((one) => one.id || one.className)"""
"""Targets smaller than WCAG 2.2 wants them."""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_at_every_width(browser: Browser, bundled_server: Serving, scheme: str) -> None:
    with watching(browser, bundled_server.url, color_scheme=scheme, reduced_motion="reduce") as page:
        for is_running in (False, True):
            if is_running:
                page.type("a redd ball bounces on a green floor")
                page.until_plays(1.5)
            for width in (360, 768, 1280):
                page.page.set_viewport_size({"width": width, "height": 800})
                assert page.page.evaluate("document.documentElement.scrollWidth") == width
                assert page.page.evaluate(CONTRAST) == []
                assert page.page.evaluate(SMALL) == []
        page.page.click("#settings-open")
        assert page.page.evaluate(CONTRAST) == []
