"""Compare two sets of features: are these the features that somebody published? Read both, leave nothing.

`similarity.py` has the measures, `verdicts.py` the verdicts; `docs/comparing.md` is for users.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from pydantic.dataclasses import dataclass

from excl.datasets.parsing import shortened
from excl.models.progress.bars import tracked
from excl.pipeline.artifacts.atomic_files import write_text
from excl.pipeline.artifacts.header import diff
from excl.pipeline.comparison import table
from excl.pipeline.comparison.array_sources import ArraySource, StoreSource, open_source, sample_shapes, transposed_side
from excl.pipeline.comparison.id_matching import Pairing, pair, strip_suffix
from excl.pipeline.comparison.verdicts import VideoVerdict, judge
from excl.pipeline.config import STRICT, NonNegativeInt

log = logging.getLogger(__name__)


@dataclass(frozen=True, config=STRICT)
class CompareConfig:
    """Compare two sets of features of the same videos: the same, shifted, scaled, of another rate, or different."""

    a: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="A")]
    """Features: a store of excl, a folder of .npy, .npz or .pt files, or an HDF5 file with a dataset or group a video."""
    b: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="B")]
    """The features to compare them with, such as published ones; errors are relative to these."""
    suffix_a: str = ""
    """Take only the videos of A whose id ends with this, such as _rgb, and remove it from the ids."""
    suffix_b: str = ""
    """Take only the videos of B whose id ends with this, and remove it from the ids."""
    max_offset: NonNegativeInt = 16
    """The most rows by which the two may be shifted against each other."""
    show: NonNegativeInt = 20
    """The number of videos to list, the most different first."""
    json: str = ""
    """Write all figures of all videos as JSON to this file; - for standard output in place of the table."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The whole result; `failed` has a sentence for each video that could not be read on one side."""

    kinds: tuple[str, str]
    pairing: Pairing
    transposed: str
    recipes: dict[str, tuple[Any, Any]] | None
    videos: dict[str, VideoVerdict]
    failed: dict[str, str]


def run(config: CompareConfig) -> Comparison:
    """Compare every video that both have, one at a time; a video that cannot be read does not stop the others."""
    if config.json not in ("", "-") and not Path(config.json).absolute().parent.is_dir():
        raise FileNotFoundError(f"{config.json}: there is no folder to write this file in")
    a, b = open_source(config.a), open_source(config.b)
    names_a = strip_suffix(a, config.suffix_a, place=str(config.a))
    names_b = strip_suffix(b, config.suffix_b, place=str(config.b))
    try:
        pairing = pair(names_a, names_b)
    except ValueError as error:
        raise ValueError(f"{config.a} (A) and {config.b} (B): {error}") from error
    pairs = {video_id: (names_a[id_a], names_b[id_b]) for video_id, (id_a, id_b) in pairing.pairs.items()}
    videos: dict[str, VideoVerdict] = {}
    failed: dict[str, str] = {}
    transposed = _transposed(a, b, list(pairs.values()))
    for video_id, names in tracked(pairs.items(), "compare", total=len(pairs), unit="video"):
        try:
            videos[video_id] = _judge(a, b, names, transposed=transposed, max_offset=config.max_offset)
        except (ValueError, OSError) as error:
            failed[video_id] = str(error)
            log.error("%s", error)
    recipes = diff(a.store.recipe, b.store.recipe) if isinstance(a, StoreSource) and isinstance(b, StoreSource) else None
    comparison = Comparison((a.kind, b.kind), pairing, transposed, recipes, videos, failed)
    if config.json not in ("", "-"):
        write_text(Path(config.json), to_json(config, comparison) + "\n")
    return comparison


def num_failed(comparison: Comparison) -> int:
    """The number of videos that could not be read."""
    return len(comparison.failed)


