"""Why an id cannot be a name in a format. Ids are whatever people called their videos: nothing is known of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from excl.datasets.parsing import storable

MAX_BYTES = 200  # of a file's name, which most file systems end at 255, with room for suffixes
SHOWN = 5
Rule = Callable[[str], str]


def file_name(name: str) -> str:
    """Why a name cannot be that of a file in a folder, wherever the folder may be copied to; empty if it can."""
    if not name:
        return "is empty"
    if name.startswith("."):
        return "begins with a dot"
    if found := re.search(r'[/\\:*?"<>|]', name):
        return f"has {found[0]} in it, which cannot be in the name of a file"
    if not name.isprintable() or name != name.strip():
        return "has characters in it that cannot be seen"
    if len(name.encode()) > MAX_BYTES:
        return f"is longer than {MAX_BYTES} bytes"
    return ""


def file_name_without_dots(name: str) -> str:
    """The same for trainers that take what is before the first dot of a file's name for the id."""
    return file_name(name) or ("has a dot in it, at which this trainer cuts names off" if "." in name else "")


def hdf5_key(name: str) -> str:
    """Why a name cannot be that of a dataset of HDF5."""
    if not name:
        return "is empty"
    if "/" in name:
        return "has / in it, by which HDF5 means a group within a group"
    if name in (".", ".."):
        return "means a place and not a name in HDF5"
    return "" if storable(name) else "holds a NUL or half a surrogate pair, which HDF5 cannot keep"


def any_name(name: str) -> str:  # noqa: ARG001
    """Any name will do: nothing is called by it."""
    return ""


def field_name(name: str) -> str:
    """Why a name cannot stand in a line of Charades-STA's files."""
    if name.split() != [name]:
        return "has whitespace in it, which separates the fields of Charades-STA's lines"
    return "has ## in it, which separates the fields of Charades-STA's lines" if "##" in name else ""


def require(ids: Iterable[str], rule: Rule, *, where: str) -> None:
    """ValueError that names the ids that the rule refuses, each with why."""
    refused = {video_id: why for video_id in ids if (why := rule(video_id))}
    if refused:
        few = "; ".join(f"{video_id!r} {why}" for video_id, why in list(refused.items())[:SHOWN])
        more = f"; and {len(refused) - SHOWN:,} more" if len(refused) > SHOWN else ""
        raise ValueError(f"{where}: {len(refused):,} ids cannot be names there: {few}{more}. Nothing was written")


def require_apart(names: Mapping[str, str], *, where: str) -> None:
    """ValueError where two ids have one name."""
    by_name: dict[str, str] = {}
    for video_id, name in names.items():
        if by_name.setdefault(name, video_id) != video_id:
            raise ValueError(f"{where}: {by_name[name]!r} and {video_id!r} would both be {name!r}. Nothing was written")
