"""Compare two sets of features: are these the features they published? Reads both, leaves nothing but what it says.

What is measured is in `similarity.py`, what is called what in `verdicts.py`; `docs/comparing.md` is for users.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from pydantic.dataclasses import dataclass
from tqdm.contrib.logging import logging_redirect_tqdm

from excl.pipeline.artifacts.atomic_files import write_text
from excl.pipeline.artifacts.header import diff
from excl.pipeline.comparison import table
from excl.pipeline.comparison.array_sources import ArraySource, StoreSource, open_source, transposed_side
from excl.pipeline.comparison.id_matching import Pairing, chosen, pair
from excl.pipeline.comparison.verdicts import VideoVerdict, judge
from excl.pipeline.config import STRICT, NonNegativeInt
from excl.pipeline.execution.progress import progress_bar

log = logging.getLogger(__name__)

LOOKED_AT = 16  # videos by which it is seen whether a side is transposed


@dataclass(frozen=True, config=STRICT)
class CompareConfig:
    """Compare two sets of features of the same videos: the same, shifted, scaled, of another rate, or different."""

    a: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="A")]
    """Features: a store of excl, a folder of .npy, .npz or .pt files, or an HDF5 file with a dataset or group a video."""
    b: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="B")]
    """The features to compare them with, such as published ones; errors are relative to these."""
    suffix_a: str = ""
    """Take of A only the videos whose id ends so, such as _rgb, and take that off."""
    suffix_b: str = ""
    """Take of B only the videos whose id ends so, and take that off."""
    max_offset: NonNegativeInt = 16
    """How many rows the two may be shifted against each other."""
    show: NonNegativeInt = 20
    """How many videos to list, the most different first."""
    json: str = ""
    """Write all figures of all videos as JSON to this file; - for standard output in place of the table."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All that was found; `failed` are sentences by the id of a video that could not be read on one side."""

    config: CompareConfig
    kinds: tuple[str, str]
    pairing: Pairing
    transposed: str
    recipes: dict[str, tuple[Any, Any]] | None
    videos: dict[str, VideoVerdict]
    failed: dict[str, str]


def run(config: CompareConfig) -> Comparison:
    """Compare every video that both have, one at a time; one that cannot be read costs itself only."""
    if config.json not in ("", "-") and not Path(config.json).absolute().parent.is_dir():
        raise FileNotFoundError(f"{config.json}: there is no folder to write this file in")
    a, b = open_source(config.a), open_source(config.b)
    names_a = chosen(a, config.suffix_a, where=str(config.a))
    names_b = chosen(b, config.suffix_b, where=str(config.b))
    try:
        pairing = pair(names_a, names_b)
    except ValueError as error:
        raise ValueError(f"{config.a} (A) and {config.b} (B): {error}") from error
    pairs = {name: (names_a[of_a], names_b[of_b]) for name, (of_a, of_b) in pairing.pairs.items()}
    videos: dict[str, VideoVerdict] = {}
    failed: dict[str, str] = {}
    with logging_redirect_tqdm():
        transposed = _transposed(a, b, list(pairs.values()))
        for name, names in progress_bar(pairs.items(), desc="compare", unit="video"):
            try:
                videos[name] = _judge(a, b, names, transposed=transposed, max_offset=config.max_offset)
            except (ValueError, OSError) as error:
                failed[name] = str(error)
                log.error("%s", error)
    found = Comparison(config, (a.kind, b.kind), pairing, transposed, _recipes(a, b), videos, failed)
    if config.json not in ("", "-"):
        write_text(Path(config.json), as_json(found) + "\n")
    return found


def num_failed(found: Comparison) -> int:
    """How many videos could not be read."""
    return len(found.failed)


