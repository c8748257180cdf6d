"""The source files of videos: what identifies one, and whether it is still the one that was used."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from excl.datasets.video.container import require_regular_file
from excl.datasets.video.errors import OF_THE_MACHINE, VideoError
from excl.pipeline.artifacts.atomic_files import sha256_file
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.artifacts.video_records import SourceFacts, VideoRecord, video_key, video_record
from excl.pipeline.execution.pending_videos import RETRY, VideoTask

log = logging.getLogger(__name__)

WATCH_FIRST_S = 0.5


def file_facts(path: Path) -> SourceFacts:
    """Return the facts that identify a file; VideoError if it cannot be read."""
    require_regular_file(path)
    try:
        sha256 = sha256_file(path)
    except OSError as error:
        if error.errno in OF_THE_MACHINE:
            raise
        raise VideoError("unreadable", f"{path}: cannot be read ({error.strerror})") from error
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256}


def file_stat(path: Path | str) -> list[int]:
    """Return size and modification time: if they are the same, the file counts as the same. VideoError if it is gone."""
    status = require_regular_file(path)
    return [status.st_size, status.st_mtime_ns]


def require_unchanged(path: Path, stat: list[int]) -> None:
    """Raise VideoError if the file is not as it was when `stat` was read."""
    if file_stat(path) != stat:
        raise VideoError("changed", f"{path}: changed while it was read; {RETRY} reads it again")


class SourceWatcher:
    """Checks in a background thread that the files of finished videos have not changed.

    A million files take seconds, or minutes on a network. A few are checked before the work begins.
    """

    def __init__(
        self, manifest: Manifest, finished: list[VideoTask], identify: Callable[[VideoTask], Mapping[str, Any]]
    ) -> None:
        self._manifest, self._finished, self._identify = manifest, finished, identify
        self._error: Exception | None = None
        self._is_stopped = False
        self._thread = threading.Thread(target=self._run, name="excl-look", daemon=True)

    def __enter__(self) -> SourceWatcher:
        self._thread.start()
        self._thread.join(WATCH_FIRST_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._is_stopped = True
        self._thread.join()

    def require_unchanged(self, *, all: bool = False) -> None:
        """Raise ValueError if a file has changed, out of those checked so far; with `all`, wait until all are checked."""
        if all:
            self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            for task in self._finished:
                if self._is_stopped:
                    return
                if not is_as_recorded(self._manifest, task):
                    self._refuse_changed(video_record(self._manifest, task.video_id), task)
        except Exception as error:  # noqa: BLE001  (the boundary of a thread; it is raised again in the one that works)
            self._error = error

    def _refuse_changed(self, record: VideoRecord, task: VideoTask) -> None:
        try:
            sha256 = self._identify(task)["sha256"]
        except VideoError as error:
            log.warning("%s: cannot be read any more, what was made of it stays: %s", task.video_id, error)
            return
        if sha256 != record["source"]["sha256"]:
            raise ValueError(
                f"{task.path} has changed since {self._manifest.folder} was made from it; put the file back that it was, "
                "choose another output folder, or remove this one"
            )


def is_as_recorded(manifest: Manifest, task: VideoTask) -> bool:
    """Return whether the file has the recorded size and time, or no longer exists."""
    try:
        stat = file_stat(task.file)
    except VideoError as error:
        return error.reason == "missing"
    return manifest.records.get(video_key(task.video_id), {}).get("stat") == stat
