"""Annotating: what is in the file after each change, and a person at the keyboard."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import signal
import threading
from fractions import Fraction

import av
import numpy as np
import pytest
import requests
from browser import wait_until
from served import served

from excl.datasets import parsing
from excl.datasets.annotations import jsonl
from excl.workflows.cli import main
from excl.workflows.demo import DemoConfig, plan_video, write_video
from excl.workflows.server import annotation_file
from excl.workflows.server.annotation_file import AnnotationFile, StaleError

FOREIGN = (
    b'\xef\xbb\xbf{"video_id": "far", "query": "x", "start_s": 1, "end_s": 2}\r\n\n# a comment \xff\n{"video_id": broken\n'
    b'{"video_id":"v","query":"old","start_s":1.50,"end_s":2,"split":"val","note":[1]}\n  \nno end'
)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Three short videos that browsers can play."""
    folder = tmp_path_factory.mktemp("annotated") / "videos"
    folder.mkdir()
    for number in range(3):
        plan = plan_video(number, DemoConfig(out=folder, min_seconds=12, max_seconds=12, fps=5))
        write_video(folder / f"v{number}.mp4", plan)
    return folder


@pytest.fixture
def mine(videos, tmp_path):
    assert main(["init", str(tmp_path / "mine"), "--videos", str(videos)]) == 0
    return tmp_path / "mine"


def test_other_lines_and_fields_stay_byte_for_byte(tmp_path):
    path = tmp_path / "annotations.jsonl"
    path.write_bytes(FOREIGN)
    file = AnnotationFile(path)
    [far, row] = file.rows()
    assert (far.fields["video_id"], row.fields["query"]) == ("far", "old")
    assert [":4:" in problem or ":5:" in problem or ":7:" in problem for problem in file.problems()] == [True] * 3
    file.edit(row.line, " new\n words ", 1.23456, 2, 12.0)
    lines = FOREIGN.split(b"\n")
    changed = b'{"video_id": "v", "query": "new words", "start_s": 1.235, "end_s": 2, "split": "val", "note": [1]}'
    assert path.read_bytes().split(b"\n") == [*lines[:4], changed, *lines[5:], b""]
    file.add("v", "another", 3, 4, 12.0)
    added = json.loads(path.read_bytes().split(b"\n")[5])
    assert added == {"video_id": "v", "query": "another", "start_s": 3, "end_s": 4, "duration_s": 12.0, "split": "val"}
    file.undo()
    file.undo()
    assert path.read_bytes() == FOREIGN + b"\n"
    assert not file.can_undo


def test_an_example_becomes_the_moment_and_comes_back(mine):
    path = mine / "annotations.jsonl"
    before = path.read_text()
    file = AnnotationFile(path)
    assert [*file.rows()] == []
    file.add("v1", "it blinks", 1, 2, 12.0)
    file.add("v1", "it grows", 3, 4, 12.0)
    after = path.read_text()
    assert after.count('"v1"') == 2
    assert [line for line in after.splitlines() if '"v1"' not in line] == [
        line for line in before.splitlines() if '"v1"' not in line
    ]
    assert [moment.query for moment in jsonl.load(path, split=None)] == ["it blinks", "it grows"]
    file.undo()
    file.undo()
    assert path.read_text() == before


@pytest.mark.parametrize(
    ("query", "start_s", "end_s", "message"),
    [
        (" ", 1, 2, "write what happens"),
        ("what happens, in a sentence", 1, 2, "write what happens"),
        ("half \ud800", 1, 2, "write what happens"),
        ("it", 2, 2, "before the end"),
        ("it", -1, 2, "0 or more"),
        ("it", float("nan"), 2, "before the end"),
        ("it", 1, float("inf"), "before the end"),
        ("it", 13, 14, "the video ends at 12 s"),
    ],
)
def test_moments_that_are_none_are_refused(tmp_path, query, start_s, end_s, message):
    file = AnnotationFile(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match=message):
        file.add("v", query, start_s, end_s, 12.0)
    assert [*tmp_path.iterdir()] == []


