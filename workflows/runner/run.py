"""Run a recipe: say what will be done, do what is not done yet, and report (recipe.py, plan.py, output_folders.py)."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic.dataclasses import dataclass as checked_dataclass
from tabulate import tabulate

from excl.models.download import PublishedFile
from excl.models.i3d.weight_catalogue import PUBLISHED as PUBLISHED_WEIGHTS
from excl.models.progress.bars import step_list
from excl.pipeline.artifacts.header import RecipeMismatchError
from excl.pipeline.artifacts.manifest import RECORDS, Manifest
from excl.pipeline.artifacts.video_records import failed_by_reason, video_keys
from excl.pipeline.config import STRICT, SaidInText, WithoutPrefix
from excl.pipeline.execution import pending_videos
from excl.pipeline.execution.circuit_breaker import SystemicError
from excl.pipeline.execution.executor_settings import ExecutorOverrides, apply_overrides
from excl.pipeline.queries.published_glove import PUBLISHED as PUBLISHED_GLOVE
from excl.workflows.runner.output_folders import READ_VIDEOS, StepFolders
from excl.workflows.runner.plan import Planner, StepPlan
from excl.workflows.runner.recipe import Recipe, load_recipe, missing_inputs, parse, parse_setting
from excl.workflows.runner.run_log import buffered_run_log
from excl.workflows.runner.run_report import FinishedStep, end_line, report_path, write_page, write_report
from excl.workflows.runner.summary import records_state
from excl.workflows.steps import STEPS, run_step

log = logging.getLogger(__name__)


@checked_dataclass(frozen=True, config=STRICT)
class RunConfig:
    """Run all steps of a recipe: what is done already is not done again, and other settings have folders of their own.

    It says first what it will do, and leaves a log of the run in logs/, a report in excl-report.md, and excl-report.html, a
    page with figures and videos.
    """

    recipe: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RECIPE")]
    """A recipe file (TOML), or the name of one that comes with excl: charades_sta, tacos, activitynet_captions, demo."""
    root: SaidInText[Path | None] = None
    """The folder from which the recipe's paths count. Default: the recipe file's own folder; for a recipe that comes
    with excl, a folder of its name."""
    variant: str | None = None
    """A variant of the recipe: those that come with excl for data sets have kinetics, as without this, and charades, I3D's
    weights fine-tuned on Charades. What a variant changes has folders of its own, such as features-charades."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Settings in place of those of the recipe, such as extract.stride=4 or train.model.variant=reg-1-b; may be
    given several times."""
    only: str | None = None
    """Run this step alone."""
    until: str | None = None
    """Run the steps up to this one, and not those after it."""
    dry_run: bool = False
    """Say what would be done, and do nothing."""
    running: WithoutPrefix[ExecutorOverrides] = field(default_factory=ExecutorOverrides)
    """Executor of decode and extract: these options replace the same settings of the recipe, and the rest stays."""

    def __post_init__(self) -> None:
        if self.running.shard_range is not None and self.only not in READ_VIDEOS:
            raise ValueError(f"shard_range: with --only {' or --only '.join(READ_VIDEOS)}; the other steps need all shards")
        for name in ("only", "until"):
            if getattr(self, name) is not None and getattr(self, name) not in STEPS:
                raise ValueError(f"{name}: {getattr(self, name)!r} is no step; steps are {', '.join(STEPS)}")
        if self.only and self.until:
            raise ValueError("only: with until; give one of the two")
        for setting in self.set:
            parse_setting(setting)


@dataclass(frozen=True)
class RunResult:
    """The end of a run: the lines to print, and how many videos failed."""

    lines: Sequence[str]
    failed: int


def run(config: RunConfig) -> RunResult:
    """Run the recipe's steps in order, or with `dry_run` say what they would do. Findings are printed on the way."""
    recipe = load_recipe(config.recipe, config.root, variant=config.variant, settings=config.set)
    with buffered_run_log(recipe.root) as begin_log:
        with recipe.inside() as root:
            tables, chosen = _read(recipe, config)
            try:
                plans = _plan(tables, chosen, root)
            except SystemicError:
                begin_log()
                raise
        lines = plan_lines(recipe, plans, root)
        if config.dry_run:
            return RunResult(lines, 0)
        for line in lines:
            log.info("%s", line)
        recipe.root.mkdir(parents=True, exist_ok=True)
        log_path = begin_log() if any(planned.to_do for planned in plans) else None
        try:
            with recipe.inside():
                return _run(recipe, tables, plans, log_path=log_path)
        except BaseException:  # an interruption, too, so that the run has a log; it is raised again
            begin_log()
            raise


def _plan(tables: Mapping[str, Any], chosen: Sequence[str], root: Path) -> list[StepPlan]:
    planner, plans = Planner(tables, root), []
    for step in (step for step in STEPS if step in tables):
        if step in chosen:
            plans.append(planner.plan(step))
        else:
            planner.skip(step)
    return plans


