"""Make the pictures of the live page in docs/images/, from a server that is running.

dummyforcing serve --port 8000
python -m research.pages.live http://127.0.0.1:8000    # docs/images/live.png and live-dark.png

A machine with nothing else to do shows the meters as they are.
"""

import shutil
import sys
from pathlib import Path
from typing import Literal

from playwright.sync_api import Page, ViewportSize, sync_playwright

FOLDER = Path(__file__).parents[2] / "docs" / "images"
SIZE: ViewportSize = {"width": 1280, "height": 1010}
SEED = "1"
SCENES = ("a red ball bounces on a green floor", "a blue ball bounces on a green floor")
BRANCH = "a yellow ball moves in a circle"
SCENE_SECONDS = 6.0


def main(url: str = "http://127.0.0.1:8000") -> None:
    """Play a video, steer it, branch it, and take pictures."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, is_dark in (("live.png", False), ("live-dark.png", True)):
            scheme: Literal["dark", "light"] = "dark" if is_dark else "light"
            page = browser.new_page(viewport=SIZE, color_scheme=scheme, device_scale_factor=1.5)
            page.goto(url)
            page.wait_for_selector("#examples button")
            page.click("#settings-open")
            page.fill("#set-seed", SEED)
            page.keyboard.press("Enter")
            for number, prompt in enumerate(SCENES, start=1):
                page.fill("#prompt", prompt)
                page.click("#go")
                wait(page, number * SCENE_SECONDS)
            page.locator(".cell.held").nth(-4).click()
            page.fill("#cell-prompt", BRANCH)
            page.click("#cell-branch")
            page.wait_for_selector("#tab-1")
            wait(page, (len(SCENES) + 0.5) * SCENE_SECONDS)
            page.click("#side")
            page.fill("#prompt", "")
            wait(page, (len(SCENES) + 0.8) * SCENE_SECONDS)
            page.evaluate("scrollTo(0, 0)")
            page.screenshot(path=FOLDER / name)
            page.close()
        browser.close()


def wait(page: Page, seconds: float) -> None:
    """Wait until the video that was begun last is there."""
    page.wait_for_function(
        "seconds => [...document.querySelectorAll('.screen video')].at(-1)?.currentTime > seconds",
        arg=seconds,
        timeout=120_000,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
