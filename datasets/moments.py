"""Moments, annotated spans of videos: what every adapter returns, the cleaning all data sets share, a split by video.

The functions at the end are the parsing helpers of the adapters beside this file (`charades_sta`, `tacos`, `jsonl`,
`activitynet_captions`). Each of those returns every row of its file, unfiltered and in the file's order, so that
official counts can be checked, and leaves bad rows to `clean`.

One rule for ids: `annotation_id` is `<split>:<stem of the file>:<row>`, the row a line number (from 1) or
`<video>:<index>` (from 0); the split is the one given to the adapter. It is unique over all files of a data set that
differ in split or stem.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

NAMES_IN_REPORT = 5  # enough to go and look, few enough to read
_NOT_STORABLE = re.compile("[\0\ud800-\udfff]")  # NUL ends an HDF5 string, half a surrogate pair has no UTF-8

T = TypeVar("T")


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


# What the adapters share: reading files and values, with errors that name the place.


def annotation_id(split: str, path: Path, row: object) -> str:
    """The id of a row by the rule at the top of this file."""
    return f"{split}:{path.stem}:{row}"


def one_line(query: str) -> str:
    """The query without surrounding whitespace, every line break and the whitespace around it folded to one space."""
    return re.sub(r"\s*[\r\n]\s*", " ", query.strip())


def storable(text: str) -> bool:
    """Whether a text can be written as UTF-8 and as an HDF5 string."""
    return _NOT_STORABLE.search(text) is None


def read_text(path: Path) -> str:
    """The whole file, a byte order mark removed; ValueError with the line where it is not UTF-8."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line_number = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}:{line_number}: byte {data[error.start]:#04x} is not UTF-8; save the file as UTF-8"
        ) from error


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of every line that is not blank; only line feeds end a line, not U+2028 and its kin."""
    for line_number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            yield line_number, line.rstrip("\r")


def parse_object(text: str, path: Path, line_number: int = 1) -> dict[str, Any]:
    """The JSON object in a text that begins on that line; ValueError where it is none, or names a key twice."""
    try:
        value = json.loads(text, object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        where = f"{path}:{line_number - 1 + error.lineno}"
        raise ValueError(f"{where}: cannot be read as JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # a repeated key; a number of 5,000 digits; 10,000 brackets
        raise ValueError(f"{path}:{line_number}: cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}:{line_number}: found {describe(value)} where a JSON object {{...}} is wanted")
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs as a dict; ValueError for a repeated key, of which Python's reader would silently keep the last."""
    result = dict(pairs)
    if len(result) < len(pairs):
        key, count = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"one object has the key {key!r} {count} times")
    return result


def get(record: Mapping[str, Any], key: str, kind: type[T], where: str) -> T:
    """The value of a key, of that very type; ValueError where it is missing or of another type."""
    if key not in record:
        raise ValueError(f"{where}: no {key!r}; found the keys {sorted(record)}")
    value = record[key]
    if not isinstance(value, kind):
        raise ValueError(f"{where}: {key!r} is {describe(value)}; wanted {kind.__name__}")
    return value


def number(value: object, what: str, where: str) -> float:
    """A JSON number as a float, NaN and infinities included; ValueError for anything else, true and false among it."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{where}: {what} is {describe(value)}; wanted a number")
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"{where}: {what} has {len(str(value))} digits; wanted a number of seconds or frames") from error


def positive(value: object, what: str, where: str) -> float:
    """A JSON number that is finite and above 0; ValueError for anything else."""
    result = number(value, what, where)
    if not (math.isfinite(result) and result > 0):
        raise ValueError(f"{where}: {what} is {result:g}; wanted a finite number above 0")
    return result


def read_videos(path: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Key, place for messages, and record of every video in a file `{video: {...}, ...}`."""
    for key, record in parse_object(read_text(path), path).items():
        where = f"{path}: {key}"
        if not isinstance(record, dict):
            raise ValueError(f"{where}: found {describe(record)} where an object with timestamps and sentences is wanted")
        yield key, where, record


def annotated_spans(record: Mapping[str, Any], where: str) -> list[tuple[float, float, str]]:
    """Start, end (in the file's unit) and query of every annotation in a record with `timestamps` and `sentences`."""
    pairs = get(record, "timestamps", list, where)
    sentences = get(record, "sentences", list, where)
    if len(pairs) != len(sentences):
        raise ValueError(f"{where}: {len(pairs)} timestamps but {len(sentences)} sentences; wanted one of each a moment")
    spans = []
    for index, (pair, sentence) in enumerate(zip(pairs, sentences, strict=True)):
        here = f"{where}[{index}]"
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError(f"{here}: the timestamp is {describe(pair)}; wanted [start, end]")
        if not isinstance(sentence, str):
            raise ValueError(f"{here}: the sentence is {describe(sentence)}; wanted a string")
        spans.append((number(pair[0], "the start", here), number(pair[1], "the end", here), one_line(sentence)))
    return spans


def describe(value: object) -> str:
    """A value from a file for an error message, cut short."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
