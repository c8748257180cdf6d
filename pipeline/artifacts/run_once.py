"""The stages whose result is a single thing, which is made at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from excl.pipeline.artifacts.atomic_files import sha256_file
from excl.pipeline.artifacts.manifest import COMPLETE, Manifest

log = logging.getLogger(__name__)


def run_once(
    folder: Path,
    *,
    stage: str,
    identity: Mapping[str, Any],
    code_version: int,
    build: Callable[[Manifest], Mapping[str, Any]],
) -> Path:
    """Run a stage whose result is a single thing: `build(manifest)` makes it unless it is complete, and returns the summary.

    Its key `sha256` names the files that were made. ValueError if a complete folder has lost or changed one of them.
    """
    with Manifest.open(folder, stage=stage, identity=identity, code_version=code_version) as manifest:
        if manifest.is_complete:
            _require_outputs(manifest)
            log.info("%s: %s is complete, nothing to do", stage, folder)
        else:
            manifest.complete(build(manifest))
    return folder


def _require_outputs(manifest: Manifest) -> None:
    files = dict(manifest.records[COMPLETE].get("sha256", {}))
    files |= {r["file"]: None for r in manifest.records.values() if "file" in r}  # large ones are checked when they are read
    for name, sha256 in files.items():
        path = manifest.folder / name
        if not path.is_file() or (sha256 is not None and sha256_file(path) != sha256):
            state = "has changed since it was made" if path.is_file() else "is not there any more"
            raise ValueError(f"{path} {state}; remove the folder {manifest.folder} and run the same command again")
