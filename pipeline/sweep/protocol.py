"""Protocols of tables: read, compare and print them. `protocol.json`, beside a table, holds all that decided its figures.

stores     by data set: annotation files and the hygiene policies, vocabulary and word vectors, the recipe of features,
           the decoders, every video with its checksums, the missing ones
sweep      variants, seeds, split, and the rule by which an epoch is selected
training   the settings that all trainings share
versions   of excl, Python and the libraries that compute, and of the stages' code
hardware   processor, device, threads of a training
table      the sha256 of table.csv; places: where the stores were. Neither is part of a comparison
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic.dataclasses import dataclass

from excl.pipeline.artifacts.header import diff
from excl.pipeline.config import STRICT, existing_file

log = logging.getLogger(__name__)

FORMAT = "excl protocol 1"
PROTOCOL = "protocol.json"
MIXED = "earlier trainings"
SHOWN = 5  # differences of one kind
Differences = dict[str, list[str]]


@dataclass(frozen=True, config=STRICT)
class ProtocolConfig:
    """Say in what the protocols of two tables of `excl reproduce` differ."""

    files: Annotated[tyro.conf.Positional[tuple[Path, Path]], tyro.conf.arg(metavar="FILE FILE")]
    """Two files protocol.json, or the folders that hold them."""


def run(config: ProtocolConfig) -> Differences:
    """Return the differences by what differs. ValueError if a file is no protocol."""
    return compare(*map(read_protocol, config.files))


def show(config: ProtocolConfig, differences: Differences) -> str:
    """Return the differences for people."""
    if not differences:
        return "The two protocols are the same: on such a machine the tables are, too."
    lines = [line for lines in shortened(differences).values() for line in lines]
    titles = f"(the first is {config.files[0]}, the second {config.files[1]})"
    return "\n".join([f"These two tables differ in: {', '.join(differences)}", titles, *(f"  {line}" for line in lines)])


def read_protocol(path: Path) -> dict[str, Any]:
    """Return a protocol from its file, or from the folder of its table; ValueError if it is none."""
    path = existing_file(path / PROTOCOL if path.is_dir() else path, what="the protocol of a table of `excl reproduce`")
    try:
        protocol = json.loads(path.read_text(encoding="utf-8"))
        if protocol["format"] != FORMAT:
            raise ValueError(f"its format is {protocol['format']!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: no protocol that this version of excl reads ({error}); expected {FORMAT!r}") from error
    return protocol


def compare(protocol: Mapping[str, Any], other: Mapping[str, Any]) -> Differences:
    """Return what differs, a line each, by its name, such as `versions` or `charades-sta: annotations`."""
    parts, other_parts = _parts(protocol), _parts(other)
    differences = {}
    for part in dict.fromkeys([*parts, *other_parts]):
        values = diff({part: parts.get(part)}, {part: other_parts.get(part)})
        if values:
            differences[part] = [
                f"{key}: {_short(a)} in the first, {_short(b)} in the second" for key, (a, b) in values.items()
            ]
    return differences


def require_same(path: Path, protocol: dict[str, Any], accept: Sequence[str]) -> None:
    """Raise ValueError with what differs from the protocol in a file, by name, but for the kinds to accept."""
    differences = compare(read_protocol(path), protocol)
    accepted = {part for part in differences if part.rpartition(": ")[2] in accept}
    for part in accepted:
        log.warning("accepted, so the figures may differ: %s", "; ".join(shortened(differences)[part]))
    refused = {part: lines for part, lines in differences.items() if part not in accepted}
    if refused:
        lines = [line for lines in shortened(refused).values() for line in lines]
        raise ValueError(
            f"{path} cannot be repeated here (the first is the protocol, the second what is here):\n  " + "\n  ".join(lines)
            + "\nNothing was trained. Restore what differs, or make a table of its own without --protocol; differences in "
            "versions, decoders or hardware can be accepted by --accept."
        )  # fmt: skip


def shortened(differences: Differences) -> Differences:
    """Return the first lines of each kind, and how many there are more."""
    return {
        part: [*lines[:SHOWN], *([f"{part}: and {len(lines) - SHOWN:,} more"] if len(lines) > SHOWN else [])]
        for part, lines in differences.items()
    }


def _parts(protocol: Mapping[str, Any]) -> dict[str, Any]:
    stores = {f"{name}: {part}": value for name, facts in protocol["stores"].items() for part, value in facts.items()}
    return {**stores, **{part: protocol[part] for part in ("sweep", "training", "versions", "hardware", MIXED)}}


def _short(value: object) -> str:
    return f"{value[:8]}…" if isinstance(value, str) and len(value) == 64 else str(value)  # a sha256
