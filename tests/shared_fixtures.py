"""What the tests share: real data where it is at hand, and small videos whose frames carry their number.

A plugin of pytest, which `conftest.py` loads where tests run.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import signal
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest import mock

import av
import commands
import hypothesis
import numpy as np
import pytest
import torch
from browser import chromium
from conftest import CONFORMANCE

from excl.datasets.annotations.moments import Moment
from excl.datasets.video.backends import open_sampled
from excl.datasets.video.probe import probe_video
from excl.datasets.video.sampling import Sampling
from excl.models.i3d import weights
from excl.pipeline import extract
from excl.pipeline.execution import video_reading
from excl.pipeline.execution.video_reading import VideoReading

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
hypothesis.settings.register_profile("excl", deadline=None)  # no test depends on time
hypothesis.settings.load_profile("excl")
weights._formula_values = functools.cache(weights._formula_values)  # which many tests take in every process
importlib.metadata.version = functools.cache(importlib.metadata.version)  # so do all folders that are begun
BITS, CELL = 12, 16  # the number of a frame as a row of black and white cells, 16 pixels each


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests remember is not what the user's runs remember."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXCL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Small networks are faster with it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    extract.EXTRACTORS.clear()  # whose threads keep the number that they began with


@pytest.fixture(scope="module")
def forked_decoders() -> Iterator[None]:
    """For tests that read videos, one at a time, and are not about the processes that do it."""
    with commands.forked_decoders(), mock.patch.object(video_reading, "_cores_in_job", [1]):
        yield


@contextlib.contextmanager
def decoding_here() -> Iterator[None]:
    """Read videos in this process, for tests of other things: each decoder's process takes a third of a second to start.

    Commands and workers, which are other processes, have decoders as ever.
    """

    def open_here(self, path, *, fps, geometry, backends=("pyav",), threads=1, nearest=False):
        return open_sampled(path, Sampling(fps, geometry, self.limits(), self.on_damage, backends, threads, nearest))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VideoReading, "open", open_here)
        patch.setattr(VideoReading, "probe", lambda self, path: probe_video(path, self.limits()))
        yield


@pytest.fixture(scope="module")
def decoded_here() -> Iterator[None]:
    """All tests of the module read videos in this process."""
    with decoding_here():
        yield


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """No test leaves the environment or torch's threads otherwise: Dask, for one, sets OMP_NUM_THREADS when it starts."""
    environment, threads = dict(os.environ), torch.get_num_threads()
    yield
    if dict(os.environ) != environment:
        os.environ.clear()
        os.environ.update(environment)
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def started_browser() -> Iterator[Any]:
    """One browser for a module's tests. Until its end no test may run an event loop of its own in the main thread."""
    with chromium() as browser:
        yield browser


@pytest.fixture
def browser(started_browser: Any) -> Iterator[Any]:
    """A browser without pages, whose pages are closed after the test."""
    yield started_browser
    for context in started_browser.contexts:
        context.close()


@pytest.fixture
def heeds_ctrl_c() -> Iterator[None]:
    """Ctrl-C is heeded here and in processes that are started, also where the tests themselves were told to ignore it.

    That is so in the background of a script: `nohup make test &`.
    """
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, earlier)


@pytest.fixture
def shared() -> Path:
    """The folder of real data, which is no part of the project."""
    if not SHARED.is_dir():
        pytest.skip(f"the real test data is not at hand ({SHARED})")
    return SHARED


def numbered_picture(number: int, *, width: int = 256, height: int = 192) -> np.ndarray:
    """A grey picture, uint8 [height, width, 3], with `number` in binary across its middle."""
    picture = np.full((height, width, 3), 128, np.uint8)
    top, left = height // 2 - CELL, (width - BITS * CELL) // 2
    for bit in range(BITS):
        value = 255 if number >> bit & 1 else 0
        picture[top : top + 2 * CELL, left + bit * CELL : left + (bit + 1) * CELL] = value
    return picture


def read_number(frame: np.ndarray, *, width: int = 256, height: int = 192) -> int:
    """The number in a square frame uint8 [S, S, 3] that was cut out of the middle of such a picture."""
    scale = frame.shape[0] / height  # no crop was smaller than the short side
    left = (frame.shape[1] - BITS * CELL * scale) / 2
    row = frame[frame.shape[0] // 2].mean(axis=-1)
    return sum(1 << bit for bit in range(BITS) if row[round(left + (bit + 0.5) * CELL * scale)] > 128)


def write_video(
    path: Path,
    pts: list[int],
    *,
    time_base: Fraction = Fraction(1, 1000),
    rate: Fraction | int = 30,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    width: int = 256,
    height: int = 192,
    pixel_aspect: Fraction | None = None,
) -> Path:
    """Write a video whose frame number i is shown at pts[i] * time_base and carries the number i."""
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {"preset": "ultrafast", "crf": "10"})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = stream.codec_context.time_base = time_base
        if pixel_aspect:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        for number, at in enumerate(pts):
            frame = av.VideoFrame.from_ndarray(numbered_picture(number, width=width, height=height), "rgb24")
            frame.pts, frame.time_base = at, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture
def make_video(tmp_path):
    """`make_video(name, pts, …)` writes such a video into the test's folder."""

    def make(name: str, pts: list[int], **settings) -> Path:
        return write_video(tmp_path / name, pts, **settings)

    return make


@pytest.fixture
def conformance_table(request: pytest.FixtureRequest) -> dict[str, dict[str, str]]:
    """Kind of video to decoder to what came out: shown when all tests are done."""
    return request.config.stash.setdefault(CONFORMANCE, {})


@pytest.fixture(scope="module")
def five_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of five very small videos."""
    folder = tmp_path_factory.mktemp("videos")
    for number in range(5):
        write_video(folder / f"v{number}.mp4", [i * 40 for i in range(30)], rate=25, width=64, height=48)
    return folder


def moment(
    start_s: float = 1.0,
    end_s: float = 2.0,
    *,
    duration_s: float = 10.0,
    query: str = "a person runs.",
    video_id: str = "v",
    row: int = 1,
    split: str = "train",
) -> Moment:
    """A moment like those that are read from files."""
    return Moment(
        annotation_id=f"{split}:file:{row}",
        video_id=video_id,
        query=query,
        start_s=start_s,
        end_s=end_s,
        duration_s=duration_s,
        split=split,
        source=f"file.txt:{row}",
    )
