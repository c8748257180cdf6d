"""I3D's weights: what there is, fetch the published ones, verify files, import files that were got by hand."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic.dataclasses import dataclass

from excl.datasets.parsing import printable
from excl.models.i3d.download import cached_path, fetch
from excl.models.i3d.published import PUBLISHED, mismatch, published_name
from excl.models.i3d.weights import (
    check_free,
    check_name,
    convert,
    import_published,
    imported_names,
    imported_path,
    read_weights,
)
from excl.pipeline.config import STRICT, PositiveFloat, WithoutPrefix, subcommand

Name = Literal["kinetics", "charades"]


@dataclass(frozen=True, config=STRICT)
class ListWeights:
    """Show the weights that have a name, published and imported ones: where they are and whether they verify."""

    json: bool = False
    """Print one JSON object for each, for programs, in place of the table."""


@dataclass(frozen=True, config=STRICT)
class FetchWeights:
    """Download published weights into the cache (EXCL_CACHE, or the platform's cache folder), and verify them.

    A download that was interrupted goes on from where it stopped."""

    names: Annotated[tyro.conf.Positional[tuple[Name, ...]], tyro.conf.arg(metavar="NAME …")]
    """Which: kinetics (400 classes), charades (157 classes, fine-tuned from it)."""

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError(f"say which weights to fetch: {', '.join(PUBLISHED)}")


@dataclass(frozen=True, config=STRICT)
class VerifyWeightFiles:
    """Say of files what they are, or what is wrong with them. The exit code is 3 if something is wrong with one."""

    what: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="FILE_OR_NAME …")]
    """Files, or names of weights in the cache."""
    is_: Annotated[Name | None, tyro.conf.arg(name="is")] = None
    """The published weights that the files have to be, byte for byte."""
    json: bool = False
    """Print one JSON object for each, for programs, in place of a line."""

    def __post_init__(self) -> None:
        if not self.what:
            raise ValueError("say which files or names to verify")


@dataclass(frozen=True, config=STRICT)
class ImportWeights:
    """Take a weight file that was got by hand. A published file goes into the cache, and its name then works offline.

    Weights of one's own are converted to safetensors: into the cache under --name, from then on a value of --weights, or to
    a file with --to."""

    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """A weight file: torch's format or safetensors, with the keys of the public PyTorch port."""
    name: str | None = None
    """The name for weights of one's own: letters, digits, - and _."""
    to: Path | None = None
    """A file to write, FILE.safetensors."""
    trained_on: str | None = None
    """What the weights were trained on, for the record."""
    licence: str | None = None
    """Under which licence they are, for the record."""
    fps: PositiveFloat | None = None
    """Frames a second of the videos they were trained on, for the record."""

    def __post_init__(self) -> None:
        if self.name is not None:
            check_name(self.name)
        if self.to is not None and self.to.suffix != ".safetensors":
            raise ValueError(f"--to {self.to}: wanted is a name that ends in .safetensors")


Action = (
    Annotated[ListWeights, subcommand(ListWeights, "list")]
    | Annotated[FetchWeights, subcommand(FetchWeights, "fetch")]
    | Annotated[VerifyWeightFiles, subcommand(VerifyWeightFiles, "verify")]
    | Annotated[ImportWeights, subcommand(ImportWeights, "import")]
)


@dataclass(frozen=True, config=STRICT)
class WeightsConfig:
    """I3D's weights: list what there is, fetch the published ones, verify files, import files got by hand."""

    action: WithoutPrefix[Action]
    """What to do."""


@dataclasses.dataclass(frozen=True)
class WeightsFinding:
    """One weight file: `wrong` says what is wrong with it, None if nothing is; `path` is None if there is no file."""

    name: str
    file: str
    path: str | None
    classes: int | None = None
    size: int | None = None
    wrong: str | None = None
    published: str | None = None
    sha256: str | None = None
    facts: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class WeightsReport:
    """What there is to say: findings, or lines of what was done."""

    findings: list[WeightsFinding]
    kind: Literal["list", "verify", "done"]
    as_json: bool = False
    lines: tuple[str, ...] = ()


def run(config: WeightsConfig) -> WeightsReport:
    """Do what is asked for."""
    action = config.action
    match action:
        case ListWeights():
            return WeightsReport([_look_up(name) for name in [*PUBLISHED, *imported_names()]], "list", action.json)
        case VerifyWeightFiles():
            return WeightsReport([_verify(what, action.is_) for what in action.what], "verify", action.json)
        case FetchWeights():
            return WeightsReport([], "done", lines=tuple(f"{name}: verified, in {fetch(name)}" for name in action.names))
        case ImportWeights():
            return WeightsReport([], "done", lines=tuple(_import(action)))


def num_wrong(report: WeightsReport) -> int:
    """How many of the files that were to be verified are wrong."""
    return sum(finding.wrong is not None for finding in report.findings) if report.kind == "verify" else 0


def show(report: WeightsReport) -> str:
    """A table, or a line for each, or JSON lines."""
    if report.as_json:
        return "\n".join(json.dumps(dataclasses.asdict(finding)) for finding in report.findings)
    if report.kind == "list":
        return _table(report.findings)
    return "\n".join([*report.lines, *map(_line, report.findings)])


def _look_up(name: str) -> WeightsFinding:
    path = cached_path(name) if name in PUBLISHED else imported_path(name)
    if not path.is_file():
        published = PUBLISHED[name]
        return WeightsFinding(name, published.file_name, None, published.num_classes, published.size)
    return _verify_file(name, path, name if name in PUBLISHED else None)


def _verify(what: str, wanted: str | None) -> WeightsFinding:
    named = what in PUBLISHED or what in imported_names()
    if named and not Path(what).is_file():
        found = _look_up(what)
        if found.path is None:
            return dataclasses.replace(found, wrong=f"not in the cache; `excl weights fetch {what}` downloads it")
        return found if wanted in {None, what} else _verify_file(what, Path(found.path), wanted)
    return _verify_file(what, Path(what), wanted)


def _verify_file(name: str, path: Path, wanted: str | None) -> WeightsFinding:
    found = WeightsFinding(name, path.name, str(path), size=path.stat().st_size if path.is_file() else None)
    try:
        weights = read_weights(path, source=name)
        differing = mismatch(path, PUBLISHED[wanted]) if wanted else None
    except (ValueError, OSError) as error:
        return dataclasses.replace(found, wrong=str(error).removeprefix(f"{path}: "))
    return dataclasses.replace(
        found,
        classes=weights.num_classes,
        wrong=f"weights of RGB I3D, and not the published {wanted}: {differing}" if differing else None,
        published=published_name(weights.facts.git_blob_id),
        sha256=weights.sha256,
        facts=weights.facts.to_json(),
    )


def _line(finding: WeightsFinding) -> str:
    if finding.wrong is not None:
        return f"{printable(finding.name)}: WRONG: {finding.wrong}"
    return f"{printable(finding.name)}: ok: {_what(finding)}, tensors {(finding.sha256 or '')[:12]}"


def _what(finding: WeightsFinding) -> str:
    converted = ", converted" if finding.published and finding.file.endswith(".safetensors") else ""
    origin = f"the published {finding.published}{converted}" if finding.published else "none of the published files"
    return f"weights of RGB I3D, {finding.classes} classes, {origin}"


def _table(findings: list[WeightsFinding]) -> str:
    width = max(len(finding.name) for finding in findings)
    file_width = max(len(finding.file) for finding in findings)
    lines = [f"{'name':{width}}  {'file':{file_width}}{'classes':>9}{'bytes':>13}  where"]
    for one in findings:
        size = f"{one.size:,}" if one.size is not None else "-"
        where = "not fetched" if one.path is None else f"{one.path} ({'WRONG: ' + one.wrong if one.wrong else 'verified'})"
        lines.append(f"{one.name:{width}}  {one.file:{file_width}}{one.classes or '-':>9}{size:>13}  {where}")
    return "\n".join(lines)


def _import(action: ImportWeights) -> list[str]:
    lines = []
    published = import_published(action.file) if action.name is None and action.to is None else None
    if published is not None:
        return [f"{action.file} is a published file; it is now {published}"]
    if action.name is None and action.to is None:
        read_weights(action.file, source=action.file.name)  # what is wrong with a file goes before what is missing
        raise ValueError(f"{action.file}: none of the published files; say with --name under which name to import it")
    if action.name is not None:
        check_free(action.name, action.file)
    targets = [imported_path(action.name)] if action.name is not None else []
    targets += [action.to] if action.to is not None else []
    for target in targets:
        convert(action.file, target, trained_on=action.trained_on, licence=action.licence, fps=action.fps)
        lines.append(f"{action.file} was converted to {target}")
    if action.name is not None:
        lines.append(f"from now on it can be used as --weights {action.name}")
    return lines
