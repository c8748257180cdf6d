"""Rules that say why an id cannot be a name in a format. Ids are whatever people called their videos."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from excl.datasets.parsing import storable

MAX_BYTES = 200  # of a file's name, which most file systems end at 255, with room for suffixes
SHOWN = 5
Rule = Callable[[str], str]


def file_name(name: str) -> str:
    """Return why a file cannot have this name, wherever its folder may be copied to; empty if it can."""
    if not name:
        return "is empty"
    if name.startswith("."):
        return "begins with a dot"
    if match := re.search(r'[/\\:*?"<>|]', name):
        return f"has {match[0]} in it, which cannot be in the name of a file"
    if not name.isprintable() or name != name.strip():
        return "has characters in it that cannot be seen"
    if len(name.encode()) > MAX_BYTES:
        return f"is longer than {MAX_BYTES} bytes"
    return ""


def file_name_without_dots(name: str) -> str:
    """Return the same for trainers that take the part before the first dot of a file's name as the id."""
    return file_name(name) or ("has a dot in it, at which this trainer cuts names off" if "." in name else "")


def hdf5_key(name: str) -> str:
    """Return why a dataset of HDF5 cannot have this name; empty if it can."""
    if not name:
        return "is empty"
    if "/" in name:
        return "has / in it, by which HDF5 means a group within a group"
    if name in (".", ".."):
        return "means a place and not a name in HDF5"
    return "" if storable(name) else "holds a NUL or half a surrogate pair, which HDF5 cannot keep"


def field_name(name: str) -> str:
    """Return why a line of Charades-STA's files cannot hold this name; empty if it can."""
    if name.split() != [name]:
        return "has whitespace in it, which separates the fields of Charades-STA's lines"
    return "has ## in it, which separates the fields of Charades-STA's lines" if "##" in name else ""


def require(ids: Iterable[str], rule: Rule, *, format_name: str) -> None:
    """Raise ValueError, with the first ids that the rule refuses and the reasons, if there are any."""
    refused = [f"{video_id!r} {reason}" for video_id in ids if (reason := rule(video_id))]
    if refused:
        remainder = f"; and {len(refused) - SHOWN:,} more" if len(refused) > SHOWN else ""
        reasons = "; ".join(refused[:SHOWN])
        raise ValueError(
            f"{format_name}: {len(refused):,} ids cannot be names there: {reasons}{remainder}. Nothing was written"
        )


def require_apart(names: Mapping[str, str], *, format_name: str) -> None:
    """Raise ValueError if two ids have the same name."""
    by_name: dict[str, str] = {}
    for video_id, name in names.items():
        if by_name.setdefault(name, video_id) != video_id:
            raise ValueError(
                f"{format_name}: {by_name[name]!r} and {video_id!r} would both be {name!r}. Nothing was written"
            )
