"""Asking on a page: the answers, who may ask, what may be sent, and what is left afterwards."""

from __future__ import annotations

import asyncio
import http.client
import json
import shutil
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import psutil
import pytest
from bad_videos import bad_contents
from browser import wait_until
from chain_data import make_from_raw_videos
from served import served
from shared_fixtures import write_video
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Route

from excl.pipeline import localize
from excl.workflows.cli import main
from excl.workflows.server import uploads
from excl.workflows.server.application import Access, make_application, read_json
from excl.workflows.server.uploads import UploadFolder, UploadLimits

KEPT = 3


@pytest.fixture(scope="module")
def real_run(tmp_path_factory):
    return make_from_raw_videos(tmp_path_factory.mktemp("raw"))


@pytest.fixture(scope="module")
def page(real_run, tmp_path_factory):
    """A page that keeps three uploads of at most 10 MB."""
    temporary = tmp_path_factory.mktemp("temporary")
    with served(
        temporary, "serve", "--run", str(real_run / "run"), "--videos", str(real_run / "videos"), "--device", "cpu",
        "--upload-gb", "0.01", "--uploads", str(KEPT), "--top", "1",
    ) as running:  # fmt: skip
        yield running


def ask(page, number, *queries):
    """The answers, after as many questions as it takes."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        answer = page("POST", f"api/videos/{number}/answers", json={"queries": queries})
        if answer.status_code != 202:
            return answer
        time.sleep(0.05)
    return pytest.fail("no answer in 300 s")


def run(coroutine):
    """Run a coroutine in a thread of its own: playwright's event loop may be running in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


def send(page, content, name="mine.mp4"):
    return page("POST", "api/uploads", params={"name": name}, data=content)


def number_of(page, label):
    return next(v["number"] for v in page("GET", "api/state").json()["videos"] if v["id"] == label)


def files(page):
    return sorted(str(path.relative_to(page.temporary)) for path in page.temporary.rglob("*") if path.is_file())


@pytest.mark.parametrize("place", ["folder", "upload"])
def test_answers_are_those_of_localize(page, real_run, place, capsys):
    """Of the store's features, and of those made of a video that was sent."""
    video = real_run / "videos" / "r1.mp4"
    number = send(page, video.read_bytes()).json()["number"] if place == "upload" else number_of(page, "r1")
    answers = ask(page, number, "it starts", "what else").json()
    config = localize.AskConfig(run=real_run / "run", video=video, query=("it starts", "what else"), device="cpu", top=1)
    for query, answer in zip(answers["queries"], localize.run(config).answers, strict=True):
        [found] = query["predictions"]
        assert (query["text"], found["start_s"], found["end_s"]) == (
            answer.query, pytest.approx(answer.start_s, abs=1e-3), pytest.approx(answer.end_s, abs=1e-3)
        )  # fmt: skip
        assert len(query["start_probability"]) == len(answers["rows"]["start_s"])
    assert answers["queries"][0]["moments"] == ([{"start_s": 0.0, "end_s": 2.4}] if place == "folder" else [])
    assert answers["queries"][1]["unknown_words"] == ["what", "else"]
    assert answers["duration_s"] == 6.0
    again = page("POST", f"api/videos/{number}/answers", json={"queries": ["it"]})
    assert again.status_code == 200, "what was read is not read again"
    assert page("GET", f"api/videos/{number}").json()["timeline"]["rows"] == answers["rows"]


def test_who_may_ask(page):
    root = page.root
    get = lambda path="api/state", **headers: http_get(root, f"/{path}", headers)  # noqa: E731
    token = page.address.partition("token=")[2]
    assert get()[0] == 403
    assert get("")[0] == 403
    assert get("static/page.js")[0] == 403
    assert get("videos/0")[0] == 403
    assert get(f"api/state?token={token[:-1]}")[0] == 403
    assert get("api/state?token=%C3%A9")[0] == 403
    status, headers, _ = get(f"api/state?token={token}")
    assert status == 200
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in headers
    for host in ("evil.example", "127.0.0.1.evil.example", "", "192.168.0.1"):
        assert get(f"api/state?token={token}", Host=host)[0] == 400
    port = urlsplit(root).port
    assert get(f"api/state?token={token}", Host=f"localhost:{port}")[0] == 200
    assert get(f"api/state?token={token}", Origin="http://evil.example")[0] == 403
    assert get(f"api/state?token={token}", Origin=f"http://127.0.0.1:{port + 1}")[0] == 403
    assert get(f"api/state?token={token}", Origin="null")[0] == 403


