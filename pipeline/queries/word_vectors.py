"""Word vectors of a vocabulary, from a file in GloVe's format or a published one by name, read once and then remembered.

A published name stands for a zip in the cache, which is fetched on first use.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from excl.datasets.text.glove import WordVectors, load_vectors
from excl.datasets.text.glove_files import PUBLISHED, published_file
from excl.datasets.text.tokens import Vocabulary
from excl.pipeline.config import existing_file
from excl.pipeline.queries import glove_download, vector_cache
from excl.pipeline.queries.vector_cache import Checksums, FileStamp

LOADER_VERSION = 1  # raise it when a change alters what load_vectors gives, or matrices of the old one are used


@dataclass(frozen=True)
class GloveFile:
    """A file of word vectors, by its content."""

    file: str
    """Its name without the folder."""
    sha256: str
    sha1: str
    known: str | None
    """The name of the published file that it is, or whose text it holds; None if it is none."""


def local_file(path_or_name: str | os.PathLike[str]) -> Path | None:
    """The file that is meant; None for `6B` and `840B`, whose file is in the cache or has to be fetched."""
    return None if path_or_name in PUBLISHED else Path(path_or_name)


def identify(path_or_name: str | os.PathLike[str]) -> GloveFile:
    """What a file is; its bytes are read unless their checksums are remembered. Fetches `6B` and `840B` on first use."""
    path = _path(path_or_name)
    return _described(path, vector_cache.checksums(path))


def identify_known(path_or_name: str | os.PathLike[str]) -> GloveFile | None:
    """What a file is if its checksums are remembered, or None: then `vectors_for` computes them while it reads."""
    path = _path(path_or_name)
    known = vector_cache.known_checksums(path)
    return None if known is None else _described(path, known)


def vectors_for(
    path_or_name: str | os.PathLike[str],
    vocabulary: Vocabulary,
    *,
    seed: int = 0,
    member: str | None = None,
    cased_fallback: bool = False,
) -> tuple[WordVectors, GloveFile]:
    """The vectors of a vocabulary, as `load_vectors` has them, and what file they are from.

    The file is a path, or `6B` or `840B` for the published ones with 300 numbers a word. What was read before is
    remembered, by the content of the file and all settings, and then the file is not opened. ValueError as `load_vectors`.
    """
    path = _path(path_or_name)
    if path_or_name in PUBLISHED and member is None:
        member = PUBLISHED[str(path_or_name)].text
    stamp, sums = FileStamp.of(path), vector_cache.known_checksums(path)

    def load() -> WordVectors:
        if (wrong := glove_download.describe_wrong_file(path)) is not None:
            raise ValueError(f"{path}: {wrong}")
        return load_vectors(path, vocabulary, seed=seed, member=member, cased_fallback=cased_fallback)

    def made_from(sums: Checksums) -> dict[str, str | int | bool | None]:
        return {
            "sha256": sums.sha256,
            "member": member,
            "vocabulary": vocabulary.fingerprint,
            "seed": seed,
            "cased_fallback": cased_fallback,
            "version": LOADER_VERSION,
        }

    if sums is not None and (vectors := vector_cache.load_cached(made_from(sums))) is not None:
        return vectors, _described(path, sums)
    if sums is not None:
        vectors = load()
    else:
        with vector_cache.checksums_beside(path) as result:
            vectors = load()
            sums = result()
    stamp.require(path)
    vector_cache.save_cached(made_from(sums), vectors)
    return vectors, _described(path, sums)


def _path(path_or_name: str | os.PathLike[str]) -> Path:
    if path_or_name in PUBLISHED:
        return glove_download.fetch(str(path_or_name))
    return existing_file(Path(path_or_name), what="word vectors")


def _described(path: Path, sums: Checksums) -> GloveFile:
    known = published_file(sums.sha1)
    for one in PUBLISHED.values():
        if known is None and vector_cache.known_text_sha1(path, one.text) == one.text_sha1:
            known = one.text
    return GloveFile(path.name, sums.sha256, sums.sha1, known)
