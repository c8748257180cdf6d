"""The report of a recipe's run: `excl-report.md` in the root, and a few lines at the end of the run."""

from __future__ import annotations

import importlib.metadata
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from excl.models.progress.bars import format_duration
from excl.pipeline import evaluate, extract, pack, train
from excl.pipeline.artifacts.atomic_files import write_text
from excl.pipeline.artifacts.header import HEADER
from excl.pipeline.artifacts.manifest import COMPLETE, Manifest
from excl.pipeline.sweep import reproduce
from excl.workflows.runner.output_folders import READ_VIDEOS
from excl.workflows.runner.plan import StepPlan
from excl.workflows.runner.recipe import Recipe
from excl.workflows.runner.summary import coverage, failures, summary, table

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinishedStep:
    """One step of this run."""

    planned: StepPlan
    config: Any
    """The configuration, with the folder that was chosen for the step."""
    became: str
    """The outcome for the folder, whatever was planned."""
    wall_s: float

    @property
    def name(self) -> str:
        """The name of the step."""
        return self.planned.step


def report_path(variant: str | None) -> Path:
    """Return the name of the report: every variant has its own, and no file of the user has such a name."""
    return Path(f"excl-report-{variant}.md" if variant else "excl-report.md")


def write_report(path: Path, recipe: Recipe, steps: Sequence[FinishedStep], *, log_path: Path | None) -> None:
    """Write what was done and what exists now, as Markdown."""
    folders = {step.name: step.config.out for step in steps if step.config.out is not None}
    manifests = {name: Manifest.read(folder) for name, folder in folders.items() if (folder / HEADER).is_file()}
    parts = [_head(recipe, steps, log_path), _table_of_steps(steps, manifests)]
    failed = [f"- {name}: {line}" for name, manifest in manifests.items() for line in failures(manifest)]
    if any(name in manifests for name in READ_VIDEOS):
        parts.append(_section("Videos that failed", failed or ["None."]))
    if pack.STAGE in manifests and COMPLETE in manifests[pack.STAGE].records:
        lines = [f"- {split}: {line}" for split, line in coverage(folders[pack.STAGE]).items()]
        parts.append(_section("Coverage", lines))
    parts.append(_section("Where it is", [f"- {name}: `{folder}`" for name, folder in folders.items()]))
    figures = [text for name, folder in folders.items() if (text := table(name, folder))]
    parts += [_section("Figures", ["```", text, "```"]) for text in figures]
    write_text(path, "\n".join(parts))


def write_page(path: Path, steps: Sequence[FinishedStep]) -> None:
    """Write the page about the last sweep, evaluated run or store of these steps, if there is one; a failure is logged."""
    configs = {step.name: step.config for step in steps}
    name = next((name for name in (reproduce.STAGE, train.STAGE, pack.STAGE, extract.STAGE) if name in configs), None)
    if name is None or (name == train.STAGE and evaluate.STAGE not in configs):  # which a page would have to evaluate first
        return
    from excl.workflows.pages import report  # noqa: PLC0415  (which imports PyTorch)

    made_by = configs[name]
    videos = next((configs[step].videos for step in READ_VIDEOS if step in configs and configs[step].videos), None)
    evaluated = configs[evaluate.STAGE].folder if name == train.STAGE else None
    device = getattr(made_by, "device", "auto").split(",")[0].strip()
    folder = videos if videos is not None and videos.is_dir() else None
    try:
        report.run(report.ReportConfig(folder=made_by.out, out=path, evaluation=evaluated, videos=folder, device=device))
    except Exception as error:  # noqa: BLE001  (whatever fails in a page, the run is finished)
        kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
        log.warning("there is no page about this run: %s%s", kind, error)


def _section(title: str, lines: Sequence[str]) -> str:
    return "\n".join([f"## {title}", "", *lines, ""])


def _head(recipe: Recipe, steps: Sequence[FinishedStep], log_path: Path | None) -> str:
    total_s = sum(step.wall_s for step in steps)
    lines = [
        f"# {recipe.name}",
        "",
        f"excl {importlib.metadata.version('excl')}, {time.strftime('%Y-%m-%d %H:%M:%S')}: "
        f"{len(steps)} steps in {format_duration(total_s)}.",
    ]
    if recipe.chosen:
        lines.append(f"Variant: {recipe.chosen}.")
    if recipe.settings:
        lines.append(f"In place of the recipe's own settings: {', '.join(f'`{setting}`' for setting in recipe.settings)}.")
    if log_path is not None:
        lines.append(f"All messages of the run: `{log_path.parent.name}/{log_path.name}`.")
    return "\n".join([*lines, ""])


def _table_of_steps(steps: Sequence[FinishedStep], manifests: Mapping[str, Manifest]) -> str:
    rows = [
        (
            step.name,
            step.became,
            format_duration(step.wall_s),
            summary(step.name, manifests[step.name]) if step.name in manifests else "",
        )
        for step in steps
    ]
    headers = ("step", "this run", "took", "what is there")
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True) + "\n"


def end_line(steps: Sequence[FinishedStep], num_failed: int) -> str:
    """Return the run in a line: how long it took, and which steps took it."""
    failed = f"; {num_failed:,} videos failed" if num_failed else ""
    durations = [f"{step.name} {format_duration(step.wall_s)}" for step in steps if step.planned.to_do]
    if not durations:
        return f"all was done already{failed}"
    return f"done in {format_duration(sum(step.wall_s for step in steps))}: {', '.join(durations)}{failed}"
