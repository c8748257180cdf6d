"""The cache of facts between runs: checksums of files, and entries of which the least recently used are removed.

Everything there can be removed at any time. A failed write is a warning, and a damaged entry is computed again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import filelock

from excl.models.download import cache_folder
from excl.pipeline.artifacts.atomic_files import write_text

log = logging.getLogger(__name__)

BLOCK_BYTES = 1 << 20
MAX_CHECKSUMS = 256
LOCK_S = 60


def file_stamp(path: Path) -> tuple[str, int, int]:
    """Return the stamp that identifies a file without reading it: its path, size and time of change."""
    stat = path.stat()
    return str(path.resolve()), stat.st_size, stat.st_mtime_ns


def require_unchanged(path: Path, stamp: tuple[str, int, int]) -> None:
    """Raise ValueError if the file has changed since it had this stamp."""
    if file_stamp(path) != stamp:
        raise ValueError(f"{path}: it was changed while it was read; run the same command again")


@dataclass(frozen=True)
class Checksums:
    """Checksums of a file's bytes, in hex."""

    sha256: str
    sha1: str


def checksums(path: Path, member: str | None = None) -> Checksums:
    """Return the checksums of a file, or of a member of a zip, and remember them by path, size and time of change.

    ValueError if the file changes while it is read.
    """
    stamp = file_stamp(path)
    key = json.dumps([*stamp, member])
    entry = cache_folder() / "checksums" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Checksums(**json.loads(entry.read_text(encoding="utf-8")))
    sha256, sha1 = hashlib.sha256(), hashlib.sha1(usedforsecurity=False)
    with contextlib.ExitStack() as stack:
        archive = None if member is None else stack.enter_context(zipfile.ZipFile(path))
        file = stack.enter_context(path.open("rb", buffering=0) if archive is None else archive.open(str(member)))
        while block := file.read(BLOCK_BYTES):
            sha256.update(block)
            sha1.update(block)
    require_unchanged(path, stamp)
    computed = Checksums(sha256.hexdigest(), sha1.hexdigest())
    text = json.dumps(dataclasses.asdict(computed))
    write_entry(entry, lambda: write_text(entry, text), max_entries=MAX_CHECKSUMS)
    return computed


def write_entry(path: Path, write: Callable[[], object], *, max_entries: int) -> None:
    """Call `write`, which writes `path` atomically, and remove the least recently used entries beyond `max_entries`.

    A folder in which that fails costs a warning.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path.parent / ".lock", timeout=LOCK_S):
            for temporary in path.parent.glob(".*.tmp"):  # of a killed process: whoever writes holds the lock
                temporary.unlink()
            write()
            entries = [entry for entry in path.parent.glob(f"*{path.suffix}") if entry != path]
            for entry in sorted(entries, key=lambda entry: entry.stat().st_mtime_ns, reverse=True)[max_entries - 1 :]:
                entry.unlink()
    except OSError as error:  # filelock's Timeout is one
        log.warning("%s: the cache cannot be written (%s); the next run does the same work again", path.parent, error)