def test_windows_line_ends_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "a.jsonl"
    example = '# {"video_id": "v", "query": "what happens, in a sentence", "start_s": 0, "end_s": 1}'
    path.write_bytes(f"\ufeff{example}\r\n# a comment\r\n# the end".encode())
    file = AnnotationFile(path)
    file.add("v", "it", 1, 2, None)
    file.add("w", "more", 1, 2, None)
    assert path.read_bytes().count(b"\n") == path.read_bytes().count(b"\r\n") == 4
    assert [moment.query for moment in jsonl.load(path, split=None)] == ["it", "more"]
    assert "what happens" not in path.read_text()


def test_utf_16_is_refused_and_not_mixed(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("# a comment\n", encoding="utf-16")
    with pytest.raises(ValueError, match="save it as UTF-8"):
        AnnotationFile(path)


def test_a_moment_up_to_the_end_is_within_the_duration(tmp_path):
    AnnotationFile(tmp_path / "a.jsonl").add("v", "it", 1, 12.3444, 12.3444)
    [moment] = jsonl.load(tmp_path / "a.jsonl", split=None)
    assert moment.end_s <= moment.duration_s


def test_a_change_does_not_parse_all_lines_again(tmp_path, monkeypatch):
    path, parsed = tmp_path / "a.jsonl", []
    path.write_text("".join(f'{{"video_id": "v{n}", "query": "it", "start_s": 1, "end_s": 2}}\n' for n in range(300)))
    monkeypatch.setattr(annotation_file, "parse_object", lambda *of: parsed.append(of) or parsing.parse_object(*of))
    file = AnnotationFile(path)
    for video_id in ("v7", "v8"):
        file.add(video_id, "more", 1, 2, None)
        assert len([*file.rows()]) + len(file.problems()) > 300
    assert len(parsed) < 700


def test_what_another_program_wrote_is_not_overwritten(tmp_path):
    path = tmp_path / "a.jsonl"
    file = AnnotationFile(path)
    file.add("v", "it", 1, 2, None)
    theirs = path.read_text() + "# theirs\n"
    path.write_text(theirs)
    with pytest.raises(StaleError, match="another program"):
        file.add("v", "more", 1, 2, None)
    assert path.read_text() == theirs
    file.add("v", "more", 1, 2, None)
    assert [row.fields["query"] for row in file.rows()] == ["it", "more"]
    assert "# theirs" in path.read_text()
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_link_and_the_permissions_stay(tmp_path):
    (tmp_path / "real.jsonl").write_text("")
    (tmp_path / "real.jsonl").chmod(0o640)
    (tmp_path / "a.jsonl").symlink_to("real.jsonl")
    AnnotationFile(tmp_path / "a.jsonl").add("v", "it", 1, 2, None)
    assert (tmp_path / "a.jsonl").is_symlink()
    assert (tmp_path / "real.jsonl").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "real.jsonl").read_text()


def test_changes_by_request(mine, tmp_path):
    with served(tmp_path, "annotate", str(mine)) as page:
        state = page("GET", "api/state").json()
        assert [video["id"] for video in state["videos"]] == ["v0", "v1", "v2"]
        assert page("GET", "api/videos/0").json()["timeline"]["duration_s"] == 12.0
        assert page("GET", "api/videos/3").status_code == 404
        ranged = page("GET", "videos/0", headers={"Range": "bytes=4-7"})
        assert (ranged.status_code, ranged.content) == (206, b"ftyp")
        moment = {"query": "it blinks", "start_s": 1, "end_s": 2, "version": state["version"]}
        changed = page("POST", "api/videos/1/moments", json=moment).json()
        assert [video["count"] for video in changed["state"]["videos"]] == [0, 1, 0]
        assert page("POST", "api/videos/1/moments", json=moment).status_code == 409, "the page shows an older file"
        assert page("POST", "api/videos/1/moments", json={"query": "it"}).status_code == 400
        line, version = changed["moments"][0]["line"], changed["state"]["version"]
        edited = page("PUT", f"api/videos/1/moments/{line}", json={**moment, "query": "it grows", "version": version}).json()
        assert edited["moments"][0]["query"] == "it grows"
        gone = page("DELETE", f"api/videos/1/moments/{line}", json={"version": edited["state"]["version"]}).json()
        assert gone["moments"] == []
        assert page("POST", "api/undo", json={"version": gone["state"]["version"]}).status_code == 200
        assert [moment.query for moment in jsonl.load(mine / "annotations.jsonl", split=None)] == ["it grows"]
        assert page.stop() == 0


