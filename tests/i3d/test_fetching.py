"""Downloads: whatever happens on the way, what gets the final name is the published file, whole."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys

import commands
import pytest
from file_server import CONTENT, Server

from excl.models.files import is_page, sha256_file
from excl.models.i3d import weight_catalogue
from excl.models.i3d.weight_catalogue import PublishedWeights, git_blob_id

STOP = object()


@pytest.fixture
def server(monkeypatch, tmp_path):
    one = Server()
    monkeypatch.setattr(weight_catalogue, "BASE_URL", one.url)
    monkeypatch.setenv("EXCL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    publish(monkeypatch, tmp_path, CONTENT)
    yield one
    one.stall.set()
    one.http.shutdown()


def publish(monkeypatch, tmp_path, content, size=None):
    path = tmp_path / "published"
    path.write_bytes(content)
    entry = PublishedWeights("rgb_charades.pt", git_blob_id(path), 157, size=size, sha256=sha256_file(path))
    monkeypatch.setitem(weight_catalogue.PUBLISHED, "charades", entry)
    return entry


def cached(tmp_path):
    return sorted(p.name for p in (tmp_path / "cache").iterdir() if not p.name.endswith(".lock"))


def assert_whole(tmp_path):
    entry = weight_catalogue.PUBLISHED["charades"]
    assert cached(tmp_path) == [entry.cache_name]
    assert (tmp_path / "cache" / entry.cache_name).read_bytes() == CONTENT


def test_fetched_once_and_then_read_from_the_cache(server, tmp_path):
    first = weight_catalogue.PUBLISHED["charades"].fetch()
    assert weight_catalogue.PUBLISHED["charades"].fetch() == first
    assert server.asked == [(None, None)]
    assert_whole(tmp_path)


@pytest.mark.parametrize("seed", range(8))
def test_interrupted_anywhere_it_goes_on_from_there(server, tmp_path, seed):
    draw = random.Random(seed)
    part = tmp_path / "cache" / (weight_catalogue.PUBLISHED["charades"].cached_path.name + ".part")
    kept = 0
    for _ in range(3):
        sent = draw.randrange(1, (len(CONTENT) - kept) // 2)
        server.cuts = [sent]
        with pytest.raises(OSError, match=r"rgb_charades\.pt: cannot be downloaded.*weights import") as raised:
            weight_catalogue.PUBLISHED["charades"].fetch()
        assert not weight_catalogue.PUBLISHED["charades"].cached_path.exists()
        before, kept = kept, part.stat().st_size
        assert sent - (1 << 16) < kept - before <= sent  # the last, unfinished block is lost
        assert (f"{kept:,} bytes are kept" in str(raised.value)) == (kept > 0)
        assert part.read_bytes() == CONTENT[:kept]
    weight_catalogue.PUBLISHED["charades"].fetch()
    assert server.asked[-1] == ((f"bytes={kept}-", '"first"') if kept else (None, None))
    assert_whole(tmp_path)


@pytest.mark.parametrize(("cut", "ranges", "etag"), [(0, True, '"first"'), (5000, False, '"first"'), (5000, True, None)])
def test_what_cannot_go_on_starts_again(server, tmp_path, cut, ranges, etag):
    server.cuts, server.ranges, server.etag = [cut], ranges, etag
    with pytest.raises(OSError, match="cannot be downloaded"):
        weight_catalogue.PUBLISHED["charades"].fetch()
    weight_catalogue.PUBLISHED["charades"].fetch()
    assert len(server.asked) == 2
    assert_whole(tmp_path)


def test_a_weak_etag_is_not_relied_on(server, tmp_path):
    server.cuts, server.etag = [5000], 'W/"weak"'
    with pytest.raises(OSError, match="cannot be downloaded"):
        weight_catalogue.PUBLISHED["charades"].fetch()
    weight_catalogue.PUBLISHED["charades"].fetch()
    assert server.asked == [(None, None), (None, None)]
    assert_whole(tmp_path)


def test_a_file_that_changed_meanwhile_is_not_patched_together(server, tmp_path):
    server.content, server.cuts = bytes(len(CONTENT)), [400_000]
    with pytest.raises(OSError, match="cannot be downloaded"):
        weight_catalogue.PUBLISHED["charades"].fetch()
    server.content, server.etag = CONTENT, '"second"'
    weight_catalogue.PUBLISHED["charades"].fetch()
    assert_whole(tmp_path)


def test_a_part_that_is_already_whole_needs_no_download(server, tmp_path):
    weight_catalogue.PUBLISHED["charades"].fetch()
    path = weight_catalogue.PUBLISHED["charades"].cached_path
    path.rename(path.with_name(path.name + ".part"))  # killed between the last byte and the name
    weight_catalogue.PUBLISHED["charades"].fetch()
    assert len(server.asked) == 1
    assert_whole(tmp_path)


def test_a_part_that_is_too_long_starts_again(server, tmp_path):
    server.cuts = [10]
    with pytest.raises(OSError, match="cannot be downloaded"):
        weight_catalogue.PUBLISHED["charades"].fetch()
    part = next(p for p in (tmp_path / "cache").iterdir() if p.name.endswith(".part"))
    part.write_bytes(CONTENT + b"more")
    weight_catalogue.PUBLISHED["charades"].fetch()
    assert [asked for asked, _ in server.asked] == [None, f"bytes={len(CONTENT) + 4}-", None]
    assert_whole(tmp_path)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 50883138\n"


@pytest.mark.parametrize(
    ("content", "what"),
    [(CONTENT[::-1], "git blob id"), (LFS, "git LFS pointer"), (b"", "empty file"), (b"\x1f\x8b123", "packed with gzip")],
)
def test_a_download_that_is_not_the_published_file_is_refused_and_removed(server, tmp_path, content, what):
    server.content = content
    with pytest.raises(ValueError, match=f"not the published file.*{what}.*removed"):
        weight_catalogue.PUBLISHED["charades"].fetch()
    assert cached(tmp_path) == []


@pytest.mark.parametrize("content_type", ["text/html; charset=utf-8", "application/octet-stream"])
def test_a_page_is_refused_before_it_is_written(server, tmp_path, content_type):
    server.content, server.content_type = b"\n<!DOCTYPE html><html>sign in</html>", content_type
    assert is_page(server.content)
    with pytest.raises(ValueError, match=r"an HTML page and not the file.*weights import"):
        weight_catalogue.PUBLISHED["charades"].fetch()
    assert b"".join(p.read_bytes() for p in (tmp_path / "cache").iterdir() if p.name.endswith(".part")) == b""


@pytest.mark.parametrize("status", [403, 404, 500])
def test_a_server_that_refuses_is_told_with_what_to_do(server, tmp_path, status):
    server.status = status
    with pytest.raises(OSError, match=rf"rgb_charades\.pt: cannot be downloaded \({status}.*weights import FILE"):
        weight_catalogue.PUBLISHED["charades"].fetch()
    assert cached(tmp_path) == []


def test_no_server_at_all_is_told_with_what_to_do(server, monkeypatch):
    server.http.server_close()
    monkeypatch.setattr(weight_catalogue, "BASE_URL", "http://127.0.0.1:9/")
    with pytest.raises(OSError, match=r"rgb_charades\.pt: cannot be downloaded .*tries again.*weights import FILE"):
        weight_catalogue.PUBLISHED["charades"].fetch()


def test_a_damaged_cache_is_fetched_again(server, tmp_path, caplog):
    path = weight_catalogue.PUBLISHED["charades"].fetch()
    damaged = bytearray(CONTENT)
    damaged[1234] ^= 1
    path.write_bytes(damaged)
    weight_catalogue.PUBLISHED["charades"].fetch()
    assert "damaged (git blob id" in caplog.text
    assert_whole(tmp_path)


def fetching_process(server):
    """Another process that fetches the same file from the same server into the same cache."""
    entry = weight_catalogue.PUBLISHED["charades"]
    code = (
        "from excl.models.i3d import weight_catalogue as published\n"
        f"published.BASE_URL = {server.url!r}\n"
        f"published.PUBLISHED['charades'] = published.PublishedWeights('rgb_charades.pt', {entry.git_blob_id!r}, 157)\n"
        "print(published.PUBLISHED['charades'].fetch())\n"
    )
    return commands.start([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("cut", [0, 1, 300_000, len(CONTENT) - 1])
def test_killed_while_fetching_leaves_nothing_that_could_be_used(server, tmp_path, cut):
    server.cuts = [cut]
    server.stall.clear()
    process = fetching_process(server)
    assert server.reached.wait(60)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    server.stall.set()
    assert not weight_catalogue.PUBLISHED["charades"].cached_path.exists()
    weight_catalogue.PUBLISHED["charades"].fetch()
    assert_whole(tmp_path)


def test_two_processes_at_once_download_once(server, tmp_path):
    server.cuts = [500_000]
    server.stall.clear()
    first = fetching_process(server)
    assert server.reached.wait(60)
    second = fetching_process(server)  # waits for the first, or comes after it
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    third = fetching_process(server)
    outputs = [process.communicate()[0].strip() for process in (second, third)]
    assert outputs == [str(weight_catalogue.PUBLISHED["charades"].cached_path)] * 2
    assert len(server.asked) == 2  # the killed one, and one of the others
    assert_whole(tmp_path)