def _read(recipe: Recipe, config: RunConfig) -> tuple[dict[str, Any], list[str]]:
    """Return the tables of all steps, and the steps to run. ValueError says all that is wrong, and where to get data."""
    chosen = _chosen(recipe.name, [step for step in STEPS if step in recipe.tables], config)
    tables = dict(recipe.tables)
    for step in READ_VIDEOS:
        if isinstance(tables.get(step), Mapping):
            tables[step] = {**tables[step], "running": apply_overrides(tables[step].get("running", {}), config.running)}
    configs, problems = parse(recipe.name, tables, chosen=chosen)
    if problems and recipe.about and missing_inputs(recipe.name, configs, chosen=chosen):
        problems += ["", f"{recipe.name} says:", recipe.about]
    if problems:
        raise ValueError("\n".join(problems))
    return tables, chosen


def _chosen(name: str, steps: list[str], config: RunConfig) -> list[str]:
    """Return the steps to run, of those that the recipe has."""
    end = config.only or config.until
    if end is not None and end not in steps:
        raise ValueError(f"{name}: has no step [{end}]; it has {', '.join(steps)}")
    if config.only:
        return [config.only]
    return steps[: steps.index(end) + 1 if end else None]


def plan_lines(recipe: Recipe, plans: Sequence[StepPlan], root: Path) -> list[str]:
    """Return the plan for people."""
    variants = ", ".join(f"{name}, this one" if name == recipe.chosen else name for name in recipe.variants)
    head = f"{recipe.name}{f' (variants: {variants})' if variants else ''}, in {root}:"
    table = tabulate([("", planned.step, str(planned)) for planned in plans], tablefmt="plain", disable_numparse=True)
    return [head, *table.splitlines()]


def _run(recipe: Recipe, tables: Mapping[str, Any], plans: Sequence[StepPlan], *, log_path: Path | None) -> RunResult:
    """Run the planned steps, and report."""
    folders = StepFolders(tables)
    plan_of = {planned.step: planned for planned in plans}
    to_do = {planned.step for planned in plans if planned.to_do}
    _fetch_missing({step: config for step, config in parse(recipe.name, tables)[0].items() if step in to_do})
    num_failed = 0
    finished: list[FinishedStep] = []
    with step_list(list(plan_of)) as begin:
        for step in (step for step in STEPS if step in tables):
            if step not in plan_of:
                folders.choose_existing(step)
                continue
            started = time.monotonic()
            begin(step)
            config, became, failed_here = _run_step(step, folders, place=f"[{len(finished) + 1}/{len(plans)}] {step}")
            finished.append(FinishedStep(plan_of[step], config, became, time.monotonic() - started))
            if failed_here and step in READ_VIDEOS and len(finished) < len(plans):
                _require_some(step, config.out)
            num_failed += failed_here
    report = report_path(recipe.chosen)
    if any(planned.to_do for planned in plans) or not report.is_file():
        write_report(report, recipe, finished, log_path=log_path)
    page = report.with_suffix(".html")
    if any(planned.to_do for planned in plans) or not page.is_file():
        write_page(page, finished)
    lines = [f"{recipe.name}: {end_line(finished, num_failed)}", f"report: {report.absolute()}"]
    if page.is_file():
        lines.append(f"page to open in a browser: {page.absolute()}")
    return RunResult([*lines, f"log: {log_path}"] if log_path else lines, num_failed)


def _fetch_missing(configs: Mapping[str, Any]) -> None:
    """Download the weights and the word vectors that these steps need, before hours of work that they could end."""
    published: list[PublishedFile | None] = []
    if (extracting := configs.get("extract")) is not None:
        published.append(PUBLISHED_WEIGHTS.get(extracting.weights_spec))
    if (tokenising := configs.get("tokenise")) is not None:
        published.append(PUBLISHED_GLOVE.get(tokenising.glove))
    for file in published:
        if file is not None and not file.cached_path.is_file():
            file.fetch()


def _run_step(step: str, folders: StepFolders, *, place: str) -> tuple[Any, str, int]:
    """Run one step in the folder of its settings; return its configuration, the folder's outcome, the number of failures."""
    while True:
        config = folders.choose(step)
        log.info("%s%s", place, f", in {config.out}" if folders.is_beside(config.out) else "")
        before = {} if config.out is None else records_state(config.out)
        try:
            num_failed = run_step(STEPS[step], config)
        except RecipeMismatchError:
            if folders.choose(step).out == config.out:
                raise
            continue  # another run has begun there in the meantime, with other settings
        if config.out is None:
            return config, "done", num_failed
        became = "new" if not before else "unchanged" if records_state(config.out) == before else "gone on"
        return config, became, num_failed


def _require_some(step: str, folder: Path) -> None:
    """Raise SystemicError if every video of a step failed: later steps would have nothing to work on."""
    manifest = Manifest.read(folder)
    reasons = failed_by_reason(manifest)
    if sum(map(len, reasons.values())) == len(video_keys(manifest)):
        counts = ", ".join(f"{len(names):,} {reason}" for reason, names in reasons.items())
        raise SystemicError(
            f"{step}: every video failed ({counts}), so the steps after it have nothing to work on and are not run; "
            f"{folder / RECORDS} says more of each video, and {pending_videos.RETRY} tries the videos again"
        )


def show(result: RunResult) -> str:
    """Return the lines with which a run ends."""
    return "\n".join(result.lines)


def num_failed(result: RunResult) -> int:
    """Return how many videos failed."""
    return result.failed