def http_get(root, path, headers):
    connection = http.client.HTTPConnection(urlsplit(root).netloc, timeout=60)
    connection.putrequest("GET", path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()


def test_it_listens_on_this_machine_alone(page):
    listening = [c for c in psutil.Process(page.process.pid).net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert [(c.laddr.ip, c.laddr.port) for c in listening] == [("127.0.0.1", urlsplit(page.root).port)]


def test_ranges_of_videos(page, real_run):
    content = (real_run / "videos" / "r0.mp4").read_bytes()
    number = number_of(page, "r0")
    part = page("GET", f"videos/{number}", headers={"Range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, content[100:200])
    assert part.headers["Content-Type"] == "video/mp4"
    assert page("GET", f"videos/{number}").content == content
    assert page("GET", f"videos/{number}", headers={"Range": f"bytes={len(content)}-"}).status_code == 416


def test_hostile_files_cost_one_message_each(page, tmp_path):
    before = files(page)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.settimeout(0)
        port = str(listening.getsockname()[1]).encode()
        for name, content in bad_contents(tmp_path).items():
            answer = send(page, content.replace(b"PORT", port), f"../../\n{name}")
            if answer.status_code == 201:  # what a header does not tell, reading does
                number = answer.json()["number"]
                answer = ask(page, number, "it")
                assert page("DELETE", f"api/uploads/{number}").status_code == 200
            assert answer.status_code == 422, name
            message = answer.json()["message"]
            assert message.startswith(f"../../\\n{name}: "), "the name is shown, and never a path"
            assert "\n" not in message
            assert str(page.temporary) not in message
        with pytest.raises(BlockingIOError):  # nobody connected
            listening.accept()
    assert files(page) == before


@pytest.mark.parametrize(
    "name", ["../../escaped.mp4", "/tmp/escaped.mp4", "..", "~/escaped.mp4", "a\0b.mp4", "x" * 5000, ""]
)
def test_a_name_is_no_path(page, real_run, name):
    before = {*files(page)}
    number = send(page, (real_run / "videos" / "r0.mp4").read_bytes(), name).json()["number"]
    [path] = {*files(page)} - before
    assert path.endswith(f"/{number}")
    assert "escaped" not in name or not (page.temporary / path).parent.joinpath(name).exists()
    assert len(next(v["id"] for v in page("GET", "api/state").json()["videos"] if v["number"] == number)) <= 100
    assert page("DELETE", f"api/uploads/{number}").status_code == 200


def test_too_large_is_refused_before_it_is_sent(page):
    before = files(page)
    connection = http.client.HTTPConnection(urlsplit(page.root).netloc, timeout=60)
    cookies = "; ".join(f"{name}={value}" for name, value in page.session.cookies.items())
    connection.putrequest("POST", "/api/uploads?name=x")
    connection.putheader("Content-Length", str(10**10))
    connection.putheader("Cookie", cookies)
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 413  # of ten gigabytes
    assert "larger than 0.01 GB" in json.loads(answer.read())["message"]
    answer = page("POST", "api/uploads", data=iter([bytes(1 << 20)] * 9 + [bytes(1 << 20)]))  # without a length
    assert answer.status_code == 413
    assert files(page) == before


def test_fifty_at_once(page, real_run):
    content = (real_run / "videos" / "r0.mp4").read_bytes()
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda number: send(page, content, f"{number}.mp4"), range(50)))
    assert {answer.status_code for answer in answers} <= {201, 503}
    assert any(answer.status_code == 201 for answer in answers)
    assert all(answer.json()["message"].endswith(".") for answer in answers if answer.status_code == 503)
    assert len(files(page)) <= KEPT
    listed = [video for video in page("GET", "api/state").json()["videos"] if video["is_upload"]]
    assert len(listed) == len(files(page))


def test_what_is_refused_takes_no_ones_place(page, real_run):
    kept = [send(page, (real_run / "videos" / "r0.mp4").read_bytes()).json()["number"] for _ in range(KEPT)]
    assert send(page, b"no video").status_code == 422
    assert send(page, bytes(11_000_000)).status_code == 413
    assert [page("GET", f"api/videos/{number}").status_code for number in kept] == [200] * KEPT


@pytest.mark.parametrize("queries", [[], [" "], ["x"] * 51, ["x" * 1001], "it", [7], None])
def test_wrong_questions_are_refused_in_a_sentence(page, queries):
    answer = page("POST", f"api/videos/{number_of(page, 'r0')}/answers", json={"queries": queries})
    assert answer.status_code == 400
    assert answer.json()["message"]
    assert page("POST", "api/videos/0/answers", data=b"x" * 100_000).status_code == 413
    assert page("POST", "api/videos/0/answers", data=b"[").status_code == 400


@pytest.mark.parametrize(("minutes", "idle_s"), [(1e-4, 20.0), (30.0, 0.01)])
def test_a_slow_sender_is_cut_off(tmp_path, monkeypatch, minutes, idle_s):
    monkeypatch.setattr(uploads, "IDLE_S", idle_s)

    async def receive():
        await asyncio.sleep(3600)

    request = Request({"type": "http", "method": "POST", "headers": []}, receive)
    folder = UploadFolder(tmp_path, UploadLimits(upload_minutes=minutes))
    with pytest.raises(HTTPException, match="came too slowly"), folder.place(request, 0) as path:
        run(folder.write(request, path))
    assert [*tmp_path.iterdir()] == []


@pytest.fixture(scope="module")
def moved(real_run, tmp_path_factory):
    """The page of a run beside whose recipe one video is as it was, one is another now, and the others are gone."""
    folder = tmp_path_factory.mktemp("moved")
    shutil.copytree(real_run / "run", folder / "run")
    shutil.copy(real_run / "mine.toml", folder)
    (folder / "other.toml").write_text("train = 3\n")  # somebody else's
    (folder / "videos").mkdir()
    shutil.copy(real_run / "videos" / "r0.mp4", folder / "videos")
    (folder / "videos" / "r1.mp4").write_bytes((real_run / "videos" / "r0.mp4").read_bytes()[::-1])
    arguments = ["serve", "--run", str(folder / "run"), "--device", "cpu", "--upload-minutes", "0.02"]
    with served(tmp_path_factory.mktemp("temporary"), *arguments) as running:
        yield running


def test_without_videos_those_that_the_store_was_made_from_are_shown(moved, real_run):
    assert [video["id"] for video in moved("GET", "api/state").json()["videos"]] == ["r0", "r1", "r2", "r3"]
    for label, is_here in {"r0": True, "r1": False, "r2": False}.items():
        number = number_of(moved, label)
        asked = moved("POST", f"api/videos/{number}/answers", json={"queries": ["it starts"]})
        assert asked.status_code == 200, "the features are those of the store"
        shown = moved("GET", f"api/videos/{number}").json()["timeline"]
        assert asked.json()["video"] == shown["video"] == (f"videos/{number}" if is_here else None)
        assert shown["rows"] == asked.json()["rows"]
        assert moved("GET", f"videos/{number}").status_code == (200 if is_here else 404)
    content = moved("GET", f"videos/{number_of(moved, 'r0')}").content
    assert content == (real_run / "videos" / "r0.mp4").read_bytes()


def test_without_videos_those_of_a_bundled_recipe_are_shown(real_run, tmp_path):
    shutil.copytree(real_run / "run", tmp_path / "run")
    shutil.copytree(real_run / "videos", tmp_path / "data" / "videos")  # where the demo has them
    with served(tmp_path, "serve", "--run", str(tmp_path / "run"), "--device", "cpu") as page:
        number = number_of(page, "r3")
        assert page("GET", f"videos/{number}").content == (real_run / "videos" / "r3.mp4").read_bytes()


def test_a_page_says_how_to_see_a_video_and_which_words_of_all_sentences_are_unknown(browser, moved):
    browsed = browser.new_page()
    browsed.goto(moved.address)
    browsed.locator("#videos button:has-text('r2')").click()
    note = browsed.locator(".xt-player .xt-note:has-text('Start excl serve with --videos FOLDER to see it.')")
    note.wait_for()
    assert "/run: excl serve" in browsed.title()
    assert not browsed.title().startswith("run:")
    browsed.locator("#queries").fill("it starts\na zebra starts\nit juggles")
    browsed.locator("#ask").click()
    browsed.locator(".xt-words:has-text('juggles')").wait_for()
    said = "words that the training split did not have: {0}; taken for one unknown word: {0}"
    assert browsed.locator(".xt-words p").all_inner_texts() == [
        f"“a zebra starts”: {said.format('a, zebra')}",
        f"“it juggles”: {said.format('juggles')}",
    ]
    note.wait_for()
    label, field = (browsed.locator(name).bounding_box() for name in ("#form label", "#queries"))
    assert label["y"] + label["height"] + 5 <= field["y"], "room for the ring of the focused field"


def test_a_slow_sender_gets_one_message_and_others_are_served(moved):
    connection = http.client.HTTPConnection(urlsplit(moved.root).netloc, timeout=120)
    connection.putrequest("POST", "/api/uploads?name=x")
    connection.putheader("Content-Length", "1000")
    connection.putheader("Cookie", "; ".join(f"{name}={value}" for name, value in moved.session.cookies.items()))
    connection.endheaders()
    connection.send(b"slow")
    assert moved("GET", "api/state").status_code == 200
    answer = connection.getresponse()
    assert answer.status == 408
    assert json.loads(answer.read())["message"].startswith("The video came too slowly; allowed: 0.02 minutes")
    assert files(moved) == []


@pytest.mark.parametrize("busy", [False, True])
def test_ctrl_c_leaves_nothing(real_run, tmp_path, busy, heeds_ctrl_c):
    video = write_video(tmp_path / "long.mp4", [i * 40 for i in range(3000)], rate=25, width=64, height=48)
    (tmp_path / "temporary").mkdir()
    command = ["serve", "--run", str(real_run / "run"), "--device", "cpu"]
    with served(tmp_path / "temporary", *command, own_decoders=True) as page:
        number = send(page, video.read_bytes()).json()["number"]
        assert len(files(page)) == 1
        if busy:
            assert page("POST", f"api/videos/{number}/answers", json={"queries": ["it"]}).status_code == 202
        children = psutil.Process(page.process.pid).children(recursive=True)
        assert children, "a decoder's process"
        assert page.stop() in ({130, 0} if busy else {0})
        assert files(page) == []
        assert [*(tmp_path / "temporary").glob("excl-serve-*")] == []
        psutil.wait_procs(children, timeout=60)
        assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)


def test_a_person_sends_a_video_and_asks(browser, page, real_run):
    window = browser.new_page()
    errors: list[str] = []
    window.on("console", lambda message: errors.append(message.text))
    window.on("pageerror", lambda error: errors.append(str(error)))
    window.goto(page.address)
    window.locator("#warnings:has-text('RANDOM')").wait_for()
    window.set_input_files("#upload", str(real_run / "videos" / "r2.mp4"))
    window.locator("#videos [aria-current]:has-text('r2.mp4')").wait_for()
    window.fill("#queries", "it starts")
    window.press("#queries", "Enter")
    window.locator(".xt-predicted .xt-span").first.wait_for()
    window.locator("video").wait_for()
    window.locator("#remove").click()
    window.locator("#message:has-text('removed')").wait_for()
    window.locator("#videos button:has-text('r3')").click()
    window.locator("#suggestions button:has-text('it starts')").click()
    window.locator(".xt-annotated .xt-span").first.wait_for()
    assert errors == []


HOLD = """const send = window.fetch;
window.fetch = async (path, options) => {
  const response = await send(path, options);
  if (!path.startsWith("api/videos/") || window.release) return response;
  const text = await response.text();
  await new Promise((resolve) => (window.release = resolve));
  return { status: response.status, text: async () => text };
};"""


def test_a_video_that_comes_late_does_not_replace_a_later_choice(browser, page, real_run):
    browsed = browser.new_page()
    browsed.add_init_script(HOLD)
    browsed.goto(page.address)
    browsed.locator("#videos button:has-text('r0')").click()
    wait_until(browsed, "Boolean(window.release)")
    browsed.locator("#videos button:has-text('r1')").click()
    browsed.locator("#videos button[aria-current]:has-text('r1')").wait_for()
    browsed.evaluate("async () => { window.release(); await new Promise((resolve) => setTimeout(resolve)); }")
    assert browsed.evaluate("document.querySelector('excl-timeline').data.title") == "r1"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_axe_finds_no_serious_fault_on_the_page(browser, page, real_run, width, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    browsed = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True).new_page()
    browsed.goto(page.address)
    browsed.locator("#videos button:has-text('r1')").click()
    browsed.locator("#suggestions button").first.click()
    browsed.locator(".xt-predicted .xt-span").first.wait_for()
    faults = axe.Axe().run(browsed).response["violations"]
    assert [json.dumps(fault)[:400] for fault in faults if fault["impact"] in ("serious", "critical")] == []
    assert browsed.evaluate("document.documentElement.scrollWidth") <= width


def test_a_page_that_is_closed_while_it_sends_is_no_error(caplog):
    access, sent = Access(), []
    asgi = make_application("serve.html", [Route("/read", read_json, methods=["POST"])], access)
    scope = {
        "type": "http", "method": "POST", "path": "/read", "root_path": "", "headers": [(b"host", b"127.0.0.1")],
        "query_string": f"token={access.token}".encode(),
    }  # fmt: skip

    async def receive():
        return {"type": "http.disconnect"}

    async def answer(message):
        sent.append(message)

    run(asgi(scope, receive, answer))
    assert sent[0]["status"] == 400
    assert caplog.records == []


def test_a_port_that_is_taken(page, real_run, caplog):
    port = str(urlsplit(page.root).port)
    assert main(["serve", "--run", str(real_run / "run"), "--device", "cpu", "--port", port]) == 1
    assert f"port {port} of 127.0.0.1" in caplog.text
