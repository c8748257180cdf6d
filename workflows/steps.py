"""The commands of `excl`: for each the module of its configuration and its function. Recipes choose their steps from them.

The module of a command is imported when the command is used, so that `excl` starts at once and a command imports only what
it needs.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Step:
    """One command: its name, its summary in one line, its module, and the names that it uses in this module.

    `formatter` turns the result, or the configuration and the result, into the text that is printed. `failures` counts the
    failed videos of a result. The work of a `distributed` command may be done by workers in other processes.
    """

    name: str
    summary: str
    module: str
    formatter: str | None = None
    failures: str | Callable[[Any], int] | None = None
    distributed: bool = False

    def _attribute(self, name: str) -> Any:
        return getattr(import_module(self.module), name)

    @property
    def config(self) -> type[Any]:
        """The class of the configuration: `VerifyWeightsConfig` for `verify-weights`."""
        return self._attribute(self.name.title().replace("-", "") + "Config")

    @property
    def run(self) -> Callable[[Any], Any]:
        """The function that does the work of a configuration."""
        run = self._attribute("run")
        return _on_configured_executor(run) if self.distributed else run

    def show(self, config: Any, result: Any) -> str | None:
        """The text to print of a result, if there is any."""
        if self.formatter is None:
            return None
        formatter = self._attribute(self.formatter)
        return formatter(config, result) if len(inspect.signature(formatter).parameters) > 1 else formatter(result)

    def failed(self, result: Any) -> int:
        """The number of failed videos of a result."""
        if self.failures is None:
            return 0
        count = self._attribute(self.failures) if isinstance(self.failures, str) else self.failures
        return count(result)


def failed_videos(folder: Path) -> int:
    """The number of videos that a stage's folder records as failed."""
    from excl.pipeline.artifacts.manifest import Manifest  # noqa: PLC0415  (`excl --help` answers at once)

    return len(Manifest.read(folder).failed)


def run_step(step: Step, config: Any) -> int:
    """Run one step and show what it found; returns how many videos failed."""
    result = step.run(config)
    if (shown := step.show(config, result)) is not None:
        print(shown, flush=True)
    return step.failed(result)


def _on_configured_executor(run: Callable[..., Any]) -> Callable[[Any], Any]:
    """Wrap a stage so that it runs where its configuration says: in this process, or on workers of `dask_cluster.py`."""

    @functools.wraps(run)
    def run_there(config: Any) -> Any:
        from excl.pipeline.execution.executor_settings import INLINE  # noqa: PLC0415  (`excl --help` answers at once)

        if config.running.executor == INLINE:
            return run(config)
        try:
            from excl.workflows.cluster.dask_cluster import run_on_workers  # noqa: PLC0415  (an extra)
        except ModuleNotFoundError as error:
            raise ValueError(
                f"executor {config.running.executor}: `pip install 'excl[cluster]'` installs what it needs ({error})"
            ) from error
        return run_on_workers(run, config)

    return run_there


PIPELINE, WORKFLOWS = "excl.pipeline", "excl.workflows"

