"""Which videos there are: files by their suffix, ids by their stem."""

from __future__ import annotations

from pathlib import Path

VIDEO_SUFFIXES = frozenset((
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".flv", ".wmv", ".asf",
    ".3gp", ".3g2", ".ogv", ".ogg",
))  # fmt: skip


def find_videos(source: Path) -> dict[str, Path]:
    """Video id (the file's stem) to path, sorted by id, for a folder (searched recursively) or one file.

    Raises ValueError for a folder without videos and for two files that would share an id.
    """
    if source.is_file():
        return {source.stem: source}
    if not source.is_dir():
        raise FileNotFoundError(f"{source}: there is no such file or folder of videos")
    found: dict[str, Path] = {}
    for path in sorted(p for p in source.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES):
        if path.stem in found:
            raise ValueError(f"{found[path.stem]} and {path} share the id {path.stem!r}; rename one of them")
        found[path.stem] = path
    if not found:
        raise ValueError(f"{source}: no videos there (looked for {' '.join(sorted(VIDEO_SUFFIXES))})")
    return dict(sorted(found.items()))
