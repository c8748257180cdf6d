"""Word vectors for a vocabulary, and which file they came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from excl.datasets.glove import WordVectors, load_vectors
from excl.datasets.text import Vocabulary
from excl.pipeline.config import existing_file
from excl.pipeline.manifest import sha256_file


@dataclass(frozen=True)
class GloveFile:
    """A file of word vectors; `known` is the published name of one of known content."""

    file: str
    sha256: str
    sha1: str
    known: str | None


def local_file(name: str) -> Path | None:
    """The file of that name; None for one that is still to be downloaded."""
    return Path(name)


def identify(name: str) -> GloveFile:
    """Which file it is."""
    path = existing_file(Path(name), what="word vectors")
    return GloveFile(path.name, sha256_file(path), "", None)


def vectors_for(
    name: str, vocabulary: Vocabulary, *, seed: int, member: str | None = None, cased_fallback: bool = False
) -> tuple[WordVectors, GloveFile]:
    """The vectors and their file."""
    assert not cased_fallback
    return load_vectors(Path(name), vocabulary, seed=seed, member=member), identify(name)
