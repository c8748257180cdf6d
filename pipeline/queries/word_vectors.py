"""Word vectors of a vocabulary, from a file in GloVe's format or a published one by name, read once and then remembered.

A published name stands for a zip in the cache, which is fetched on first use. A matrix is remembered in the folder `glove`
of the cache by the checksum of its file, the vocabulary and all settings; so is where the file is, for later questions.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from excl.datasets.text.glove import WordVectors, load_vectors
from excl.datasets.text.glove_files import GloveFileError
from excl.datasets.text.vocabulary import Vocabulary
from excl.models.download import cache_folder
from excl.models.files import describe_wrong_beginning
from excl.pipeline.artifacts.atomic_files import write_bytes, write_text
from excl.pipeline.artifacts.file_cache import checksums, file_stamp, require_unchanged, write_entry
from excl.pipeline.config import existing_file
from excl.pipeline.queries.published_glove import PUBLISHED, TEXT_FORMAT, published_file

log = logging.getLogger(__name__)

LOADER_VERSION = 1  # raise it when a change alters the results of load_vectors, or remembered matrices stay in use
MAX_MATRICES, MAX_PLACES = 16, 64


@dataclass(frozen=True)
class GloveFile:
    """A file of word vectors, by its content."""

    file: str
    """The name of the file without the folder."""
    sha256: str
    sha1: str
    known: str | None
    """The name of the published file that it is, or whose text it holds; None if it is not a published one."""


def local_file(path_or_name: str | os.PathLike[str]) -> Path | None:
    """Return the path of a file; None for `6B` and `840B`, whose file is in the cache or has to be fetched."""
    return None if path_or_name in PUBLISHED else Path(path_or_name)


def identify(path_or_name: str | os.PathLike[str]) -> GloveFile:
    """Return what a file is; it is read unless its checksums are remembered. Fetches `6B` and `840B` on first use."""
    path = _locate(path_or_name)
    sums = checksums(path)
    published = PUBLISHED.get(str(path_or_name))  # a zip under this name holds the published text, as fetch requires
    text_name = None if published is None else published.text
    return GloveFile(path.name, sums.sha256, sums.sha1, published_file(sums.sha1) or text_name)


def text_of(path_or_name: str | os.PathLike[str], member: str | None) -> str | None:
    """Return which text of a zip is read: `member`, or the one that a published name stands for."""
    published = PUBLISHED.get(str(path_or_name))
    return member if published is None or member is not None else published.text


def vectors_for(
    path_or_name: str | os.PathLike[str],
    vocabulary: Vocabulary,
    *,
    seed: int = 0,
    member: str | None = None,
    cased_fallback: bool = False,
) -> tuple[WordVectors, GloveFile]:
    """Return the vectors of a vocabulary, as `load_vectors` reads them, and the file they are from.

    The file is a path, or `6B` or `840B` for the published ones with 300 numbers a word. Vectors are remembered by the
    content of the file and all settings; the second time the file is not opened. ValueError as in `load_vectors`.
    """
    path, member = _locate(path_or_name), text_of(path_or_name, member)
    stamp, file = file_stamp(path), identify(path_or_name)
    _remember_place(path, file.sha256)
    settings = {
        "sha256": file.sha256,
        "member": member,
        "vocabulary": vocabulary.fingerprint,
        "seed": seed,
        "cased_fallback": cased_fallback,
        "version": LOADER_VERSION,
    }
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    entry = cache_folder() / "glove" / "vectors" / f"{key}.vectors"
    if (vectors := _load_entry(entry, key)) is not None:
        return vectors, file
    if (reason := describe_wrong_beginning(path, TEXT_FORMAT)) is not None:
        raise GloveFileError(path, reason)
    vectors = load_vectors(path, vocabulary, seed=seed, member=member, cased_fallback=cased_fallback)
    require_unchanged(path, stamp)
    arrays = io.BytesIO()
    np.savez(arrays, matrix=vectors.matrix, found=vectors.found, other_case=vectors.other_case)
    content = _checksum(key, arrays.getvalue()) + arrays.getvalue()
    write_entry(entry, lambda: write_bytes(entry, content), max_entries=MAX_MATRICES)
    return vectors, file


def find_file(sha256: str) -> Path | None:
    """Return the file with this checksum that word vectors were read from on this machine, if it is still there."""
    with contextlib.suppress(OSError):
        path = Path(_place(sha256).read_text(encoding="utf-8"))
        if path.is_file() and checksums(path).sha256 == sha256:
            return path
    cached = (published.cached_path for published in PUBLISHED.values())
    return next((path for path in cached if path.is_file() and checksums(path).sha256 == sha256), None)


def _remember_place(path: Path, sha256: str) -> None:
    place, text = _place(sha256), str(path.resolve())
    with contextlib.suppress(OSError):
        if place.read_text(encoding="utf-8") == text:
            return
    write_entry(place, lambda: write_text(place, text), max_entries=MAX_PLACES)


def _place(sha256: str) -> Path:
    return cache_folder() / "glove" / "places" / f"{sha256}.txt"


def _load_entry(entry: Path, key: str) -> WordVectors | None:
    """Return the vectors of an entry of the cache, if it is there and undamaged."""
    try:
        content = entry.read_bytes()
    except OSError:
        return None
    if _checksum(key, content[32:]) != content[:32]:
        log.warning("%s: damaged; the word vectors are read from their file again", entry)
        return None
    with contextlib.suppress(OSError):
        os.utime(entry)  # the least recently used entries are removed
    with np.load(io.BytesIO(content[32:]), allow_pickle=False) as arrays:
        return WordVectors(arrays["matrix"], arrays["found"], arrays["other_case"])


def _checksum(key: str, content: bytes) -> bytes:
    """Return 32 bytes that an entry begins with: a damaged entry or one under another name has others."""
    return hashlib.sha256(key.encode() + content).digest()


def _locate(path_or_name: str | os.PathLike[str]) -> Path:
    if path_or_name in PUBLISHED:
        return PUBLISHED[str(path_or_name)].fetch()
    return existing_file(Path(path_or_name), what="word vectors")
