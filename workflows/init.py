"""Begin a data set of your own: write a recipe and a sample of annotations for the videos in a folder."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import tyro
from pydantic.dataclasses import dataclass

from excl.datasets.video.discovery import find_videos
from excl.datasets.video.errors import InternalError, VideoError
from excl.pipeline.config import STRICT, SaidInText
from excl.pipeline.execution.video_reading import VideoLimits, stop_decoders

log = logging.getLogger(__name__)

RECIPE, ANNOTATIONS = "recipe.toml", "annotations.jsonl"
VIDEOS_IN_SAMPLE = 20  # as many lines as one reads
SAMPLE_QUERY = "what happens, in a sentence"

RECIPE_TEXT = """\
# A data set of your own, from videos to an evaluated model. Relative paths count from this file's folder.
#   excl check {recipe}    is everything in place, and how much will it be?
#   excl run {recipe}      does all steps; run it again, and what is done is not done twice
# Every key is a flag of the command of the same name too; `excl extract --help` tells all there are.

[extract]                       # I3D features of every video
videos = {videos}
weights = "kinetics"            # downloaded by `excl run`; or a file; or "random:0": answers mean nothing, to try the steps
out = "features"

[tokenise]                      # your queries
dataset = "{annotations}"   # or a table, .csv, with the same columns
glove = "6B"                    # word vectors, downloaded by `excl run` (862 MB); "840B" (2.2 GB); or a file of your own
carve_val = 0.1                 # of the training videos, where no row says "split": "val"
out = "queries"

[pack]
features = "features"
queries = "queries"
out = "store"

[train]
store = "store"
out = "run"

[evaluate]
run = "run"
store = "store"
split = "val"                   # "test", if some rows say "split": "test"
out = "evaluation"
"""

ANNOTATIONS_TEXT = """\
# One moment a line: in the video VIDEO_ID, QUERY happens from start_s to end_s, in seconds. Lines that begin with # are
# comments. Below is a line for {what}: copy it, say what happens and when, and take the # away.
# Optional: "split": "train", "val" or "test" (a video belongs into one of them; without a split it is for training);
#   "duration_s": of the whole video, so that times beyond it are noticed; "group": a label by which results are split;
#   "annotation_id": your own name for the line; "query_id": lines with the same one are several answers to one query.
"""


@dataclass(frozen=True, config=STRICT)
class InitConfig:
    """Begin a data set of your own: write a recipe and a sample annotation file for the videos in a folder."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """Folder for recipe.toml, annotations.jsonl and, later, the results. Existing files in it stay."""
    videos: SaidInText[Path | None] = None
    """The videos: a folder, searched recursively, or a list of paths. Default: DIR itself."""


def run(config: InitConfig) -> list[str]:
    """Write both files; returns what to do next. ValueError if one is there, or there are no videos."""
    if config.folder.is_file():
        raise ValueError(f"{config.folder}: is a file; give a folder to write into")
    source = config.videos or config.folder
    videos = find_videos(source)
    taken = [config.folder / name for name in (RECIPE, ANNOTATIONS) if (config.folder / name).exists()]
    if taken:
        raise ValueError(f"{taken[0]}: exists already and is not overwritten; remove it, or choose another folder")
    config.folder.mkdir(parents=True, exist_ok=True)
    recipe, annotations = config.folder / RECIPE, config.folder / ANNOTATIONS
    annotations.write_text(_annotations(videos), encoding="utf-8")
    recipe.write_text(
        RECIPE_TEXT.format(recipe=RECIPE, annotations=ANNOTATIONS, videos=_toml(_from(config.folder, source))),
        encoding="utf-8",
    )
    return [
        f"{len(videos):,} videos; written: {recipe}, {annotations}",
        f"Next: mark your moments with `excl annotate {config.folder}`, or write them into {annotations} (the lines in it "
        f"show how), then `excl check {recipe}`",
    ]


def _from(folder: Path, source: Path) -> str:
    """The path of the videos from the folder, absolute where they are not inside."""
    inside = source.resolve().is_relative_to(folder.resolve())
    return os.path.relpath(source.resolve(), folder.resolve()) if inside else str(source.resolve())


def _toml(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")  # a TOML string but for that character


def _annotations(videos: Mapping[str, Path]) -> str:
    """The sample: a commented line for every video, with its duration where the header says it."""
    shown = dict(list(videos.items())[:VIDEOS_IN_SAMPLE])
    described = "each video" if len(shown) == len(videos) else f"the first {len(shown)} of {len(videos):,} videos"
    lines = []
    limits = VideoLimits()
    try:
        for video_id, path in shown.items():
            row = {"video_id": video_id, "query": SAMPLE_QUERY, "start_s": 0.0, "end_s": 5.0}
            try:
                duration_s = limits.probe(path).duration_s
            except (VideoError, InternalError) as error:
                log.warning("%s", error)
                continue
            if duration_s is not None:
                row |= {"end_s": round(min(5.0, duration_s), 2), "duration_s": round(duration_s, 2)}
            lines.append("# " + json.dumps(row, ensure_ascii=False))
    finally:
        stop_decoders()
    return ANNOTATIONS_TEXT.format(what=described) + "".join(line + "\n" for line in lines)


def show(lines: list[str]) -> str:
    """Return what was written and what comes next, for people."""
    return "\n".join(lines)
