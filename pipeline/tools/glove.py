"""Word vectors' files: list the published ones, fetch them, say what files are or what is wrong with them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic.dataclasses import dataclass

from excl.datasets.parsing import printable
from excl.datasets.text.glove import is_truncated, peek
from excl.datasets.text.glove_files import is_zip, texts_in
from excl.models.files import describe_wrong_beginning
from excl.pipeline.artifacts.file_cache import checksums
from excl.pipeline.config import STRICT, WithoutPrefix, subcommand
from excl.pipeline.queries.published_glove import PUBLISHED, TEXT_FORMAT, published_file, sha1_of_text
from excl.pipeline.tools.assets import (
    AssetFinding,
    AssetKind,
    AssetReport,
    ListAssets,
    VerifyAssets,
    fetch_assets,
    list_assets,
    num_wrong,
    show,
    verify_assets,
)

__all__ = ["GloveConfig", "num_wrong", "run", "show"]


@dataclass(frozen=True, config=STRICT)
class FetchGlove:
    """Download published word vectors into the cache (EXCL_CACHE, or the platform's cache folder), and verify them.

    A download that was interrupted resumes."""

    names: Annotated[tyro.conf.Positional[tuple[Literal["6B", "840B"], ...]], tyro.conf.arg(metavar="NAME …")]
    """Which: 6B (400,000 words, lower-case; 0.9 GB) or 840B (2.2 million words, cased; 2.2 GB)."""

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError(f"say which word vectors to fetch: {', '.join(PUBLISHED)}")


Action = (
    Annotated[ListAssets, subcommand(ListAssets, "list")]
    | Annotated[FetchGlove, subcommand(FetchGlove, "fetch")]
    | Annotated[VerifyAssets, subcommand(VerifyAssets, "verify")]
)


@dataclass(frozen=True, config=STRICT)
class GloveConfig:
    """Word vectors in GloVe's format: list the published ones, fetch them, say of files what they are."""

    action: WithoutPrefix[Action]
    """What to do."""


@dataclasses.dataclass(frozen=True)
class GloveText:
    """A text of vectors: its name, how many numbers a word has, its first word, and which published text it is."""

    name: str
    dim: int
    first_word: str
    published: str | None = None

    def describe(self) -> str:
        """Return which published text it is, or the numbers a word has and the first word."""
        if self.published:
            return f"in it the published {self.published}, {self.dim} numbers a word"
        return f"{printable(self.name)} has {self.dim} numbers a word, the first word is {self.first_word!r}"


@dataclasses.dataclass(frozen=True)
class GloveFinding(AssetFinding):
    """A text of vectors, or a zip of them."""

    texts: tuple[GloveText, ...] = ()
    sha1: str | None = None

    def describe(self) -> str:
        """Return which published file it is, or what its texts are, and its checksum."""
        texts = ", ".join(text.describe() for text in self.texts)
        if self.published:
            summary = f"the published {self.published}, {' and '.join(str(text.dim) for text in self.texts)} numbers a word"
        elif any(text.published for text in self.texts):
            summary = f"a zip that was made again, {texts}"
        else:
            summary = f"{texts}; not a published file"
        return f"{summary}; sha1 {self.sha1}"


def _inspect(finding: GloveFinding, path: Path, published: str | None) -> GloveFinding:
    if (reason := describe_wrong_beginning(path, TEXT_FORMAT)) is not None:
        return dataclasses.replace(finding, wrong=reason)
    sums = checksums(path)
    known = published_file(sums.sha1)
    finding = dataclasses.replace(finding, published=known, sha1=sums.sha1, sha256=sums.sha256)
    if is_zip(path):
        finding = dataclasses.replace(finding, texts=_texts(path, hashed=known is None))
    else:
        first_word, dim = peek(path)
        finding = dataclasses.replace(finding, texts=(GloveText(path.name, dim, first_word, known),))
        if is_truncated(path):
            reason = "the last line lacks numbers: the file is cut short, or not of word vectors"
    if published is not None and (difference := PUBLISHED[published].mismatch(path)) is not None:
        reason = f"not the published {PUBLISHED[published].file_name}: {difference}"
    return dataclasses.replace(finding, wrong=reason)


def _texts(path: Path, *, hashed: bool) -> tuple[GloveText, ...]:
    """Return the texts in a zip; if hashed, every text is read to its end, which also finds damage."""
    texts, errors = [], []
    for member in texts_in(path):
        published = published_file(sha1_of_text(path, member)) if hashed else member
        try:
            first_word, dim = peek(path, member=member)
        except ValueError as error:
            errors.append(error)
        else:
            texts.append(GloveText(member, dim, first_word, published))
    if not texts:
        raise errors[0] if errors else ValueError("a zip without a .txt in it; wanted is one with GloVe's texts")
    return tuple(texts)


KIND = AssetKind(
    "glove",
    PUBLISHED,
    paths=lambda: {name: published.cached_path for name, published in PUBLISHED.items()},
    blank=lambda name, path: GloveFinding(name, path.name),
    inspect=_inspect,
)


def run(config: GloveConfig) -> AssetReport:
    """Do what the subcommand says."""
    action = config.action
    match action:
        case ListAssets():
            return list_assets(KIND, action)
        case VerifyAssets():
            return verify_assets(KIND, action)
        case FetchGlove():
            return fetch_assets(KIND, action.names)
