"""Charades-STA: read `charades_sta_{train,test}.txt`, with the video lengths of Charades, as moments.

A row is `AO8RW 0.0 6.9##a person is putting a book on a shelf.`: video, start and end in seconds, query. The lengths of
the videos are in other files (see `durations`): `Charades_v1_{train,test}.csv`, columns `id` and `length` (seconds), or
`charades.json`, `{"AO8RW": {"duration": 33.67, ...}, ...}`. The official files hold 12,408 and 3,720 rows of 5,338 and
1,334 videos. There is no official validation split: `moments.carve_validation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from excl.datasets.annotations.durations import find_length, read_durations
from excl.datasets.annotations.moments import Moment
from excl.datasets.parsing import annotation_id, parse_seconds, query_fields, read_lines


def load(path: Path, *, split: str, durations: Sequence[Path]) -> list[Moment]:
    """Return every row as a moment, unfiltered, in the file's order; blank lines are no rows.

    `durations` are the CSV or JSON files that together hold the length of every video in `path`. Raises ValueError, naming
    file, line and video, where a row cannot be read or its video has no length.
    """
    durations_s = read_durations(durations)
    moments = []
    for line_number, line in read_lines(path):
        place = f"{path}:{line_number}"
        head, separator, query = line.partition("##")
        fields = head.split()
        if not separator or len(fields) != 3:
            raise ValueError(f"{place}: found {line[:60]!r}; expected `video start end##query`")
        moments.append(
            Moment(
                annotation_id=annotation_id(split, path, line_number),
                video_id=fields[0],
                **query_fields(query),
                start_s=parse_seconds(fields[1], "the start", place),
                end_s=parse_seconds(fields[2], "the end", place),
                duration_s=find_length(durations_s, fields[0], durations, place),
                split=split,
                source=f"{path.name}:{line_number}",
            )
        )
    return moments
