"""TACoS in the JSON of 2D-TAN and VSLNet: read `train.json`, `val.json` or `test.json` as moments in seconds.

A file is `{"s17-d69.avi": {"timestamps": [[224, 358], ...], "fps": 29.4, "num_frames": 12438, "sentences": [...]},
...}`, the timestamps in FRAMES. The files hold 9,790, 4,436 and 4,001 sentences of 75, 27 and 25 videos. This is not
TALL's version of the data set (10,146, 4,589 and 4,083 sentences): do not mix numbers of the two.
"""

from __future__ import annotations

from pathlib import Path

from excl.datasets.annotations.activitynet_captions import load_videos
from excl.datasets.annotations.moments import Moment
from excl.datasets.parsing import get_positive


def load(path: Path, *, split: str) -> list[Moment]:
    """Return every sentence as a moment, unfiltered, in the file's order; ValueErrors name the file and the video.

    Seconds are frames divided by the record's fps; the suffix `.avi` of the video's name is no part of its id.
    """
    return load_videos(
        path,
        split,
        lambda record, place: (get_positive(record, "fps", place), get_positive(record, "num_frames", place)),
        suffix=".avi",
    )