GROUPS = {
    "a data set": (
        Step("init", "begin a data set of your own", f"{WORKFLOWS}.init", formatter="show"),
        Step("annotate", "mark moments of your videos on a page in the browser", f"{WORKFLOWS}.server.annotate"),
        Step(
            "check",
            "say whether everything is in place",
            f"{WORKFLOWS}.runner.check",
            formatter="show",
            failures="num_problems",
        ),
        Step("run", "do all steps of a recipe", f"{WORKFLOWS}.runner.run", formatter="show", failures="num_failed"),
    ),
    "the stages, each of which leaves one folder": (
        Step("demo", "make a small data set of moving shapes", f"{WORKFLOWS}.demo"),
        Step("decode", "keep sampled frames (optional)", f"{PIPELINE}.decode", failures=failed_videos, distributed=True),
        Step("extract", "make I3D features of videos", f"{PIPELINE}.extract", failures=failed_videos, distributed=True),
        Step("tokenise", "turn queries into GloVe indices", f"{PIPELINE}.tokenise", formatter="show"),
        Step("pack", "pack features and queries into a training store", f"{PIPELINE}.pack"),
        Step("train", "train ExCL on training stores", f"{PIPELINE}.train"),
    ),
    "a trained model": (
        Step("localize", "answer queries about any video", f"{WORKFLOWS}.pages.localize_page", formatter="lines"),
        Step("serve", "answer queries about videos on a page in the browser", f"{WORKFLOWS}.server.serve"),
        Step("evaluate", "measure a trained model on a split", f"{PIPELINE}.evaluate", formatter="show"),
        Step("score", "measure anybody's predictions", f"{PIPELINE}.evaluation.score", formatter="show"),
        Step(
            "rankings", "score predictions on two sets of annotations", f"{PIPELINE}.evaluation.rankings", formatter="show"
        ),
        Step("significance", "say which differences are real", f"{PIPELINE}.sweep.significance", formatter="show"),
        Step("reproduce", "make the paper's table", f"{PIPELINE}.sweep.reproduce", formatter="show", failures="num_failed"),
        Step("protocol", "say in what two tables differ", f"{PIPELINE}.sweep.protocol", formatter="show"),
        Step("report", "make a page about a run or a store", f"{WORKFLOWS}.pages.report", formatter="show"),
        Step("show", "make a page of one video and its answers", f"{WORKFLOWS}.pages.show", formatter="show"),
    ),
    "a store": (
        Step("status", "say how far the work on a folder is", f"{PIPELINE}.maintenance.status", formatter="show"),
        Step("inspect", "show what a folder holds", f"{PIPELINE}.maintenance.inspect", formatter="show"),
        Step("verify", "look for damage", f"{PIPELINE}.maintenance.verify", formatter="show", failures="num_damaged"),
        Step("repair", "make again what is damaged", f"{PIPELINE}.maintenance.repair", formatter="show"),
        Step("merge", "make one store of several", f"{PIPELINE}.maintenance.merge"),
        Step("export", "write a store as other trainers read it", f"{PIPELINE}.exchange.export"),
        Step("import", "make a store of others' features", f"{PIPELINE}.exchange.import_features", failures=failed_videos),
        Step("push", "push a store or a run to the Hugging Face hub", f"{PIPELINE}.maintenance.push", formatter="show"),
        Step("pull", "pull a store or a run from the Hugging Face hub", f"{PIPELINE}.maintenance.pull", formatter="show"),
        Step(
            "compare",
            "say whether two sets of features are the same",
            f"{PIPELINE}.comparison.compare",
            formatter="show",
            failures="num_failed",
        ),
        Step(
            "identify",
            "say by which recipe features were made",
            f"{PIPELINE}.identify.identify",
            formatter="show",
            failures="num_failed",
        ),
    ),
    "what is needed": (
        Step(
            "weights",
            "list, fetch and import weights of I3D",
            f"{PIPELINE}.tools.weights",
            formatter="show",
            failures="num_wrong",
        ),
        Step(
            "verify-weights",
            "try weights of I3D",
            f"{PIPELINE}.tools.verify_weights",
            formatter="show",
            failures="num_wrong",
        ),
        Step(
            "glove", "list, fetch and verify word vectors", f"{PIPELINE}.tools.glove", formatter="show", failures="num_wrong"
        ),
        Step(
            "probe",
            "look at videos before they are decoded",
            f"{PIPELINE}.tools.probe",
            formatter="show",
            failures="num_bad",
        ),
        Step("classify", "name what is done in a video", f"{PIPELINE}.tools.classify", formatter="show"),
        Step(
            "doctor",
            "say whether this machine has what excl needs",
            f"{PIPELINE}.tools.doctor",
            formatter="show",
            failures="require_all",
        ),
    ),
}
COMMANDS = {step.name: step for steps in GROUPS.values() for step in steps}
OF_RECIPES = ("demo", "decode", "extract", "tokenise", "pack", "train", "localize", "evaluate", "reproduce")
STEPS = {name: COMMANDS[name] for name in OF_RECIPES}  # in the order in which a recipe does them
