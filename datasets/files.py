"""Which videos there are: files by their suffix, ids by their stem."""

from __future__ import annotations

import os
from pathlib import Path

VIDEO_SUFFIXES = frozenset((
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".flv", ".wmv", ".asf",
    ".3gp", ".3g2", ".ogv", ".ogg",
))  # fmt: skip


LIST_SUFFIX = ".txt"


def video_files(source: Path) -> list[Path]:
    """All files with the name of a video in a folder (searched recursively), sorted by path, or the one file given.

    A file that ends with .txt is a list: a path on every line, from the list's own folder if it is relative; blank lines do
    not count. Raises FileNotFoundError if there is no such place, ValueError for a folder or a list without videos.
    """
    if source.is_file():
        return _listed(source) if source.suffix.lower() == LIST_SUFFIX else [source]
    if not source.is_dir():
        raise FileNotFoundError(f"{source}: there is no such file or folder of videos")
    found = sorted(p for p in source.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES)
    if not found:
        raise ValueError(f"{source}: no videos there (looked for {' '.join(sorted(VIDEO_SUFFIXES))})")
    return found


def _listed(source: Path) -> list[Path]:
    lines = os.fsdecode(source.read_bytes()).splitlines()  # names of files need not be valid Unicode
    found = [source.parent / line.strip() for line in lines if line.strip()]
    if not found:
        raise ValueError(f"{source}: an empty list; wanted is the path of a video on every line")
    return found


def find_videos(source: Path) -> dict[str, Path]:
    """Video id (the file's stem) to path, sorted by id, for a folder, a file or a list as in `video_files`.

    Raises ValueError for two files that would share an id.
    """
    found: dict[str, Path] = {}
    for path in video_files(source):
        if path.stem in found:
            raise ValueError(f"{found[path.stem]} and {path} share the id {path.stem!r}; rename one of them")
        found[path.stem] = path
    return dict(sorted(found.items()))