def test_lines_that_a_page_cannot_show_as_they_are(mine, tmp_path):
    """Latin-1, half a surrogate pair, numbers that are none: the page works, and a change keeps what it is not about."""
    path = mine / "annotations.jsonl"
    lines = [b'{"video_id": "v0", "query": "caf\xe9", "start_s": 1, "end_s": 2, "group": "\xe9"}',
             b'{"video_id": "v0", "query": "\\ud800", "start_s": NaN, "end_s": 2}',
             b'{"video_id": "v1", "query": "it", "start_s": 1, "end_s": 2}']  # fmt: skip
    path.write_bytes(b"\n".join(lines))
    with served(tmp_path, "annotate", str(mine)) as page:
        sent = page("GET", "api/videos/0").json()
        assert [(moment["query"], moment["start_s"]) for moment in sent["moments"]] == [("caf?", 1), ("?", None)]
        moment = {"query": "coffee", "start_s": 1, "end_s": 2, "version": sent["state"]["version"]}
        assert page("PUT", "api/videos/0/moments/2", json=moment).status_code == 409, "that line is of another video"
        assert page("DELETE", "api/videos/0/moments/2", json=moment).status_code == 409
        assert path.read_bytes() == b"\n".join(lines)
        assert page("PUT", "api/videos/0/moments/0", json=moment).status_code == 200
    changed = b'{"video_id": "v0", "query": "coffee", "start_s": 1.0, "end_s": 2.0, "group": "\xe9"}'
    assert path.read_bytes().split(b"\n")[:2] in ([changed, lines[1]], [changed.replace(b".0", b""), lines[1]])


HOLD = """const send = window.fetch;
window.fetch = async (path, options) => {
  const response = await send(path, options);
  if (options.method === "POST") await new Promise((resolve) => (window.release = resolve));
  return response;
};"""


def test_what_comes_late_of_another_video_is_not_shown(browser, mine, tmp_path):
    with served(tmp_path, "annotate", str(mine)) as served_page:
        page = browser.new_page()
        page.add_init_script(HOLD)
        page.goto(served_page.address)
        page.locator("#title:has-text('v0')").wait_for()
        for key in ("Home", "i", "Shift+ArrowRight", "o", "Enter", "x", "Enter"):
            page.keyboard.press(key)
        wait_until(page, "Boolean(window.release)")
        page.locator("#videos button:has-text('v1')").click()
        page.locator("#title:has-text('v1')").wait_for()
        page.evaluate("window.release()")
        page.locator("#videos button:has-text('v0'):has-text('1 moment')").wait_for()
        page.locator("#message:has-text('Saved')").wait_for()
        assert page.locator("#moments li").count() == 0


MARKED = ("Home", "i", "Shift+ArrowRight", "o")


@contextlib.contextmanager
def annotating(browser, folder, temporary):
    """The page of a folder of annotations in a browser, with its first video shown."""
    with served(temporary, "annotate", str(folder)) as served_page:
        page = browser.new_page()
        page.goto(served_page.address)
        page.locator("#title:has-text('v0')").wait_for()
        page.locator("video").wait_for()
        yield page, served_page


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)


