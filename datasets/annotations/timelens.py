"""TimeLens-Bench: read `charades-timelens.json`, `activitynet-timelens.json` or `qvhighlights-timelens.json` as moments.

The test splits of three data sets, annotated again (arXiv 2512.14698). A file is `{video: {"duration": 30.96, "spans":
[[24.3, 30.4], ...], "queries": ["...", ...]}, ...}`, times in seconds. Many queries are worded anew, so that not all are
those of the official files.
"""

from __future__ import annotations

from pathlib import Path

from excl.datasets.annotations.activitynet_captions import load_videos
from excl.datasets.annotations.moments import Moment
from excl.datasets.parsing import get_positive


def load(path: Path, *, split: str) -> list[Moment]:
    """Return every query as a moment, unfiltered, in the file's order; ValueErrors name the file and the video."""
    return load_videos(
        path, split, lambda record, place: (1.0, get_positive(record, "duration", place)), keys=("spans", "queries")
    )
