"""The answers of a trained run about a video, and its annotated moments, as records of the component."""

from __future__ import annotations

import base64
import glob
import logging
import mimetypes
import os
import urllib.parse
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from excl.datasets.parsing import printable
from excl.datasets.video.errors import VideoError
from excl.datasets.video.geometry import Geometry
from excl.pipeline.execution.video_reading import VideoReading
from excl.pipeline.localize import foreign_words
from excl.pipeline.store.frame_codec import encoder
from excl.pipeline.store.shard import VideoFeatures
from excl.pipeline.store.training_store import Query
from excl.pipeline.training.examples import Example
from excl.pipeline.training.trained_run import TrainedRun, predict_with_rows
from excl.workflows.pages.timeline import AnnotatedMoment, PredictedMoment, TimelineQuery, VideoTimeline

log = logging.getLogger(__name__)

ROWS_AT_ONCE = 16_384  # of all queries of a batch
PICTURES, PICTURE_PX, QUALITY = 12, 72, 70
PICTURED_S = 600.0
"""The longest video of which pictures are made: that decodes it once more."""


def timeline(
    video: VideoFeatures,
    queries: Sequence[TimelineQuery],
    *,
    file: Path | None = None,
    page: Path | None = None,
    reading: VideoReading | None = None,
) -> VideoTimeline:
    """Return the record of a video with its rows and these queries.

    `file` is the video's own, which the page plays: by its path relative to the file `page`, or, without that, from a copy
    inside the page. With `reading` there are small pictures along the time axis.
    """
    num_frames = video.facts.get("frames_expected")
    return VideoTimeline(
        title=printable(video.video_id),
        video=None if file is None else embedded(file) if page is None else relative_url(file, page),
        duration_s=video.duration_s,
        fps=num_frames / video.duration_s if num_frames and video.duration_s > 0 else None,
        rows={"start_s": _rounded(video.start_s), "end_s": _rounded(video.end_s)},
        queries=list(queries),
        thumbnails=pictures(file, video.duration_s, reading) if file is not None and reading is not None else [],
    )


def answer(trained: TrainedRun, examples: Sequence[Example], *, top: int) -> list[TimelineQuery]:
    """Return a record for each example, with the probabilities of its rows and the `top` best moments."""
    batch_size = max(1, ROWS_AT_ONCE // max((len(example.features) for example in examples), default=1))
    moments, probabilities = predict_with_rows(trained.model, examples, batch_size=batch_size, k=top)
    return [
        TimelineQuery(
            text=example.query.query,
            start_probability=_rounded(start, digits=6),
            end_probability=_rounded(end, digits=6),
            predictions=[_prediction(*row) for row in best.tolist() if not np.isnan(row).any()],
            moments=[],
            note="",
            unseen_words=unseen,
            unknown_words=unknown,
        )
        for example, best, (start, end) in zip(examples, moments, probabilities, strict=True)
        for unseen, unknown in [foreign_words(trained, example.query)]
    ]


def annotated(queries: Iterable[Query]) -> list[TimelineQuery]:
    """Return a record for each query with its annotated moments; moments that answer the same query share one."""
    by_key: dict[str, list[Query]] = defaultdict(list)
    for query in queries:
        by_key[query.key].append(query)
    return [
        TimelineQuery(
            text=alternatives[0].query,
            start_probability=[],
            end_probability=[],
            predictions=[],
            moments=[AnnotatedMoment(start_s=q.start_s, end_s=q.end_s) for q in alternatives],
            note="",
            unseen_words=[],
            unknown_words=[],
        )
        for alternatives in by_key.values()
    ]


def _prediction(start_s: float, end_s: float, score: float) -> PredictedMoment:
    return PredictedMoment(start_s=round(start_s, 3), end_s=round(end_s, 3), score=float(f"{score:.3g}"))


def _rounded(values: np.ndarray, *, digits: int = 3) -> list[float]:
    return np.round(np.asarray(values, dtype=np.float64), digits).tolist()


def video_file(folder: Path | None, video: VideoFeatures) -> Path | None:
    """Return the file of a stored video in a folder or below: by the name that its features were made from, or by its id."""
    if folder is None:
        return None
    named = str(video.facts.get("source", {}).get("file", ""))
    patterns = [glob.escape(named)] if named and "/" not in named else []
    patterns += [f"{glob.escape(video.video_id)}.*"] if "/" not in video.video_id else []
    paths = (path for pattern in patterns for path in sorted(folder.rglob(pattern)) if path.is_file())
    return next(paths, None)


def relative_url(file: Path, page: Path) -> str:
    """Return the URL of a file as a page links to it, so that both can be moved together."""
    path = os.path.relpath(file.absolute(), page.absolute().parent)
    return urllib.parse.quote(os.fsencode(f"./{path}"))


def embedded(file: Path) -> str:
    """Return a file as a data URL."""
    kind = mimetypes.guess_type(file.name)[0] or "video/mp4"
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"


def pictures(file: Path, duration_s: float, reading: VideoReading, *, number: int = PICTURES) -> list[str]:
    """Return small JPEG pictures along a video as data URLs, read by a decoder's own process; none of a long video."""
    if not 0 < duration_s <= PICTURED_S:
        return []
    geometry = Geometry(PICTURE_PX, PICTURE_PX)
    try:
        frames = list(reading.open(file, fps=2 * number / duration_s, geometry=geometry))  # two a picture: the middle is one
    except VideoError as error:
        log.warning("%s: no pictures for its timeline (%s)", file, error)
        return []
    middles = [frames[min(2 * index + 1, len(frames) - 1)] for index in range(number)]
    jpeg = encoder(f"jpeg:{QUALITY}", side=PICTURE_PX)
    return [f"data:image/jpeg;base64,{base64.b64encode(jpeg(frame)).decode()}" for frame in middles]