def test_what_is_not_saved_is_not_dropped_in_silence(browser, mine, tmp_path):
    with annotating(browser, mine, tmp_path) as (page, _):
        problem, title, mark = (page.locator(name) for name in ("#problem", "#title", ".xt-marking output"))
        press(page, *MARKED, "n")
        assert problem.inner_text() == "The mark is not saved: Enter saves it, N again drops it."
        page.locator("#videos button:has-text('v2')").click()
        assert problem.inner_text() == "The mark is not saved: Enter saves it, choosing it again drops it."
        page.locator("#query").fill("it blinks")
        press(page, "Escape", "n")
        assert problem.inner_text() == "The mark is not saved: Enter saves it, N again drops it.", "more was done since"
        assert (title.inner_text(), mark.inner_text()) == ("Moments of v0", "Start 0.00 s, end 1.00 s")
        press(page, "Enter", "Enter")
        page.locator("#moments li").wait_for()

        press(page, *MARKED)
        page.locator("#moments button:has-text('Change')").click()
        assert problem.inner_text() == "The mark is not saved: Enter saves it, “Change” again drops it."
        page.locator("#moments button:has-text('Change')").click()
        assert page.locator("#query").input_value() == "it blinks"
        page.locator("#query").fill("it blinks twice")
        press(page, "Escape", "n")
        assert problem.inner_text() == "The change is not saved: Enter saves it, N again drops it."
        press(page, "Control+z")
        assert problem.inner_text() == "The change is not saved: Enter saves it, Ctrl+Z again drops it."
        press(page, "n", "n")
        page.locator("#title:has-text('v1')").wait_for()
        press(page, "n")
        page.locator("#title:has-text('v2')").wait_for(), "there was nothing to lose"


def test_deleting_another_moment_keeps_the_mark(browser, mine, tmp_path):
    with annotating(browser, mine, tmp_path) as (page, _):
        press(page, *MARKED, "Enter", "x", "Enter")
        page.locator("#moments li").wait_for()
        press(page, *MARKED)
        page.locator("button:has-text('Delete')").click()
        page.locator("#message:has-text('Deleted')").wait_for()
        assert page.locator(".xt-marking output").inner_text() == "Start 0.00 s, end 1.00 s"


@pytest.mark.parametrize("is_marked", [False, True])
def test_leaving_the_page_asks_if_something_is_not_saved(browser, mine, tmp_path, is_marked):
    with annotating(browser, mine, tmp_path) as (page, _):
        kinds = []
        page.on("dialog", lambda dialog: (kinds.append(dialog.type), dialog.accept()))
        press(page, *(MARKED if is_marked else MARKED[:1]))
        page.reload()
        page.locator("#title:has-text('v0')").wait_for()
        assert kinds == (["beforeunload"] if is_marked else [])


def test_why_an_end_of_the_mark_was_taken_back(browser, mine, tmp_path):
    with annotating(browser, mine, tmp_path) as (page, _):
        press(page, "Home", "Shift+ArrowRight", "o", "i")
        assert page.locator(".xt-marking output").inner_text() == "Start 1.00 s, end not marked"
        assert page.locator("#problem").inner_text() == "The end was not after the start, so it was taken back."
        press(page, "Home", "o")
        assert page.locator("#problem").inner_text() == "The start was not before the end, so it was taken back."
        press(page, "i", "Shift+ArrowRight", "o")
        assert page.locator("#problem").inner_text() == ""


def test_the_video_pauses_while_one_writes(browser, mine, tmp_path):
    with annotating(browser, mine, tmp_path) as (page, _):
        press(page, "Home", " ")
        wait_until(page, "!document.querySelector('video').paused")
        press(page, "Enter")
        wait_until(page, "document.querySelector('video').paused")
        page.keyboard.type(" n ")
        assert page.evaluate("document.querySelector('video').paused")


