"""The versions of the libraries with which something was made."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence

DECODING = ("av", "decord", "torchcodec")
"""The libraries that decode videos."""


def package_versions(names: Sequence[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed, by name."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
