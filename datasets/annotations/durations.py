"""The durations of videos, from files next to the annotations.

JSON: `{"v_abc": 82.7}`, or objects with `duration` (or `duration_s`, `length`) as annotation files have them, or with
`num_frames` and `fps` as those of TACoS. JSON lines have `vid` and `duration`, as Moment-DETR's. A table has a first line
with a column `id` (`video_id`, `video`) and one of these, as Charades_v1_train.csv has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from excl.datasets.parsing import parse_object, parse_seconds, positive, read_lines, read_table, read_text, shortened

IDS = ("id", "video_id", "video")
DURATIONS = ("duration_s", "duration", "length")


def read_durations(paths: Iterable[Path]) -> dict[str, float]:
    """Return the seconds by video of all the files; raises ValueError for a wrong duration, or if two files disagree."""
    return merge_lengths((row for path in paths for row in _rows(path)), unit="s")


def read_rates(paths: Iterable[Path]) -> dict[str, tuple[float, int]]:
    """Return frames a second and the number of frames by video, of JSON objects that have `fps` and `num_frames`."""
    rates = {}
    for path in paths:
        if path.suffix.lower() == ".json":
            for video_id, value in parse_object(read_text(path), path).items():
                if isinstance(value, Mapping) and {"fps", "num_frames"} <= value.keys():
                    place = f"{path}: {video_id}"
                    frames = positive(value["num_frames"], "num_frames", place)
                    rates[video_id] = (positive(value["fps"], "fps", place), round(frames))
    return rates


def merge_lengths(rows: Iterable[tuple[str, float, str]], *, unit: str) -> dict[str, float]:
    """Return the length by video of rows of video, length and place; raises ValueError if two disagree."""
    lengths: dict[str, float] = {}
    for video_id, length, place in rows:
        earlier = lengths.setdefault(video_id, length)
        if earlier != length:
            raise ValueError(f"{place}: video {video_id} is {length} {unit} long here and {earlier} {unit} before")
    return lengths


def find_length(lengths: Mapping[str, float], video_id: str, paths: Sequence[Path], place: str) -> float:
    """Return the length of a video; raises ValueError if the files have none."""
    if video_id not in lengths:
        names = ", ".join(map(str, paths)) or "no file at all"
        raise ValueError(f"{place}: video {video_id} has no length in {names}; add the file that has it")
    return lengths[video_id]


def _rows(path: Path) -> Iterator[tuple[str, float, str]]:
    """Yield video, seconds and place of every row of a table, or of every video in a JSON file."""
    if path.suffix.lower() == ".json":
        for video_id, value in parse_object(read_text(path), path).items():
            place = f"{path}: {video_id}"
            if isinstance(value, Mapping):
                key = next((key for key in DURATIONS if key in value), None)
                if key is None and {"fps", "num_frames"} <= value.keys():
                    frames, fps = (positive(value[name], name, place) for name in ("num_frames", "fps"))
                    yield video_id, frames / fps, place
                    continue
                if key is None:
                    raise ValueError(f"{place}: no 'duration'; found the keys {shortened(sorted(value))}")
                value = value[key]  # noqa: PLW2901
            duration_s = parse_seconds(value, "the duration", place) if isinstance(value, str) else value
            yield video_id, positive(duration_s, "the duration", place), place
        return

    if path.suffix.lower() == ".jsonl":
        for number, line in read_lines(path):
            place = f"{path}:{number}"
            entry = parse_object(line, path, number)
            if not {"vid", "duration"} <= entry.keys():
                raise ValueError(f"{place}: no 'vid' and 'duration'; found the keys {shortened(sorted(entry))}")
            yield str(entry["vid"]), positive(entry["duration"], "the duration", place), place
        return

    def find_columns(columns: list[str]) -> None:
        for names in (IDS, DURATIONS):
            used.extend([name for name in names if name in columns][:1])
        if len(used) < 2:
            needed = f"one of {', '.join(IDS)} and one of {', '.join(DURATIONS)}"
            raise ValueError(f"{path}:1: the columns are {columns}; expected {needed}")

    used: list[str] = []
    for line_number, row in read_table(path, find_columns):
        place = f"{path}:{line_number}"
        video_id, length = (row[name] or "" for name in used)
        if not video_id:
            raise ValueError(f"{place}: the row has no {used[0]}")
        yield video_id, positive(parse_seconds(length, "the duration", place), "the duration", place), place