def show(found: Comparison) -> str:
    """The table with its summary, or JSON."""
    if found.config.json == "-":
        return as_json(found)
    config, pairing = found.config, found.pairing
    lines = [f"A  {config.a} ({found.kinds[0]})", f"B  {config.b} ({found.kinds[1]})"]
    lines.append(f"{len(pairing.pairs):,} videos in both, matched by {pairing.rule}")
    lines += [_only(side, names) for side, names in (("A", pairing.only_a), ("B", pairing.only_b)) if names]
    if found.transposed in ("A", "B"):
        lines.append(f"{found.transposed} is [D, n], as the width of the other side shows; it was transposed")
    elif found.transposed:
        lines.append("one of the two is [D, n] and nothing shows which: give features of more than one length")
    if found.recipes is not None:
        lines += [f"recipes differ in {key}: A has {x!r}, B has {y!r}" for key, (x, y) in found.recipes.items()]
        lines += [] if found.recipes else ["recipes: equal"]
    lines += ["", *table.table(found.videos, config.show)]
    lines += [f"cannot be read: {message}" for message in itertools.islice(found.failed.values(), max(config.show, 1))]
    more = len(found.failed) - max(config.show, 1)
    lines += [f"and {more:,} more that cannot be read"] if more > 0 else []
    lines += ["", *table.summary(found.videos), table.conclusion(found.videos, len(found.failed))]
    return "\n".join(lines)


def as_json(found: Comparison) -> str:
    """All of it for programs; figures that are not defined are null."""
    videos = {
        name: {**dataclasses.asdict(judged), "verdict": judged.verdict.name.lower()} for name, judged in found.videos.items()
    }
    value = {
        "a": str(found.config.a),
        "b": str(found.config.b),
        "matched_by": found.pairing.rule,
        "ids": found.pairing.pairs,
        "only_a": found.pairing.only_a,
        "only_b": found.pairing.only_b,
        "transposed": found.transposed,
        "recipes": found.recipes,
        "videos": videos,
        "failed": found.failed,
        "counts": {verdict.name.lower(): n for verdict, n in table.counts(found.videos).items()},
        "conclusion": table.conclusion(found.videos, len(found.failed)),
    }
    return json.dumps(_defined(value), indent=1, allow_nan=False)


def _defined(value: Any) -> Any:
    """The same with null for every number that is not finite, which JSON has no word for."""
    if isinstance(value, dict):
        return {key: _defined(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_defined(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _judge(a: ArraySource, b: ArraySource, names: tuple[str, str], *, transposed: str, max_offset: int) -> VideoVerdict:
    of_a, of_b = names
    rows_a, rows_b = a[of_a], b[of_b]
    if transposed == "A" and rows_a.shape[0] == rows_b.shape[1]:
        rows_a = np.ascontiguousarray(rows_a.T)
    elif transposed == "B" and rows_b.shape[0] == rows_a.shape[1]:
        rows_b = np.ascontiguousarray(rows_b.T)
    at = None
    if len(rows_a) != len(rows_b):
        seconds_a, seconds_b = a.centres_s(of_a), b.centres_s(of_b)
        if seconds_a is not None and seconds_b is not None:
            at = nearest(seconds_a, seconds_b)
    return judge(rows_a, rows_b, max_offset, at)


def nearest(times: np.ndarray, among: np.ndarray) -> np.ndarray:
    """For each of `times` the index of the nearest of `among`, which ascend; of two as near the earlier."""
    if len(among) == 1:
        return np.zeros(len(times), np.int64)
    return np.searchsorted((among[1:] + among[:-1]) / 2, times)


def _transposed(a: ArraySource, b: ArraySource, pairs: list[tuple[str, str]]) -> str:
    """Which side is [D, n], by the shapes of a few videos. The rows of excl's own stores are what they are."""

    def shapes(source: ArraySource, names: Iterator[str]) -> list[tuple[int, int]]:
        found = []
        for name in names:
            try:
                rows, width = source[name].shape
                found.append((rows, width))
            except (ValueError, OSError):  # it is told of when its turn comes
                continue
        return found

    some = pairs[:: max(1, len(pairs) // LOOKED_AT)][:LOOKED_AT]
    side = transposed_side(shapes(a, (x for x, _ in some)), shapes(b, (y for _, y in some)))
    for name, source in (("A", a), ("B", b)):
        if isinstance(source, StoreSource):
            side = "" if side == name else side.replace(f"{name} or ", "").replace(f" or {name}", "")
    return side


def _recipes(a: ArraySource, b: ArraySource) -> dict[str, tuple[Any, Any]] | None:
    """The fields in which the recipes of two stores differ; None if not both are stores."""
    if not (isinstance(a, StoreSource) and isinstance(b, StoreSource)):
        return None
    return diff(a.store.recipe, b.store.recipe)


def _only(side: str, names: list[str]) -> str:
    return f"{len(names):,} only in {side}: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
