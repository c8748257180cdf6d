"""The plan of a recipe's run, before it does anything: for every step what exists, what is left, what it takes.

Nothing is written. Each stage says itself what it would do (`preview`), and the headers of some videos are read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from excl.pipeline import train
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.sweep import reproduce
from excl.workflows import demo
from excl.workflows.runner.estimates import VideoLengths, size_in_words
from excl.workflows.runner.output_folders import (
    READ_VIDEOS,
    STAGES,
    StepFolders,
    free_bytes,
    is_free,
    is_new,
    missing_download,
    reasons,
)
from excl.workflows.runner.recipe import reads_from
from excl.workflows.runner.summary import summary

Kind = Literal["done", "resumes", "new", "follows", "always", "refused"]
WORDS: Mapping[Kind, str] = {
    "done": "done already{}, nothing to do",
    "resumes": "resumes{}",
    "new": "new{}",
    "follows": "follows",
    "always": "to do",
    "refused": "will be refused",
}


@dataclass(frozen=True)
class StepPlan:
    """The plan for one step."""

    step: str
    kind: Kind
    reason: str = ""
    """The reason, in words; for a step that resumes, how far it is."""
    content: str = ""
    """The content that exists or will exist, in counts."""
    folder: Path | None = None
    """The folder, if it is not the one that the recipe names."""

    @property
    def to_do(self) -> bool:
        """Return whether there is anything to do."""
        return self.kind != "done"

    def __str__(self) -> str:
        head = WORDS[self.kind].format(f" in {self.folder}" if self.folder else "")
        separator = {"new": ", because ", "follows": " from "}.get(self.kind, ": ")
        parts = [head + (f"{separator}{self.reason}" if self.reason else ""), self.content]
        return ": ".join(part for part in parts if part)


class Planner:
    """A planner that goes through the steps of a recipe in order, and knows which folders will have changed by then."""

    def __init__(self, tables: Mapping[str, Any], root: Path) -> None:
        self._folders, self._root = StepFolders(tables), root
        self._changing: dict[Path, str] = {}  # folders that will not hold what they do now, and their steps

    def skip(self, step: str) -> None:
        """Note a step that is not run, but whose results later steps may read."""
        self._folders.choose_existing(step)

    def plan(self, step: str) -> StepPlan:
        """Return the plan for the next step."""
        config = self._folders.config(step)
        if config.out is None:
            return StepPlan(step, "always")
        plain = config.out
        causes = [earlier for out, earlier in self._changing.items() if reads_from(config, out)]
        if causes:
            planned = StepPlan(step, "new") if is_new(plain) else StepPlan(step, "follows", " and ".join(causes))
        else:
            try:
                if not is_new(plain) and (reason := missing_download(config)):
                    raise ValueError(reason)
                config = self._folders.choose(step)
                planned = self._preview(step, config, plain)
            except (ValueError, OSError) as error:
                planned = StepPlan(step, "always", str(error))
        if planned.kind not in ("done", "refused"):
            self._changing[config.out] = step
        return planned

    def _preview(self, step: str, config: Any, plain: Path) -> StepPlan:
        """Plan a step whose folder is chosen, and whose inputs stay as they are."""
        folder = config.out if config.out != plain else None
        if step == reproduce.STAGE:
            trainings = reproduce.num_finished(config)
            finished = StepPlan(step, "done", "", f"{trainings} trainings with their evaluations", folder)
            return finished if trainings else StepPlan(step, "always", "whatever is not done yet")
        manifest = None if is_free(config.out) else Manifest.read(config.out)
        try:
            todo, num_videos = STAGES[step].preview(config) if step in READ_VIDEOS else ([], 0)
        except (ValueError, OSError) as error:
            return StepPlan(step, "refused", str(error), "", folder)
        content = f"{size_in_words(config, todo)} ({free_bytes(self._root) / 1e9:,.1f} GB free)" if todo else ""
        if manifest is None:
            if step == demo.STAGE:
                videos = [demo.plan_video(index, config) for index in range(len(config.splits))]
                content = str(VideoLengths([(video.duration_s, float(video.fps)) for video in videos], len(videos)))
            return StepPlan(step, "new", reasons(step, config, plain) if folder else "", content, folder)
        if todo:
            return StepPlan(step, "resumes", f"{len(todo):,} of {num_videos:,} videos left", content, folder)
        if num_videos or manifest.is_complete:
            failed = f"; {len(manifest.failed):,} failed, which retry_failed = true tries again" if manifest.failed else ""
            return StepPlan(step, "done", "", summary(step, manifest) + failed, folder)
        return StepPlan(step, "resumes", _progress(step, config), "", folder)


def _progress(step: str, config: Any) -> str:
    """Return how far an interrupted step is."""
    standing = config.out / "last.json"
    if step == train.STAGE and standing.is_file():
        return f"{json.loads(standing.read_text(encoding='utf-8'))['epoch']} of at most {config.epochs} epochs done"
    return "it was interrupted"
