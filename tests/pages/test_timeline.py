"""The video with its timeline, in a browser: seeking by click and key, what it tells, marking, and who can use it."""

from __future__ import annotations

import itertools
import json

import pytest
from browser import chromium, opened, wait_until

from excl.workflows.demo import DemoConfig, plan_video, write_video
from excl.workflows.pages.page import Section, VideoExample, render
from excl.workflows.pages.views import relative_url

HOSTILE = "</script><script>document.title = 'run'</script><img src=x onerror=\"document.title='run'\"> & \u2028 'quoted'"
STARTS = [0.0, 2.0, 4.0, 6.0, 8.0]


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """A video of 12 s, which browsers can play, under a name with characters that mean something in URLs."""
    path = tmp_path_factory.mktemp("video") / "50% #1 ü?.mp4"
    write_video(path, plan_video(0, DemoConfig(out=path.parent, min_seconds=12, max_seconds=12, fps=10)))
    return path


def record(**changes):
    first = {
        "text": HOSTILE,
        "start_probability": [0.0, 0.7, 0.2, 0.1, 0.0],
        "end_probability": [0.0, 0.0, 0.25, 0.5, 0.25],
        "predictions": [{"start_s": 2.0, "end_s": 8.0, "score": 0.35}, {"start_s": 4.0, "end_s": 6.0, "score": 0.1}],
        "moments": [{"start_s": 2.5, "end_s": 7.5}],
        "note": "IoU 0.83",
    }
    second = {**first, "text": "another", "start_probability": [], "end_probability": [], "moments": [], "note": "",
              "unseen_words": ["gallops", "zebra"], "unknown_words": ["zebra"]}  # fmt: skip
    rows = {"start_s": STARTS, "end_s": [*STARTS[1:], 10.0]}
    plain = {"title": "v", "video": None, "duration_s": 10.0, "fps": 10, "rows": rows, "thumbnails": []}
    return {**plain, "queries": [first, second], **changes}


def write_page(path, data, *, marking=False):
    page = render("A page", [Section("", examples=[VideoExample("an example", data)])])
    html = page.html.replace("<excl-timeline><script", "<excl-timeline marking><script") if marking else page.html
    path.write_text(html, encoding="utf-8")
    return path


@pytest.fixture
def page(browser, video):
    """The page of a video, loaded so far that it can be sought."""
    path = video.parent / "page.html"
    write_page(path, record(video=relative_url(video, path)), marking=True)
    with opened(browser, path, viewport={"width": 1280, "height": 900}) as page:
        wait_until(page, "document.querySelector('video').readyState >= 1")
        yield page


def now(page):
    return page.evaluate("document.querySelector('video').currentTime")


def at(page, time_s):
    """The place of a time on the timeline."""
    box = page.locator(".xt-axis .xt-field").bounding_box()
    return box["x"] + box["width"] * time_s / 10, page.locator(".xt-predicted .xt-field").bounding_box()["y"] + 6


def test_a_click_on_a_span_seeks_the_video_there(page):
    page.mouse.click(*at(page, 5.0))
    assert now(page) == pytest.approx(5.0, abs=0.02)
    assert float(page.get_by_role("slider").get_attribute("aria-valuenow")) == pytest.approx(5.0, abs=0.02)


def test_keys_step_by_row_second_and_frame(page):
    page.get_by_role("slider", name="Time in the video v").focus()
    expected = [
        ("ArrowRight", 2.0), ("ArrowRight", 4.0), ("ArrowLeft", 2.0), ("Shift+ArrowRight", 3.0), ("ArrowRight", 4.0),
        (".", 4.1), (",", 4.0), ("Shift+ArrowLeft", 3.0), ("ArrowLeft", 2.0), ("End", 10.0), ("Home", 0.0),
    ]  # fmt: skip
    for key, time_s in expected:
        page.keyboard.press(key)
        assert now(page) == pytest.approx(time_s, abs=0.02), key
    page.keyboard.press(" ")
    wait_until(page, "!document.querySelector('video').paused")
    page.keyboard.press(" ")
    wait_until(page, "document.querySelector('video').paused")


def test_the_pointer_and_the_slider_tell_seconds_row_and_probabilities(page):
    page.mouse.move(*at(page, 5.0))
    tip = page.locator(".xt-tip").inner_text()
    assert float(tip.split()[0]) == pytest.approx(5.0, abs=0.02)
    assert tip.endswith("row 3 of 5 · start p 0.20 · end p 0.25")
    page.get_by_role("slider").focus()
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("slider").get_attribute("aria-valuetext") == "2.00 s · row 2 of 5 · start p 0.70 · end p 0.00"


def test_a_moment_of_the_list_is_played_to_its_end(page):
    first = "document.querySelector('video').addEventListener('seeked', e => { window.begun ??= e.target.currentTime })"
    page.evaluate(first)
    page.get_by_role("button", name="2: 4.00 s to 6.00 s, p = 0.10").click()
    wait_until(page, "(v => v.paused && v.currentTime >= 6)(document.querySelector('video'))")
    assert page.evaluate("window.begun") == pytest.approx(4.0, abs=0.1)


def test_another_query_shows_what_is_known_of_it(page):
    page.get_by_label("Query").select_option("1")
    assert not page.locator(".xt-start").is_visible()
    assert not page.locator(".xt-annotated").is_visible()
    assert page.locator(".xt-predicted .xt-span").count() == 2


def test_two_keys_mark_a_moment(page):
    page.evaluate("window.marks = []; addEventListener('excl-mark', (event) => marks.push(event.detail))")
    page.get_by_role("slider").focus()
    for key in ("ArrowRight", "i", "ArrowRight", "ArrowRight", "o", "End", "i"):
        page.keyboard.press(key)
    marks = [(mark["start_s"], mark["end_s"]) for mark in page.evaluate("marks")]
    assert marks == [(2, None), (2, 6), (10, None)]


