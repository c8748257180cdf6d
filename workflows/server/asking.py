"""Videos that can be asked about, and the two threads that work for them: one reads videos, one looks at headers.

Features are made of one video at a time, in the order in which they were asked for, as `excl localize` makes them: decoded
in a process of its own, and remembered in the cache. Questions about a video whose features are there are answered at once,
by the thread of the request.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np

from excl.datasets.video.errors import InternalError, VideoError
from excl.datasets.video.probe import Probe
from excl.pipeline.artifacts.file_cache import checksums
from excl.pipeline.execution.video_reading import VideoReading, stop_decoders
from excl.pipeline.localize import AskConfig, features, look_up, make_examples
from excl.pipeline.store.shard import VideoFeatures
from excl.pipeline.store.training_store import TrainingStore
from excl.pipeline.training.trained_run import TrainedRun
from excl.workflows.pages import views
from excl.workflows.pages.timeline import TimelineQuery, VideoTimeline

log = logging.getLogger(__name__)

MAX_HELD_BYTES = 1 << 28  # of features in memory: those of about 20 films of three hours
MAX_WAITING = 32


class StoppedError(Exception):
    """The error that ends the reading of a video which nobody wants any more."""


@dataclasses.dataclass(eq=False)
class AskableVideo:
    """A video: one of the folder, one of the store with or without its file, or one that was sent."""

    number: int
    label: str
    path: Path | None
    is_upload: bool = False
    has_stored_features: bool = False
    """Whether the store's features are its own, whatever else there is."""
    unverified: Path | None = None
    """A file that may be the one its stored features were made from, until `verify` has looked."""
    state: Literal["new", "waiting", "reading", "failed"] = "new"
    message: str = ""
    frames: int = 0
    expected_frames: int | None = None
    is_stopped: bool = False

    @property
    def is_busy(self) -> bool:
        """Whether its features are being made, or wait for it."""
        return self.state in ("waiting", "reading")


@dataclasses.dataclass(frozen=True)
class AskSettings:
    """How features are made: as in AskConfig."""

    run: Path
    weights: str | None
    device: str
    reading: VideoReading


