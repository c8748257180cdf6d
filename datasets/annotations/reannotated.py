"""Charades-STA annotated again by five people (Otani et al., BMVC 2020, hidden-challenges-MR): read a CSV file as moments.

A row is one person's answer: `HITId,video_id,description,start,end`, such as `3CMIQ…,YAFX0.mp4,person puts the dirty
clothes in the washer.,55,81`, times in percent of the video's duration, which is in other files (see `durations`). The
answers to one sentence about one video are alternatives of one query.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from excl.datasets.annotations.durations import find_length, read_durations
from excl.datasets.annotations.moments import Moment
from excl.datasets.parsing import annotation_id, parse_seconds, query_fields, read_table

COLUMNS = ("HITId", "video_id", "description", "start", "end")


def load(path: Path, *, split: str, durations: Sequence[Path]) -> list[Moment]:
    """Return every answer as a moment, unfiltered, in the file's order; ValueErrors name file and line."""

    def check_columns(columns: list[str]) -> None:
        if missing := [name for name in COLUMNS if name not in columns]:
            raise ValueError(f"{path}:1: no column {missing[0]!r}; found {columns}, expected {', '.join(COLUMNS)}")

    durations_s, moments = read_durations(durations), []
    for line_number, row in read_table(path, check_columns):
        place = f"{path}:{line_number}"
        if any(row[name] is None for name in COLUMNS):
            raise ValueError(f"{place}: the row has fewer fields than {', '.join(COLUMNS)}")
        video_id = row["video_id"].removesuffix(".mp4")
        duration_s = find_length(durations_s, video_id, durations, place)
        query = query_fields(row["description"])
        moments.append(
            Moment(
                annotation_id=annotation_id(split, path, line_number),
                query_id=annotation_id(split, path, f"{video_id}: {query['query']}"),
                video_id=video_id,
                **query,
                start_s=parse_seconds(row["start"], "the start", place) / 100 * duration_s,
                end_s=parse_seconds(row["end"], "the end", place) / 100 * duration_s,
                duration_s=duration_s,
                split=split,
                source=f"{path.name}:{line_number}",
            )
        )
    return moments
