"""Moments, annotated spans of videos: what every adapter returns, the cleaning all data sets share, a split by video.

The adapters beside this file (`charades_sta`, `tacos`, `jsonl`, `activitynet_captions`) return every row of their file,
unfiltered and in the file's order, so that official counts can be checked, and leave bad rows to `clean`.

One rule for ids: `annotation_id` is `<split>:<stem of the file>:<row>`, the row a line number (from 1) or
`<video>:<index>` (from 0); the split is the one given to the adapter. It is unique over all files of a data set that
differ in split or stem.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from excl.datasets.parsing import storable

NAMES_IN_REPORT = 5  # enough to go and look, few enough to read


@dataclass(frozen=True, kw_only=True)
class Moment:
    """One annotated span of a video; ValueError where a name is empty, a text cannot be kept, a duration is no length.

    Start and end may be wrong (swapped, beyond the video, not finite): files have such rows, `clean` judges them.
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
    """Where it was read, for messages: `charades_sta_train.txt:17` or `train.json: v_abc[2]`."""
    group: str = ""
    """A label by which tables of results are split."""

    def __post_init__(self) -> None:
        for name in ("annotation_id", "video_id", "split"):
            if not getattr(self, name).strip():
                raise ValueError(f"{self.source}: {name} is empty; every moment needs one")
        for name in ("annotation_id", "video_id", "query", "split", "group"):
            if not storable(getattr(self, name)):
                raise ValueError(
                    f"{self.source}: {name} {getattr(self, name)!r} holds a NUL or half a surrogate pair, "
                    "which a text file or an HDF5 string cannot keep; correct the annotation"
                )
        if self.duration_s is not None and not (math.isfinite(self.duration_s) and self.duration_s > 0):
            raise ValueError(
                f"{self.source}: the duration of video {self.video_id} is {self.duration_s} s; "
                "a finite number above 0 is wanted, or none at all"
            )


@dataclass(frozen=True)
class Cleaning:
    """What `clean` did: the moments to use, those of them it clipped (as they were), and those dropped, with why."""

    kept: list[Moment]
    clipped: list[Moment]
    dropped: list[tuple[Moment, str]]

    def lines(self) -> list[str]:
        """The report for people: the counts, a line for the clipped, one for every reason to drop, with names."""
        total = len(self.kept) + len(self.dropped)
        lines = [f"{total:,} moments: {len(self.kept):,} kept, {len(self.dropped):,} dropped"]
        if self.clipped:
            lines.append(f"clipped to the video, {len(self.clipped):,} of those kept: {_names(self.clipped)}")
        by_reason: dict[str, list[Moment]] = {}
        for moment, reason in self.dropped:
            by_reason.setdefault(reason, []).append(moment)
        lines += [f"dropped as {reason}, {len(moments):,}: {_names(moments)}" for reason, moments in by_reason.items()]
        return lines


def clean(moments: Iterable[Moment]) -> Cleaning:
    """The moments that can be used, in order: clipped to the video first, then those that are empty are dropped.

    Ends beyond a known duration become the duration and negative starts become 0, because such rows are sound but for
    rounding: 1,805 of 12,408 rows of Charades-STA train and 562 of 3,720 test end after the video, by 1.54 s at most;
    261, 134 and 111 of ActivityNet Captions train, val_1 and val_2, by 0.01 s at most; 43 and 5 of TACoS train and
    test, by 15 frames at most. Dropped is what then does not start before it ends: 4 rows of Charades-STA train (3 of
    them among the 1,805: they lie beyond the video whole) and 4 of ActivityNet Captions train, none elsewhere. They are
    not swapped: nothing says that two times were exchanged rather than one mistyped. Dropped too are queries without a
    visible character and times that are not finite.
    """
    result = Cleaning([], [], [])
    for moment in moments:
        fitted = _fit_to_video(moment)
        reason = _reason_to_drop(fitted)
        if reason:
            result.dropped.append((moment, reason))
            continue
        result.kept.append(fitted)
        if fitted is not moment:
            result.clipped.append(moment)
    return result


def _fit_to_video(moment: Moment) -> Moment:
    """The moment within [0, duration]; the very same object where nothing changes or a time is not finite."""
    if not (math.isfinite(moment.start_s) and math.isfinite(moment.end_s)):
        return moment
    start_s = max(moment.start_s, 0.0)
    end_s = moment.end_s if moment.duration_s is None else min(moment.end_s, moment.duration_s)
    if (start_s, end_s) == (moment.start_s, moment.end_s):
        return moment
    return replace(moment, start_s=start_s, end_s=end_s)


def _reason_to_drop(moment: Moment) -> str:
    """Why a moment that was fitted to its video cannot be used; empty where it can."""
    if not (math.isfinite(moment.start_s) and math.isfinite(moment.end_s)):
        return "a time is not a finite number"
    if not moment.query.strip():
        return "the query is empty"
    if moment.start_s >= moment.end_s:
        return "it does not start before it ends, within the video"
    return ""


def _names(moments: Sequence[Moment]) -> str:
    """The first moments by source, video and times."""
    names = [f"{m.source} ({m.video_id} {m.start_s:g}-{m.end_s:g} s)" for m in moments[:NAMES_IN_REPORT]]
    more = len(moments) - len(names)
    return ", ".join(names) + (f" and {more:,} more" if more else "")


def carve_validation(moments: Sequence[Moment], *, fraction: float, seed: int, split: str = "val") -> list[Moment]:
    """The training moments in order, those of `fraction` of the videos (at least one, never all) moved to `split`.

    Whole videos move, so that no video is on both sides. The choice depends on the seed and the set of video ids alone:
    not on the order of the input, not on Python's hash seed. Ids of annotations stay as they were.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"the fraction of videos for validation is {fraction}; a number between 0 and 1 is wanted")
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
