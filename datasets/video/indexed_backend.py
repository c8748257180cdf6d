"""Sampling with decoders that are asked for frames by number: decord and torchcodec.

Neither keeps the rule of `sampling.py` by itself, so which frame is needed is settled here, by the times that PyAV reads
from the packets, and the decoder only fetches the frames of those numbers. Files for which it is known to return other
frames or other colours, or whose frame times it sees differently, are refused ("unsupported") before any frame is given.
Damage inside frames is something that these decoders do not tell.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np

from excl.datasets.video.container import OpenVideo, open_video
from excl.datasets.video.errors import VideoError, error_line
from excl.datasets.video.indexed_readers import FLAWS, READERS, TIMES_FROM_PACKETS, Reader, VideoLayout
from excl.datasets.video.packets import PacketTable, read_packets
from excl.datasets.video.pyav_versions import reorder_depth
from excl.datasets.video.sampling import Sampling, Video, VideoFacts, make_clock, require_sound
from excl.datasets.video.timed_frames import TimedFrames, first_frame

BATCH_BYTES = 64 * 2**20  # of whole pictures, before they are made small


class IndexedVideo(Video):
    """A `Video` read by decord or torchcodec; raises VideoError("unsupported") for what they would get wrong."""

    def __init__(self, path: Path, sampling: Sampling, backend: str) -> None:
        self.path, self.sampling, self.backend = path, sampling, backend

    def __iter__(self) -> Iterator[np.ndarray]:
        with open_video(self.path, self.sampling.limits) as video:
            clock = make_clock(video, self.sampling)
            layout = self._layout(video)
            claimed_s = video.claimed_duration_s
            end = clock.seconds(layout.presentation[-1] + _last_duration(layout, video))
        require_sound(self.path, self.sampling, end=end, claimed_s=claimed_s)
        read = self._reader(layout)
        samples = [clock.first_sample_at(pts) for pts in layout.presentation[1:]] + [clock.num_samples(end)]
        counts = np.diff(samples, prepend=0)
        needed = np.flatnonzero(counts).tolist()
        batch = max(1, BATCH_BYTES // (3 * layout.width * layout.height))
        for start in range(0, len(needed), batch):
            indices = needed[start : start + batch]
            for index, picture in zip(indices, self._read(read, indices, layout), strict=True):
                yield from itertools.repeat(picture, counts[index])
        self.facts = VideoFacts(
            num_frames=samples[-1],
            fps=float(clock.fps),
            t0_s=float(clock.t0),
            duration_s=float(end),
            claimed_duration_s=claimed_s,
            frames_expected=len(layout.presentation),
            frames_decoded=len(needed),
            frames_skipped=len(layout.table.pts) - len(needed),
            width=layout.width,
            height=layout.height,
            codec=layout.codec,
            bad_packets=None,
            corrupt_frames=None,
            largest_gap_s=float(_largest_gap(layout.presentation) * clock.time_base),
            backend=self.backend,
        )

    def _layout(self, video: OpenVideo) -> VideoLayout:
        table = read_packets(video)
        if table is None:
            self._refuse("its packets do not say when each frame is shown")
        presentation = table.presentation()
        if self._is_doubtful(table, presentation, video):
            self._require_times_in_order()
        first_s, last_s = (presentation[i] * video.time_base - video.start_s for i in (0, -1))
        gap_s = max(_largest_gap(presentation) * video.time_base, first_s)
        video.limits.require_times(self.path, gap_s=gap_s, since_start_s=last_s)
        with open_video(self.path, video.limits) as video_again:
            frame = first_frame(video_again)
        return VideoLayout(
            path=self.path,
            container=video.container.format.name,
            codec=video.codec,
            num_video_streams=len(video.container.streams.video),
            stream_index=video.stream.index,
            table=table,
            presentation=presentation,
            time_base=video.time_base,
            pixel_aspect=video.pixel_aspect,
            width=frame.width,
            height=frame.height,
            interlaced=frame.interlaced_frame,
            rotation=frame.rotation,
        )

    def _is_doubtful(self, table: PacketTable, presentation: list[int], video: OpenVideo) -> bool:
        """Return whether times may go back: what packets cannot tell of B-frames, uneven times give away."""
        depth, gaps = reorder_depth(video.stream), np.diff(presentation)
        is_uneven = int(np.ptp(gaps)) > 1 if len(gaps) else False
        return (
            not table.is_ordered(depth)
            or _largest_gap(presentation) * video.time_base > video.limits.max_gap_s
            or (is_uneven and depth > 0 and self.backend in TIMES_FROM_PACKETS)
        )

    def _require_times_in_order(self) -> None:
        """Decode all of it: raises pyav's VideoError if times go back, and refuses the file if they would be mended."""
        with open_video(self.path, self.sampling.limits) as video:
            frames = TimedFrames(video, mend_times=self.sampling.on_damage == "keep")
            deque(frames, maxlen=0)
        if frames.reordered_frames or frames.clock_restarts:
            self._refuse("times that go back")

    def _reader(self, layout: VideoLayout) -> Reader:
        if flaw := next((flaw for flaw, is_there in FLAWS[self.backend](layout).items() if is_there), None):
            self._refuse(flaw)
        try:
            return READERS[self.backend](layout, self.sampling)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001  (the library raises errors of many classes)
            self._refuse(f"it cannot open the file ({error_line(error)})")

    def _read(self, read: Reader, indices: list[int], layout: VideoLayout) -> np.ndarray:
        try:
            pictures, starts_s = read(indices)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001  (as above)
            self._refuse(f"it cannot decode frame {indices[0]} to {indices[-1]} ({error_line(error)})")
        for index, start_s in zip(indices, starts_s, strict=True):
            if abs(start_s - layout.seconds(index)) >= layout.half_gap_s(index):
                self._refuse(
                    f"its frame {index} is that of {start_s:.3f} s, expected the one of {layout.seconds(index):.3f} s"
                )
        return pictures

    def _refuse(self, flaw: str) -> NoReturn:
        raise VideoError(
            "unsupported", f"{self.path}: cannot be read with {self.backend}: {flaw}; use the backend pyav, or auto"
        )


def _last_duration(layout: VideoLayout, video: OpenVideo) -> int:
    position = layout.table.pts.index(layout.presentation[-1])
    last_gap = layout.presentation[-1] - layout.presentation[-2] if len(layout.presentation) > 1 else 0
    return layout.table.duration[position] or last_gap or video.default_frame_duration


def _largest_gap(presentation: list[int]) -> int:
    return max((after - before for before, after in itertools.pairwise(presentation)), default=0)
