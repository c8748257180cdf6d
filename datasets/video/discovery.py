"""Which videos there are: files by their suffix, ids by their stem."""

from __future__ import annotations

import codecs
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from operator import attrgetter
from pathlib import Path

from excl.datasets.video.remedies import COPY_TO_MATROSKA

log = logging.getLogger(__name__)

VIDEO_SUFFIXES = frozenset((
    ".mp4", ".m4v", ".mov", ".qt", ".f4v", ".3gp", ".3g2", ".mkv", ".webm", ".avi", ".divx", ".mpg", ".mpeg", ".mpe", ".vob",
    ".ts", ".m2ts", ".mts", ".m2t", ".flv", ".wmv", ".asf", ".ogv", ".ogg", ".ogm", ".gif",
))  # fmt: skip
# Of videos whose containers are not read: how many were left out of a folder is said.
OTHER_SUFFIXES = frozenset((
    ".264", ".265", ".apng", ".amv", ".dv", ".evo", ".h264", ".h265", ".hevc", ".ivf", ".m1v", ".m2v", ".m3u8", ".m4s",
    ".mjpeg", ".mjpg", ".mod", ".mpd", ".mxf", ".nut", ".rm", ".rmvb", ".swf", ".tod", ".webp", ".wtv", ".y4m",
))  # fmt: skip

LIST_SUFFIX = ".txt"


def video_files(source: Path, *, left_out: Counter[str] | None = None) -> list[Path]:
    """All files with the name of a video in a folder (searched recursively), sorted by path, or the one file given.

    A GIF with the stem of another video of the folder is taken for a preview of it and left out. A file that ends with .txt
    is a list: a path on every line, from the list's own folder if it is relative; blank lines and those that begin with # do
    not count, nor does a path that was there before. `left_out` counts, by suffix, the folder's files that are videos by
    their name but of a container that is not read. Raises FileNotFoundError if there is no such place, ValueError for a
    folder or a list without videos.
    """
    return [Path(path) for _, path in _files(source, Counter() if left_out is None else left_out)]


def log_left_out(source: Path, left_out: Counter[str]) -> None:
    """Warn of files that were left out of a folder of videos, if there are any."""
    if left_out:
        log.warning("%s: %s", source, _in_words(left_out))


def _in_words(left_out: Counter[str]) -> str:
    counts = ", ".join(f"{count:,} {suffix}" for suffix, count in sorted(left_out.items()))
    command = f"ffmpeg -i FILE {COPY_TO_MATROSKA} FILE.mkv"
    return f"left out are files whose containers are not read: {counts}; `{command}` converts most of them"


def _files(source: Path, left_out: Counter[str]) -> list[tuple[str, str]]:
    """Stem and path of every file."""
    if source.is_file():
        paths = _listed(source) if source.suffix.lower() == LIST_SUFFIX else [os.fspath(source)]
        return [(os.path.splitext(os.path.basename(path))[0], path) for path in paths]
    if not source.is_dir():
        raise FileNotFoundError(f"{source}: there is no such file or folder of videos")
    found = _without_previews(list(_in_folder(os.fspath(source), left_out)))
    if not found:
        others = f"; {_in_words(left_out)}" if left_out else ""
        raise ValueError(f"{source}: no videos there (looked for {' '.join(sorted(VIDEO_SUFFIXES))}){others}")
    return found


def _without_previews(found: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The files without the GIFs that have the stem of another video: they are previews of it."""
    gifs = {path for _, path in found if path.lower().endswith(".gif")}
    stems = {stem for stem, path in found if path not in gifs} if gifs else set()
    return [(stem, path) for stem, path in found if stem not in stems or path not in gifs] if gifs else found


def _in_folder(folder: str, left_out: Counter[str]) -> Iterator[tuple[str, str]]:
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
        suffix = (dot + suffix).lower()
        if suffix in VIDEO_SUFFIXES and stem.strip("."):  # .mp4 is a name without a suffix
            yield stem, entry.path
        elif suffix in OTHER_SUFFIXES and stem.strip("."):
            left_out[suffix] += 1
        try:
            is_folder = entry.is_dir(follow_symlinks=False)
        except PermissionError:
            continue
        if is_folder:
            yield from _in_folder(entry.path, left_out)


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


def find_videos(source: Path, *, left_out: Counter[str] | None = None) -> Mapping[str, Path]:
    """Video id (the file's stem) to path, sorted by id, for a folder, a file or a list as in `video_files`.

    Raises ValueError for two files that would share an id.
    """
    found: dict[str, str] = {}
    shared = []
    for stem, path in _files(source, Counter() if left_out is None else left_out):
        if stem in found:
            shared.append(f"{found[stem]} and {path} share the id {stem!r}")
        found[stem] = path
    if shared:
        more = f" ({len(shared) - 1} more such files; `excl probe` names all)" if len(shared) > 1 else ""
        raise ValueError(f"{shared[0]}; a video's id is its file's name without suffix: rename one of them{more}")
    ids = sorted(found)
    return Paths(found if ids == list(found) else {video_id: found[video_id] for video_id in ids})
