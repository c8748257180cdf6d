"""The parts of a video that the network is given at once: overlapping chunks that change nothing, or single clips.

Step k of Mixed_5c reads frames [8k - 44, 8k + 54] when the length is even at every level, and at most [8k - 47, 8k + 54]
for any length. So a chunk that computes the steps of frames [a, b) is given frames [a - 48, b + 48), or what there is of
them, and all its other steps are thrown away. SAME padding depends on the remainder of the length by 8 (it shifts the
network's windows), so a chunk begins at a multiple of 8 and its length has the remainder of the whole: r frames more on the
right. Then every chunk gives what the whole would give, for every length and every chunk size.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from excl.models.i3d.row_layout import FRAMES_PER_STEP, Clips, Continuous, require_frames

CONTEXT_FRAMES = 48


@dataclass(frozen=True)
class Chunk:
    """Frames uint8 [T, H, W, 3] for the network, and which of their blocks of 8 frames count."""

    frames: np.ndarray
    blocks: slice


def continuous_chunks(frames: Iterable[np.ndarray], layout: Continuous, chunk_frames: int) -> Iterator[Chunk]:
    """Yield the chunks of a video of which each frame is uint8 [H, W, 3], padded as the layout says."""
    remainder = FRAMES_PER_STEP - layout.stride
    return overlapping_chunks(_pad(frames, layout), remainder, chunk_frames, stride=layout.stride)


def overlapping_chunks(
    frames: Iterable[np.ndarray], remainder: int, chunk_frames: int, *, stride: int = 8
) -> Iterator[Chunk]:
    """Yield the chunks of a stream whose number of frames has the given remainder by 8: for a stride below 8, 8 - stride."""
    assert chunk_frames > 0
    assert chunk_frames % FRAMES_PER_STEP == 0
    window: list[np.ndarray] = []  # frames from number `begin` on
    begin = done = 0  # `done`: the frame up to which steps have been computed
    beyond = chunk_frames + CONTEXT_FRAMES + remainder
    for number, frame in enumerate(frames):
        if number == done + beyond:  # there is more to come than the chunk needs
            yield Chunk(np.stack(window), _blocks(done - begin, done - begin + chunk_frames))
            done += chunk_frames
            keep_from = max(0, done - CONTEXT_FRAMES)
            del window[: keep_from - begin]
            begin = keep_from
        window.append(frame)
    total = begin + len(window)
    assert total % FRAMES_PER_STEP == remainder
    end = total - FRAMES_PER_STEP + stride  # for a stride of 8 all of it, rounded up
    yield Chunk(np.stack(window), _blocks(done - begin, end - begin))


def _blocks(begin: int, end: int) -> slice:
    return slice(begin // FRAMES_PER_STEP, math.ceil(end / FRAMES_PER_STEP))


def _pad(frames: Iterable[np.ndarray], layout: Continuous) -> Iterator[np.ndarray]:
    count, frame = 0, None
    for frame in frames:
        if count == 0:
            yield from itertools.repeat(frame, layout.lead)
        yield frame
        count += 1
    require_frames(count)
    assert frame is not None
    yield from itertools.repeat(frame, layout.padded(count) - layout.lead - count)


def single_clips(frames: Iterable[np.ndarray], layout: Clips) -> Iterator[np.ndarray]:
    """Yield the clips of a layout, in order, each uint8 [T, H, W, 3]; frames before the next clip are freed.

    NoRowsError for a video that has no rows in the layout.
    """
    window: deque[np.ndarray] = deque()  # frames from number `window_begin` on
    window_begin = count = index = 0
    for frame in frames:
        window.append(frame)
        count += 1
        while layout.clip(index)[1] + layout.lookahead <= count:
            begin, end = layout.clip(index)
            yield np.stack(list(itertools.islice(window, begin - window_begin, end - window_begin)))
            index += 1
        while window_begin < min(layout.clip(index)[0] - layout.lookback, count - 1):  # a last clip may repeat the newest
            window.popleft()
            window_begin += 1
    layout.num_rows(count)  # refuses a video that the layout has no rows for
    for begin, end in layout.clips(count)[index:]:
        numbers = np.minimum(np.arange(begin, end), count - 1) - window_begin
        yield np.stack([window[number] for number in numbers])
