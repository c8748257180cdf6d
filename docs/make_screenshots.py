"""Take the pictures of the pages in docs/images: at 1280 and 400 pixels, light and dark, with headless Chromium.

    excl run demo
    python docs/make_screenshots.py --demo demo

They show what the demo made: the top of the report and its first examples, `excl serve` with an answer about a test video,
and `excl annotate` with a marked moment, in a copy of some videos; timeline.png is the page of `excl show`. Nothing is
written into the demo's folder. The pictures have at most 256 colours, so that they stay small. Needs playwright, Pillow and
an installed Chromium.
"""

import argparse
import contextlib
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

WIDTHS = (1280, 400)
SCHEMES = ("light", "dark")
COMMAND = (sys.executable, "-m", "excl.workflows.cli")
GAP_PX, GAP_COLOUR = 10, "#808080"
COPIED_VIDEOS = 5
FRAMES_SHOWN = "[...document.querySelectorAll('video')].every((video) => video.readyState >= 2 && !video.seeking)"


def save(shots: list[bytes], path: Path) -> None:
    """Write pictures, one below the other, as a PNG with a palette."""
    parts = [Image.open(io.BytesIO(shot)).convert("RGB") for shot in shots]
    height = sum(part.height for part in parts) + GAP_PX * (len(parts) - 1)
    whole = Image.new("RGB", (parts[0].width, height), GAP_COLOUR)
    top = 0
    for part in parts:
        whole.paste(part, (0, top))
        top += part.height + GAP_PX
    whole.quantize(256, kmeans=2, dither=Image.Dither.NONE).save(path, optimize=True)


def take(page: Page, out: Path, name: str, heights: dict[int, int], shoot: Callable[[Page], list[bytes]]) -> None:
    """Take the four pictures of a page as it is; `heights` are those of the window by its width."""
    page.mouse.move(0, 0)
    page.wait_for_timeout(2000)  # players take their sign of waiting away
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": heights[width]})
        for scheme in SCHEMES:
            page.emulate_media(color_scheme=scheme)
            page.wait_for_timeout(300)  # a drawing follows a change of the size
            save(shoot(page), out / f"{name}-{width}-{scheme}.png")


def window(page: Page) -> list[bytes]:
    """Return what the window shows from the top of the page."""
    page.evaluate("scrollTo(0, 0)")
    return [page.screenshot()]


@contextlib.contextmanager
def opened(browser: Browser, address: str) -> Iterator[Page]:
    """Yield a page; its policy is lifted, which would not let playwright wait."""
    context = browser.new_context(bypass_csp=True, viewport={"width": WIDTHS[0], "height": 900})
    page = context.new_page()
    page.goto(address)
    yield page
    context.close()


@contextlib.contextmanager
def served(*arguments: str) -> Iterator[str]:
    """Run a command that serves a page, and yield the address."""
    with subprocess.Popen([*COMMAND, *arguments], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            matches = (re.search(r"http://127\.0\.0\.1:\d+/\?token=\S+", line) for line in process.stderr)
            match = next(filter(None, matches), None)
            if match is None:
                raise SystemExit(f"excl {arguments[0]} printed no address")
            yield match[0]
        finally:
            process.send_signal(signal.SIGINT)


def timeline(browser: Browser, demo: Path, out: Path, folder: Path) -> None:
    """Take a picture of the page about a test video, with the pointer over its timeline."""
    moment = last_moments(demo)[-1]
    video, path = demo / "data" / "videos" / f"{moment['video_id']}.mp4", folder / "timeline.html"
    arguments = ["show", video, "--run", demo / "run", "--out", path, "--device", "cpu"]
    subprocess.run([*COMMAND, *map(str, arguments)], check=True)
    with opened(browser, path.as_uri()) as page:
        page.set_viewport_size({"width": 900, "height": 960})
        page.wait_for_function(FRAMES_SHOWN)
        page.get_by_label("Query").select_option(moment["query"])
        box = page.locator(".xt-annotated .xt-span").bounding_box()
        assert box is not None
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 4)
        page.wait_for_function(FRAMES_SHOWN)
        page.wait_for_timeout(2000)
        save([page.screenshot(full_page=True)], out / "timeline.png")


