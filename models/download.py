"""Published files in the cache: downloaded so that an interruption costs nothing, and never half of one used.

A download grows in `<name>.part`; `<name>.part.json` identifies the server's file, so that the next attempt can ask for
the rest of the same one. Only a complete file that is the published one gets the final name.
"""

from __future__ import annotations

import json
import logging
import os
import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

import filelock
import platformdirs

from excl.models.files import describe_wrong_beginning, is_page, publish
from excl.models.lazy_module import LazyModule
from excl.models.progress.bars import progress_bar

if TYPE_CHECKING:
    import requests
else:
    requests = LazyModule("requests")

log = logging.getLogger(__name__)

TIMEOUTS_S = (15, 60)  # to connect, and between two pieces of the answer
PAGE = "what came is an HTML page and not the file"


class PublishedFile(ABC):
    """A published file: where it comes from, where it belongs, how it is recognised."""

    file_name: str

    @property
    @abstractmethod
    def url(self) -> str:
        """The address from which the file is fetched."""

    @property
    @abstractmethod
    def manual_hint(self) -> str:
        """The instructions for a file that was fetched by hand: "run …", "put it …"."""

    @abstractmethod
    def mismatch(self, path: Path) -> str | None:
        """Return in what the file at `path` differs from the published one, or None."""

    @property
    def cache_name(self) -> str:
        """The file's name in the cache."""
        return self.file_name

    @property
    def cached_path(self) -> Path:
        """The path of the file in the cache, whether or not it exists."""
        return cache_folder() / self.cache_name

    def fetch(self) -> Path:
        """Return the file in the cache; download it with a progress bar if it is not there.

        A file in the cache is verified every time, and fetched again if it is damaged. OSError if the download fails (the
        next call resumes it), ValueError if what came is not the published file (it is removed).
        """
        path = self.cached_path
        if path.is_file() and self.mismatch(path) is None:
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
                if (difference := self.mismatch(path)) is None:
                    return path
                log.warning("%s: damaged (%s); it is fetched again", path, difference)
            _download(self, path)
        finally:
            lock.release()
        return path


def cache_folder() -> Path:
    """Return `EXCL_CACHE`, or the platform's cache folder."""
    return Path(os.environ.get("EXCL_CACHE") or platformdirs.user_cache_path("excl"))


def _download(published: PublishedFile, path: Path) -> None:
    """Bring the published file to `path`; a kill can come between the last byte and the final name."""
    part = path.with_name(path.name + ".part")
    if not (part.is_file() and published.mismatch(part) is None):
        try:
            _complete(published, part)
        except OSError as error:  # requests' errors are OSErrors, and so are those of a full disk
            raise _download_error(published, part, error) from error
        if (difference := published.mismatch(part)) is not None:
            kind = describe_wrong_beginning(part, published.file_name)
            difference += f"; it is {kind}" if kind else ""
            _discard(part)
            raise ValueError(
                f"{published.url}: the download is not the published file ({difference}); it was removed. "
                f"Try again, or fetch the file by hand and {published.manual_hint}."
            )
    publish(part, path)
    _discard(part)


def _download_error(published: PublishedFile, part: Path, error: OSError) -> OSError:
    """Return the error for the user, with the reason that requests hides in a longer text."""
    match = re.search(r"Failed to resolve '[^']+'|Connection refused|timed out|Network is unreachable", str(error))
    size = part.stat().st_size if part.is_file() else 0
    state = f"{size:,} bytes are kept, and the same command resumes there" if size else "the same command tries again"
    return OSError(
        f"{published.url}: cannot be downloaded ({match[0] if match else error}); {state}. Or fetch the file by hand, on "
        f"another machine perhaps, and {published.manual_hint}."
    )


def _complete(published: PublishedFile, part: Path) -> None:
    """Complete `part` with the bytes at the URL; RequestException if that fails on the way."""
    start, headers = _resume(part, published.url)
    with requests.get(published.url, headers=headers, stream=True, timeout=TIMEOUTS_S) as answer:
        if answer.status_code == requests.codes.requested_range_not_satisfiable and start:
            _discard(part)  # as long as the server's file or longer, and not the published one
            return _complete(published, part)
        answer.raise_for_status()
        if answer.headers.get("Content-Type", "").startswith("text/html"):
            raise ValueError(_page(answer, published))
        if answer.status_code == requests.codes.partial_content:
            if answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                return _write(answer, part, start, published)
            _discard(part)
            raise requests.RequestException("the server sent another part than was asked for")
        _discard(part)
        _store_validator(answer, part, published.url)
        return _write(answer, part, 0, published)


def _page(answer: requests.Response, published: PublishedFile) -> str:
    return f"{answer.url}: {PAGE}; fetch it by hand and {published.manual_hint}"


def _resume(part: Path, url: str) -> tuple[int, dict[str, str]]:
    """Return the byte to resume from, and the headers that ask for the rest only if the server's file is still the same."""
    headers = {"Accept-Encoding": "identity"}
    try:
        facts = json.loads(part.with_name(part.name + ".json").read_text(encoding="utf-8"))
        start, validator = part.stat().st_size, facts["validator"]
        if facts["url"] != url or not isinstance(validator, str):
            return 0, headers
    except (OSError, ValueError, KeyError, TypeError):
        return 0, headers
    return start, {**headers, "Range": f"bytes={start}-", "If-Range": validator} if start else headers


def _store_validator(answer: requests.Response, part: Path, url: str) -> None:
    """Store what identifies the server's file: a strong ETag, or else the time of its last change."""
    tag = answer.headers.get("ETag", "")
    validator = tag if tag.startswith('"') else answer.headers.get("Last-Modified")
    if validator:
        part.with_name(part.name + ".json").write_text(json.dumps({"url": url, "validator": validator}), encoding="utf-8")


def _write(answer: requests.Response, part: Path, start: int, published: PublishedFile) -> None:
    length = answer.headers.get("Content-Length", "")
    total = start + int(length) if length.isdecimal() else None
    bar = progress_bar(part.name.removesuffix(".part"), total and total / 1e6, unit="MB", done=start / 1e6)
    with part.open("ab" if start else "wb", buffering=0) as file, bar as megabytes:
        for block in answer.iter_content(1 << 16):
            if file.tell() == 0 and is_page(block):
                raise ValueError(_page(answer, published))
            file.write(block)
            megabytes.advance(len(block) / 1e6)
        if total is not None and file.tell() < total and "Content-Encoding" not in answer.headers:
            raise requests.ConnectionError(f"the connection ended after {file.tell():,} of {total:,} bytes")


def _discard(part: Path) -> None:
    for path in (part, part.with_name(part.name + ".json")):
        path.unlink(missing_ok=True)
