"""Which videos there are: files by their suffix, ids by their stem."""

from __future__ import annotations

import codecs
import os
from pathlib import Path

VIDEO_SUFFIXES = frozenset((
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".flv", ".wmv", ".asf",
    ".3gp", ".3g2", ".ogv", ".ogg",
))  # fmt: skip


LIST_SUFFIX = ".txt"


def video_files(source: Path) -> list[Path]:
    """All files with the name of a video in a folder (searched recursively), sorted by path, or the one file given.

    A file that ends with .txt is a list: a path on every line, from the list's own folder if it is relative; blank lines
    and those that begin with # do not count, nor does a path that was there before. Raises FileNotFoundError if there is no
    such place, ValueError for a folder or a list without videos.
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
    content = source.read_bytes().removeprefix(codecs.BOM_UTF8)
    lines = [line.strip() for line in os.fsdecode(content).split("\n")]  # names of files need not be valid Unicode
    found = dict.fromkeys(source.parent / line for line in lines if line and not line.startswith("#"))
    if not found:
        raise ValueError(f"{source}: an empty list; wanted is the path of a video on every line")
    return list(found)


def find_videos(source: Path) -> dict[str, Path]:
    """Video id (the file's stem) to path, sorted by id, for a folder, a file or a list as in `video_files`.

    Raises ValueError for two files that would share an id.
    """
    found: dict[str, Path] = {}
    shared = []
    for path in video_files(source):
        if path.stem in found:
            shared.append(f"{found[path.stem]} and {path} share the id {path.stem!r}")
        found[path.stem] = path
    if shared:
        more = f" ({len(shared) - 1} more such files; `excl probe` names all)" if len(shared) > 1 else ""
        raise ValueError(f"{shared[0]}; a video's id is its file's name without suffix: rename one of them{more}")
    return dict(sorted(found.items()))
