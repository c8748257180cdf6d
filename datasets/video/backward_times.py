"""The rule for times that go back, by which a frame comes late or the clock starts again.

A frame comes late if its time is not after the latest so far, but at most a second before it, and if at most 16 frames
that came earlier are shown at its time or after it. Any other time that goes back is of a clock that starts again. So a
clock that starts again within its first second and its first 16 frames is taken for disorder. In containers whose clock has
33 or 32 bits, a leap ahead by more than the allowed gap is a clock that starts again too: FFmpeg adds the clock's whole
range to a time that lies more than a minute before the first one.
"""

from __future__ import annotations

import heapq
from fractions import Fraction
from typing import Literal

MAX_REORDERED = 16  # frames; the most that H.264 and HEVC allow
MAX_LATE_S = 1
CLOCK_BITS = {"mpegts": 33, "mpeg": 33, "flv": 32, "asf": 32}  # of the containers whose clock wraps round

Order = Literal["next", "late", "restart"]


class Places:
    """A check of how many places late each time comes; `most` are allowed."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._greatest: list[int] = []  # a heap of the `most` + 1 greatest times so far

    def allow(self, pts: int) -> bool:
        """Take the next time; returns False if more than `most` earlier ones are equal to it or greater."""
        if len(self._greatest) <= self.most:
            heapq.heappush(self._greatest, pts)
            return True
        return heapq.heappushpop(self._greatest, pts) != pts


class Timeline:
    """The clock of a video, which continues where the file's own clock starts again.

    `unit` is a tick in seconds, `step` how many ticks a frame lasts that does not say it, `container` FFmpeg's name of it.
    `latest` is the greatest time so far and `leap` how far after it (or before it) the last frame came, both in ticks.
    """

    def __init__(self, unit: Fraction, step: int, container: str, *, max_gap_s: float) -> None:
        self._range = 1 << CLOCK_BITS[container] if container in CLOCK_BITS else 0
        self._max_late, self._max_gap = MAX_LATE_S / unit, max_gap_s / unit
        self._places = Places(MAX_REORDERED)
        self._file_pts: int | None = None
        self._offset, self._lasts = 0, step
        self.latest = self.leap = 0

    def place(self, file_pts: int, duration: int) -> tuple[int, Order]:
        """Return when a frame is shown that the file has at `file_pts`, and its order; takes frames as the file has them."""
        if self._file_pts is None:
            self._file_pts = self.latest = file_pts
            self._lasts = duration or self._lasts
            self._places.allow(file_pts)
            return file_pts, "next"
        if self._range:  # of the times that the clock's bits leave open the nearest to that of the frame before
            file_pts += round(Fraction(self._file_pts - file_pts, self._range)) * self._range
        self._file_pts = file_pts
        pts = file_pts + self._offset
        self.leap = pts - self.latest
        if self._starts_again(pts):
            self._offset -= self.leap - self._lasts
            pts = self.latest + self._lasts
            self._places = Places(MAX_REORDERED)
            self._places.allow(pts)
            self._lasts, self.latest = duration or self._lasts, pts
            return pts, "restart"
        if self.leap <= 0:
            return pts, "late"
        self._lasts, self.latest = duration or self.leap, pts
        return pts, "next"

    def _starts_again(self, pts: int) -> bool:
        far_ahead = self._range > 0 and self.leap > self._max_gap
        return not self._places.allow(pts) or self.leap < -self._max_late or far_ahead
