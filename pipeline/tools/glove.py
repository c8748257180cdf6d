"""Word vectors' files: what there is, fetch the published ones, say of files what they are or what is wrong with them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic.dataclasses import dataclass

from excl.datasets.parsing import printable
from excl.datasets.text.glove import cut_short, peek
from excl.datasets.text.glove_files import PUBLISHED, is_zip, published_file, texts_in
from excl.pipeline.config import STRICT, WithoutPrefix, subcommand
from excl.pipeline.queries.glove_download import cached_path, describe_wrong_file, fetch, mismatch
from excl.pipeline.queries.vector_cache import checksums, text_sha1

Name = Literal["6B", "840B"]


@dataclass(frozen=True, config=STRICT)
class ListGlove:
    """Show the published word vectors: where they are and whether they verify."""

    json: bool = False
    """Print one JSON object for each, for programs, in place of the table."""


@dataclass(frozen=True, config=STRICT)
class FetchGlove:
    """Download published word vectors into the cache (EXCL_CACHE, or the platform's cache folder), and verify them.

    A download that was interrupted goes on from where it stopped."""

    names: Annotated[tyro.conf.Positional[tuple[Name, ...]], tyro.conf.arg(metavar="NAME …")]
    """Which: 6B (400,000 words, lower-case; 0.9 GB) or 840B (2.2 million words, cased; 2.2 GB)."""

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError(f"say which word vectors to fetch: {', '.join(PUBLISHED)}")


@dataclass(frozen=True, config=STRICT)
class VerifyGlove:
    """Say of files what they are, or what is wrong with them. The exit code is 3 if something is wrong with one."""

    what: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="FILE_OR_NAME …")]
    """Files, texts or zips, or 6B and 840B for those in the cache."""
    json: bool = False
    """Print one JSON object for each, for programs, in place of a line."""

    def __post_init__(self) -> None:
        if not self.what:
            raise ValueError("say which files or names to verify")


Action = (
    Annotated[ListGlove, subcommand(ListGlove, "list")]
    | Annotated[FetchGlove, subcommand(FetchGlove, "fetch")]
    | Annotated[VerifyGlove, subcommand(VerifyGlove, "verify")]
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


@dataclasses.dataclass(frozen=True)
class GloveFinding:
    """One file: `wrong` says what is wrong with it, None if nothing is; `path` is None if there is no file."""

    name: str
    file: str
    path: str | None = None
    size: int | None = None
    wrong: str | None = None
    published: str | None = None
    texts: tuple[GloveText, ...] = ()
    sha1: str | None = None
    sha256: str | None = None


@dataclasses.dataclass(frozen=True)
class GloveReport:
    """What there is to say: findings, or lines of what was done."""

    findings: list[GloveFinding]
    kind: Literal["list", "verify", "done"]
    as_json: bool = False
    lines: tuple[str, ...] = ()


def run(config: GloveConfig) -> GloveReport:
    """Do what is asked for."""
    action = config.action
    match action:
        case ListGlove():
            return GloveReport([_look_up(name) for name in PUBLISHED], "list", action.json)
        case VerifyGlove():
            return GloveReport([_verify(what) for what in action.what], "verify", action.json)
        case FetchGlove():
            return GloveReport([], "done", lines=tuple(f"{name}: verified, in {fetch(name)}" for name in action.names))


def num_wrong(report: GloveReport) -> int:
    """How many of the files that were to be verified are wrong."""
    return sum(finding.wrong is not None for finding in report.findings) if report.kind == "verify" else 0


def show(report: GloveReport) -> str:
    """A table, or a line for each, or JSON lines."""
    if report.as_json:
        return "\n".join(json.dumps(dataclasses.asdict(finding)) for finding in report.findings)
    if report.kind == "list":
        return _table(report.findings)
    return "\n".join([*report.lines, *map(_line, report.findings)])


def _look_up(name: str) -> GloveFinding:
    path, published = cached_path(name), PUBLISHED[name]
    if not path.is_file():
        return GloveFinding(name, published.file_name)
    found = _verify_file(name, path)
    if found.wrong is None and (differing := mismatch(path, published)) is not None:
        return dataclasses.replace(found, wrong=f"not the published {published.file_name}: {differing}")
    return found


def _verify(what: str) -> GloveFinding:
    if what not in PUBLISHED:
        return _verify_file(what, Path(what))
    found = _look_up(what)
    if found.path is None:
        return dataclasses.replace(found, wrong=f"not in the cache; `excl glove fetch {what}` downloads it")
    return found


def _verify_file(name: str, path: Path) -> GloveFinding:
    found = GloveFinding(name, path.name)
    try:
        if not path.is_file():
            return dataclasses.replace(found, wrong="there is no such file")
        found = dataclasses.replace(found, path=str(path), size=path.stat().st_size)
        if (wrong := describe_wrong_file(path)) is not None:
            return dataclasses.replace(found, wrong=wrong)
        sums = checksums(path)
        published = published_file(sums.sha1)
        found = dataclasses.replace(found, published=published, sha1=sums.sha1, sha256=sums.sha256)
        if is_zip(path):
            return dataclasses.replace(found, texts=_texts(path, hashed=published is None))
        first_word, dim = peek(path)
        wrong = "the last line lacks numbers: the file is cut short, or not of word vectors" if cut_short(path) else None
        return dataclasses.replace(found, texts=(GloveText(path.name, dim, first_word, published),), wrong=wrong)
    except (ValueError, OSError) as error:
        return dataclasses.replace(found, wrong=str(error).removeprefix(f"{path}: "))


def _texts(path: Path, *, hashed: bool) -> tuple[GloveText, ...]:
    """What is in a zip. Hashed, every text is read to its end, which also finds damage."""
    texts, others = [], []
    for member in texts_in(path):
        known = published_file(text_sha1(path, member)) if hashed else member
        try:
            first_word, dim = peek(path, member=member)
        except ValueError as error:
            others.append(error)
        else:
            texts.append(GloveText(member, dim, first_word, known))
    if not texts:
        raise others[0] if others else ValueError("a zip without a .txt in it; wanted is one with GloVe's texts")
    return tuple(texts)


def _line(finding: GloveFinding) -> str:
    if finding.wrong is not None:
        return f"{printable(finding.name)}: WRONG: {finding.wrong}"
    texts = ", ".join(map(_described, finding.texts))
    if finding.published:
        dims = " and ".join(str(one.dim) for one in finding.texts)
        what = f"the published {finding.published}, {dims} numbers a word"
    elif any(one.published for one in finding.texts):
        what = f"a zip that was made again, {texts}"
    else:
        what = f"{texts}; not a published file"
    return f"{printable(finding.name)}: ok: {what}; sha1 {finding.sha1}"


def _described(text: GloveText) -> str:
    if text.published:
        return f"in it the published {text.published}, {text.dim} numbers a word"
    return f"{printable(text.name)} has {text.dim} numbers a word, the first word is {text.first_word!r}"


def _table(findings: list[GloveFinding]) -> str:
    width = max(len(finding.file) for finding in findings)
    lines = [f"{'name':6}{'file':{width}}{'bytes':>16}  where"]
    for one in findings:
        size = f"{one.size:,}" if one.size is not None else "-"
        where = "not fetched" if one.path is None else f"{one.path} ({'WRONG: ' + one.wrong if one.wrong else 'verified'})"
        lines.append(f"{one.name:6}{one.file:{width}}{size:>16}  {where}")
    return "\n".join(lines)
