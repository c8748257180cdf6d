"""Texts, bytes and JSON in files that hold either what they held before or all of it, whatever is killed when."""

from __future__ import annotations

import json
from pathlib import Path

from excl.models.files import atomic_write, fsync_folder, move, sha256_file

__all__ = ["atomic_write", "fsync_folder", "move", "sha256_file", "write_bytes", "write_json", "write_text"]


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 so that `path` holds either what it held before or all of it."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` so that `path` holds either what it held before or all of it."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")