@pytest.mark.parametrize("width", [400, 1280])
def test_an_error_is_next_to_the_field_and_moves_nothing(browser, mine, tmp_path, width):
    with annotating(browser, mine, tmp_path) as (page, _):
        page.set_viewport_size({"width": width, "height": 900})
        places = lambda: [page.locator(name).bounding_box() for name in ("video", "#query", "#annotated")]  # noqa: E731
        press(page, "Enter", "x")
        before = places()
        press(page, "Enter")
        alert = page.get_by_role("alert")
        assert alert.inner_text().startswith("Mark where it starts (I) and where it ends (O)")
        assert places()[:2] == before[:2]
        assert width < 1000 or places() == before
        [_, field, _] = before
        assert 0 < alert.bounding_box()["y"] - field["y"] - field["height"] < 60


def test_when_all_is_marked_it_says_what_comes_next(browser, mine, tmp_path):
    command = f"excl check {mine / 'recipe.toml'}"
    with annotating(browser, mine, tmp_path) as (page, served_page):
        assert page.title() == "mine: excl annotate"
        assert command in page.locator("#next").inner_text()
        for number in range(3):
            assert "next:" not in page.locator("#file").inner_text()
            page.locator(f"#title:has-text('v{number}')").wait_for()
            page.locator("video").wait_for()
            press(page, *MARKED, "Enter", "x", "Enter")
            page.locator("#moments li").first.wait_for()
            press(page, "n")
        assert f"3 of 3 videos have moments; next: {command}" in page.locator("#file").inner_text()
        assert served_page.stop() == 0
        said = served_page.process.stderr.read().splitlines()[-1]
    assert f"3 moments of 3 videos in {mine / 'annotations.jsonl'}; next: `{command}`" in said


def test_at_the_end_it_says_what_comes_next_without_a_recipe(videos, tmp_path):
    file = tmp_path / "my annotations.jsonl"
    for moments, said in ((0, f"no moments in {file} yet"), (2, f"2 moments of 2 videos in {file}; next: ")):
        with served(tmp_path, "annotate", str(videos), "--annotations", str(file)) as page:
            for number in range(moments):
                version = page("GET", "api/state").json()["version"]
                moment = {"query": "it blinks", "start_s": 1, "end_s": 2, "version": version}
                assert page("POST", f"api/videos/{number}/moments", json=moment).status_code == 200
            assert page.stop() == 0
            last = page.process.stderr.read().splitlines()[-1]
        assert said in last
    command = shlex.split(last.partition("`")[2].rstrip("`"))
    assert main(command[1:]) == 0, "the command works as it stands"


def test_a_recording_without_a_duration_can_be_annotated(browser, tmp_path):
    write_recording(tmp_path / "recording.webm")
    with served(tmp_path, "annotate", str(tmp_path)) as served_page:
        page = browser.new_page()
        page.goto(served_page.address)
        wait_until(page, "document.querySelector('excl-timeline')?.data?.duration_s > 5")
        for key in ("Home", "Shift+ArrowRight", "i", "Shift+ArrowRight", "o", "Enter", "x", "Enter"):
            page.keyboard.press(key)
        page.locator("#moments li").wait_for()
    [moment] = jsonl.load(tmp_path / "annotations.jsonl", split=None)
    assert (moment.start_s, moment.end_s) == (1, 2)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_axe_finds_no_serious_fault_on_the_page(browser, mine, tmp_path, width, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    with served(tmp_path, "annotate", str(mine)) as served_page:
        page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True).new_page()
        page.goto(served_page.address)
        page.locator("#title:has-text('v0')").wait_for()
        for key in ("Home", "i", "Shift+ArrowRight", "o", "Enter", "x", "Enter"):
            page.keyboard.press(key)
        page.locator("#moments li").wait_for()
        faults = axe.Axe().run(page).response["violations"]
        assert [json.dumps(fault)[:400] for fault in faults if fault["impact"] in ("serious", "critical")] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width


class Pipe(io.RawIOBase):
    """A stream that cannot be sought, as that of a recorder."""

    def __init__(self) -> None:
        self.content = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, part) -> int:
        self.content += part
        return len(part)