def test_texts_are_shown_as_they_are_and_never_run(page):
    assert page.title() == "A page"
    assert page.locator("option").first.text_content() == HOSTILE
    assert page.locator("img").count() == 0


def test_without_the_file_the_timeline_alone_works(browser, tmp_path):
    path = write_page(tmp_path / "page.html", record())
    with opened(browser, path) as page:
        page.get_by_role("slider").focus()
        page.keyboard.press("ArrowRight")
        assert page.evaluate("document.querySelector('excl-timeline').time") == 2
        assert "no video file" in page.inner_text(".xt-player")


def place(page, selector):
    box = page.locator(selector).first.bounding_box()
    return box["x"], box["x"] + box["width"], box["y"], box["y"] + box["height"]


def is_covered(page, selector):
    """Whether something else is seen in the middle of a text's first letter, or anywhere on its left edge."""
    left, _, top, bottom = place(page, selector)
    script = """([selector, x, y]) => {
        const text = document.querySelector(selector);
        for (const line of document.querySelectorAll('.xt-playhead')) line.style.pointerEvents = 'auto';
        return !text.contains(document.elementFromPoint(x, y));
    }"""
    return any(page.evaluate(script, [selector, left + by, (top + bottom) / 2]) for by in (0.5, 1.5, 4))


@pytest.mark.parametrize("width", [400, 1280])
def test_the_line_of_the_present_time_covers_no_text(browser, tmp_path, width):
    path = write_page(tmp_path / "page.html", record())
    with opened(browser, path, viewport={"width": width, "height": 900}) as page:
        line = place(page, ".xt-playhead")
        assert line[3] - line[2] > 50, "it reaches over the strips"
        for lane in ("start", "end", "predicted", "annotated", "rows"):
            assert not is_covered(page, f".xt-{lane} .xt-label"), lane
        for number in range(1, page.locator(".xt-axis .xt-field span").count() + 1):
            label = place(page, f".xt-axis .xt-field span:nth-child({number})")
            page.evaluate("time => { document.querySelector('excl-timeline').time = time }", number - 1)
            assert place(page, ".xt-playhead")[3] <= label[2] + 1


@pytest.mark.parametrize("width", [400, 1280])
def test_marks_and_labels_stay_within_the_strip(browser, tmp_path, width):
    path = write_page(tmp_path / "page.html", record(), marking=True)
    with opened(browser, path, viewport={"width": width, "height": 900}) as page:
        left, right, _, _ = place(page, ".xt-mark .xt-field")
        for mark in ({"start_s": 10, "end_s": None}, {"start_s": None, "end_s": 0}, {"start_s": 9.99, "end_s": 10}):
            page.evaluate("mark => { document.querySelector('excl-timeline').mark = mark }", mark)
            from_x, to_x, _, _ = place(page, ".xt-mark .xt-span")
            assert left - 0.5 <= from_x < to_x <= right + 0.5
            assert to_x - from_x >= 5, "it is seen"
        labels = page.locator(".xt-axis .xt-field span").all()
        assert [label.inner_text() for label in labels][:: len(labels) - 1] == ["0:00", "0:10"]
        boxes = [label.bounding_box() for label in labels]
        assert boxes[0]["x"] >= left - 0.5
        assert boxes[-1]["x"] + boxes[-1]["width"] <= right + 0.5
        assert all(a["x"] + a["width"] < b["x"] for a, b in itertools.pairwise(boxes))


def test_numbers_of_annotated_moments_have_a_plain_ground(browser, tmp_path):
    first, second = record()["queries"]
    moments = [{"start_s": 0.0, "end_s": 3.0}, {"start_s": 4.0, "end_s": 9.0}]
    path = write_page(tmp_path / "page.html", record(queries=[{**first, "moments": moments}, second]))
    with opened(browser, path) as page:
        assert page.locator(".xt-annotated .xt-number").all_inner_texts() == ["1", "2"]
        ground = "getComputedStyle(document.querySelector('.xt-annotated .xt-number')).backgroundColor"
        assert page.evaluate(ground) == page.evaluate("getComputedStyle(document.body).backgroundColor")


def test_unseen_words_of_every_query_are_named_whichever_is_chosen(page):
    said = "“another”: words that the training split did not have: gallops, zebra; taken for one unknown word: zebra"
    assert page.get_by_label("Query").input_value() == "0"
    assert page.locator(".xt-words").inner_text() == said
    page.get_by_label("Query").select_option("1")
    assert page.locator(".xt-words").inner_text() == said


def test_a_page_without_unseen_words_says_nothing_of_them(browser, tmp_path):
    path = write_page(tmp_path / "page.html", record(queries=record()["queries"][:1]))
    with opened(browser, path) as page:
        assert not page.locator(".xt-words").is_visible()


def test_a_single_video_uses_the_width_of_the_page(browser, tmp_path):
    path = write_page(tmp_path / "page.html", record())
    with opened(browser, path, viewport={"width": 1280, "height": 900}) as page:
        assert page.locator("excl-timeline").bounding_box()["width"] > 1150


@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault_and_nothing_reaches_over_the_edge(browser, tmp_path, width, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    path = write_page(tmp_path / "page.html", record(), marking=True)
    settings = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme, "bypass_csp": True}
    with opened(browser, path, **settings) as page:
        found = axe.Axe().run(page).response["violations"]
        assert [json.dumps(fault)[:300] for fault in found if fault["impact"] in ("serious", "critical")] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
