"""What a run of a recipe has done: `excl-report.md` in the root, and a few lines at the end of the run."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from excl.pipeline import pack
from excl.pipeline.artifacts.atomic_files import write_text
from excl.pipeline.artifacts.header import HEADER
from excl.pipeline.artifacts.manifest import COMPLETE, Manifest
from excl.pipeline.execution.progress import format_duration
from excl.workflows.runner.output_folders import READ_VIDEOS
from excl.workflows.runner.plan import StepPlan
from excl.workflows.runner.recipe import Recipe
from excl.workflows.runner.summary import FolderSnapshot, coverage, failures, summary, table


@dataclass(frozen=True)
class FinishedStep:
    """One step of this run: what was planned for it, and how long it took."""

    planned: StepPlan
    wall_s: float


def report_path(variant: str | None) -> Path:
    """The report's name, which no file of the user's has: every variant has one of its own."""
    return Path(f"excl-report-{variant}.md" if variant else "excl-report.md")


def write_report(
    path: Path,
    recipe: Recipe,
    configs: Mapping[str, Any],
    done: Sequence[FinishedStep],
    *,
    chosen: Sequence[str],
    log: Path | None,
) -> None:
    """Write what was done and what there is now, as Markdown."""
    folders = {step: Manifest.read(configs[step].out) for step in chosen if _has_manifest(configs[step].out)}
    parts = [_head(recipe, done, chosen, log), _steps(done, folders, configs)]
    failed = [f"- {step}: {line}" for step, manifest in folders.items() for line in failures(manifest)]
    if any(step in folders for step in READ_VIDEOS):
        parts.append(_section("Videos that failed", failed or ["None."]))
    if pack.STAGE in folders and COMPLETE in folders[pack.STAGE].records:
        lines = [f"- {split}: {line}" for split, line in coverage(configs[pack.STAGE].out).items()]
        parts.append(_section("Coverage", lines))
    places = [f"- {step}: `{configs[step].out}`" for step in chosen if configs[step].out is not None]
    parts.append(_section("Where it is", places))
    tables = [text for step in chosen if (text := _table(step, configs[step].out))]
    parts += [_section("Figures", ["```", text, "```"]) for text in tables]
    write_text(path, "\n".join(parts))


def _has_manifest(folder: Path | None) -> bool:
    return folder is not None and (folder / HEADER).is_file()


def _table(step: str, folder: Path | None) -> str:
    return "" if folder is None else table(step, folder)


def _section(title: str, lines: Sequence[str]) -> str:
    return "\n".join([f"## {title}", "", *lines, ""])


def _head(recipe: Recipe, done: Sequence[FinishedStep], chosen: Sequence[str], log: Path | None) -> str:
    total_s = sum(one.wall_s for one in done)
    lines = [
        f"# {recipe.name}",
        "",
        f"excl {importlib.metadata.version('excl')}, {time.strftime('%Y-%m-%d %H:%M:%S')}: "
        f"{len(chosen)} steps in {format_duration(total_s)}.",
    ]
    if recipe.chosen:
        lines.append(f"Variant: {recipe.chosen}.")
    if recipe.settings:
        lines.append(f"In place of the recipe's own settings: {', '.join(f'`{setting}`' for setting in recipe.settings)}.")
    if log is not None:
        lines.append(f"All that was said: `{log.parent.name}/{log.name}`.")
    return "\n".join([*lines, ""])


def _steps(done: Sequence[FinishedStep], folders: Mapping[str, Manifest], configs: Mapping[str, Any]) -> str:
    rows = [
        f"| {one.planned.step} | {_became(one.planned, configs[one.planned.step].out)} | {format_duration(one.wall_s)} | "
        f"{summary(one.planned.step, folders[one.planned.step]) if one.planned.step in folders else ''} |"
        for one in done
    ]
    return "\n".join(["| step | this run | took | what is there |", "|---|---|---|---|", *rows, ""])


def _became(planned: StepPlan, folder: Path | None) -> str:
    """What the run has made of a step's folder, whatever was planned."""
    return (
        "done"
        if folder is None or planned.before is None
        else planned.before.change_since(FolderSnapshot.of(folder), planned.kind)
    )


def end_line(done: Sequence[FinishedStep], failed: int) -> str:
    """The run in a line: how long it took, and which steps took it."""
    videos = f"; {failed:,} videos failed" if failed else ""
    slow = [f"{one.planned.step} {format_duration(one.wall_s)}" for one in done if one.planned.to_do]
    if not slow:
        return f"all was done already{videos}"
    return f"done in {format_duration(sum(one.wall_s for one in done))}: {', '.join(slow)}{videos}"
