"""Run a recipe: say what will be done, do what is not done yet, and report (recipe.py reads it, plan.py looks ahead)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic.dataclasses import dataclass as checked_dataclass

from excl.pipeline.artifacts.header import RecipeMismatchError
from excl.pipeline.artifacts.locks import WAIT_S, BusyError, locked
from excl.pipeline.artifacts.manifest import RECORDS, Manifest
from excl.pipeline.artifacts.video_records import failed_by_reason, video_keys
from excl.pipeline.config import STRICT, WithoutPrefix
from excl.pipeline.execution import work_items
from excl.pipeline.execution.circuit_breaker import SystemicError
from excl.pipeline.execution.executor_settings import ExecutorOverrides, apply_overrides
from excl.workflows.runner.output_folders import READ_VIDEOS, move_aside, prepare
from excl.workflows.runner.plan import Planner, StepPlan
from excl.workflows.runner.recipe import Recipe, load_recipe, missing_inputs, parse, parse_setting
from excl.workflows.runner.report import FinishedStep, end_line, report_path, write_report
from excl.workflows.runner.run_log import buffered_run_log
from excl.workflows.steps import STEPS, run_step

log = logging.getLogger(__name__)

Held = Callable[[], AbstractContextManager[None]]


@checked_dataclass(frozen=True, config=STRICT)
class RunConfig:
    """Run all steps of a recipe: what is done already is not done again, what was made from other settings is.

    It says first what it will do, and leaves a log of the run in logs/ and a report in excl-report.md.
    """

    recipe: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RECIPE")]
    """A recipe file (TOML), or the name of one that comes with excl: charades_sta, tacos, activitynet_captions, demo."""
    root: Path | None = None
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
    """Where decode and extract work: what is given is put in the place of what the recipe says, and the rest stays."""

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
class Outcome:
    """What a run ends with: the lines to print, and how many videos failed."""

    lines: Sequence[str]
    failed: int


def run(config: RunConfig) -> Outcome:
    """Run the recipe's steps in order, or with `dry_run` say what they would do. What is found on the way is printed."""
    recipe = load_recipe(config.recipe, config.root, variant=config.variant, settings=config.set)
    with buffered_run_log(recipe.root) as begin_log:
        with recipe.inside() as root:
            configs, chosen = _read(recipe, config)
            planner = Planner(configs, root)
            try:
                planned = [planner.plan(step) for step in chosen]
            except SystemicError:
                begin_log()
                raise
        lines = plan_lines(recipe, planned, root)
        if config.dry_run:
            return Outcome(lines, 0)
        for line in lines:
            log.info("%s", line)
        recipe.root.mkdir(parents=True, exist_ok=True)
        path = begin_log() if any(one.to_do for one in planned) else None
        alone, whole = partial(_alone, recipe, root), config.running.shard_range is None
        try:
            with recipe.inside(), alone() if whole else nullcontext():
                moving = nullcontext if whole else partial(alone, wait_s=WAIT_S)
                return _run(recipe, configs, planned, log_path=path, moving=moving)
        except BaseException:  # of every kind, so that it has a log; it goes on from here
            begin_log()
            raise


@contextmanager
def _alone(recipe: Recipe, root: Path, *, wait_s: float = 0.0) -> Iterator[None]:
    """Meanwhile no other run of the recipe puts folders of other settings where this one reads; BusyError if one is at it.

    Its variants have folders of their own. Shares of one run work at the same time, and are alone while they make way.
    """
    name = recipe.name + (f"-{recipe.chosen}" if recipe.chosen else "")
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(root, f".excl-run-{name}.lock", wait_s=wait_s))
        except BusyError:
            raise BusyError(f"{root}: another run of {name} is at work there; wait for it") from None
        yield


def _read(recipe: Recipe, config: RunConfig) -> tuple[dict[str, Any], list[str]]:
    """All configurations, and the steps to run; ValueError says all that is wrong, and where missing data is to be had."""
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
    return configs, chosen


def _chosen(name: str, steps: list[str], config: RunConfig) -> list[str]:
    """The steps to run, of those that the recipe has."""
    last = config.only or config.until
    if last is not None and last not in steps:
        raise ValueError(f"{name}: has no step [{last}]; it has {', '.join(steps)}")
    if config.only:
        return [config.only]
    return steps[: steps.index(last) + 1 if last else None]


def plan_lines(recipe: Recipe, planned: Sequence[StepPlan], root: Path) -> list[str]:
    """The plan for people."""
    of = ""
    if recipe.variants:
        of = f" (variants: {', '.join(f'{name}, this one' if name == recipe.chosen else name for name in recipe.variants)})"
    return [f"{recipe.name}{of}, in {root}:", *(line for one in planned for line in one.lines())]


def _run(
    recipe: Recipe, configs: Mapping[str, Any], planned: Sequence[StepPlan], *, log_path: Path | None, moving: Held
) -> Outcome:
    """Run the planned steps, and report; `moving` is held while folders are moved."""
    failed, done = 0, []
    for number, one in enumerate(planned, start=1):
        log.info("[%d/%d] %s", number, len(planned), one.step)
        began = time.monotonic()
        failed_here = _run_fitting(one.step, configs, moving)
        if failed_here and one.step in READ_VIDEOS and number < len(planned):
            _require_some(one.step, configs[one.step].out)
        failed += failed_here
        done.append(FinishedStep(one, time.monotonic() - began))
    report = report_path(recipe.chosen)
    if any(one.to_do for one in planned) or not report.is_file():
        write_report(report, recipe, configs, done, chosen=[one.step for one in planned], log=log_path)
    lines = [f"{recipe.name}: {end_line(done, failed)}", f"report: {report.absolute()}"]
    return Outcome([*lines, f"log: {log_path}"] if log_path else lines, failed)


def _require_some(step: str, folder: Path) -> None:
    """SystemicError if every video of a step failed: what follows would have nothing to work on."""
    manifest = Manifest.read(folder)
    reasons = failed_by_reason(manifest)
    if sum(map(len, reasons.values())) == len(video_keys(manifest)):
        told = ", ".join(f"{len(names):,} {reason}" for reason, names in reasons.items())
        raise SystemicError(
            f"{step}: every video failed ({told}), so the steps after it have nothing to work on and are not run; "
            f"{folder / RECORDS} says more of each video, and {work_items.RETRY} tries the videos again"
        )


def _run_fitting(name: str, configs: Mapping[str, Any], moving: Held) -> int:
    """Run one step in its folder, from which way is made for it if it is of other settings; how many videos failed."""
    step, config = STEPS[name], configs[name]
    with moving():
        prepare(name, config, configs)
    try:
        return run_step(step, config)
    except RecipeMismatchError as error:
        log.warning("%s", str(error).rpartition("\n")[0] or error)
    with moving():
        move_aside(name, config, configs)
    return run_step(step, config)


def show(outcome: Outcome) -> str:
    """What a run ends with."""
    return "\n".join(outcome.lines)


def num_failed(outcome: Outcome) -> int:
    """How many videos failed."""
    return outcome.failed
