"""What a step's folder is, compared with what is asked of the step: done, begun, of other settings, or not there.

A folder of other settings is not removed but moved aside, to `features.old-1` and so on, since it may have taken days; and
it is taken back when its settings are asked for again. Nothing here computes features or trains.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from excl.datasets.text.glove_files import PUBLISHED as PUBLISHED_GLOVE
from excl.datasets.video.discovery import find_videos
from excl.datasets.video.errors import VideoError
from excl.models.i3d.download import cached_path
from excl.models.i3d.published import PUBLISHED
from excl.pipeline import decode, evaluate, extract, localize, pack, tokenise, train
from excl.pipeline.artifacts.header import HEADER, diff
from excl.pipeline.artifacts.locks import exclusive_folder
from excl.pipeline.artifacts.manifest import Manifest, has_no_results
from excl.pipeline.artifacts.video_records import video_files, video_key
from excl.pipeline.execution import work_items
from excl.pipeline.execution.source_files import file_facts, is_as_recorded
from excl.pipeline.queries import glove_download
from excl.pipeline.store.frame_codec import LOSSLESS
from excl.pipeline.sweep import reproduce
from excl.workflows import demo
from excl.workflows.runner.recipe import NO_PATHS, normal, within

log = logging.getLogger(__name__)

DIFFERENCES_SHOWN = 3
SHA256_DIGITS = 64
READ_VIDEOS = (decode.STAGE, extract.STAGE)


def _extract(config: extract.ExtractConfig, configs: Mapping[str, Any]) -> dict[str, Any]:
    pictures, decoded = LOSSLESS, configs.get(decode.STAGE)
    if config.frames is not None and decoded is not None and decoded.out == config.frames:
        pictures = decoded.pictures  # whether the frames are there already or not
    elif config.frames is not None:
        pictures = Manifest.read(config.frames, stage=decode.STAGE).header["identity"]["pictures"]
    if config.weights_spec in PUBLISHED and not cached_path(config.weights_spec).is_file():
        raise ValueError(f"the weights {config.weights_spec} are not in the cache and are downloaded first")
    return extract.recipe(config, pictures)


def _tokenise(config: tokenise.TokeniseConfig) -> dict[str, Any]:
    if config.glove in PUBLISHED_GLOVE and not glove_download.cached_path(config.glove).is_file():
        raise ValueError(f"the word vectors {config.glove} are not in the cache and are downloaded first")
    return tokenise.made_by(config)


MADE_BY: dict[
    str, tuple[Callable[[Any], dict[str, Any]], int]
] = {  # what determines the results of a step, and by which code
    demo.STAGE: (demo.made_by, demo.CODE_VERSION),
    decode.STAGE: (decode.made_by, decode.CODE_VERSION),
    tokenise.STAGE: (_tokenise, tokenise.CODE_VERSION),
    pack.STAGE: (pack.made_by, pack.CODE_VERSION),
    train.STAGE: (train.made_by, train.CODE_VERSION),
    localize.STAGE: (localize.made_by, localize.CODE_VERSION),
    evaluate.STAGE: (evaluate.made_by, evaluate.CODE_VERSION),
}


def has_header(step: str) -> bool:
    """Whether the folder of a step says what made it: that of a sweep does not, but those in it do."""
    return step in MADE_BY or step == extract.STAGE


def wanted_header(step: str, config: Any, configs: Mapping[str, Any]) -> dict[str, Any]:
    """The header that a step's folder would have, by its own configuration and those of the whole recipe.

    ValueError or OSError where it cannot be said: while what the step reads is not finished, or has to be downloaded first.
    """
    if step == extract.STAGE:
        made_by, version = _extract(config, configs), extract.CODE_VERSION
    else:
        made_by, version = MADE_BY[step][0](config), MADE_BY[step][1]
    return json.loads(json.dumps({"stage": step, "code_version": version, "identity": made_by}))


@dataclass(frozen=True)
class FolderState:
    """A folder of a step: its manifest, and in what its header is not the one wanted, as `key: (there, wanted)`."""

    manifest: Manifest
    differences: Mapping[str, tuple[Any, Any]]

    def reasons(self, step: str) -> str:
        """The differences in words: `extract.rows.stride was 8 and is 4`."""
        lines = [_reason(step, key, old, new) for key, (old, new) in self.differences.items()]
        more = f", and {len(lines) - DIFFERENCES_SHOWN} more" if len(lines) > DIFFERENCES_SHOWN else ""
        return ", ".join(lines[:DIFFERENCES_SHOWN]) + more


def _reason(step: str, key: str, old: object, new: object) -> str:
    name = f"{step}.{key.removeprefix('identity.')}"
    if all(isinstance(value, str) and len(value) == SHA256_DIGITS for value in (old, new)):
        return f"{name} is not the same content"
    return f"{name} was {old} and is {new}"


def inspect_folder(folder: Path, wanted: Mapping[str, Any]) -> FolderState | None:
    """What is in a folder; None where nothing was made yet. ValueError if its manifest is damaged."""
    if not (folder / HEADER).is_file():
        return None
    if has_no_results(folder):
        return None  # which takes any settings
    manifest = Manifest.read(folder)
    return FolderState(manifest, diff(manifest.header, wanted))


def resolve_link(folder: Path) -> Path:
    """Where a folder is: what a link points to, on a larger disk perhaps, stays there when it is moved aside."""
    return folder.resolve() if folder.is_symlink() else folder


def old_folders(folder: Path) -> Iterator[Path]:
    """The folders that were moved aside, the latest first."""
    folder = resolve_link(folder)
    numbered = {path: path.name.rpartition(".old-")[2] for path in folder.parent.glob(f"{folder.name}.old-*")}
    found = [(int(number), path) for path, number in numbered.items() if number.isdecimal() and path.is_dir()]
    return (path for _, path in sorted(found, reverse=True))


def is_new(folder: Path) -> bool:
    """Whether nothing was made in a folder yet, and none like it was moved aside."""
    return inspect_folder(folder, {}) is None and not any(old_folders(folder))


def matching_old_folder(step: str, config: Any, wanted: Mapping[str, Any]) -> Path | None:
    """The folder that was moved aside and was made from just what is wanted now; None if there is none."""
    for path in old_folders(config.out):
        if step == reproduce.STEP:
            if reproduce.is_of(dataclasses.replace(config, out=path)):
                return path
            continue
        try:
            found = inspect_folder(path, wanted)
        except ValueError:
            continue  # damaged: nothing to take back
        if found is not None and not found.differences and not changed_video(step, config, found.manifest):
            return path
    return None


def changed_video(step: str, config: Any, manifest: Manifest) -> str:
    """A video of which another file was read than is there now, by its content; empty if there is none."""
    if step not in READ_VIDEOS:
        return ""
    for video_id, path in videos_of(config).items():
        item = work_items.VideoTask(video_id, path, 0)
        if manifest.has_failed(video_key(video_id)) or is_as_recorded(manifest, item):
            continue  # and nothing is parsed
        record = manifest.records.get(video_key(video_id), {})
        try:
            if "stat" in record:
                facts = file_facts(path) if reads_files(config) else decode.source_of(item)
                if facts["sha256"] != record["source"]["sha256"]:
                    return video_id
        except VideoError:
            continue  # it cannot be read any more: what was made of it stays
    return ""


def reads_files(config: Any) -> bool:
    """Whether videos are read from files, or frames from what decode left."""
    return getattr(config, "frames", None) is None


def videos_of(config: Any) -> Mapping[str, Path]:
    """The videos that decode or extract reads, by id; ValueError or OSError if there are none."""
    if reads_files(config):
        return find_videos(config.videos)
    manifest = Manifest.read(config.frames, stage=decode.STAGE)
    return {video_id: config.frames / file for video_id, file in sorted(video_files(manifest).items())}


def move_aside(step: str, config: Any, configs: Mapping[str, Any]) -> None:
    """Move a folder of other settings or inputs aside, and take back one of these, if there is one.

    BusyError if somebody works on it. Nothing is done if another run has made way meanwhile.
    """
    wanted = wanted_header(step, config, configs) if has_header(step) else {}
    out, kept = resolve_link(config.out), matching_old_folder(step, config, wanted)
    if out.exists():
        with exclusive_folder(out):
            if _is_as_wanted(step, config, configs, wanted):
                return
            if has_no_results(out):
                shutil.rmtree(out)
            else:
                free = next(path for n in itertools.count(1) if not (path := out.with_name(f"{out.name}.old-{n}")).exists())
                out.rename(free)
                log.warning("%s is kept as %s (remove it if it is not needed)", config.out, free)
    if kept is not None:
        kept.rename(out)
        log.warning("%s is taken back from %s, which was made from just this", config.out, kept)
        return
    log.warning("%s is made again", config.out)
    if config.out.is_symlink():
        out.mkdir()


def _is_as_wanted(step: str, config: Any, configs: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether a folder holds, in part at least, what is asked for."""
    if step == reproduce.STEP:
        return reproduce.is_of(config)
    found = inspect_folder(config.out, wanted)
    return found is not None and not found.differences and not _has_changed_videos(step, config, configs, found)


