"""Files on disk: written atomically, identified by their sha256, described if they begin as another kind of file."""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

BEGINNINGS = {
    b"version https://git-lfs.github.com/spec/": (
        "a git LFS pointer and not the file itself; run `git lfs pull` in its repository, or fetch the file"
    ),
    b"\x1f\x8b": "a file packed with gzip; unpack it first",
    b"BZh9": "a file packed with bzip2; unpack it first",
    b"\xfd7zXZ\0": "a file packed with xz; unpack it first",
    b"7z\xbc\xaf": "a file packed with 7z; unpack it first",
    b"\x28\xb5\x2f\xfd": "a file packed with zstd; unpack it first",
    b"\x93NUMPY": "a NumPy array; expected {expected}",
    b"\x89HDF\r\n": "an HDF5 file; expected {expected}",
}


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; on success its content is on disk and named `path`, on failure it is gone."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")  # several machines may write the same file
    try:
        yield temporary
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def publish(temporary: Path, path: Path) -> None:
    """Bring a file to disk and give it its final name, durably."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    move(temporary, path)


def move(source: Path, target: Path) -> None:
    """Give a file that is on disk its final name, durably."""
    os.replace(source, target)
    fsync_folder(target.parent)


def fsync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    """Return the hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_page(head: bytes) -> bool:
    """Return whether a file that begins with these bytes is an HTML page."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return text.startswith((b"<!doctype", b"<html", b"<head", b"<body", b"<?xml", b"<!--"))


def describe_wrong_beginning(path: Path, expected: str) -> str | None:
    """Return what a file is, in a sentence, if it begins as another kind of file than the `expected` one, or None."""
    with path.open("rb") as file:
        head = file.read(1024)
    if not head:
        return "an empty file; fetch it again"
    if not head.strip(b"\0"):
        return "it begins with zeros: a download that was never filled in, or a damaged file; fetch it again"
    if is_page(head):
        return (
            "an HTML page and not the file; fetch it again from its own address (on GitHub that has /raw/ in it, where that "
            "of the page has /blob/ or /tree/)"
        )
    descriptions = (text.format(expected=expected) for magic, text in BEGINNINGS.items() if head.startswith(magic))
    return next(descriptions, None)
