"""The commands there are, each with where its configuration and its function stand: what `excl` and the recipes choose from.

A module is imported when its command is wanted, so that `excl` starts at once and a command loads what it needs alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from excl.pipeline.manifest import Manifest


@dataclass(frozen=True)
class Step:
    """One command: its name, what it is for in a line, and the names of what it consists of in its module.

    `shows` is the function that says what of a result people want to see, `counts` the one that says how many videos
    failed; `spreads` says that the work may be done by workers elsewhere.
    """

    name: str
    about: str
    module: str
    shows: str = ""
    counts: str = ""
    spreads: bool = False
    runs: str = "run"
    takes: str = "Config"

    def _of_module(self, name: str) -> Any:
        return getattr(import_module(self.module), name)

    @property
    def config(self) -> type[Any]:
        """The class of its configuration."""
        return self._of_module(self.takes)

    @property
    def run(self) -> Callable[[Any], Any]:
        """What it does with a configuration."""
        run = self._of_module(self.runs)
        return _where_told(run) if self.spreads else run

    def show(self, result: Any) -> str | None:
        """What people want to see of its result, if anything."""
        return self._of_module(self.shows)(result) if self.shows else None

    def failed(self, result: Any) -> int:
        """How many videos failed."""
        if self.counts == FAILED_VIDEOS:
            return len(Manifest.read(Path(result)).failed)
        return self._of_module(self.counts)(result) if self.counts else 0


def run_step(step: Step, config: Any) -> int:
    """Run one step and show what it found; returns how many videos failed."""
    result = step.run(config)
    if (shown := step.show(result)) is not None:
        print(shown, flush=True)
    return step.failed(result)


def _where_told(run: Callable[..., Any]) -> Callable[[Any], Any]:
    """A stage that works where its configuration says: in this process, or with the workers of `cluster.py`."""

    @functools.wraps(run)
    def run_there(config: Any) -> Any:
        from excl.pipeline.running import INLINE  # noqa: PLC0415  (`excl --help` answers at once)

        if config.running.executor == INLINE:
            return run(config)
        try:
            from excl.workflows.cluster import run_on_workers  # noqa: PLC0415  (an extra)
        except ModuleNotFoundError as error:
            raise ValueError(
                f"executor {config.running.executor}: `pip install 'excl[cluster]'` installs what it needs ({error})"
            ) from error
        return run_on_workers(run, config)

    return run_there


FAILED_VIDEOS = "the failed videos of the folder that it made"
PIPELINE, WORKFLOWS = "excl.pipeline", "excl.workflows"

GROUPS = {
    "a data set": (
        Step("init", "begin a data set of your own", f"{WORKFLOWS}.init", shows="show"),
        Step("check", "say whether everything is in place", f"{WORKFLOWS}.check", shows="show", counts="num_problems"),
        Step("run", "do all steps of a recipe", f"{WORKFLOWS}.run", shows="show", counts="num_failed"),
    ),
    "the stages, each of which leaves one folder": (
        Step("demo", "make a small data set of moving shapes", f"{WORKFLOWS}.demo"),
        Step("decode", "keep sampled frames (optional)", f"{PIPELINE}.decode", counts=FAILED_VIDEOS, spreads=True),
        Step("extract", "make I3D features of videos", f"{PIPELINE}.extract", counts=FAILED_VIDEOS, spreads=True),
        Step("tokenise", "turn queries into GloVe indices", f"{PIPELINE}.tokenise", shows="show"),
        Step("pack", "pack features and queries into a training store", f"{PIPELINE}.pack"),
        Step("train", "train ExCL on training stores", f"{PIPELINE}.train"),
    ),
    "a trained model": (
        Step("localize", "answer queries about any video", f"{PIPELINE}.localize", shows="lines"),
        Step("evaluate", "measure a trained model on a split", f"{PIPELINE}.evaluate", shows="show"),
        Step("score", "measure anybody's predictions", f"{PIPELINE}.score", shows="show"),
        Step("reproduce", "make the paper's table", f"{PIPELINE}.reproduce", shows="show", counts="num_failed"),
    ),
    "a store": (
        Step(
            "status",
            "say how far the work on a folder is",
            f"{PIPELINE}.status",
            "status_lines",
            runs="status",
            takes="Status",
        ),
        Step("inspect", "show what a folder holds", f"{PIPELINE}.status", "inspect_lines", runs="inspect", takes="Inspect"),
        Step("verify", "look for damage", f"{PIPELINE}.verify", shows="show", counts="num_damaged"),
        Step("repair", "make again what is damaged", f"{PIPELINE}.repair", shows="show"),
        Step("merge", "make one store of several", f"{PIPELINE}.merge"),
        Step("export", "write a store as other trainers read it", f"{PIPELINE}.export"),
        Step("import", "make a store of others' features", f"{PIPELINE}.import_features", counts=FAILED_VIDEOS),
        Step("compare", "say whether two sets of features are the same", f"{PIPELINE}.compare", "show", "num_failed"),
    ),
    "what is needed": (
        Step("weights", "list, fetch and import weights of I3D", f"{PIPELINE}.weights", shows="show", counts="num_wrong"),
        Step("verify-weights", "try weights of I3D", f"{PIPELINE}.verify_weights", shows="show", counts="num_wrong"),
        Step("glove", "list, fetch and verify word vectors", f"{PIPELINE}.glove", shows="show", counts="num_wrong"),
        Step("probe", "look at videos before they are decoded", f"{PIPELINE}.probe", shows="show", counts="num_bad"),
        Step("classify", "name what is done in a video", f"{PIPELINE}.classify", shows="show"),
    ),
}
COMMANDS = {step.name: step for steps in GROUPS.values() for step in steps}
OF_RECIPES = ("demo", "decode", "extract", "tokenise", "pack", "train", "localize", "evaluate", "reproduce")
STEPS = {name: COMMANDS[name] for name in OF_RECIPES}  # in the order in which a recipe does them
