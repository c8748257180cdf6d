"""TACoS in TALL's version: read clips named `video_start_end` with their sentences as moments in seconds.

A line is `s13-d21.avi_252_452.avi##He took out a pan` (or with a tab between): the clip's name with its first and last
frame, and the sentence. TALL gave out the names with sentence vectors in Python 2 pickles; a file of this form is easily
made from these and the corpus. Its `video_allframes_info.pkl` has the videos' lengths in frames; it is read without being
unpickled. TALL's version has 10,146, 4,589 and 4,083 sentences, that of 2D-TAN (`tacos`) other ones: do not mix numbers of
the two.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from excl.datasets.annotations.durations import find_length, merge_lengths
from excl.datasets.annotations.moments import Moment
from excl.datasets.parsing import annotation_id, parse_object, positive, query_fields, read_lines, read_text

FPS = 29.4  # of all 127 videos, by the JSON version of the data set
CLIP = re.compile(r"(?P<video>.+?)(\.avi)?_(?P<start>\d+)_(?P<end>\d+)(\.(avi|npy))?")
NUMBERS = {"INT", "LONG", "BININT", "BININT1", "BININT2"}


def load(path: Path, *, split: str, durations: Sequence[Path] = ()) -> list[Moment]:
    """Return every line as a moment, unfiltered, in the file's order; the suffix `.avi` of a video is no part of its id.

    `durations` are files with the videos' lengths in frames, JSON or TALL's pickle; without them durations are unknown.
    Raises ValueError, naming file and line, where a line cannot be read or its video has no length in these files.
    """
    num_frames = merge_lengths((row for file in durations for row in read_frame_counts(file)), unit="frames")
    moments = []
    for line_number, line in read_lines(path):
        place = f"{path}:{line_number}"
        head, separator, sentence = line.partition("##") if "##" in line else line.partition("\t")
        clip = CLIP.fullmatch(head.strip())
        if not separator or clip is None:
            raise ValueError(f"{place}: found {line[:60]!r}; expected `video_start_end##sentence`, the times in frames")
        moments.append(
            Moment(
                annotation_id=annotation_id(split, path, line_number),
                video_id=clip["video"],
                **query_fields(sentence),
                start_s=int(clip["start"]) / FPS,
                end_s=int(clip["end"]) / FPS,
                duration_s=find_length(num_frames, clip["video"], durations, place) / FPS if durations else None,
                split=split,
                source=f"{path.name}:{line_number}",
            )
        )
    return moments


def read_frame_counts(path: Path) -> Iterator[tuple[str, float, str]]:
    """Yield video, length in frames and place: of `{"s13-d21": 12438, ...}` as JSON, or a pickle of a flat dictionary.

    A pickle is a program; this one is not run: its names and numbers are read off in turn.
    """
    pairs = parse_object(read_text(path), path) if path.suffix.lower() == ".json" else _read_pickle(path)
    for video, count in pairs.items():
        yield video.removesuffix(".avi"), positive(count, f"the length of {video}", str(path)), str(path)


def _read_pickle(path: Path) -> dict[str, object]:
    values: list[Any] = []
    try:
        for code, value, _ in pickletools.genops(path.read_bytes()):
            if code.name in NUMBERS or code.name.endswith(("STRING", "UNICODE")):
                values.append(value)
    except ValueError as error:
        raise ValueError(f"{path}: cannot be read as a pickle of frame counts: {error}") from error
    videos, counts = values[::2], values[1::2]
    if not values or len(values) % 2 or not all(isinstance(video, str) for video in videos):
        raise ValueError(f"{path}: expected a pickle of a dictionary of videos and their lengths in frames")
    return dict(zip(videos, counts, strict=True))
