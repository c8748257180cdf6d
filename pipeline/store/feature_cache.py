"""Features of single videos that are remembered between questions, by what they were made from and how.

Each is a shard in the folder `localize` of the cache; the least recently used ones go. What cannot be written is warned of,
what is damaged is made again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import filelock

from excl.models.download import cache_folder
from excl.pipeline.store.shard import Shard, VideoFeatures, write_shard

log = logging.getLogger(__name__)

KEPT = 64  # a film of three hours in the paper's rows is 14 MB
LOCK_S = 60


def load(made_from: Mapping[str, Any]) -> VideoFeatures | None:
    """The features that were made from this, if they are remembered and undamaged."""
    path = _path(made_from)
    try:
        video = Shard(path).video(0)
        os.utime(path)  # used now
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("%s: not to be used (%s); the features are made again", path, error)
        return None
    return dataclasses.replace(video, features=video.features.copy())  # those of a shard cannot be written to


def save(made_from: Mapping[str, Any], video: VideoFeatures) -> None:
    """Keep features under what they were made from."""
    path = _path(made_from)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path.parent / ".lock", timeout=LOCK_S):
            for leftover in path.parent.glob(".*.tmp"):  # of a process that was killed: whoever writes holds the lock
                leftover.unlink()
            write_shard(path, [video], recipe=made_from)
            files = [file for file in path.parent.glob("*.h5") if file != path]
            for file in sorted(files, key=lambda file: file.stat().st_mtime_ns, reverse=True)[KEPT - 1 :]:
                file.unlink()
    except (OSError, filelock.Timeout) as error:
        log.warning("%s: the cache cannot be written (%s); the next question costs the same work", path.parent, error)


def _path(made_from: Mapping[str, Any]) -> Path:
    key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
    return cache_folder() / "localize" / f"{key}.h5"