class Asking:
    """A trained run in memory, its store if it is here, and the features of the videos that were asked about."""

    def __init__(self, trained: TrainedRun, store: TrainingStore | None, settings: AskSettings) -> None:
        self.trained, self.store, self.settings = trained, store, settings
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="excl-read")
        self._prober = ThreadPoolExecutor(1, thread_name_prefix="excl-probe")
        self._changing, self._answering = threading.Lock(), threading.Lock()
        self._held: OrderedDict[int, VideoFeatures] = OrderedDict()
        self._order: list[AskableVideo] = []
        self._vectors: dict[str, np.ndarray | None] = {}  # of words that the run was not trained on

    def features(self, video: AskableVideo) -> VideoFeatures | None:
        """Return the features of a video if they are at hand."""
        with self._changing:
            if video.number in self._held:
                self._held.move_to_end(video.number)
                return self._held[video.number]
        if video.has_stored_features and self.store is not None:
            return self.store[video.label]
        return None

    def verify(self, video: AskableVideo) -> None:
        """Give a video of the store its file, if that is the very one that its features were made from."""
        path = video.unverified
        if path is None or self.store is None:
            return
        with contextlib.suppress(OSError, ValueError):  # gone, not readable, or changing: it stays a timeline
            if _is_file_of(path, self.store[video.label]):
                video.path = path
        video.unverified = None

    def request(self, video: AskableVideo, queries: Sequence[str]) -> None:
        """Have the features of a video made, unless they are being made. ValueError if too many wait."""
        with self._changing:
            if video.is_busy:
                return
            if len(self._order) >= MAX_WAITING:
                raise ValueError(f"{MAX_WAITING} videos are waiting to be read; ask again when some are done")
            video.state, video.message, video.frames, video.is_stopped = "waiting", "", 0, False
            self._order.append(video)
        self._reader.submit(self._read, video, tuple(queries))

    def position(self, video: AskableVideo) -> int:
        """Return how many videos are read before this one."""
        with self._changing:
            return self._order.index(video) if video in self._order else 0

    def forget(self, video: AskableVideo) -> None:
        """Stop reading a video, and drop its features."""
        video.is_stopped = True
        with self._changing:
            self._held.pop(video.number, None)

    def probe(self, path: Path) -> Probe:
        """Return the facts of a video from its header; VideoError or InternalError."""
        return self._prober.submit(self.settings.reading.probe, path).result()

    def answer(self, video: AskableVideo, rows: VideoFeatures, queries: Sequence[str], *, top: int) -> VideoTimeline:
        """Return the answers to the queries as the component shows them, with what is annotated about the same query."""
        vectors = look_up(self.trained, queries, remembered=self._vectors)  # may read a file: nobody else waits for it
        with self._answering:
            examples = make_examples(self.trained, rows, queries, unseen_vectors=vectors)
            records = views.answer(self.trained, examples, top=top)
        moments = {record["text"]: record["moments"] for record in self.annotated(video)}
        for record in records:
            record["moments"] = moments.get(record["text"], [])
        return views.timeline(rows, records)

    def annotated(self, video: AskableVideo) -> list[TimelineQuery]:
        """Return the queries about a video that its store has."""
        if self.store is None or video.is_upload or video.label not in self.store:
            return []
        return views.annotated(self.store.queries_about(video.label))

    def stop(self) -> bool:
        """End all work; returns whether some was left undone."""
        with self._changing:
            left = [*self._order]
        for video in left:
            video.is_stopped = True
        for pool in (self._reader, self._prober):
            pool.shutdown(wait=False, cancel_futures=True)
        stop_decoders()
        return bool(left)

    def _read(self, video: AskableVideo, queries: tuple[str, ...]) -> None:
        """Make or find the features of one video, on the reader's thread; what goes wrong is in its message."""
        try:
            assert video.path is not None
            video.state = "reading"
            rows = dataclasses.replace(self._stored(video) or self._made(video, queries), video_id=video.label)
            with self._changing:
                if not video.is_stopped:
                    self._hold(video, rows)
            video.state = "new"
        except StoppedError:
            video.state = "new"
        except Exception as error:  # noqa: BLE001  (the boundary of a thread; the page says it)
            if not isinstance(error, ValueError | OSError | InternalError):
                log.error("%s: %s: %s", video.label, type(error).__name__, error)
            video.message, video.state = in_words(error, video), "failed"
        finally:
            with self._changing:
                self._order.remove(video)

    def _hold(self, video: AskableVideo, rows: VideoFeatures) -> None:
        """Keep features in memory; those that were used longest ago make room."""
        self._held[video.number] = rows
        while len(self._held) > 1 and sum(held.features.nbytes for held in self._held.values()) > MAX_HELD_BYTES:
            self._held.popitem(last=False)

    def _stored(self, video: AskableVideo) -> VideoFeatures | None:
        """Return the store's features of a video of the folder, if they were made from this very file."""
        assert video.path is not None
        if self.store is None or video.is_upload or video.label not in self.store:
            return None
        stored = self.store[video.label]
        return stored if _is_file_of(video.path, stored) else None

    def _made(self, video: AskableVideo, queries: tuple[str, ...]) -> VideoFeatures:
        assert video.path is not None
        probe = self.settings.reading.probe(video.path)
        rate = self.trained.recipe.get("fps")
        rate = rate if isinstance(rate, int | float) else probe.rate
        video.expected_frames = round(probe.duration_s * rate) if probe.duration_s and rate else None

        def watch(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
            for frame in frames:
                if video.is_stopped:
                    raise StoppedError
                video.frames += 1
                yield frame

        settings = {field.name: getattr(self.settings, field.name) for field in dataclasses.fields(self.settings)}
        return features(AskConfig(video=video.path, query=queries, **settings), self.trained, watch=watch)


def _is_file_of(path: Path, stored: VideoFeatures) -> bool:
    """Return whether stored features were made from this very file; it is read once, and its checksum remembered."""
    source = stored.facts.get("source", {})
    return source.get("bytes") == path.stat().st_size and source.get("sha256") == checksums(path).sha256


def in_words(error: Exception, video: AskableVideo) -> str:
    """Return the sentence of an error, with the name of the video in place of its temporary path."""
    is_expected = isinstance(error, VideoError | ValueError | OSError | InternalError)
    text = str(error) if is_expected else f"An error in excl or in a library: {type(error).__name__}: {error}"
    return text.replace(str(video.path), video.label) if video.is_upload else text
