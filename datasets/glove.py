"""Word vectors: reads GloVe's text format, alone or in the zip it is distributed in, leaves a matrix for a vocabulary.

A line is a word and its numbers, separated by single spaces. glove.840B has words with spaces in them (`. . .`), so a
line is read from the right; it is 5.6 GB of text, so it is streamed as bytes, numbers are parsed for wanted words only,
and reading stops at the last of these. A first line of two whole numbers, as word2vec's text format has it, is skipped.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from excl.datasets.text import PAD, UNK, Vocabulary

BUFFER_BYTES = 1 << 20
DAMAGED_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)  # the last: encrypted, or a rare method
SCALE_OF_NOTHING = 0.1  # where no word was found; about the size of GloVe's own entries and of common initialisations

# V: words in the vocabulary, D: numbers in a vector


@dataclass(frozen=True, eq=False)
class WordVectors:
    """A vector for every index of a vocabulary, and which of them the file had."""

    matrix: NDArray[np.float32]  # [V, D]
    found: NDArray[np.bool_]  # [V]; false for the two specials

    @property
    def dim(self) -> int:
        """D."""
        return self.matrix.shape[1]


def load_vectors(path: Path, vocabulary: Vocabulary, *, seed: int = 0, member: str | None = None) -> WordVectors:
    """Vectors [V, D] of a vocabulary, D as the file's first line has it; the first of a word's lines counts.

    `path` is a text file or a .zip, of which `member` names the file to read if it holds several .txt. The row of PAD
    is zero. Rows of UNK and of words that the file lacks are drawn from N(0, s²), s the standard deviation of all
    numbers found (SCALE_OF_NOTHING where there are none), by a generator seeded with (seed, the word) alone: another
    vocabulary can change such a row by a factor only. ValueError names file and line of a wanted word whose numbers
    are too many, too few, not finite or not numbers.
    """
    with _open(path, member) as (stream, name):
        rows, dim = _read_rows(stream, name, vocabulary)
    matrix = np.zeros((len(vocabulary), dim), dtype=np.float32)  # [V, D]
    found = np.zeros(len(vocabulary), dtype=np.bool_)  # [V]
    for index, row in rows.items():
        matrix[index], found[index] = row, True
    scale = (float(matrix[found].std(dtype=np.float64)) if rows else 0.0) or SCALE_OF_NOTHING
    for index, word in enumerate(vocabulary.words):
        if index != PAD and not found[index]:
            generator = np.random.default_rng([seed, zlib.crc32(word.encode())])
            matrix[index] = generator.normal(0.0, scale, dim)
    return WordVectors(matrix, found)


def _read_rows(stream: BinaryIO, name: str, vocabulary: Vocabulary) -> tuple[dict[int, NDArray[np.float32]], int]:
    """The vector [D] of every index that the file has a word for, and D."""
    wanted = {word.encode(): index for index, word in enumerate(vocabulary.words) if index not in (PAD, UNK)}
    first_number, first, dim = _first_line(stream, name)
    rows: dict[int, NDArray[np.float32]] = {}
    for line_number, line in enumerate(chain([first], stream), first_number):
        if not wanted:
            break
        # No word of ours has a space in it, so most lines end here. The rest may still be a longer word, as `. . .`.
        word = line[: line.find(b" ")] if b" " in line else line.strip()
        if word in wanted:
            row = _parse(line, word, dim, f"{name}:{line_number}")
            if row is not None:
                rows[wanted.pop(word)] = row
    return rows, dim


def _first_line(stream: BinaryIO, name: str) -> tuple[int, bytes, int]:
    """Line number and text of the first vector, and D. ValueError where it is not one word and numbers."""
    line_number, line, header_dim = 1, stream.readline(BUFFER_BYTES), None
    fields = line.split()
    if len(fields) == 2 and all(field.isdigit() for field in fields):
        header_dim = int(fields[1])
        line_number, line = 2, stream.readline(BUFFER_BYTES)
    dim = len(line.rstrip(b" \r\n").split(b" ")) - 1
    if dim < 1 or _numbers(line.rstrip(b" \r\n").split(b" ")[1:]) is None:
        raise ValueError(
            f"{name}:{line_number}: found {_shown(line)}; wanted a word and its numbers, separated by single spaces, "
            "as in glove.6B.300d.txt"
        )
    if header_dim not in (None, dim):
        raise ValueError(f"{name}: the header promises {header_dim} numbers a word, line {line_number} has {dim}")
    return line_number, line, dim


def _parse(line: bytes, word: bytes, dim: int, where: str) -> NDArray[np.float32] | None:
    """The vector [D] of a line that begins with a wanted word; None where that only begins a longer word."""
    head, *fields = line.rstrip(b" \r\n").rsplit(b" ", dim)
    if len(fields) == dim and head != word and _numbers(head.split()[1:]) is None:
        return None
    if len(fields) != dim or head != word:
        num_found = len(line.split()) - 1
        raise ValueError(f"{where}: {num_found} numbers for {_shown(word)}; the first line has {dim}. Is the file damaged?")
    row = _numbers(fields)
    if row is None or not np.isfinite(row).all():
        raise ValueError(f"{where}: the vector of {_shown(word)} holds something that is no finite number: {_shown(line)}")
    return row


def _numbers(fields: list[bytes]) -> NDArray[np.float32] | None:
    """The fields as float32, beyond its range as infinity; None where one is no number."""
    try:
        with np.errstate(over="ignore"):
            return np.array([float(field) for field in fields], dtype=np.float64).astype(np.float32)
    except ValueError:
        return None


@contextmanager
def _open(path: Path, member: str | None) -> Iterator[tuple[BinaryIO, str]]:
    """A stream of bytes and its name for messages; damage that shows while it is read becomes a ValueError."""
    if path.suffix.lower() != ".zip":
        if member is not None:
            raise ValueError(f"{path}: is no .zip, so it has no member {member!r}; leave the member out")
        with path.open("rb", buffering=BUFFER_BYTES) as plain:
            yield plain, str(path)
        return
    try:
        with zipfile.ZipFile(path) as archive:
            name = _member(archive, path, member)
            with archive.open(name) as packed:
                # Lines come six times as fast through a buffer. The stub hides that a member is a raw stream too.
                stream = io.BufferedReader(cast(io.RawIOBase, packed), BUFFER_BYTES)
                yield stream, f"{path}[{name}]"
    except DAMAGED_ZIP as error:
        raise ValueError(
            f"{path}: cannot be unpacked ({error}); download it again, or unpack it and give the .txt"
        ) from error


def _member(archive: zipfile.ZipFile, path: Path, member: str | None) -> str:
    """The name of the text file to read."""
    names = [name for name in archive.namelist() if name.endswith(".txt")]
    if member is not None and member in archive.namelist():
        return member
    if member is None and len(names) == 1:
        return names[0]
    wanted = "one .txt" if member is None else repr(member)
    advice = "name the member to read" if names else "is it a GloVe archive?"
    raise ValueError(f"{path}: wanted {wanted} in it, found {len(names)} .txt: {', '.join(names[:8])}; {advice}")


def _shown(text: bytes) -> str:
    """The beginning of a line for a message."""
    return repr(text[:40])
