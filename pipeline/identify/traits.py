"""Facts that values of features show by themselves: number of streams, signs, norms, the type that they were stored in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from excl.pipeline.comparison.similarity import UNIT_NORM

STREAMS = {
    1024: "as wide as I3D's RGB or flow",
    2048: "as wide as I3D's RGB and flow side by side (or ResNet's last pool)",
    400: "as wide as the scores of Kinetics-400",
    157: "as wide as the scores of Charades",
    500: "as wide as C3D after PCA, as the ActivityNet challenge gave it out",
    4096: "as wide as VGG's or C3D's fc layers",
    2304: "as wide as SlowFast",
    512: "as wide as CLIP (ViT-B)",
    768: "as wide as CLIP (ViT-L) or InternVideo",
    832: "as wide as I3D's Mixed_4f",
}


@dataclass(frozen=True)
class Traits:
    """The traits of features: `streams` in words, least value, norms of rows, and whether they fit narrower types.

    `halves` are the mean norms of the two halves of rows of 2048; `zero_tail` the share of videos that end in rows of zeros.
    """

    width: int
    dtype: str
    least: float
    mean_norm: float
    unit_norm: bool
    halves_of_unit_norm: bool
    half_precision: bool
    zero_tail: float
    videos: int

    def sentences(self) -> list[str]:
        """Return what they show, in sentences."""
        said = [f"rows have {self.width} values, {STREAMS.get(self.width, 'which is the width of no usual network')}"]
        precise = ", all of them values of float16" if self.half_precision and self.dtype != "float16" else ""
        said.append(f"the type is {self.dtype}{precise}")
        if self.unit_norm or self.halves_of_unit_norm:
            said.append("rows are L2-normalised" if self.unit_norm else "each half of a row is L2-normalised")
        else:
            said.append(f"rows are not L2-normalised (mean norm {self.mean_norm:.4g})")
        if self.least < 0:
            said.append(f"there are negative values (least {self.least:.4g}): not straight after a ReLU, as I3D's pool is")
        else:
            said.append("no value is negative: after a ReLU, as I3D's pool is")
        if self.zero_tail:
            said.append(f"{self.zero_tail:.0%} of the videos end in rows of zeros, which are left out of the counts")
        return said


def num_real_rows(rows: np.ndarray) -> int:
    """Return the number of rows [n, D] without those of zeros at the end; of zeros alone all of them."""
    filled = np.flatnonzero(rows.any(axis=1))
    return int(filled[-1]) + 1 if len(filled) else len(rows)


def traits_of(arrays: Mapping[str, np.ndarray], zero_tails: Sequence[bool]) -> Traits:
    """Return the traits of a sample of videos, [n, D] each; `zero_tails` says of every video whether it ends in zeros."""
    rows = np.concatenate([array[: num_real_rows(array)] for array in arrays.values()])
    dtype = str(next(iter(arrays.values())).dtype)
    values = rows.astype(np.float64)
    with np.errstate(over="ignore"):
        half = np.array_equal(rows.astype(np.float16).astype(np.float64), values, equal_nan=True)
    half_width = rows.shape[1] // 2
    norms, first, second = (
        np.linalg.norm(part, axis=1) for part in (values, values[:, :half_width], values[:, half_width:])
    )

    def unit(norms: np.ndarray) -> bool:
        positive = norms[norms > 0]
        return bool(len(positive) and np.abs(positive - 1).max() <= UNIT_NORM)

    return Traits(
        width=rows.shape[1],
        dtype=dtype,
        least=float(np.nanmin(values)),
        mean_norm=float(np.nanmean(norms)),
        unit_norm=unit(norms),
        halves_of_unit_norm=rows.shape[1] == 2048 and unit(first) and unit(second),
        half_precision=half,
        zero_tail=float(np.mean(zero_tails)) if len(zero_tails) else 0.0,
        videos=len(arrays),
    )
