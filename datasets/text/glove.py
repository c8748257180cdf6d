"""Word vectors: reads GloVe's text format, alone or in the zip it is distributed in, leaves a matrix for a vocabulary.

A line is a word and its numbers, separated by single spaces. glove.840B has words with spaces in them (`. . .`), so a line
is read from the right; it is 5.6 GB of text, so it is read once, in blocks: of a line only the word is looked at, numbers
are parsed for wanted words alone, and reading stops at the last of these. A first line of two whole numbers, as
word2vec's text format has it, is skipped.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from excl.datasets.text.glove_files import open_text
from excl.datasets.text.tokens import PAD, UNK, Vocabulary

BLOCK_BYTES = 1 << 20  # fits a processor's cache, in which looking for line ends costs little beside reading
MAX_LINE_BYTES = 1 << 20  # that of a word and 300 numbers has 2,500
MAX_DIM = 10_000
SCALE_OF_NOTHING = 0.1  # where no word was found; about the size of GloVe's own entries and of common initialisations
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

# V: words in the vocabulary, D: numbers in a vector


@dataclass(frozen=True, eq=False)
class WordVectors:
    """A vector for every index of a vocabulary, and which of them the file had."""

    matrix: NDArray[np.float32]  # [V, D]
    found: NDArray[np.bool_]  # [V]; false for the two specials
    other_case: NDArray[np.bool_]  # [V]; true where what was found is the same word in other case

    @property
    def dim(self) -> int:
        """D."""
        return self.matrix.shape[1]


class _Line(NamedTuple):
    number: int
    word: bytes  # up to the first space
    text: bytes


class _Piece(NamedTuple):
    """Whole lines: content[start:stop]."""

    content: bytes
    start: int
    stop: int


def load_vectors(
    path: Path, vocabulary: Vocabulary, *, seed: int = 0, member: str | None = None, cased_fallback: bool = False
) -> WordVectors:
    """Vectors [V, D] of a vocabulary, D as the file's first line has it; the first of a word's lines counts.

    `path` is a text file or a .zip, of which `member` names the file to read if it holds several .txt. With
    `cased_fallback` a word that the file lacks takes the first vector of the same word in other case. The row of PAD is
    zero. Rows of UNK and of words without a vector are drawn from N(0, s²), s the standard deviation of all numbers found
    (SCALE_OF_NOTHING where there are none), by a generator seeded with (seed, the word) alone: another vocabulary can
    change such a row by a factor only. ValueError names file and line of a wanted word whose numbers are too many, too
    few, not finite or not numbers, and the file where it is none of vectors.
    """
    with open_text(path, member) as (read, name), np.errstate(over="ignore"):
        rows, other_case, dim = _read_rows(read, name, vocabulary, cased_fallback)
    matrix = np.zeros((len(vocabulary), dim), dtype=np.float32)  # [V, D]
    found, cased = np.zeros((2, len(vocabulary)), dtype=np.bool_)  # [V] each
    for index, row in rows.items():
        matrix[index], found[index], cased[index] = row, True, index in other_case
    scale = (float(matrix[found].std(dtype=np.float64)) if rows else 0.0) or SCALE_OF_NOTHING
    for index, word in enumerate(vocabulary.words):
        if index != PAD and not found[index]:
            generator = np.random.default_rng([seed, zlib.crc32(word.encode())])
            matrix[index] = generator.normal(0.0, scale, dim)
    return WordVectors(matrix, found, cased)


def peek(path: Path, *, member: str | None = None) -> tuple[str, int]:
    """The first word of a file and how many numbers it has; ValueError where the file does not begin with a vector."""
    with open_text(path, member) as (read, name), np.errstate(over="ignore"):
        first = _first_vector(_pieces(read, name), name)
    return first.line[: first.line.find(b" ")].decode(errors="replace"), first.dim


def cut_short(path: Path) -> bool:
    """Whether the last line of a text lacks numbers that the first has."""
    _, dim = peek(path)
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - MAX_LINE_BYTES))
        last = file.read().rstrip(b" \r\n").rpartition(b"\n")[2]
    _, *fields = last.rsplit(b" ", dim)
    with np.errstate(over="ignore"):
        return len(fields) != dim or _numbers(fields) is None


def _read_rows(
    read: Callable[[int], bytes], name: str, vocabulary: Vocabulary, cased_fallback: bool
) -> tuple[dict[int, NDArray[np.float32]], set[int], int]:
    """The vector [D] of every index that the file has a word for; which of them are in other case; D."""
    wanted = {word.encode(): index for index, word in enumerate(vocabulary.words) if index not in (PAD, UNK)}
    lowered = {_lower(word) for word in wanted} if cased_fallback else set()
    first = _first_vector(_pieces(read, name), name)
    dim = first.dim
    rows: dict[int, NDArray[np.float32]] = {}
    instead: dict[bytes, _Line] = {}  # the first line of a word, whatever its case
    for line in _lines(first.pieces, first.number, wanted, lowered) if wanted else ():
        if line.word in wanted and (row := _parse(line, dim, name)) is not None:
            rows[wanted.pop(line.word)] = row
        if lowered and (lower := _lower(line.word)) in lowered and not _is_longer_word(line, dim):
            instead[lower] = line
            lowered.discard(lower)
        if not wanted:
            break
    other_case = {index: instead[_lower(word)] for word, index in wanted.items() if _lower(word) in instead}
    for index, line in other_case.items():
        row = _parse(line, dim, name)
        assert row is not None
        rows[index] = row
    return rows, set(other_case), dim


def _lower(word: bytes) -> bytes:
    """A word in lower case, UTF-8; bytes that are none stay."""
    if word.isascii():
        return word.lower()
    return word.decode(errors="surrogateescape").lower().encode(errors="surrogateescape")


def _lines(pieces: Iterable[_Piece], number: int, wanted: dict[bytes, int], lowered: set[bytes]) -> Iterator[_Line]:
    """The lines that begin with a wanted word, or with one of `lowered` in whatever case. Both may shrink meanwhile.

    `number` is that of the first line.
    """
    for content, first, stop in pieces:
        start, find = first, content.find  # this loop decides how fast a file is read
        while start < stop:
            end = find(b"\n", start, stop)
            if end < 0:
                end = stop
            space = find(b" ", start, end)
            # No word of ours has a space in it, so most lines end here. The rest may still be a longer word, as `. . .`.
            word = content[start:space] if space >= 0 else content[start:end].strip()
            if word in wanted or (lowered and _lower(word) in lowered):
                yield _Line(number, word, content[start:end])
            start = end + 1
            number += 1


def _pieces(read: Callable[[int], bytes], name: str) -> Iterator[_Piece]:
    """A file in pieces of whole lines, the first one alone. Never more than a block and a line in memory."""
    rest, num_bytes = b"", 0
    while block := read(BLOCK_BYTES):
        first, last = block.find(b"\n") + 1, block.rfind(b"\n") + 1
        if len(rest) + (first or len(block)) > MAX_LINE_BYTES:
            raise ValueError(
                f"{name}: no line feed in {MAX_LINE_BYTES:,} bytes from byte {num_bytes - len(rest):,} on, "
                f"{_shown(rest + block[:40])}; wanted a line for every word, as in glove.6B.300d.txt"
            )
        num_bytes += len(block)
        if not first:
            rest += block
            continue
        yield _Piece(rest + block[:first], 0, len(rest) + first)
        if last > first:
            yield _Piece(block, first, last)
        rest = block[last:]
    if rest:
        yield _Piece(rest, 0, len(rest))


class _First(NamedTuple):
    """The first vector: its line, D, and the pieces from that line on."""

    number: int
    line: bytes
    dim: int
    pieces: Iterator[_Piece]


def _first_vector(pieces: Iterator[_Piece], name: str) -> _First:
    """Where the vectors begin. ValueError where the first line, or the one after a header, is not one word and numbers."""
    nothing = _Piece(b"", 0, 0)
    line = next(pieces, nothing).content.removeprefix(BYTE_ORDER_MARK)
    number, piece, header_dim = 1, _Piece(line, 0, len(line)), None
    fields = line.split()
    if len(fields) == 2 and all(field.isdigit() and len(field) < 19 for field in fields):
        number, piece, header_dim = 2, next(pieces, nothing), int(fields[1])
        end = piece.content.find(b"\n", piece.start)
        line = piece.content[piece.start : end if end >= 0 else piece.stop]
    fields = line.rstrip(b" \r\n").split(b" ")
    dim = len(fields) - 1
    if dim < 1 or _numbers(fields[1:]) is None:
        raise ValueError(
            f"{name}:{number}: found {_shown(line)}; wanted a word and its numbers, separated by single spaces, "
            "as in glove.6B.300d.txt"
        )
    if dim > MAX_DIM:
        raise ValueError(f"{name}:{number}: {dim:,} numbers for {_shown(fields[0])}; at most {MAX_DIM:,} are allowed")
    if header_dim not in (None, dim):
        raise ValueError(f"{name}: the header promises {header_dim} numbers a word, line {number} has {dim}")
    return _First(number, line, dim, chain([piece], pieces))


def _is_longer_word(line: _Line, dim: int) -> bool:
    """Whether the line is of a word with spaces, of which the first part is a word that was looked for."""
    head, *fields = line.text.rstrip(b" \r\n").rsplit(b" ", dim)
    return len(fields) == dim and head != line.word and _numbers(head.split()[1:]) is None


def _parse(line: _Line, dim: int, name: str) -> NDArray[np.float32] | None:
    """The vector [D] of a line; None where its word only begins a longer word."""
    head, *fields = line.text.rstrip(b" \r\n").rsplit(b" ", dim)
    if head != line.word and _is_longer_word(line, dim):
        return None
    where = f"{name}:{line.number}"
    if len(fields) != dim or head != line.word:
        found = len(line.text.split()) - 1
        raise ValueError(f"{where}: {found} numbers for {_shown(line.word)}; the first line has {dim}. Is the file damaged?")
    row = _numbers(fields)
    if row is None or not np.isfinite(row).all():
        raise ValueError(
            f"{where}: the vector of {_shown(line.word)} holds something that is no finite number: {_shown(line.text)}"
        )
    return row


def _numbers(fields: list[bytes]) -> NDArray[np.float32] | None:
    """The fields as float32, beyond its range as infinity; None where one is no number."""
    try:
        return np.array(list(map(float, fields)), dtype=np.float64).astype(np.float32)
    except ValueError:
        return None


def _shown(text: bytes) -> str:
    """The beginning of a line for a message."""
    return repr(text[:40])
