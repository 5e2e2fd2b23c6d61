"""Make the pictures of the example workflows of the ComfyUI pack, in the page of a ComfyUI that is running.

python main.py --cpu --port 8188        # ComfyUI, with integrations/comfyui/ in its custom_nodes/
python -m research.pages.comfyui http://127.0.0.1:8188

The picture of `patch_ar_sampler` needs a ComfyUI that has SamplerARVideo; an older one shows gaps there.
Workflows that the bundled model can do are run first, so that their pictures show the videos. Each picture is
written into docs/images/comfyui/, and beside its workflow as the thumbnail that ComfyUI's templates show.
"""

import json
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).parents[2]
WORKFLOWS = ROOT / "integrations" / "comfyui" / "example_workflows"
PICTURES = ROOT / "docs" / "images" / "comfyui"
MARGIN, TITLE = 20, 30
"""Pixels around the nodes, and of the title above each."""
BARS = (100, 130)
"""Pixels that the page's own bars take, left and above, and at most right and below."""
THUMBNAIL = 640
"""Pixels of its width."""
MINUTES = 10
"""That the videos of a workflow may take."""

SETTINGS = """async () => {
  await app.extensionManager.setting.set('Comfy.TutorialCompleted', true);
  await app.extensionManager.setting.set('Comfy.Minimap.Visible', false);
  await app.extensionManager.setting.set('Comfy.NodeBadge.NodeSourceBadgeMode', 'None');
  await app.api.fetchApi('/free', { method: 'POST', body: '{"unload_models": true, "free_memory": true}' });
}"""
"""Also has ComfyUI forget what it made, so that all of it is made again."""
LOAD = """async workflow => {
  await app.loadGraphData(workflow);
  const boxes = app.graph.nodes.map(({ pos, size }) => [...pos, pos[0] + size[0], pos[1] + size[1]]);
  const least = axis => Math.min(...boxes.map(box => box[axis]));
  const most = axis => Math.max(...boxes.map(box => box[axis]));
  return [least(0), least(1), most(2), most(3)];
}"""
RUN = """async () => {
  const ended = new Promise((done, failed) => {
    app.api.addEventListener('execution_success', () => done());
    app.api.addEventListener('execution_error', event => failed(new Error(event.detail.exception_message)));
  });
  await app.queuePrompt(0);
  await ended;
  await new Promise(done => setTimeout(done, 3000));
}"""
SHOW = """async offset => {
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset = offset;
  app.canvas.setDirty(true, true);
  await new Promise(done => setTimeout(done, 2000));
}"""


def main(url: str = "http://127.0.0.1:8188") -> None:
    """Load each workflow, run it if it can be run, and take its picture."""
    PICTURES.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(MINUTES * 60_000)
        for path in sorted(WORKFLOWS.glob("*.json")):
            page.goto(url)
            page.wait_for_function("window.app?.extensionManager && app.canvas")
            page.evaluate(SETTINGS)
            page.reload()
            page.wait_for_function("window.app?.extensionManager && app.canvas")
            take(page, path)
        browser.close()


def take(page: Page, path: Path) -> None:
    """Take the picture of a workflow."""
    workflow = json.loads(path.read_text())
    left, top, right, bottom = page.evaluate(LOAD, workflow)
    width, height = right - left + 2 * MARGIN, bottom - top + 2 * MARGIN + TITLE
    page.set_viewport_size({"width": int(width) + 2 * BARS[0], "height": int(height) + 2 * BARS[1]})
    if any(node["type"] == "DummyForcingMakeVideo" for node in workflow["nodes"]):
        page.evaluate(RUN)
    page.evaluate(SHOW, [BARS[0] + MARGIN - left, BARS[1] + MARGIN + TITLE - top])
    picture = PICTURES / f"{path.stem}.png"
    page.screenshot(path=picture, clip={"x": BARS[0], "y": BARS[1], "width": width, "height": height})
    with Image.open(picture) as image:
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        image.convert("RGB").save(path.with_suffix(".jpg"), quality=85)


if __name__ == "__main__":
    main(*sys.argv[1:])
