"""The annotation formats by name, and the function that reads any of them. A new format is a module and a case below."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from excl.datasets.annotations import (
    activitynet_captions,
    charades_sta,
    csv_table,
    jsonl,
    moment_detr,
    reannotated,
    tacos,
    tacos_tall,
    timelens,
)
from excl.datasets.annotations.known_data_sets import KNOWN
from excl.datasets.annotations.moments import Moment

FORMATS = (*KNOWN, "moment-detr", "timelens", "charades-reannotated", "jsonl", "csv")
OWN = {".jsonl": "jsonl", ".csv": "csv", ".tsv": "csv"}  # files that may name the split in every row


def read_moments(name: str, path: Path, *, split: str, durations: Sequence[Path]) -> list[Moment]:
    """Return the moments of one file of a format of `FORMATS`, all of `split`; if that is "", the rows name their own."""
    match name:
        case "charades-sta":
            moments = charades_sta.load(path, split=split, durations=durations)
        case "activitynet-captions":
            moments = activitynet_captions.load(path, split=split)
        case "tacos":
            moments = tacos.load(path, split=split)
        case "tacos-tall":
            moments = tacos_tall.load(path, split=split, durations=durations)
        case "qvhighlights" | "moment-detr":
            moments = moment_detr.load(path, split=split)
        case "timelens":
            moments = timelens.load(path, split=split)
        case "charades-reannotated":
            moments = reannotated.load(path, split=split, durations=durations)
        case "csv":
            moments = csv_table.load(path, split=split or None)
        case _:
            moments = jsonl.load(path, split=split or None)
    return moments
