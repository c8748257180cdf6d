"""The steps there are, each with its configuration and its function: what the command and the recipes choose from."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from excl.pipeline import (
    classify,
    compare,
    decode,
    evaluate,
    export,
    extract,
    glove,
    import_features,
    localize,
    merge,
    pack,
    probe,
    repair,
    reproduce,
    score,
    status,
    tokenise,
    train,
    verify,
    verify_weights,
    weights,
)
from excl.pipeline.manifest import Manifest
from excl.pipeline.running import INLINE
from excl.workflows import demo, init


def _failed_videos(folder: Path) -> int:
    return len(Manifest.read(folder).failed)


def _none_failed(_: object) -> int:
    return 0


def _where_told(run: Callable[..., Any]) -> Callable[[Any], Any]:
    """A stage that works where its configuration says: in this process, or with the workers of `cluster.py`."""

    @functools.wraps(run)
    def run_there(config: Any) -> Any:
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


@dataclass(frozen=True)
class Step:
    """One step: its name, its configuration class, what it does, and what of its result people want to see."""

    name: str
    config: type[Any]
    run: Callable[[Any], Any]
    show: Callable[[Any], str] | None = None
    failed: Callable[[Any], int] = _none_failed


TOOLS = {  # which are no steps of a recipe
    step.name: step
    for step in (
        Step("init", init.Config, init.run, show=init.show),
        Step("probe", probe.Config, probe.run, show=probe.show, failed=probe.num_bad),
        Step("weights", weights.Config, weights.run, show=weights.show, failed=weights.num_wrong),
        Step("glove", glove.Config, glove.run, show=glove.show, failed=glove.num_wrong),
        Step(
            "verify-weights",
            verify_weights.Config,
            verify_weights.run,
            show=verify_weights.show,
            failed=verify_weights.num_wrong,
        ),
        Step("classify", classify.Config, classify.run, show=classify.show),
        Step("compare", compare.Config, compare.run, show=compare.show, failed=compare.num_failed),
        Step("status", status.Status, status.status, show=status.status_lines),
        Step("inspect", status.Inspect, status.inspect, show=status.inspect_lines),
        Step("verify", verify.Config, verify.run, show=verify.show, failed=verify.num_damaged),
        Step("repair", repair.Config, repair.run, show=repair.show),
        Step("merge", merge.Config, merge.run),
        Step("import", import_features.Config, import_features.run, failed=_failed_videos),
        Step("export", export.Config, export.run),
        Step("score", score.Config, score.run, show=score.show),
    )
}

STEPS = {
    step.name: step
    for step in (
        Step("demo", demo.Config, demo.run),
        Step("decode", decode.Config, _where_told(decode.run), failed=_failed_videos),
        Step("extract", extract.Config, _where_told(extract.run), failed=_failed_videos),
        Step("tokenise", tokenise.Config, tokenise.run, show=tokenise.show),
        Step("pack", pack.Config, pack.run),
        Step("train", train.Config, train.run),
        Step("localize", localize.Config, localize.run, show=localize.lines),
        Step("evaluate", evaluate.Config, evaluate.run, show=evaluate.show),
        Step("reproduce", reproduce.Config, reproduce.run, show=reproduce.show, failed=reproduce.num_failed),
    )
}