def last_moments(demo: Path) -> list[dict[str, Any]]:
    """Return the annotated moments of the last test video."""
    lines = (demo / "data" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    moments = [json.loads(line) for line in lines]
    return [moment for moment in moments if moment["video_id"] == moments[-1]["video_id"]]


def report(browser: Browser, demo: Path, out: Path, folder: Path) -> None:
    """Take pictures of the report: its top, and its first examples at the middle of their best answers."""
    path = folder / "report.html"
    arguments = ["report", demo / "run", "--videos", demo / "data" / "videos", "--out", path, "--device", "cpu"]
    subprocess.run([*COMMAND, *map(str, arguments)], check=True)
    tops = {1280: 560, 400: 640}

    def top_and_example(page: Page) -> list[bytes]:
        page.evaluate("scrollTo(0, 0)")
        width = page.viewport_size["width"] if page.viewport_size else 0
        top = page.screenshot(clip={"x": 0, "y": 0, "width": width, "height": tops[width]})
        page.evaluate("document.querySelector('section:has(.example)').scrollIntoView()")
        page.wait_for_timeout(300)
        return [top, page.screenshot()]

    with opened(browser, path.as_uri()) as page:
        page.evaluate("""document.querySelectorAll('excl-timeline').forEach((timeline) => {
            const { start_s, end_s } = timeline.data.queries[0].predictions[0];
            timeline.time = (start_s + end_s) / 2;
        })""")
        page.wait_for_function(FRAMES_SHOWN)
        take(page, out, "report", {1280: 860, 400: 1020}, top_and_example)


def serve(browser: Browser, demo: Path, out: Path) -> None:
    """Take pictures of `excl serve` with the answers to what is annotated about a test video."""
    last = last_moments(demo)[-1]
    arguments = ("serve", "--run", str(demo / "run"), "--videos", str(demo / "data" / "videos"), "--device", "cpu")
    with served(*arguments) as address, opened(browser, address) as page:
        page.get_by_label("Videos", exact=True).last.fill(last["video_id"][:-1])
        page.get_by_role("button", name=last["video_id"]).click()
        page.get_by_label("When does this happen?").fill(last["query"])
        page.get_by_role("button", name="Find").click()
        page.locator(".xt-predicted .xt-span").first.wait_for()
        page.wait_for_function(FRAMES_SHOWN)
        take(page, out, "serve", {1280: 1130, 400: 1460}, window)


def annotate(browser: Browser, demo: Path, out: Path, folder: Path) -> None:
    """Take pictures of `excl annotate` with a saved moment and a marked one."""
    moments = last_moments(demo)
    for path in sorted((demo / "data" / "videos").glob("*.mp4"))[-COPIED_VIDEOS:]:
        shutil.copy(path, folder)
    with served("annotate", str(folder)) as address, opened(browser, address) as page:
        page.locator(".xt-plot").wait_for()  # of the first video
        page.get_by_role("button", name=moments[0]["video_id"]).click()
        page.get_by_role("heading", name=moments[0]["video_id"]).wait_for()
        for number, moment in enumerate(moments[:2]):
            page.wait_for_function(FRAMES_SHOWN)
            page.locator(".xt-plot").focus()
            middle_s = (moment["start_s"] + moment["end_s"]) / 2
            for key, time_s in (("i", moment["start_s"]), ("o", moment["end_s"]), ("Enter", middle_s)):
                page.evaluate("time => { document.querySelector('excl-timeline').time = time }", time_s)
                page.wait_for_function(FRAMES_SHOWN)
                page.keyboard.press(key)
            page.get_by_label("What happens").fill(moment["query"])
            if number == 0:
                page.keyboard.press("Enter")
                page.get_by_text("Saved:").wait_for()
        page.wait_for_function(FRAMES_SHOWN)
        take(page, out, "annotate", {1280: 900, 400: 1160}, window)


def main() -> None:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, required=True, help="the folder of a finished `excl run demo`")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images")
    parser.add_argument("--browser", default=shutil.which("chromium") or shutil.which("google-chrome"))
    options = parser.parse_args()
    demo = options.demo.absolute()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=options.browser, args=["--no-sandbox"])
        (Path(folder) / "mine").mkdir()
        timeline(browser, demo, options.out, Path(folder))
        report(browser, demo, options.out, Path(folder))
        serve(browser, demo, options.out)
        annotate(browser, demo, options.out, Path(folder) / "mine")
        browser.close()


if __name__ == "__main__":
    main()
