"""GloVe's published zips in the cache: fetched, and known by their checksums or by that of the text in them."""

from __future__ import annotations

import logging
from pathlib import Path

from excl.datasets.text.glove_files import PUBLISHED, PublishedGlove
from excl.models import download
from excl.models.download import Download, cache_folder, is_page
from excl.pipeline.queries.vector_cache import checksums, text_sha1

log = logging.getLogger(__name__)

BEGINNINGS = {
    b"version https://git-lfs.github.com/spec/": (
        "a git LFS pointer and not the file itself; run `git lfs pull` in its repository, or fetch the file"
    ),
    b"\x1f\x8b": "a file packed with gzip; unpack it first",
    b"BZh9": "a file packed with bzip2; unpack it first",
    b"\xfd7zXZ\0": "a file packed with xz; unpack it first",
    b"7z\xbc\xaf": "a file packed with 7z; unpack it first",
    b"\x28\xb5\x2f\xfd": "a file packed with zstd; unpack it first",
    b"\x93NUMPY": "a NumPy array; wanted is GloVe's text format",
    b"\x89HDF\r\n": "an HDF5 file; wanted is GloVe's text format",
}


def cached_path(name: str) -> Path:
    """Where in the cache the published zip `name` is, or would be."""
    return cache_folder() / PUBLISHED[name].file_name


def fetch(name: str) -> Path:
    """The published zip `name` (`6B` or `840B`) in the cache, downloaded with a progress bar if it is not there.

    A zip that was made again is taken, with a warning, if the text in it is the published one. OSError if the download
    fails (the next call goes on from where it stopped), ValueError if what came is something else (it is removed).
    """
    published, path = PUBLISHED[name], cached_path(name)
    was_there = path.is_file()
    download.fetch(
        Download(
            published.url,
            path,
            differs=lambda path: mismatch(path, published),
            what_is=describe_wrong_file,
            manual_hint=f"give its path in place of {name}, or put it at {path}",
        )
    )
    if not was_there and checksums(path).sha1 != published.sha1:
        log.warning(
            "%s: the zip was made again since its checksum was published; %s in it is the published one",
            path,
            published.text,
        )
    return path


def mismatch(path: Path, published: PublishedGlove) -> str | None:
    """In what a file is not the published zip, nor one with the same text in it, or None."""
    if (found := checksums(path).sha1) == published.sha1:
        return None
    try:
        if (text := text_sha1(path, published.text)) == published.text_sha1:
            return None
        reason = f"sha1 {text}, published is {published.text_sha1}"
    except ValueError as error:
        reason = str(error).removeprefix(f"{path}: ")
    return f"sha1 {found}, published is {published.sha1}; {published.text} in it: {reason}"


def describe_wrong_file(path: Path) -> str | None:
    """What a file is if its bytes are neither a text nor a zip, or None."""
    with path.open("rb") as file:
        head = file.read(1024)
    if not head:
        return "an empty file; fetch it again"
    if not head.strip(b"\0"):
        return "it begins with zeros: a download that was never filled in, or a damaged file; fetch it again"
    if is_page(head):
        return "an HTML page and not the file; fetch it again, from its own address"
    return next((what for magic, what in BEGINNINGS.items() if head.startswith(magic)), None)