def write_recording(path):
    """Write 6 s of video as browsers record it: its header says no duration."""
    pipe = Pipe()
    with av.open(pipe, "w", format="webm") as container:
        stream = container.add_stream("libvpx", rate=10, width=96, height=96, pix_fmt="yuv420p")
        for number in range(60):
            frame = av.VideoFrame.from_ndarray(np.full((96, 96, 3), 4 * number, np.uint8))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    path.write_bytes(pipe.content)


def test_killed_while_it_writes_nothing_committed_is_lost(mine, tmp_path):
    with served(tmp_path, "annotate", str(mine)) as page:
        done, version = [], page("GET", "api/state").json()["version"]
        enough = threading.Event()

        def annotate() -> None:
            nonlocal version
            for number in range(10_000):
                moment = {"query": f"number {number}", "start_s": 1, "end_s": 2, "version": version}
                try:
                    version = page("POST", "api/videos/0/moments", json=moment).json()["state"]["version"]
                except requests.RequestException:
                    return
                done.append(moment["query"])
                if number == 20:
                    enough.set()

        thread = threading.Thread(target=annotate)
        thread.start()
        assert enough.wait(120)
        assert page.stop(signal.SIGKILL) == -signal.SIGKILL
        thread.join()
    written = [moment.query for moment in jsonl.load(mine / "annotations.jsonl", split=None)]
    assert len(done) > 20
    assert written[: len(done)] == done
    assert len(written) <= len(done) + 1, "the last one was written and not told"


def test_by_keyboard_alone_and_check_accepts_it(browser, mine, tmp_path, capsys):
    with served(tmp_path, "annotate", str(mine)) as served_page:
        page = browser.new_page()
        errors: list[str] = []
        page.on("console", lambda message: errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(served_page.address)
        keys = page.keyboard
        for number in range(3):
            page.locator(f"#title:has-text('v{number}')").wait_for()
            page.locator("video").wait_for()
            for key in ("Home", "Shift+ArrowRight", "i", "Shift+ArrowRight", "Shift+ArrowRight", "o", "Enter"):
                keys.press(key)
            keys.type(f"the shape number {number} blinks")
            keys.press("Enter")
            page.locator("#moments li").first.wait_for()
            keys.press("n")
        page.locator("#message:has-text('last video')").wait_for()
        box = page.locator(".xt-mark .xt-field").bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 5)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 3 / 4, box["y"] + 5)
        page.mouse.up()
        keys.press("Enter")
        keys.type("by mouse")
        keys.press("Enter")
        page.locator("#moments li").nth(1).wait_for()
        keys.press("Control+z")
        page.locator("#message:has-text('taken back')").wait_for()
        page.locator("#moments li").nth(1).wait_for(state="detached")
        keys.press("Control+z")
        page.locator("#moments p").wait_for()
        assert errors == []
    moments = jsonl.load(mine / "annotations.jsonl", split=None)
    assert [(moment.video_id, moment.start_s, moment.end_s) for moment in moments] == [("v0", 1, 3), ("v1", 1, 3)]
    assert main(["check", str(mine / "recipe.toml")]) == 0, capsys.readouterr().out
    assert "2 of 2 queries have their video" in capsys.readouterr().out


def test_a_video_that_browsers_do_not_play_is_said_so(browser, tmp_path, make_video):
    make_video("old.avi", list(range(50)), time_base=Fraction(1, 25), codec="mpeg4", options={})
    with served(tmp_path, "annotate", str(tmp_path)) as served_page:
        page = browser.new_page()
        page.goto(served_page.address)
        command = page.locator("#unplayable code:has-text('ffmpeg')")
        command.wait_for()
        assert command.inner_text().endswith("old.mp4")
        assert f"ffmpeg -i file:{tmp_path}/old.avi " in command.inner_text()


def test_where_there_is_nothing_to_annotate(tmp_path, caplog):
    assert main(["annotate", str(tmp_path)]) == 2
    assert "no videos there" in caplog.text
    assert main(["annotate", str(tmp_path / "nowhere")]) == 1
    assert "there is no such folder" in caplog.text
