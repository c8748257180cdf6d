"""Published files in the cache: downloaded so that an interruption costs nothing, and never half of one used.

A download grows in `<name>.part`; what server's file it is of is in `<name>.part.json`, so that the next attempt can ask for
the rest of the same one. Only a complete file that is the published one gets the final name.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import filelock
import platformdirs
import requests
from tqdm import tqdm

log = logging.getLogger(__name__)

TIMEOUTS_S = (15, 60)  # to connect, and between two pieces of the answer
PAGE = "what came is an HTML page and not the file"


@dataclass(frozen=True)
class Download:
    """A published file: where it comes from, where it belongs, how it is known."""

    url: str
    path: Path
    differs: Callable[[Path], str | None]
    """In what a file is not the published one, or None."""
    what_is: Callable[[Path], str | None]
    """What a file that is not the published one is by its bytes, or None where nobody can tell."""
    manual_hint: str
    """What to do with a file that was fetched by hand: "run …", "put it …"."""


def cache_folder() -> Path:
    """`EXCL_CACHE`, or the platform's cache folder."""
    return Path(os.environ.get("EXCL_CACHE") or platformdirs.user_cache_path("excl"))


def is_page(head: bytes) -> bool:
    """Whether a file that begins so is an HTML page."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return text.startswith((b"<!doctype", b"<html", b"<head", b"<body", b"<?xml", b"<!--"))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success its content is on disk and named `path`, on failure it is gone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def publish(temporary: Path, path: Path) -> None:
    """Bring a file to disk and give it its final name, durably."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def fetch(download: Download) -> Path:
    """The published file in the cache, downloaded with a progress bar if it is not there.

    What is in the cache is verified every time, and fetched again if it is damaged. OSError if the download fails (the next
    call goes on from where it stopped), ValueError if what came is not the published file (it is removed).
    """
    path = download.path
    if path.is_file() and download.differs(path) is None:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        log.info("%s: another process is fetching it; waiting", path)
        lock.acquire()
    try:
        if path.is_file():
            if (found := download.differs(path)) is None:
                return path
            log.warning("%s: damaged (%s); it is fetched again", path, found)
        _fetch(download)
    finally:
        lock.release()
    return path


def _fetch(download: Download) -> None:
    part = download.path.with_name(download.path.name + ".part")
    if not (part.is_file() and download.differs(part) is None):  # a kill can come between the last byte and the name
        try:
            _bring(download, part)
        except OSError as error:  # requests' errors are, and those of a full disk
            raise _failed(download, part, _reason(error)) from error
        found = download.differs(part)
        if found is not None:
            what = download.what_is(part)
            _discard(part)
            raise ValueError(
                f"{download.url}: the download is not the published file ({found}{f'; it is {what}' if what else ''}); "
                f"it was removed. Try again, or fetch the file by hand and {download.manual_hint}."
            )
    publish(part, download.path)
    _discard(part)


def _reason(error: OSError) -> str:
    """What went wrong with the network, out of what requests tells of its own inside."""
    text = str(error)
    known = re.search(r"Failed to resolve '[^']+'|Connection refused|timed out|Network is unreachable", text)
    return known[0] if known else text


def _failed(download: Download, part: Path, reason: str) -> OSError:
    kept = part.stat().st_size if part.is_file() else 0
    state = f"{kept:,} bytes are kept, and the same command goes on from there" if kept else "the same command tries again"
    return OSError(
        f"{download.url}: cannot be downloaded ({reason}); {state}. Or fetch the file by hand, on another machine "
        f"perhaps, and {download.manual_hint}."
    )


def _bring(download: Download, part: Path) -> None:
    """Bring `part` to the whole of what is at the URL; RequestException if that fails on the way."""
    start, headers = _resume(part, download.url)
    with requests.get(download.url, headers=headers, stream=True, timeout=TIMEOUTS_S) as answer:
        if answer.status_code == requests.codes.requested_range_not_satisfiable and start:
            _discard(part)  # as long as the server's file or longer, and not the published one
            return _bring(download, part)
        answer.raise_for_status()
        if answer.headers.get("Content-Type", "").startswith("text/html"):
            raise ValueError(_page(answer, download))
        if answer.status_code == requests.codes.partial_content:
            if answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                return _write(answer, part, start, download)
            _discard(part)
            raise requests.RequestException("the server sent another part than was asked for")
        _discard(part)
        _remember(answer, part, download.url)
        return _write(answer, part, 0, download)


def _page(answer: requests.Response, download: Download) -> str:
    return f"{answer.url}: {PAGE}; fetch it by hand and {download.manual_hint}"


def _resume(part: Path, url: str) -> tuple[int, dict[str, str]]:
    """From which byte to ask on, and the headers that ask for it only if the server's file is still the same."""
    headers = {"Accept-Encoding": "identity"}
    try:
        known = json.loads(part.with_name(part.name + ".json").read_text(encoding="utf-8"))
        start, validator = part.stat().st_size, known["validator"]
        if known["url"] != url or not isinstance(validator, str):
            return 0, headers
    except (OSError, ValueError, KeyError, TypeError):
        return 0, headers
    return start, {**headers, "Range": f"bytes={start}-", "If-Range": validator} if start else headers


def _remember(answer: requests.Response, part: Path, url: str) -> None:
    """Write down by what the server's file can be known again: a strong ETag, or else when it was last changed."""
    tag = answer.headers.get("ETag", "")
    validator = tag if tag.startswith('"') else answer.headers.get("Last-Modified")
    if validator:
        part.with_name(part.name + ".json").write_text(json.dumps({"url": url, "validator": validator}), encoding="utf-8")


def _write(answer: requests.Response, part: Path, start: int, download: Download) -> None:
    length = answer.headers.get("Content-Length", "")
    total = start + int(length) if length.isdecimal() else None
    bar = tqdm(total=total, initial=start, desc=part.name.removesuffix(".part"), unit="B", unit_scale=True, disable=None)
    with part.open("ab" if start else "wb", buffering=0) as file, bar:
        for block in answer.iter_content(1 << 16):
            if file.tell() == 0 and is_page(block):
                raise ValueError(_page(answer, download))
            file.write(block)
            bar.update(len(block))
        if total is not None and file.tell() < total and "Content-Encoding" not in answer.headers:
            raise requests.ConnectionError(f"the connection ended after {file.tell():,} of {total:,} bytes")


def _discard(part: Path) -> None:
    for path in (part, part.with_name(part.name + ".json")):
        path.unlink(missing_ok=True)
