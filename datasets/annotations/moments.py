"""Moments, the annotated spans of videos that every adapter returns, and a split by video.

The adapters next to this file (`charades_sta`, `tacos`, `tacos_tall`, `activitynet_captions`, `moment_detr`, `jsonl`,
`csv_table`) return every row of their file, unfiltered and in the file's order, so that official counts can be checked, and
leave bad rows to `cleaning`.

One rule for ids: `annotation_id` is `<split>:<stem of the file>:<row>`, the row a line number (from 1), `<video>:<index>`
(from 0) or a query's own id; the split is the one given to the adapter. It is unique over all files of a data set that
differ in split or stem.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from excl.datasets.parsing import storable


@dataclass(frozen=True, kw_only=True)
class Moment:
    """An annotated span of a video; raises ValueError for an empty name, a text that cannot be stored, a bad duration.

    Start and end may be wrong (swapped, beyond the video, not finite): files have such rows, `cleaning` judges them.
    """

    annotation_id: str
    video_id: str
    query: str
    start_s: float
    end_s: float
    duration_s: float | None
    """Length of the whole video, None where the annotations do not know it."""
    split: str
    source: str
    """The place where the moment was read, for messages: `charades_sta_train.txt:17` or `train.json: v_abc[2]`."""
    group: str = ""
    """A label by which tables of results are split."""
    query_id: str = ""
    """Moments with the same one are alternative answers to one query; empty where the moment is the only answer."""
    raw_query: str = ""
    """The query as the file has it, if its whitespace differs from that of `query`; otherwise empty."""

    def __post_init__(self) -> None:
        for name in ("annotation_id", "video_id", "split"):
            if not getattr(self, name).strip():
                raise ValueError(f"{self.source}: {name} is empty; every moment needs one")
        for name in ("annotation_id", "video_id", "query", "split", "group", "query_id", "raw_query"):
            if not storable(getattr(self, name)):
                raise ValueError(
                    f"{self.source}: {name} {getattr(self, name)!r} holds a NUL or half a surrogate pair, "
                    "which a text file or an HDF5 string cannot keep; correct the annotation"
                )
        if self.duration_s is not None and not (math.isfinite(self.duration_s) and self.duration_s > 0):
            raise ValueError(
                f"{self.source}: the duration of video {self.video_id} is {self.duration_s} s; "
                "expected a finite number above 0, or none at all"
            )


def carve_validation(moments: Sequence[Moment], *, fraction: float, seed: int, split: str = "val") -> list[Moment]:
    """Return the training moments in order, those of `fraction` of the videos (at least one, never all) moved to `split`.

    Whole videos move, so that no video is on both sides. The choice depends on the seed and the set of video ids alone:
    not on the order of the input, not on Python's hash seed. Ids of annotations stay as they were.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"the fraction of videos for validation is {fraction}; expected a number between 0 and 1")
    splits = {moment.split for moment in moments}
    if len(splits) > 1 or split in splits:
        raise ValueError(
            f"cannot carve {split!r} out of moments of the splits {sorted(splits)}: give the moments of one split, "
            "the training split, and another name for the part to carve out"
        )
    video_ids = {moment.video_id for moment in moments}
    if len(video_ids) < 2:
        raise ValueError(f"cannot carve {split!r} out of {len(video_ids)} videos: at least 2 are needed, one a side")
    num_moved = min(max(1, round(fraction * len(video_ids))), len(video_ids) - 1)
    ranked = sorted(video_ids, key=lambda video_id: hashlib.sha256(f"{seed}:{video_id}".encode()).digest())
    moved = set(ranked[:num_moved])
    return [replace(moment, split=split) if moment.video_id in moved else moment for moment in moments]