def _has_changed_videos(step: str, config: Any, configs: Mapping[str, Any], found: FolderState) -> bool:
    """Whether the videos that a folder was made from are others now, which only those that the recipe makes may be."""
    return step in READ_VIDEOS and made_by_recipe(config, configs) and bool(changed_video(step, config, found.manifest))


def prepare(step: str, config: Any, configs: Mapping[str, Any]) -> None:
    """Before a step is run: take back what was moved aside, if nothing was made since, and make way for other videos.

    Videos that an earlier step of the recipe made may change, and what was made of them is made again; others may not, which
    the step itself refuses.
    """
    if config.out is None or not has_header(step) or is_new(config.out):
        return
    found = inspect_folder(config.out, {})
    if found is None:
        if matching_old_folder(step, config, wanted_header(step, config, configs)):
            move_aside(step, config, configs)
    elif step in READ_VIDEOS and made_by_recipe(config, configs):
        found = inspect_folder(config.out, wanted_header(step, config, configs))
        if found is not None and not found.differences and _has_changed_videos(step, config, configs, found):
            move_aside(step, config, configs)


def made_by_recipe(config: Any, configs: Mapping[str, Any]) -> bool:
    """Whether the videos that a step reads are made by another step of the recipe."""
    source = config.videos if reads_files(config) else config.frames
    return any(other.out is not None and within(source, other.out) for other in configs.values())


def free_bytes(root: Path) -> int:
    """Of the disk of a folder that need not be there yet."""
    return shutil.disk_usage(next(path for path in (root, *root.parents) if path.exists())).free


def with_moved_inputs(config: Any, moved: Mapping[Path, Path]) -> Any:
    """A configuration that reads from where its inputs lie now: those that will be taken back lie elsewhere."""

    def place(given: Any) -> Any:
        if isinstance(given, tuple):
            return tuple(map(place, given))
        for folder, now in moved.items() if isinstance(given, Path | str) else ():
            path = Path(given)
            if within(path, folder) and (isinstance(given, Path) or not within(folder, path)):
                return type(given)(now / normal(path).relative_to(normal(folder)))
        return given

    names = {field.name for field in dataclasses.fields(config)} - {"out", *NO_PATHS}
    values = {name: getattr(config, name) for name in sorted(names)}
    changed = {name: place(value) for name, value in values.items() if place(value) != value}
    return dataclasses.replace(config, **changed) if changed else config
