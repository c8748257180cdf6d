"""ActivityNet Captions: read `train.json`, `val_1.json` or `val_2.json` as moments.

A file is `{video: {"duration": 82.73, "timestamps": [[0.83, 19.86], ...], "sentences": ["...", ...]}, ...}`, times in
seconds. The official files hold 37,421, 17,505 and 17,031 sentences of 10,009, 4,917 and 4,885 videos. The videos of
val_2 are a subset of those of val_1, annotated by others: never train on the one and test on the other. The re-divided data
sets (Charades-CD, ActivityNet-CD, Charades-CG, ActivityNet-CG) have the same format, Charades-CD with `video_duration`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from excl.datasets.annotations.moments import Moment
from excl.datasets.parsing import annotated_spans, annotation_id, get_positive, query_fields, read_videos


def load(path: Path, *, split: str) -> list[Moment]:
    """Return every sentence as a moment, unfiltered, in the file's order; ValueErrors name the file and the video.

    Queries lose surrounding whitespace (25,731 sentences of train have some), line breaks in them become spaces.
    """
    return load_videos(path, split, lambda record, place: (1.0, get_positive(record, _duration_key(record), place)))


def _duration_key(record: dict[str, Any]) -> str:
    return "video_duration" if "duration" not in record and "video_duration" in record else "duration"


def load_videos(
    path: Path,
    split: str,
    read_units: Callable[[dict[str, Any], str], tuple[float, float]],
    *,
    suffix: str = "",
    keys: tuple[str, str] = ("timestamps", "sentences"),
) -> list[Moment]:
    """Return the moments of a file by video, whose `keys` name times and texts. Ids are the videos' names without `suffix`.

    `read_units` returns, for a video's record and its place, how many units of its timestamps a second has and how many the
    video has.
    """
    moments = []
    for name, place, record in read_videos(path):
        video_id = name.removesuffix(suffix)
        units_per_s, num_units = read_units(record, place)
        for index, (start, end, query) in enumerate(annotated_spans(record, place, keys)):
            moments.append(
                Moment(
                    annotation_id=annotation_id(split, path, f"{video_id}:{index}"),
                    video_id=video_id,
                    **query_fields(query),
                    start_s=start / units_per_s,
                    end_s=end / units_per_s,
                    duration_s=num_units / units_per_s,
                    split=split,
                    source=f"{path.name}: {name}[{index}]",
                )
            )
    return moments
