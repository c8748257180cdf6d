"""Which videos there are: files by their suffix, ids by their stem."""

from __future__ import annotations

from pathlib import Path

VIDEO_SUFFIXES = frozenset((
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".flv", ".wmv", ".asf",
    ".3gp", ".3g2", ".ogv", ".ogg",
))  # fmt: skip


def video_files(source: Path) -> list[Path]:
    """All files with the name of a video in a folder (searched recursively), sorted by path, or the one file given.

    Raises FileNotFoundError if there is no such place, ValueError for a folder without videos.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise FileNotFoundError(f"{source}: there is no such file or folder of videos")
    found = sorted(p for p in source.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES)
    if not found:
        raise ValueError(f"{source}: no videos there (looked for {' '.join(sorted(VIDEO_SUFFIXES))})")
    return found


def find_videos(source: Path) -> dict[str, Path]:
    """Video id (the file's stem) to path, sorted by id, for a folder or one file as in `video_files`.

    Raises ValueError for two files that would share an id.
    """
    found: dict[str, Path] = {}
    for path in video_files(source):
        if path.stem in found:
            raise ValueError(f"{found[path.stem]} and {path} share the id {path.stem!r}; rename one of them")
        found[path.stem] = path
    return dict(sorted(found.items()))
