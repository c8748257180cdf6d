"""Word vectors' files: list the published ones, fetch them, say what files are or what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic.dataclasses import dataclass

from excl.datasets.parsing import printable
from excl.datasets.text.glove import is_truncated, peek
from excl.datasets.text.glove_files import is_zip, texts_in
from excl.models.files import describe_wrong_beginning
from excl.pipeline.artifacts.file_cache import checksums
from excl.pipeline.config import STRICT, WithoutPrefix, subcommand
from excl.pipeline.queries.published_glove import PUBLISHED, TEXT_FORMAT, published_file, sha1_of_text
from excl.pipeline.tools.assets import AssetKind, AssetReport, ListAssets, VerifyAssets, num_wrong, show

__all__ = ["GloveConfig", "num_wrong", "run", "show"]


@dataclass(frozen=True, config=STRICT)
class FetchGlove:
    """Download published word vectors into the cache (EXCL_CACHE, or the platform's cache folder), and verify them.

    A download that was interrupted resumes."""

    names: Annotated[tyro.conf.Positional[tuple[Literal["6B", "840B"], ...]], tyro.conf.arg(metavar="NAME …")]
    """Vectors to download: 6B (400,000 words, lower-case; 0.9 GB) or 840B (2.2 million words, cased; 2.2 GB)."""

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
    """Word vectors in GloVe's format: list the published ones, fetch them, say what files are."""

    action: WithoutPrefix[Action]
    """The action to take."""


class _GloveFiles(AssetKind):
    command, published = "glove", PUBLISHED

    def paths(self) -> dict[str, Path]:
        return {name: published.cached_path for name, published in PUBLISHED.items()}

    def defaults(self, name: str) -> dict[str, Any]:  # noqa: ARG002
        return {"texts": [], "sha1": None, "sha256": None}

    def inspect(self, path: Path, published: str | None) -> tuple[str, dict[str, Any]]:
        if (reason := describe_wrong_beginning(path, TEXT_FORMAT)) is not None:
            raise ValueError(reason)
        sums = checksums(path)
        file_name = published_file(sums.sha1)
        if is_zip(path):
            texts = _texts(path, hashed=file_name is None)
        else:
            texts = [_text(path, None, file_name)]
            if is_truncated(path):
                raise ValueError("the last line lacks numbers: the file is cut short, or not of word vectors")
        if published is not None and (difference := PUBLISHED[published].mismatch(path)) is not None:
            raise ValueError(f"not the published {PUBLISHED[published].file_name}: {difference}")
        facts = {"published": file_name, "texts": texts, "sha1": sums.sha1, "sha256": sums.sha256}
        return f"{_describe(file_name, texts)}; sha1 {sums.sha1}", facts


def _text(path: Path, member: str | None, published: str | None) -> dict[str, Any]:
    """Return what a text of vectors is: its name, its numbers a word, its first word, and which published text it is."""
    first_word, dim = peek(path, member=member)
    return {"name": member or path.name, "dim": dim, "first_word": first_word, "published": published}


def _texts(path: Path, *, hashed: bool) -> list[dict[str, Any]]:
    """Return the texts in a zip; if hashed, every text is read to its end, which also finds damage."""
    texts, errors = [], []
    for member in texts_in(path):
        published = published_file(sha1_of_text(path, member)) if hashed else member
        try:
            texts.append(_text(path, member, published))
        except ValueError as error:
            errors.append(error)
    if not texts:
        raise errors[0] if errors else ValueError("a zip without a .txt in it; expected one with GloVe's texts")
    return texts


def _describe(published: str | None, texts: list[dict[str, Any]]) -> str:
    """Return which published file it is, or what its texts are."""
    if published:
        return f"the published {published}, {' and '.join(str(text['dim']) for text in texts)} numbers a word"
    parts = [
        f"in it the published {text['published']}, {text['dim']} numbers a word"
        if text["published"]
        else f"{printable(text['name'])} has {text['dim']} numbers a word, the first word is {text['first_word']!r}"
        for text in texts
    ]
    if any(text["published"] for text in texts):
        return f"a zip that was rebuilt, {', '.join(parts)}"
    return f"{', '.join(parts)}; not a published file"


def run(config: GloveConfig) -> AssetReport:
    """Do what the subcommand says."""
    action = config.action
    match action:
        case ListAssets():
            return _GloveFiles().list_files(action)
        case VerifyAssets():
            return _GloveFiles().verify(action)
        case FetchGlove():
            return _GloveFiles().fetch(action.names)
