"""What `excl weights` and `excl glove` share: named files are listed and fetched, and any files are verified."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import tyro
from pydantic.dataclasses import dataclass
from tabulate import tabulate

from excl.datasets.parsing import printable
from excl.models.download import PublishedFile
from excl.pipeline.config import STRICT


@dataclass(frozen=True, config=STRICT)
class ListAssets:
    """Show the files that have a name: where they are and whether they verify."""

    json: bool = False
    """Print one JSON object for each, for programs, in place of the table."""


@dataclass(frozen=True, config=STRICT)
class VerifyAssets:
    """Say of files what they are, or what is wrong with them. The exit code is 3 if something is wrong with one."""

    what: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="FILE_OR_NAME …")]
    """Files, or names of files in the cache."""
    json: bool = False
    """Print one JSON object for each, for programs, in place of a line."""

    def __post_init__(self) -> None:
        if not self.what:
            raise ValueError("say which files or names to verify")


@dataclasses.dataclass(frozen=True)
class AssetFinding:
    """One file: `wrong` says what is wrong with it, None if nothing is; `path` is None if there is no file."""

    name: str
    file: str
    path: str | None = None
    size: int | None = None
    wrong: str | None = None
    published: str | None = None
    sha256: str | None = None

    def describe(self) -> str:
        """Return what the file is, if nothing is wrong with it."""
        raise NotImplementedError

    def columns(self) -> dict[str, Any]:
        """Return the columns of the table between the file's name and its size."""
        return {}


F = TypeVar("F", bound=AssetFinding)


@dataclasses.dataclass(frozen=True)
class AssetReport:
    """The text for people or programs, and how many of the files that were to be verified are wrong."""

    text: str
    num_wrong: int = 0


@dataclasses.dataclass(frozen=True)
class AssetKind(Generic[F]):
    """One kind of files."""

    command: str
    """The subcommand of excl."""
    published: Mapping[str, PublishedFile]
    paths: Callable[[], Mapping[str, Path]]
    """The path in the cache of every name, also of files that are not there."""
    blank: Callable[[str, Path], F]
    """The finding of a name or path before the file is read."""
    inspect: Callable[[F, Path, str | None], F]
    """The finding after the file was read, which is compared with a published one if its name is given."""


def list_assets(kind: AssetKind[Any], action: ListAssets) -> AssetReport:
    """Report all files that have a name."""
    findings = [_find(kind, name) for name in kind.paths()]
    return AssetReport(_json_lines(findings) if action.json else _table(findings))


def fetch_assets(kind: AssetKind[Any], names: Iterable[str]) -> AssetReport:
    """Fetch published files."""
    return AssetReport("\n".join(f"{name}: verified, in {kind.published[name].fetch()}" for name in names))


def verify_assets(kind: AssetKind[Any], action: VerifyAssets, published: str | None = None) -> AssetReport:
    """Report what files are, which have to be the published one of that name if it is given."""
    findings = [_verify(kind, argument, published) for argument in action.what]
    text = _json_lines(findings) if action.json else "\n".join(map(_line, findings))
    return AssetReport(text, sum(finding.wrong is not None for finding in findings))


def num_wrong(report: AssetReport) -> int:
    """Return how many of the files that were to be verified are wrong."""
    return report.num_wrong


def show(report: AssetReport) -> str:
    """Return the text of a report."""
    return report.text


def _find(kind: AssetKind[Any], name: str, published: str | None = None) -> AssetFinding:
    """Return the finding of a name; without `path` if the file is not in the cache."""
    path = kind.paths()[name]
    if not path.is_file():
        return kind.blank(name, path)
    return _inspect(kind, name, path, published or (name if name in kind.published else None))


def _verify(kind: AssetKind[Any], argument: str, published: str | None) -> AssetFinding:
    if argument not in kind.paths() or Path(argument).is_file():
        return _inspect(kind, argument, Path(argument), published)
    finding = _find(kind, argument, published)
    if finding.path is not None:
        return finding
    hint = f"not in the cache; `excl {kind.command} fetch {argument}` downloads it"
    return dataclasses.replace(finding, wrong=hint)


def _inspect(kind: AssetKind[Any], name: str, path: Path, published: str | None) -> AssetFinding:
    finding = kind.blank(name, path)
    try:
        if not path.is_file():
            return dataclasses.replace(finding, size=None, wrong="there is no such file")
        finding = dataclasses.replace(finding, file=path.name, path=str(path), size=path.stat().st_size)
        return kind.inspect(finding, path, published)
    except (ValueError, OSError) as error:
        return dataclasses.replace(finding, wrong=getattr(error, "reason", str(error)))


def _json_lines(findings: Iterable[AssetFinding]) -> str:
    return "\n".join(json.dumps(dataclasses.asdict(finding)) for finding in findings)


def _line(finding: AssetFinding) -> str:
    state = f"ok: {finding.describe()}" if finding.wrong is None else f"WRONG: {finding.wrong}"
    return f"{printable(finding.name)}: {state}"


def _table(findings: Iterable[AssetFinding]) -> str:
    rows = []
    for finding in findings:
        size = "-" if finding.size is None else f"{finding.size:,}"
        place = "not fetched"
        if finding.path is not None:
            place = f"{finding.path} ({f'WRONG: {finding.wrong}' if finding.wrong else 'verified'})"
        rows.append({"name": finding.name, "file": finding.file, **finding.columns(), "bytes": size, "where": place})
    alignments = ["right" if column in ("classes", "bytes") else "left" for column in rows[0]]
    return tabulate(rows, headers="keys", tablefmt="plain", colalign=alignments, disable_numparse=True)
