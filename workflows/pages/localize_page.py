"""`excl localize` with a page of its answers, which `--html` writes; all else is `pipeline/localize.py`."""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic.dataclasses import dataclass

from excl.pipeline import localize
from excl.pipeline.config import STRICT
from excl.pipeline.execution.video_reading import decoders_stopped
from excl.pipeline.localize import Answers, lines
from excl.pipeline.sweep.table import RANDOM
from excl.pipeline.training.trained_run import TrainedRun
from excl.workflows.pages import views
from excl.workflows.pages.page import Page, Section, VideoExample, folder_title, render
from excl.workflows.pages.timeline import VideoTimeline

log = logging.getLogger(__name__)

__all__ = ["LocalizeConfig", "lines", "one_video", "page", "run"]


@dataclass(frozen=True, config=STRICT)
class LocalizeConfig(localize.AskConfig):
    """Find what sentences describe in a raw video, with a trained run."""

    html: Path | None = None
    """A page to write too: the video with its timeline, the probabilities over time and the answers."""


def run(config: LocalizeConfig) -> Answers:
    """Answer every query, and write the page of the answers if one is asked for."""
    if config.html is None:
        return localize.run(config)
    asked = localize.ask(config)
    answers = localize.run(config, asked)
    with decoders_stopped():
        page(config, asked, config.html).save(config.html)
    log.info("written: %s", config.html)
    return answers


def page(config: localize.AskConfig, asked: localize.Asked, path: Path | None, *, height_px: int = 720) -> Page:
    """Return the page of the answers about a video file; without the page's path the video is copied into it."""
    records = views.answer(asked.trained, asked.examples, top=asked.moments.shape[1])
    record = views.timeline(asked.video, records, file=config.video, page=path, reading=config.reading)
    return one_video(record, asked.trained, height_px=height_px)


def one_video(record: VideoTimeline, trained: TrainedRun | None, *, height_px: int) -> Page:
    """Return a page of one video: with the answers of a run and what has to be known of it, or with what is annotated."""
    warnings, heading = [], "What is annotated"
    if trained is not None:
        warnings = [*([RANDOM] if trained.recipe["weights"]["random"] else []), *([trained.stamp] if trained.stamp else [])]
        heading = f"Answers of the run {folder_title(trained.path)}"
    section = Section("", warnings=warnings, examples=[VideoExample(heading, record)])
    return render(record["title"], [section], height_px=height_px)
