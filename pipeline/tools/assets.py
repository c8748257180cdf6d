"""The commands that `excl weights` and `excl glove` share: list and fetch the named files, and verify any files."""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

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
    """Say what files are, or what is wrong with them. The exit code is 3 if something is wrong with one."""

    what: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="FILE_OR_NAME …")]
    """Files, or names of files in the cache."""
    json: bool = False
    """Print one JSON object for each, for programs, in place of a line."""

    def __post_init__(self) -> None:
        if not self.what:
            raise ValueError("say which files or names to verify")


@dataclasses.dataclass(frozen=True)
class AssetReport:
    """The text for people or programs, and how many of the files that were to be verified are wrong."""

    text: str
    num_wrong: int = 0


def num_wrong(report: AssetReport) -> int:
    """Return how many of the files that were to be verified are wrong."""
    return report.num_wrong


def show(report: AssetReport) -> str:
    """Return the text of a report."""
    return report.text


class AssetKind(ABC):
    """One kind of files. A finding about a file is a JSON object, in which `wrong` is None if nothing is wrong with it."""

    command: str
    published: Mapping[str, PublishedFile]

    @abstractmethod
    def paths(self) -> Mapping[str, Path]:
        """Return the path in the cache of every name, also of files that do not exist."""

    @abstractmethod
    def defaults(self, name: str) -> dict[str, Any]:
        """Return what is known of a name, or of any file, before the file is read."""

    @abstractmethod
    def inspect(self, path: Path, published: str | None) -> tuple[str, dict[str, Any]]:
        """Return what a file is, in words and for the finding; ValueError if it is wrong, or not the published file."""

    def list_files(self, action: ListAssets) -> AssetReport:
        """Report all files that have a name."""
        findings = [self._find(name, self.paths()[name], name)[1] for name in self.paths()]
        return AssetReport(_json_lines(findings) if action.json else _table(findings))

    def fetch(self, names: Iterable[str]) -> AssetReport:
        """Fetch published files."""
        return AssetReport("\n".join(f"{name}: verified, in {self.published[name].fetch()}" for name in names))

    def verify(self, action: VerifyAssets, published: str | None = None) -> AssetReport:
        """Report what files are; they have to be the published one of that name if it is given."""
        lines, findings = [], []
        for argument in action.what:
            is_name = argument in self.paths() and not Path(argument).is_file()
            path = self.paths()[argument] if is_name else Path(argument)
            summary, finding = self._find(argument, path, published or (argument if is_name else None))
            if finding["path"] is None:
                hint = f"not in the cache; `excl {self.command} fetch {argument}` downloads it"
                finding["wrong"] = hint if is_name else "there is no such file"
            state = f"ok: {summary}" if finding["wrong"] is None else f"WRONG: {finding['wrong']}"
            lines.append(f"{printable(argument)}: {state}")
            findings.append(finding)
        text = _json_lines(findings) if action.json else "\n".join(lines)
        return AssetReport(text, sum(finding["wrong"] is not None for finding in findings))

    def _find(self, name: str, path: Path, published: str | None) -> tuple[str, dict[str, Any]]:
        """Return what a file is, in words and as a finding; the finding has no `path` if there is no file."""
        finding: dict[str, Any] = {
            "name": name,
            "file": path.name,
            "path": None,
            "size": None,
            "wrong": None,
            "published": None,
        }
        finding |= self.defaults(name)
        if not path.is_file():
            return "", finding
        finding |= {"file": path.name, "path": str(path), "size": path.stat().st_size}
        try:
            summary, facts = self.inspect(path, published if published in self.published else None)
        except (ValueError, OSError) as error:
            return "", {**finding, "wrong": getattr(error, "reason", str(error))}
        return summary, {**finding, **facts}


def _json_lines(findings: Iterable[Mapping[str, Any]]) -> str:
    return "\n".join(map(json.dumps, findings))


def _table(findings: Iterable[Mapping[str, Any]]) -> str:
    rows = []
    for finding in findings:
        state = f"WRONG: {finding['wrong']}" if finding["wrong"] else "verified"
        row = {"name": finding["name"], "file": finding["file"]}
        if "classes" in finding:
            row["classes"] = str(finding["classes"] or "-")
        row["bytes"] = "-" if finding["size"] is None else f"{finding['size']:,}"
        row["where"] = "not fetched" if finding["path"] is None else f"{finding['path']} ({state})"
        rows.append(row)
    alignments = ["right" if column in ("classes", "bytes") else "left" for column in rows[0]]
    return tabulate(rows, headers="keys", tablefmt="plain", colalign=alignments, disable_numparse=True)
