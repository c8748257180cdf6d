"""The published weight files in the cache: which file belongs where, and how it is known."""

from __future__ import annotations

from pathlib import Path

from excl.models import download
from excl.models.download import Download, cache_folder
from excl.models.i3d.file_diagnosis import describe_wrong_file
from excl.models.i3d.published import PUBLISHED, mismatch


def cached_path(name: str) -> Path:
    """Where in the cache the published file `name` is, or would be."""
    return cache_folder() / PUBLISHED[name].cache_name


def fetch(name: str) -> Path:
    """The published file `name` (`kinetics` or `charades`) in the cache, downloaded with a progress bar if it is not there.

    What is in the cache is verified every time, and fetched again if it is damaged. OSError if the download fails (the next
    call goes on from where it stopped), ValueError if what came is not the published file (it is removed).
    """
    published = PUBLISHED[name]
    return download.fetch(
        Download(
            published.url,
            cached_path(name),
            differs=lambda path: mismatch(path, published),
            what_is=describe_wrong_file,
            manual_hint="run `excl weights import FILE`",
        )
    )
