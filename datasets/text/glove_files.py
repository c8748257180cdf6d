"""The lines of a text in GloVe's format, in a file of its own or in a zip."""

from __future__ import annotations

import contextlib
import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BLOCK_BYTES = 1 << 20
MAX_LINE_BYTES = 1 << 20  # that of a word and 300 numbers has 2,500


class GloveFileError(ValueError):
    """A file that cannot be read as word vectors, and the reason."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.reason = reason


@dataclass(frozen=True)
class TextSource:
    """A text file, or a member of a zip."""

    path: Path
    member: str | None

    def __str__(self) -> str:
        return str(self.path) if self.member is None else f"{self.path}[{self.member}]"


def is_zip(path: Path) -> bool:
    """Return whether a file is a zip by its name or by its beginning."""
    if path.suffix.lower() == ".zip":
        return True
    with path.open("rb") as file:
        return file.read(4) in {b"PK\3\4", b"PK\5\6"}


def texts_in(path: Path) -> list[str]:
    """Return the names of the .txt in a zip, without macOS's shadows of them; GloveFileError if it cannot be read."""
    return [name for name in _members(path) if name.endswith(".txt") and not name.startswith("__MACOSX/")]


def _members(path: Path) -> list[str]:
    with unzip_errors(path), zipfile.ZipFile(path) as archive:
        return archive.namelist()


def find_text(path: Path, member: str | None) -> TextSource:
    """Return the text to read: the file, the member of a zip, or the only .txt in it; GloveFileError if there is none."""
    if not is_zip(path):
        if member is not None:
            raise GloveFileError(path, f"is no .zip, so it has no member {member!r}; leave the member out")
        return TextSource(path, None)
    if member is not None and member in _members(path):
        return TextSource(path, member)
    names = texts_in(path)
    if member is None and len(names) == 1:
        return TextSource(path, names[0])
    description = "one .txt" if member is None else repr(member)
    advice = "say which with --glove-member NAME" if names else "is it a GloVe archive?"
    raise GloveFileError(path, f"expected {description} in it, found {len(names)} .txt: {', '.join(names[:8])}; {advice}")


@contextlib.contextmanager
def unzip_errors(path: Path) -> Iterator[None]:
    """Turn the errors of a damaged zip, which can be of any kind, into GloveFileError."""
    try:
        yield
    except Exception as error:
        reason = str(error) or type(error).__name__
        message = f"cannot be unpacked ({reason}); download it again, or unpack it and give the .txt"
        raise GloveFileError(path, message) from error


def _open_text(source: TextSource) -> io.BufferedReader:
    if source.member is None:
        return io.BufferedReader(source.path.open("rb", buffering=0), BLOCK_BYTES)
    return io.BufferedReader(zipfile.ZipFile(source.path).open(source.member), BLOCK_BYTES)  # type: ignore[arg-type]


def read_lines(source: TextSource) -> Iterator[bytes]:
    """Yield the lines of a text with their ends; never more than a block and a line in memory."""
    with unzip_errors(source.path) if source.member else contextlib.nullcontext(), _open_text(source) as file:
        while (line := file.readline(MAX_LINE_BYTES)) and (line.endswith(b"\n") or len(line) < MAX_LINE_BYTES):
            yield line
        start = file.tell() - len(line)
    if line:
        raise ValueError(
            f"{source}: no line feed in {MAX_LINE_BYTES:,} bytes from byte {start:,} on, {line[:40]!r}; "
            "expected a line for every word, as in glove.6B.300d.txt"
        )
