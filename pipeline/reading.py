"""How decode, extract and localize read videos: the settings they share, and the process that does it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from excl.datasets.container import Limits
from excl.datasets.isolated import DecoderProcess, IsolatedVideo
from excl.datasets.picture import Geometry
from excl.datasets.probe import Probe
from excl.datasets.sampling import OnDamage, Sampling
from excl.pipeline.config import STRICT, PositiveFloat, PositiveInt


@dataclass(frozen=True, config=STRICT)
class Reading:
    """What a video may ask for, and what becomes of a damaged one. Whatever is refused costs that video alone."""

    on_damage: OnDamage = "fail"
    """fail refuses a video with any sign of damage or of being cut short; keep uses what can be decoded. Either way the
    record says what was found."""
    timeout_s: PositiveFloat = 60.0
    """Seconds without a new frame after which the decoder is stopped."""
    memory_gb: Annotated[float, Field(ge=1)] = 4.0
    """Memory that the decoder's process may use."""
    max_pixels: PositiveInt = 8192 * 8192
    """Pixels of a picture, at most."""
    max_hours: PositiveFloat = 12.0
    """Duration of a video, at most."""
    max_gap_s: PositiveFloat = 600.0
    """Seconds between two frames, at most: damaged times make gaps of hours, and a gap is filled with one frame."""

    def limits(self) -> Limits:
        """The limits on a video."""
        return Limits(max_pixels=self.max_pixels, max_duration_s=self.max_hours * 3600, max_gap_s=self.max_gap_s)

    def open(self, path: Path, *, fps: float, geometry: Geometry) -> IsolatedVideo:
        """One pass over a video, read by this process's decoder."""
        return self._decoder().read(path, Sampling(fps, geometry, self.limits(), self.on_damage))

    def probe(self, path: Path) -> Probe:
        """What can be known of a video without decoding it; VideoError if nothing can."""
        return self._decoder().probe(path, self.limits())

    def _decoder(self) -> DecoderProcess:
        return _decoder(self.timeout_s, round(self.memory_gb * 2**30))


@functools.lru_cache(maxsize=1)
def _decoder(timeout_s: float, memory_bytes: int) -> DecoderProcess:
    """One decoder a process, kept for all its videos."""
    return DecoderProcess(timeout_s=timeout_s, memory_bytes=memory_bytes)
