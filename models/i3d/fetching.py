"""The published weight files in the cache: downloaded so that an interruption costs nothing, and never half of one used.

A download grows in `<name>.part`; what server's file it is of is in `<name>.part.json`, so that the next attempt can ask for
the rest of the same one. Only a complete file that is the published one gets the final name.
"""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path

import filelock
import platformdirs
import requests
from tqdm import tqdm

from excl.models.i3d.published import PUBLISHED, Published, differs
from excl.models.i3d.reading import publish
from excl.models.i3d.wrong_files import is_page, wrong_bytes

log = logging.getLogger(__name__)

TIMEOUTS_S = (15, 60)  # to connect, and between two pieces of the answer
PAGE = "what came is an HTML page and not the file"


def cache_folder() -> Path:
    """`EXCL_CACHE`, or the platform's cache folder."""
    return Path(os.environ.get("EXCL_CACHE") or platformdirs.user_cache_path("excl"))


def cached_path(name: str) -> Path:
    """Where in the cache the published file `name` is, or would be."""
    return cache_folder() / PUBLISHED[name].cache_name


def fetch(name: str) -> Path:
    """The published file `name` (`kinetics` or `charades`) in the cache, downloaded with a progress bar if it is not there.

    What is in the cache is verified every time, and fetched again if it is damaged. OSError if the download fails (the next
    call goes on from where it stopped), ValueError if what came is not the published file (it is removed).
    """
    published, path = PUBLISHED[name], cached_path(name)
    if path.is_file() and differs(path, published) is None:
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
            if (found := differs(path, published)) is None:
                return path
            log.warning("%s: damaged (%s); it is fetched again", path, found)
        _fetch(published, path)
    finally:
        lock.release()
    return path


def _fetch(published: Published, path: Path) -> None:
    part = path.with_name(path.name + ".part")
    if not (part.is_file() and differs(part, published) is None):  # a kill can come between the last byte and the name
        try:
            _download(published.url, part)
        except OSError as error:  # requests' errors are, and those of a full disk
            raise _failed(published, part, _reason(error)) from error
        found = differs(part, published)
        if found is not None:
            what = wrong_bytes(part)
            _discard(part)
            raise ValueError(
                f"{published.url}: the download is not the published file ({found}{f'; it is {what}' if what else ''}); "
                "it was removed. Try again, or fetch the file by hand and run `excl weights import FILE`."
            )
    publish(part, path)
    _discard(part)


def _reason(error: OSError) -> str:
    """What went wrong with the network, out of what requests tells of its own inside."""
    text = str(error)
    known = re.search(r"Failed to resolve '[^']+'|Connection refused|timed out|Network is unreachable", text)
    return known[0] if known else text


def _failed(published: Published, part: Path, reason: str) -> OSError:
    kept = part.stat().st_size if part.is_file() else 0
    state = f"{kept:,} bytes are kept, and the same command goes on from there" if kept else "the same command tries again"
    return OSError(
        f"{published.url}: cannot be downloaded ({reason}); {state}. Or fetch the file by hand, on another machine "
        "perhaps, and run `excl weights import FILE`."
    )


def _download(url: str, part: Path) -> None:
    """Bring `part` to the whole of what is at `url`; RequestException if that fails on the way."""
    start, headers = _resume(part, url)
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUTS_S) as answer:
        if answer.status_code == requests.codes.requested_range_not_satisfiable and start:
            _discard(part)  # as long as the server's file or longer, and not the published one
            return _download(url, part)
        answer.raise_for_status()
        if answer.headers.get("Content-Type", "").startswith("text/html"):
            raise ValueError(f"{answer.url}: {PAGE}; fetch it by hand and run `excl weights import FILE`")
        if answer.status_code == requests.codes.partial_content:
            if answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                return _write(answer, part, start)
            _discard(part)
            raise requests.RequestException("the server sent another part than was asked for")
        _discard(part)
        _remember(answer, part, url)
        return _write(answer, part, 0)


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


def _write(answer: requests.Response, part: Path, start: int) -> None:
    length = answer.headers.get("Content-Length", "")
    total = start + int(length) if length.isdecimal() else None
    bar = tqdm(total=total, initial=start, desc=part.name.removesuffix(".part"), unit="B", unit_scale=True, disable=None)
    with part.open("ab" if start else "wb", buffering=0) as file, bar:
        for block in answer.iter_content(1 << 16):
            if file.tell() == 0 and is_page(block):
                raise ValueError(f"{answer.url}: {PAGE}; fetch it by hand and run `excl weights import FILE`")
            file.write(block)
            bar.update(len(block))
        if total is not None and file.tell() < total and "Content-Encoding" not in answer.headers:
            raise requests.ConnectionError(f"the connection ended after {file.tell():,} of {total:,} bytes")


def _discard(part: Path) -> None:
    for path in (part, part.with_name(part.name + ".json")):
        path.unlink(missing_ok=True)
