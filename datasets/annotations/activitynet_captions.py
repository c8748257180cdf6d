"""ActivityNet Captions: reads `train.json`, `val_1.json` or `val_2.json`, leaves moments.

A file is `{video: {"duration": 82.73, "timestamps": [[0.83, 19.86], ...], "sentences": ["...", ...]}, ...}`, times in
seconds. The official files hold 37,421, 17,505 and 17,031 sentences of 10,009, 4,917 and 4,885 videos. The videos of
val_2 are a subset of those of val_1, annotated by others: never train on the one and test on the other.
"""

from __future__ import annotations

from pathlib import Path

from excl.datasets.annotations.moments import Moment
from excl.datasets.parsing import annotated_spans, annotation_id, get, positive, query_fields, read_videos


def load(path: Path, *, split: str) -> list[Moment]:
    """Every sentence as a moment, unfiltered, in the file's order; ValueError names the file and video it cannot read.

    Queries lose surrounding whitespace (25,731 sentences of train have some), line breaks in them become spaces.
    """
    moments = []
    for video_id, where, record in read_videos(path):
        duration_s = positive(get(record, "duration", object, where), "'duration'", where)
        for index, (start_s, end_s, query) in enumerate(annotated_spans(record, where)):
            moments.append(
                Moment(
                    annotation_id=annotation_id(split, path, f"{video_id}:{index}"),
                    video_id=video_id,
                    **query_fields(query),
                    start_s=start_s,
                    end_s=end_s,
                    duration_s=duration_s,
                    split=split,
                    source=f"{path.name}: {video_id}[{index}]",
                )
            )
    return moments
