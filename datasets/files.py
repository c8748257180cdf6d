"""Which videos there are: files by their suffix, ids by their stem."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator, Mapping
from operator import attrgetter
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
    return [Path(path) for _, path in _files(source)]


def _files(source: Path) -> list[tuple[str, str]]:
    """Stem and path of every file."""
    if source.is_file():
        paths = _listed(source) if source.suffix.lower() == LIST_SUFFIX else [os.fspath(source)]
        return [(os.path.splitext(os.path.basename(path))[0], path) for path in paths]
    if not source.is_dir():
        raise FileNotFoundError(f"{source}: there is no such file or folder of videos")
    found = list(_in_folder(os.fspath(source)))
    if not found:
        raise ValueError(f"{source}: no videos there (looked for {' '.join(sorted(VIDEO_SUFFIXES))})")
    return found


def _in_folder(folder: str) -> Iterator[tuple[str, str]]:
    """Stem and path of what has the name of a video, folders that are links left out, in the order of `Path`s.

    There may be millions: what is done for each of them here is little.
    """
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=attrgetter("name"))
    except PermissionError:
        return
    for entry in found:
        stem, dot, suffix = entry.name.rpartition(".")
        if (dot + suffix).lower() in VIDEO_SUFFIXES and stem.strip("."):  # .mp4 is a name without a suffix
            yield stem, entry.path
        try:
            is_folder = entry.is_dir(follow_symlinks=False)
        except PermissionError:
            continue
        if is_folder:
            yield from _in_folder(entry.path)


def _listed(source: Path) -> list[str]:
    content = source.read_bytes().removeprefix(codecs.BOM_UTF8)
    lines = [line.strip() for line in os.fsdecode(content).split("\n")]  # names of files need not be valid Unicode
    found = dict.fromkeys(os.fspath(source.parent / line) for line in lines if line and not line.startswith("#"))
    if not found:
        raise ValueError(f"{source}: an empty list; wanted is the path of a video on every line")
    return list(found)


class Paths(Mapping[str, Path]):
    """Paths by id, made when they are asked for: a million strings take seconds, as many `Path`s most of a minute."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self.files = files

    def __getitem__(self, video_id: str) -> Path:
        return Path(self.files[video_id])

    def __contains__(self, video_id: object) -> bool:
        return video_id in self.files

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


def find_videos(source: Path) -> Mapping[str, Path]:
    """Video id (the file's stem) to path, sorted by id, for a folder, a file or a list as in `video_files`.

    Raises ValueError for two files that would share an id.
    """
    found: dict[str, str] = {}
    shared = []
    for stem, path in _files(source):
        if stem in found:
            shared.append(f"{found[stem]} and {path} share the id {stem!r}")
        found[stem] = path
    if shared:
        more = f" ({len(shared) - 1} more such files; `excl probe` names all)" if len(shared) > 1 else ""
        raise ValueError(f"{shared[0]}; a video's id is its file's name without suffix: rename one of them{more}")
    ids = sorted(found)
    return Paths(found if ids == list(found) else {video_id: found[video_id] for video_id in ids})
