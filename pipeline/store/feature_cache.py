"""The cache of single videos' features between questions, by what they were made from and how.

Each is a shard in the folder `localize` of the cache; the least recently used ones are removed. A failed write is a warning,
and a damaged entry is rebuilt.
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

from excl.models.download import cache_folder
from excl.pipeline.artifacts.file_cache import write_entry
from excl.pipeline.store.shard import Shard, VideoFeatures, write_shard

log = logging.getLogger(__name__)

KEPT = 64  # a film of three hours in the paper's rows is 14 MB


def load(made_from: Mapping[str, Any]) -> VideoFeatures | None:
    """Return the features made from this, if they are in the cache and undamaged."""
    path = _path(made_from)
    try:
        video = Shard(path).video(0)
        os.utime(path)  # used now
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("%s: unusable (%s); the features are rebuilt", path, error)
        return None
    return dataclasses.replace(video, features=video.features.copy())  # those of a shard cannot be written to


def save(made_from: Mapping[str, Any], video: VideoFeatures) -> None:
    """Save features under what they were made from."""
    path = _path(made_from)
    write_entry(path, lambda: write_shard(path, [video], recipe=made_from), max_entries=KEPT)


def _path(made_from: Mapping[str, Any]) -> Path:
    key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
    return cache_folder() / "localize" / f"{key}.h5"
