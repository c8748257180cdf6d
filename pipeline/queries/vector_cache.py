"""What is remembered of GloVe's files between runs: checksums of files, and matrices by what made them.

All of it is in the folder `glove` of the cache. A checksum counts while the file has the same absolute path, size and time
of change; a matrix carries a checksum of its own. What cannot be written is warned of, what cannot be read is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from excl.datasets.text.glove import WordVectors
from excl.datasets.text.glove_files import open_text
from excl.models.download import cache_folder, replacing

log = logging.getLogger(__name__)

BLOCK_BYTES = 1 << 20
MATRICES, FACTS = 16, 256  # kept, the most recently used ones
LOCK_S = 60


@dataclass(frozen=True)
class FileStamp:
    """By what a file is taken to be the same as before."""

    path: str
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> FileStamp:
        """The stamp of a file as it is now."""
        stat = path.stat()
        return cls(str(path.resolve()), stat.st_size, stat.st_mtime_ns)

    def require(self, path: Path) -> None:
        """ValueError if the file is another one by now."""
        if FileStamp.of(path) != self:
            raise ValueError(f"{path}: it was changed while it was read; run the same command again")


@dataclass(frozen=True)
class Checksums:
    """Of a file's bytes, in hex."""

    sha256: str
    sha1: str


def known_checksums(path: Path) -> Checksums | None:
    """The checksums of a file if they are remembered; the file is not opened."""
    facts = _recall(path, "file")
    return Checksums(facts["sha256"], facts["sha1"]) if facts else None


def checksums(path: Path) -> Checksums:
    """The checksums of a file, remembered or computed."""
    known = known_checksums(path)
    if known is None:
        with checksums_beside(path) as result:
            known = result()
    return known


@contextlib.contextmanager
def checksums_beside(path: Path) -> Iterator[Callable[[], Checksums]]:
    """What waits for the checksums of a file, which threads compute meanwhile: the disk is read once for all readers.

    ValueError if the file changes before they are there. They are remembered.
    """
    stamp, stop = FileStamp.of(path), threading.Event()

    def result() -> Checksums:
        found = Checksums(futures[0].result(), futures[1].result())
        stamp.require(path)
        _remember(stamp, "file", {"sha256": found.sha256, "sha1": found.sha1})
        return found

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(_digest, path, name, stop) for name in ("sha256", "sha1")]
        try:
            yield result
        finally:
            stop.set()


def _digest(path: Path, name: str, stop: threading.Event) -> str:
    digest, block = hashlib.new(name, usedforsecurity=False), memoryview(bytearray(BLOCK_BYTES))
    with path.open("rb", buffering=0) as file:
        while (num_bytes := file.readinto(block)) and not stop.is_set():
            digest.update(block[:num_bytes])
    return digest.hexdigest()


def text_sha1(path: Path, member: str) -> str:
    """The sha1 of a text in a zip, remembered or computed; ValueError if it cannot be unpacked."""
    if (facts := _recall(path, f"text {member}")) is not None:
        return facts["sha1"]
    stamp, digest = FileStamp.of(path), hashlib.sha1(usedforsecurity=False)
    with open_text(path, member) as (read, _):
        while block := read(BLOCK_BYTES):
            digest.update(block)
    stamp.require(path)
    _remember(stamp, f"text {member}", {"sha1": digest.hexdigest()})
    return digest.hexdigest()


def known_text_sha1(path: Path, member: str) -> str | None:
    """The sha1 of a text in a zip if it is remembered."""
    facts = _recall(path, f"text {member}")
    return facts["sha1"] if facts else None


def _recall(path: Path, what: str) -> dict[str, str] | None:
    stamp = FileStamp.of(path)
    try:
        facts = json.loads(_facts_path(stamp, what).read_text(encoding="utf-8"))
        if facts["stamp"] == [stamp.path, stamp.size, stamp.mtime_ns] and facts["what"] == what:
            return {key: str(value) for key, value in facts["facts"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None


def _remember(stamp: FileStamp, what: str, facts: dict[str, str]) -> None:
    entry = {"stamp": [stamp.path, stamp.size, stamp.mtime_ns], "what": what, "facts": facts}
    _write(_facts_path(stamp, what), json.dumps(entry).encode(), keep=FACTS)


def _facts_path(stamp: FileStamp, what: str) -> Path:
    name = hashlib.sha256(os.fsencode(f"{what}\n{stamp.path}")).hexdigest()[:32]
    return cache_folder() / "glove" / "files" / f"{name}.json"


def load_cached(made_from: dict[str, Any]) -> WordVectors | None:
    """The vectors that were made from this, if they are remembered and undamaged."""
    path, key = _vectors_path(made_from)
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(key.encode() + content[32:]).digest() != content[:32]:
        log.warning("%s: damaged; the word vectors are read from their file again", path)
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # used now
    with np.load(io.BytesIO(content[32:]), allow_pickle=False) as arrays:
        return WordVectors(arrays["matrix"], arrays["found"], arrays["other_case"])


def save_cached(made_from: dict[str, Any], vectors: WordVectors) -> None:
    """Keep vectors under what they were made from."""
    path, key = _vectors_path(made_from)
    arrays = io.BytesIO()
    np.savez(arrays, matrix=vectors.matrix, found=vectors.found, other_case=vectors.other_case)
    content = arrays.getvalue()
    _write(path, hashlib.sha256(key.encode() + content).digest() + content, keep=MATRICES)


def _vectors_path(made_from: dict[str, Any]) -> tuple[Path, str]:
    key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
    return cache_folder() / "glove" / "vectors" / f"{key}.vectors", key


def _write(path: Path, content: bytes, *, keep: int) -> None:
    """Write one entry and remove the least recently used ones; a folder where that fails costs a warning."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path.parent / ".lock", timeout=LOCK_S):
            for leftover in path.parent.glob(".*.tmp"):  # of a process that was killed: whoever writes holds the lock
                leftover.unlink()
            with replacing(path) as temporary:
                temporary.write_bytes(content)
            others = [other for other in path.parent.glob(f"*{path.suffix}") if other != path]
            for other in sorted(others, key=lambda other: other.stat().st_mtime_ns, reverse=True)[keep - 1 :]:
                other.unlink()
    except OSError as error:
        log.warning("%s: the cache cannot be written (%s); the next run has the same work again", path.parent, error)
