"""`excl localize` with a page of its answers, which `--html` writes; all else is `pipeline/localize.py`."""

from __future__ import annotations

from pathlib import Path

from excl.pipeline import localize
from excl.pipeline.execution.video_reading import decoders_stopped
from excl.pipeline.localize import Answers, LocalizeConfig, lines
from excl.pipeline.training.trained_run import load_run
from excl.workflows.pages import views
from excl.workflows.pages.page import Page, Section, VideoExample, render

__all__ = ["LocalizeConfig", "lines", "page", "run"]


def run(config: LocalizeConfig) -> Answers:
    """Answer every query, and write the page of the answers if one is asked for."""
    answers = localize.run(config)
    if config.html is not None:
        with decoders_stopped():
            page(config, config.html).save(config.html)
    return answers


def page(config: LocalizeConfig, path: Path | None, *, height_px: int = 720) -> Page:
    """Return the page of the answers about a video file; without the page's path the video is copied into it."""
    trained = load_run(config.run, device=config.device)
    video = localize.features(config, trained)
    records = views.answer(
        trained,
        localize.make_examples(trained, video, config.query, unseen_words=config.unseen_words, glove=config.glove),
        top=config.top,
    )
    record = views.timeline(video, records, file=config.video, page=path, reading=config.reading)
    lines = [f"Answers of {config.run.absolute().name}."] + ([trained.stamp] if trained.stamp else [])
    if trained.recipe["weights"]["random"]:
        lines.append("The features come from an I3D with RANDOM weights: the answers mean nothing.")
    return render(
        record["title"], [Section("", examples=[VideoExample("Answers", record)])], lines=lines, height_px=height_px
    )
