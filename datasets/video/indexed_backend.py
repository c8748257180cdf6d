"""Sampling with decoders that are asked for frames by number: decord and torchcodec.

Neither keeps the rule of `sampling.py` by itself, so which frame is wanted is settled here, by the times that PyAV reads
from the packets, and the decoder only fetches the frames of those numbers. Files for which it is known to return other
frames or other colours, or whose frame times it sees differently, are refused ("unsupported") before any frame is given.
Damage inside frames is something that these decoders do not tell.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NoReturn

import av
import numpy as np

from excl.datasets.video.container import (
    Limits,
    TimedFrames,
    choose_stream,
    claimed_duration_s,
    codec_name,
    default_frame_duration,
    open_video,
    start_time,
)
from excl.datasets.video.errors import VideoError
from excl.datasets.video.indexed_readers import FLAWS, READERS, TIMES_FROM_PACKETS, Reader, VideoLayout
from excl.datasets.video.packets import PacketTable, read_packets
from excl.datasets.video.pyav import exact, reorder_depth, time_base
from excl.datasets.video.sampling import Clock, Sampling, SinglePassVideo, VideoFacts, clock_of, require_sound

BATCH_BYTES = 64 * 2**20  # of whole pictures, before they are made small


class IndexedVideo(SinglePassVideo):
    """`PyAVVideo`, read by decord or torchcodec; raises VideoError("unsupported") for what they would get wrong."""

    def __init__(self, path: Path, sampling: Sampling, backend: str) -> None:
        super().__init__(path, sampling)
        self.backend = backend

    def __iter__(self) -> Iterator[np.ndarray]:
        with open_video(self.path) as container:
            stream = choose_stream(container, self.path, self.sampling.limits)
            clock = clock_of(container, stream, self.path, self.sampling.fps)
            layout = self._layout(container, stream)
            claimed_s = claimed_duration_s(container, stream)
            last_frame_lasts = self._last_duration(layout, stream)
        end = clock.seconds(layout.presentation[-1] + last_frame_lasts)
        require_sound(self.path, self.sampling, end=end, claimed_s=claimed_s)
        read = self._reader(layout)
        samples = [clock.first_sample_at(pts) for pts in layout.presentation[1:]] + [clock.num_samples(end)]
        counts = np.diff(samples, prepend=0)
        wanted = np.flatnonzero(counts).tolist()
        batch = max(1, BATCH_BYTES // (3 * layout.width * layout.height))
        for start in range(0, len(wanted), batch):
            indices = wanted[start : start + batch]
            for index, picture in zip(indices, self._read(read, indices, layout), strict=True):
                yield from itertools.repeat(picture, counts[index])
        self._facts = VideoFacts(
            num_frames=samples[-1],
            fps=float(clock.fps),
            t0_s=float(clock.t0),
            duration_s=float(end),
            claimed_duration_s=claimed_s,
            frames_expected=len(layout.presentation),
            frames_decoded=len(wanted),
            frames_skipped=len(layout.table.pts) - len(wanted),
            width=layout.width,
            height=layout.height,
            codec=layout.codec,
            bad_packets=None,
            corrupt_frames=None,
            largest_gap_s=float(_largest_gap(layout.presentation) * clock.time_base),
            backend=self.backend,
        )

    def _layout(self, container: av.container.InputContainer, stream: av.VideoStream) -> VideoLayout:
        limits = self.sampling.limits
        table = read_packets(container, stream, max_packets=limits.max_frames)
        if table is None:
            self._refuse("its packets do not say when each frame is shown")
        presentation = table.presentation()
        if self._is_doubtful(table, presentation, stream):
            self._require_times_in_order()
        self._check_times(presentation, Clock(Fraction(1), start_time(container), time_base(stream)), limits)
        with open_video(self.path) as again:
            first = next(iter(TimedFrames(again, choose_stream(again, self.path, limits), self.path, limits)), None)
        if first is None:
            raise VideoError("no_frames", f"{self.path}: not one frame with a time can be decoded")
        frame = first[1]
        return VideoLayout(
            path=self.path,
            container=container.format.name,
            codec=codec_name(stream),
            num_video_streams=len(container.streams.video),
            stream_index=stream.index,
            table=table,
            presentation=presentation,
            time_base=time_base(stream),
            pixel_aspect=exact(stream.sample_aspect_ratio) or Fraction(1),
            width=frame.width,
            height=frame.height,
            interlaced=frame.interlaced_frame,
            rotation=frame.rotation,
        )

    def _is_doubtful(self, table: PacketTable, presentation: list[int], stream: av.VideoStream) -> bool:
        """Whether times may go back, by the packets: what they cannot tell of B-frames, uneven times give away."""
        depth, gaps = reorder_depth(stream), np.diff(presentation)
        is_uneven = int(np.ptp(gaps)) > 1 if len(gaps) else False
        return (
            not table.is_ordered(depth)
            or _largest_gap(presentation) * time_base(stream) > self.sampling.limits.max_gap_s
            or (is_uneven and depth > 0 and self.backend in TIMES_FROM_PACKETS)
        )

    def _require_times_in_order(self) -> None:
        """Decode all of it: VideoError, that of pyav, if times go back, and a refusal if they would be mended."""
        with open_video(self.path) as container:
            stream = choose_stream(container, self.path, self.sampling.limits)
            frames = TimedFrames(
                container, stream, self.path, self.sampling.limits, mend_times=self.sampling.on_damage == "keep"
            )
            deque(frames, maxlen=0)
        if frames.reordered_frames or frames.clock_restarts:
            self._refuse("times that go back")

    def _check_times(self, presentation: list[int], clock: Clock, limits: Limits) -> None:
        gap_s = float(max(_largest_gap(presentation) * clock.time_base, clock.seconds(presentation[0])))
        if gap_s > limits.max_gap_s:
            raise VideoError("bad_times", f"{self.path}: no frame for {gap_s:g} s")
        if clock.seconds(presentation[-1]) > limits.max_duration_s:
            raise VideoError(
                "too_large", f"{self.path}: is longer than the {limits.max_duration_s:g} s that are allowed (--max-hours)"
            )

    @staticmethod
    def _last_duration(layout: VideoLayout, stream: av.VideoStream) -> int:
        position = layout.table.pts.index(layout.presentation[-1])
        last_gap = layout.presentation[-1] - layout.presentation[-2] if len(layout.presentation) > 1 else 0
        return layout.table.duration[position] or last_gap or default_frame_duration(stream)

    def _reader(self, layout: VideoLayout) -> Reader:
        flaw = FLAWS[self.backend](layout)
        if flaw:
            self._refuse(flaw)
        try:
            return READERS[self.backend](layout, self.sampling)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001  (the library raises errors of many classes)
            self._refuse(f"it cannot open the file ({_first_line(error)})")

    def _read(self, read: Reader, indices: list[int], layout: VideoLayout) -> np.ndarray:
        try:
            pictures, starts_s = read(indices)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001
            self._refuse(f"it cannot decode frame {indices[0]} to {indices[-1]} ({_first_line(error)})")
        for index, start_s in zip(indices, starts_s, strict=True):
            if abs(start_s - layout.seconds(index)) >= layout.half_gap_s(index):
                self._refuse(
                    f"its frame {index} is that of {start_s:.3f} s, wanted is the one of {layout.seconds(index):.3f} s"
                )
        return pictures

    def _refuse(self, flaw: str) -> NoReturn:
        raise VideoError(
            "unsupported", f"{self.path}: not to be read with {self.backend}: {flaw}; use the backend pyav, or auto"
        )


def _largest_gap(presentation: list[int]) -> int:
    return max((after - before for before, after in itertools.pairwise(presentation)), default=0)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0][:120]}"
