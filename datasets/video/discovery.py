"""The videos in a folder or a list: files by their suffix, ids by their stem."""

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
# The suffixes of videos whose containers are not read; a warning counts those that were left out of a folder.
OTHER_SUFFIXES = frozenset((
    ".264", ".265", ".apng", ".amv", ".dv", ".evo", ".h264", ".h265", ".hevc", ".ivf", ".m1v", ".m2v", ".m3u8", ".m4s",
    ".mjpeg", ".mjpg", ".mod", ".mpd", ".mxf", ".nut", ".rm", ".rmvb", ".swf", ".tod", ".webp", ".wtv", ".y4m",
))  # fmt: skip

LIST_SUFFIX = ".txt"


def video_files(source: Path, *, warn: bool = False) -> list[Path]:
    """Return all files with the name of a video in a folder (searched recursively), sorted by path, or the one file given.

    A GIF with the stem of another video of the folder is taken for a preview of it and left out. A file that ends with .txt
    is a list: a path on every line, from the list's own folder if it is relative; blank lines and those that begin with # do
    not count, nor does a path that was there before. `warn` logs how many of the folder's files are videos by their name but
    of a container that is not read. Raises FileNotFoundError if there is no such place, ValueError for a folder or a list
    without videos.
    """
    return [Path(path) for _, path in _files(source, warn=warn)]


def _files(source: Path, *, warn: bool) -> list[tuple[str, str]]:
    """Return the stem and the path of every file."""
    if source.is_file():
        paths = _read_list(source) if source.suffix.lower() == LIST_SUFFIX else [os.fspath(source)]
        return [(os.path.splitext(os.path.basename(path))[0], path) for path in paths]
    if not source.is_dir():
        raise FileNotFoundError(f"{source}: there is no such file or folder of videos")
    left_out: Counter[str] = Counter()
    files = _without_previews(list(_walk(os.fspath(source), left_out)))
    counts = ", ".join(f"{count:,} {suffix}" for suffix, count in sorted(left_out.items()))
    command = f"ffmpeg -i FILE {COPY_TO_MATROSKA} FILE.mkv"
    warning = f"left out are files whose containers are not read: {counts}; `{command}` converts most of them"
    if not files:
        suffixes = " ".join(sorted(VIDEO_SUFFIXES))
        raise ValueError(f"{source}: no videos there (looked for {suffixes}){f'; {warning}' if left_out else ''}")
    if warn and left_out:
        log.warning("%s: %s", source, warning)
    return files


def _without_previews(files: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the files without the GIFs that have the stem of another video: they are previews of it."""
    gifs = {path for _, path in files if path.lower().endswith(".gif")}
    stems = {stem for stem, path in files if path not in gifs} if gifs else set()
    return [(stem, path) for stem, path in files if stem not in stems or path not in gifs] if gifs else files


def _walk(folder: str, left_out: Counter[str]) -> Iterator[tuple[str, str]]:
    """Yield the stem and path of every file with the name of a video, in the order of `Path`s; follows no linked folders.

    There may be millions, so little is done for each of them. `left_out` counts the files that are not read by suffix.
    """
    try:
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=attrgetter("name"))
    except PermissionError:
        return
    for entry in ordered:
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
            yield from _walk(entry.path, left_out)


def _read_list(source: Path) -> list[str]:
    content = source.read_bytes().removeprefix(codecs.BOM_UTF8)
    lines = [line.strip() for line in os.fsdecode(content).split("\n")]  # names of files need not be valid Unicode
    paths = dict.fromkeys(os.fspath(source.parent / line) for line in lines if line and not line.startswith("#"))
    if not paths:
        raise ValueError(f"{source}: an empty list; write the path of a video on every line")
    return list(paths)


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


def find_videos(source: Path, *, warn: bool = False) -> Mapping[str, Path]:
    """Return the path of every video by its id (the file's stem), sorted by id; `source` and `warn` as in `video_files`.

    Raises ValueError for two files that would share an id.
    """
    files: dict[str, str] = {}
    clashes = []
    for stem, path in _files(source, warn=warn):
        if stem in files:
            clashes.append(f"{files[stem]} and {path} share the id {stem!r}")
        files[stem] = path
    if clashes:
        more = f" ({len(clashes) - 1} more such files; `excl probe` names all)" if len(clashes) > 1 else ""
        raise ValueError(f"{clashes[0]}; a video's id is its file's name without suffix: rename one of them{more}")
    ids = sorted(files)
    return Paths(files if ids == list(files) else {video_id: files[video_id] for video_id in ids})
