"""Charades-STA: reads `charades_sta_{train,test}.txt` and the video lengths of Charades, leaves moments.

A row is `AO8RW 0.0 6.9##a person is putting a book on a shelf.`: video, start and end in seconds, query. The lengths of
the videos stand in other files: `Charades_v1_{train,test}.csv`, columns `id` and `length` (seconds), or `charades.json`,
`{"AO8RW": {"duration": 33.67, ...}, ...}`. The official files hold 12,408 and 3,720 rows of 5,338 and 1,334 videos. There
is no official validation split: `moments.carve_validation`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from excl.datasets.annotations.moments import Moment
from excl.datasets.parsing import annotation_id, get, positive, query_fields, read_lines, read_text, read_videos


def load(path: Path, *, split: str, durations: Sequence[Path]) -> list[Moment]:
    """Every row as a moment, unfiltered, in the file's order; blank lines are no rows.

    `durations` are the CSV or JSON files that together hold the length of every video in `path`. ValueError where a row
    cannot be read or its video has no length, naming file, line and video.
    """
    duration_s_by_video = read_durations(durations)
    looked_in = ", ".join(str(file) for file in durations) or "no file at all"
    moments = []
    for line_number, line in read_lines(path):
        where = f"{path}:{line_number}"
        video_id, start_s, end_s, query = _parse_row(line, where)
        if video_id not in duration_s_by_video:
            raise ValueError(f"{where}: video {video_id} has no length in {looked_in}; add the file that has it")
        moments.append(
            Moment(
                annotation_id=annotation_id(split, path, line_number),
                video_id=video_id,
                **query_fields(query),
                start_s=start_s,
                end_s=end_s,
                duration_s=duration_s_by_video[video_id],
                split=split,
                source=f"{path.name}:{line_number}",
            )
        )
    return moments


def _parse_row(line: str, where: str) -> tuple[str, float, float, str]:
    """Video, start and end in seconds, query."""
    head, separator, query = line.partition("##")
    fields = head.split()
    if not separator or len(fields) != 3:
        raise ValueError(f"{where}: found {line[:60]!r}; wanted `video start end##query`")
    return fields[0], _seconds(fields[1], "the start", where), _seconds(fields[2], "the end", where), query


def read_durations(paths: Sequence[Path]) -> dict[str, float]:
    """Length in seconds by video of all the files; ValueError where a row has none, or two files disagree."""
    duration_s_by_video: dict[str, float] = {}
    for path in paths:
        for video_id, duration_s, where in _rows_of_durations(path):
            known_s = duration_s_by_video.setdefault(video_id, duration_s)
            if known_s != duration_s:
                raise ValueError(f"{where}: video {video_id} is {duration_s} s long here and {known_s} s before")
    return duration_s_by_video


def _rows_of_durations(path: Path) -> list[tuple[str, float, str]]:
    """Video, length in seconds and place of every row of a CSV file, or of every video in a JSON file."""
    if path.suffix.lower() == ".json":
        return [
            (video_id, positive(get(record, "duration", object, where), "'duration'", where), where)
            for video_id, where, record in read_videos(path)
        ]
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    try:
        return [_duration_of(row, f"{path}:{reader.line_num}") for row in reader]
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: cannot be read as CSV: {error}") from error


def _duration_of(row: Mapping[str | None, str | None], where: str) -> tuple[str, float, str]:
    """Video, length in seconds and place of one row; a short row has None in its last columns."""
    video_id, length = row.get("id"), row.get("length")
    if not video_id or length is None:
        columns = [column for column, value in row.items() if value is not None]
        raise ValueError(f"{where}: found values in the columns {columns}; wanted `id` and `length` (Charades_v1_*.csv)")
    return video_id, positive(_seconds(length, "the length", where), "the length", where), where


def _seconds(text: str, what: str, where: str) -> float:
    """A number from a text file."""
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"{where}: {what} is {text[:60]!r}; wanted a number of seconds") from error
