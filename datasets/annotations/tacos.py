"""TACoS in the JSON of 2D-TAN and VSLNet: reads `train.json`, `val.json` or `test.json`, leaves moments in seconds.

A file is `{"s17-d69.avi": {"timestamps": [[224, 358], ...], "fps": 29.4, "num_frames": 12438, "sentences": [...]},
...}`, the timestamps in FRAMES. The files hold 9,790, 4,436 and 4,001 sentences of 75, 27 and 25 videos. This is not
TALL's version of the data set (10,146, 4,589 and 4,083 sentences): do not mix numbers of the two.
"""

from __future__ import annotations

from pathlib import Path

from excl.datasets.annotations.moments import Moment
from excl.datasets.parsing import annotated_spans, annotation_id, get, positive, query_fields, read_videos


def load(path: Path, *, split: str) -> list[Moment]:
    """Every sentence as a moment, unfiltered, in the file's order; ValueError names the file and video it cannot read.

    Seconds are frames divided by the record's fps; the suffix `.avi` of the video's name is no part of its id.
    """
    moments = []
    for key, where, record in read_videos(path):
        video_id = key.removesuffix(".avi")
        fps = positive(get(record, "fps", object, where), "'fps'", where)
        num_frames = positive(get(record, "num_frames", object, where), "'num_frames'", where)
        for index, (start_frame, end_frame, query) in enumerate(annotated_spans(record, where)):
            moments.append(
                Moment(
                    annotation_id=annotation_id(split, path, f"{video_id}:{index}"),
                    video_id=video_id,
                    **query_fields(query),
                    start_s=start_frame / fps,
                    end_s=end_frame / fps,
                    duration_s=num_frames / fps,
                    split=split,
                    source=f"{path.name}: {key}[{index}]",
                )
            )
    return moments
