"""GloVe's files: the published ones and how they are known, and how a text is opened, alone or in a zip."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

BASE_URL = "https://nlp.stanford.edu/data/"


@dataclass(frozen=True)
class PublishedGlove:
    """A zip as Stanford publishes it. Its text is what counts: the zip may have been made again since."""

    file_name: str
    sha1: str
    text: str
    """The member with 300 numbers a word."""
    text_sha1: str

    @property
    def url(self) -> str:
        """Where it is fetched from."""
        return BASE_URL + self.file_name


# The sha1s are those of Apache MXNet's contrib.text, which others repeat.
PUBLISHED = {
    "6B": PublishedGlove(
        "glove.6B.zip",
        "b64e54f1877d2f735bdd000c1d7d771e25c7dfdc",
        "glove.6B.300d.txt",
        "646443dd885090927f8215ecf7a677e9f703858d",
    ),
    "840B": PublishedGlove(
        "glove.840B.300d.zip",
        "8084fbacc2dee3b1fd1ca4cc534cbfff3519ed0d",
        "glove.840B.300d.txt",
        "294b9f37fa64cce31f9ebb409c266fc379527708",
    ),
}


def published_file(sha1: str) -> str | None:
    """The name of the published file, zip or text, that has this sha1."""
    names = {one.sha1: one.file_name for one in PUBLISHED.values()}
    names |= {one.text_sha1: one.text for one in PUBLISHED.values()}
    return names.get(sha1)


def is_zip(path: Path) -> bool:
    """Whether a file is to be read as a zip: by its name, or by how it begins."""
    if path.suffix.lower() == ".zip":
        return True
    with path.open("rb") as file:
        return file.read(4) in {b"PK\3\4", b"PK\5\6"}


def texts_in(path: Path) -> list[str]:
    """The names of the .txt in a zip; ValueError if it cannot be read."""
    with path.open("rb") as file, _damage_told(path), zipfile.ZipFile(file) as archive:
        return _texts(archive)


@contextmanager
def open_text(path: Path, member: str | None) -> Iterator[tuple[Callable[[int], bytes], str]]:
    """What reads up to so many bytes, and a name for messages; damage of a zip that shows on the way is a ValueError."""
    if not is_zip(path):
        if member is not None:
            raise ValueError(f"{path}: is no .zip, so it has no member {member!r}; leave the member out")
        with path.open("rb", buffering=0) as plain:
            yield plain.read, str(path)
        return
    with path.open("rb") as file:
        with _damage_told(path):
            archive = zipfile.ZipFile(file)
        name = _member(archive, path, member)
        with _damage_told(path):
            packed = archive.open(name)

        def read(num_bytes: int) -> bytes:
            with _damage_told(path):
                return packed.read(num_bytes)

        yield read, f"{path}[{name}]"


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of a damaged zip anything can come
        reason = str(error) or type(error).__name__
        raise ValueError(
            f"{path}: cannot be unpacked ({reason}); download it again, or unpack it and give the .txt"
        ) from error


def _texts(archive: zipfile.ZipFile) -> list[str]:
    """The text files in a zip, without macOS's shadows of them."""
    return [name for name in archive.namelist() if name.endswith(".txt") and not name.startswith("__MACOSX/")]


def _member(archive: zipfile.ZipFile, path: Path, member: str | None) -> str:
    """The name of the text file to read."""
    names = _texts(archive)
    if member is not None and member in archive.namelist():
        return member
    if member is None and len(names) == 1:
        return names[0]
    wanted = "one .txt" if member is None else repr(member)
    advice = "say which with --glove-member NAME" if names else "is it a GloVe archive?"
    raise ValueError(f"{path}: wanted {wanted} in it, found {len(names)} .txt: {', '.join(names[:8])}; {advice}")
