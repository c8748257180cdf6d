"""Word vectors: reads GloVe's text format, alone or in the zip it is distributed in, leaves a matrix for a vocabulary.

A line is a word and its numbers, separated by single spaces. glove.840B has words with spaces in them (`. . .`), so a line
is read from the right; it is 5.6 GB of text, so it is read once: numbers are parsed for words of the vocabulary alone, and
reading stops at the last of these. A first line of two whole numbers, as word2vec's text format has it, is skipped.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from excl.datasets.text.glove_files import MAX_LINE_BYTES, TextSource, find_text, read_lines
from excl.datasets.text.vocabulary import PAD, UNK, Vocabulary

MAX_DIM = 10_000
DEFAULT_SCALE = 0.1  # where no word has a vector; about the size of GloVe's own entries and of common initialisations
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

# V: words in the vocabulary, D: numbers in a vector


@dataclass(frozen=True, eq=False)
class WordVectors:
    """A vector for every index of a vocabulary, and which of them the file has."""

    matrix: NDArray[np.float32]  # [V, D]
    found: NDArray[np.bool_]  # [V]; false for the two specials
    other_case: NDArray[np.bool_]  # [V]; true where the vector is that of the same word in other case

    @property
    def dim(self) -> int:
        """The size D of a vector."""
        return self.matrix.shape[1]


class _Line(NamedTuple):
    number: int
    word: bytes  # up to the first space
    text: bytes


def load_vectors(
    path: Path, vocabulary: Vocabulary, *, seed: int = 0, member: str | None = None, cased_fallback: bool = False
) -> WordVectors:
    """Return the vectors [V, D] of a vocabulary, D as in the file's first line; the first of a word's lines counts.

    `path` is a text file or a .zip, of which `member` names the file to read if it holds several .txt. With
    `cased_fallback` a word that the file lacks takes the first vector of the same word in other case. The row of PAD is
    zero. Rows of UNK and of words without a vector are drawn from N(0, s²), s the standard deviation of all numbers read
    (DEFAULT_SCALE where there are none), by a generator seeded with (seed, the word) alone: another vocabulary can
    change such a row by a factor only. ValueError names file and line of a word of the vocabulary whose numbers are too
    many, too few, not finite or not numbers, and a file that does not hold vectors.
    """
    with np.errstate(over="ignore"):
        rows, other_case, dim = _read_rows(find_text(path, member), vocabulary, cased_fallback)
    matrix = np.zeros((len(vocabulary), dim), dtype=np.float32)  # [V, D]
    has_row, has_other_case = np.zeros((2, len(vocabulary)), dtype=np.bool_)  # [V] each
    for index, row in rows.items():
        matrix[index], has_row[index], has_other_case[index] = row, True, index in other_case
    scale = (float(matrix[has_row].std(dtype=np.float64)) if rows else 0.0) or DEFAULT_SCALE
    for index, word in enumerate(vocabulary.words):
        if index != PAD and not has_row[index]:
            generator = np.random.default_rng([seed, zlib.crc32(word.encode())])
            matrix[index] = generator.normal(0.0, scale, dim)
    return WordVectors(matrix, has_row, has_other_case)


def peek(path: Path, *, member: str | None = None) -> tuple[str, int]:
    """Return the first word of a file and how many numbers it has; ValueError if the file does not begin with a vector."""
    source = find_text(path, member)
    with np.errstate(over="ignore"):
        _, text, dim = _first_vector(enumerate(read_lines(source), 1), source)
    return text[: text.find(b" ")].decode(errors="replace"), dim


def is_truncated(path: Path) -> bool:
    """Return whether the last line of a text lacks numbers that the first line has."""
    _, dim = peek(path)
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - MAX_LINE_BYTES))
        text = file.read().rstrip(b" \r\n").rpartition(b"\n")[2]
    _, *fields = text.rsplit(b" ", dim)
    with np.errstate(over="ignore"):
        return len(fields) != dim or _numbers(fields) is None


def _read_rows(
    source: TextSource, vocabulary: Vocabulary, cased_fallback: bool
) -> tuple[dict[int, NDArray[np.float32]], set[int], int]:
    """Return the vector [D] of every index that the file has a word for; which of them are in other case; D."""
    missing = {word.encode(): index for index, word in enumerate(vocabulary.words) if index not in (PAD, UNK)}
    missing_lower = {_lower(word) for word in missing} if cased_fallback else set()
    lines = enumerate(read_lines(source), 1)
    first_number, first_text, dim = _first_vector(lines, source)
    rows: dict[int, NDArray[np.float32]] = {}
    other_case: dict[bytes, _Line] = {}  # the first line of a word, whatever its case
    for number, text in chain([(first_number, first_text)], lines):  # this loop decides how fast a file is read
        space = text.find(b" ")
        # No word of a vocabulary has a space in it. The word up to the first space may begin a longer word, as `. . .`.
        word = text[:space] if space >= 0 else text.strip()
        if word in missing and (row := _parse(_Line(number, word, text), dim, source)) is not None:
            rows[missing.pop(word)] = row
        if missing_lower and (lower := _lower(word)) in missing_lower:
            line = _Line(number, word, text)
            if not _is_longer_word(line, dim):
                other_case[lower] = line
                missing_lower.discard(lower)
        if not missing:
            break
    substitutes = {index: other_case[_lower(word)] for word, index in missing.items() if _lower(word) in other_case}
    for index, line in substitutes.items():
        row = _parse(line, dim, source)
        assert row is not None
        rows[index] = row
    return rows, set(substitutes), dim


def _lower(word: bytes) -> bytes:
    """Return a UTF-8 word in lower case; bytes that are not UTF-8 stay."""
    if word.isascii():
        return word.lower()
    return word.decode(errors="surrogateescape").lower().encode(errors="surrogateescape")


def _first_vector(lines: Iterator[tuple[int, bytes]], source: TextSource) -> tuple[int, bytes, int]:
    """Return number and text of the first line with a vector, after a header perhaps, and D; ValueError if it has none."""
    number, text = next(lines, (1, b""))
    text = text.removeprefix(BYTE_ORDER_MARK)
    fields, header_dim = text.split(), None
    if len(fields) == 2 and all(field.isdigit() and len(field) < 19 for field in fields):
        header_dim = int(fields[1])
        number, text = next(lines, (2, b""))
    fields = text.rstrip(b" \r\n").split(b" ")
    dim = len(fields) - 1
    if dim < 1 or _numbers(fields[1:]) is None:
        raise ValueError(
            f"{source}:{number}: found {_shown(text)}; expected a word and its numbers, separated by single spaces, "
            "as in glove.6B.300d.txt"
        )
    if dim > MAX_DIM:
        raise ValueError(f"{source}:{number}: {dim:,} numbers for {_shown(fields[0])}; at most {MAX_DIM:,} are allowed")
    if header_dim not in (None, dim):
        raise ValueError(f"{source}: the header promises {header_dim} numbers a word, line {number} has {dim}")
    return number, text, dim


def _is_longer_word(line: _Line, dim: int) -> bool:
    """Return whether the line is that of a word with spaces, which only begins as the word of the vocabulary."""
    head, *fields = line.text.rstrip(b" \r\n").rsplit(b" ", dim)
    return len(fields) == dim and head != line.word and _numbers(head.split()[1:]) is None


def _parse(line: _Line, dim: int, source: TextSource) -> NDArray[np.float32] | None:
    """Return the vector [D] of a line; None if its word only begins a longer word."""
    if _is_longer_word(line, dim):
        return None
    head, *fields = line.text.rstrip(b" \r\n").rsplit(b" ", dim)
    place = f"{source}:{line.number}"
    if len(fields) != dim or head != line.word:
        num_fields = len(line.text.split()) - 1
        raise ValueError(
            f"{place}: {num_fields} numbers for {_shown(line.word)}; the first line has {dim}. Is the file damaged?"
        )
    row = _numbers(fields)
    if row is None or not np.isfinite(row).all():
        raise ValueError(
            f"{place}: the vector of {_shown(line.word)} holds something that is no finite number: {_shown(line.text)}"
        )
    return row


def _numbers(fields: list[bytes]) -> NDArray[np.float32] | None:
    """Return the fields as float32, infinite beyond its range; None if one is not a number."""
    try:
        return np.array(list(map(float, fields)), dtype=np.float64).astype(np.float32)
    except ValueError:
        return None


def _shown(text: bytes) -> str:
    """Return the beginning of a line for a message."""
    return repr(text[:40])