def show(config: CompareConfig, comparison: Comparison) -> str:
    """The table with its summary, or JSON."""
    if config.json == "-":
        return to_json(config, comparison)
    pairing, recipes, failed = comparison.pairing, comparison.recipes, list(comparison.failed.values())
    lines = [f"A  {config.a} ({comparison.kinds[0]})", f"B  {config.b} ({comparison.kinds[1]})"]
    lines.append(f"{len(pairing.pairs):,} videos in both, matched by {pairing.rule}")
    for side, names in (("A", pairing.only_a), ("B", pairing.only_b)):
        lines += [f"{len(names):,} only in {side}: {shortened(names, most=3, describe=str)}"] if names else []
    if comparison.transposed in ("A", "B"):
        lines.append(f"{comparison.transposed} is [D, n], as the width of the other side shows; it was transposed")
    elif comparison.transposed:
        lines.append("one of the two is [D, n] and nothing shows which: give features of more than one length")
    if recipes is not None:
        lines += [f"recipes differ in {key}: A has {x!r}, B has {y!r}" for key, (x, y) in recipes.items()]
        lines += [] if recipes else ["recipes: equal"]
    lines += ["", *table.table(comparison.videos, config.show)]
    shown = max(config.show, 1)
    lines += [f"cannot be read: {message}" for message in failed[:shown]]
    lines += [f"and {len(failed) - shown:,} more that cannot be read"] if len(failed) > shown else []
    lines += ["", *table.summary(comparison.videos), table.conclusion(comparison.videos, len(failed))]
    return "\n".join(lines)


def to_json(config: CompareConfig, comparison: Comparison) -> str:
    """Return all of it as JSON for programs; figures that are not defined are null."""
    videos, pairing = comparison.videos, comparison.pairing
    value = {
        "a": str(config.a),
        "b": str(config.b),
        "matched_by": pairing.rule,
        "ids": pairing.pairs,
        "only_a": pairing.only_a,
        "only_b": pairing.only_b,
        "transposed": comparison.transposed,
        "recipes": comparison.recipes,
        "videos": {
            video_id: {**dataclasses.asdict(judged), "verdict": judged.verdict.name.lower()}
            for video_id, judged in videos.items()
        },
        "failed": comparison.failed,
        "counts": {verdict.name.lower(): n for verdict, n in table.counts(videos).items()},
        "conclusion": table.conclusion(videos, len(comparison.failed)),
    }
    defined = json.loads(json.dumps(value), parse_constant=lambda _: None)
    return json.dumps(defined, indent=1, allow_nan=False)


def _judge(a: ArraySource, b: ArraySource, names: tuple[str, str], *, transposed: str, max_offset: int) -> VideoVerdict:
    name_a, name_b = names
    rows_a, rows_b = a[name_a], b[name_b]
    if transposed == "A" and rows_a.shape[0] == rows_b.shape[1]:
        rows_a = np.ascontiguousarray(rows_a.T)
    elif transposed == "B" and rows_b.shape[0] == rows_a.shape[1]:
        rows_b = np.ascontiguousarray(rows_b.T)
    rows_of_b = None
    if len(rows_a) != len(rows_b):
        centres_a, centres_b = a.centres_s(name_a), b.centres_s(name_b)
        if centres_a is not None and centres_b is not None:
            rows_of_b = nearest(centres_a, centres_b)
    return judge(rows_a, rows_b, max_offset, rows_of_b)


def nearest(times: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Return for each time the index of the nearest of ascending candidates; of two equally near ones the earlier."""
    return np.searchsorted((candidates[1:] + candidates[:-1]) / 2, times)


def _transposed(a: ArraySource, b: ArraySource, pairs: list[tuple[str, str]]) -> str:
    """The side that is [D, n], by the shapes of a few videos. The rows of excl's own stores are never transposed."""
    side = transposed_side(sample_shapes(a, [name for name, _ in pairs]), sample_shapes(b, [name for _, name in pairs]))
    for name, source in (("A", a), ("B", b)):
        if isinstance(source, StoreSource):
            side = " or ".join(candidate for candidate in side.split(" or ") if candidate != name)
    return side
