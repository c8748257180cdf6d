"""Make the demo: small videos of coloured shapes that do things one after another, and sentences that say what.

Reads nothing. Leaves `videos/demo_0000.mp4` and on, `train.jsonl`, `val.jsonl`, `test.jsonl` (one query a line),
`vectors.txt` (word vectors in GloVe's text format) and the manifest. All of it follows from the configuration.

A shape is on the screen exactly while it does something, so where a moment begins and ends is there to be seen. Which
of the three to five moments is meant is told by colour, shape and action, each of which other moments may share; where
the same thing happens twice, only the order of the two tells ("for the second time").
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import math
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import av
import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass

from excl.models.progress.bars import tracked
from excl.pipeline.artifacts.atomic_files import atomic_write, write_text
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.config import STRICT, NonNegativeInt, PositiveInt, RunOnly, identity
from excl.pipeline.execution.thread_map import Map

log = logging.getLogger(__name__)

STAGE, CODE_VERSION = "demo", 1

HEIGHT, WIDTH = 128, 160
INNER = 112  # pixels of the centre crop that the feature extractor sees
EVENT_S = (2.5, 7.0)
GAP_S = (0.5, 4.0)
TWIN_GAP_S = 1.5  # least gap between two equal events in a row: features have one row every 1.6 s
NUM_EVENTS = {3: 0.5, 4: 0.4, 5: 0.1}  # share of the videos with so many events: 3.6 queries a video
SHARE_TWICE = 0.6  # share of the videos where one event happens twice: a third of the queries is ordinal
Seconds = Annotated[float, Field(ge=12, le=37)]  # what three events can fill: 3 x 2.5 + 4 x 0.5 + 1 to 3 x 7 + 4 x 4

COLOURS = {"red": (235, 30, 30), "green": (30, 210, 40), "blue": (40, 60, 245), "yellow": (240, 220, 30)}
SHAPES = ("circle", "square", "triangle")
WAYS = {"moves to the right": (0, 1), "moves to the left": (0, -1), "moves up": (-1, 0), "moves down": (1, 0)}
ACTIONS = (*WAYS, "grows", "blinks")
ORDINALS = (" for the first time", " for the second time")

RADIUS = 17  # pixels
GROWS_FROM, GROWS_TO = 5, 30  # pixels
BLINK_S = 0.8  # about: seen for one half, unseen for the other

VECTOR_SIZE = 50
EXTRA_WORDS = ("a", "after", "and", "before", "door", "opens", "person", "then", "while")


@checked_dataclass(frozen=True, config=STRICT)
class DemoConfig:
    """The demo data set."""

    out: RunOnly[Path]
    """Folder to write."""
    num_train: PositiveInt = 128
    """Videos to train on."""
    num_val: PositiveInt = 24
    """Videos to choose the best epoch by."""
    num_test: PositiveInt = 40
    """Videos to report on."""
    min_seconds: Seconds = 20.0
    """Shortest duration of a video, in seconds."""
    max_seconds: Seconds = 36.0
    """Longest duration of a video, in seconds."""
    fps: Annotated[int, Field(ge=5, le=60)] = 15
    """Frames a second of the videos."""
    seed: NonNegativeInt = 0
    """Seed of everything that is drawn."""

    def __post_init__(self) -> None:
        if self.min_seconds > self.max_seconds:
            raise ValueError(f"min_seconds is {self.min_seconds}, more than max_seconds, which is {self.max_seconds}")

    @property
    def splits(self) -> list[str]:
        """The split of every video, by its index."""
        return ["train"] * self.num_train + ["val"] * self.num_val + ["test"] * self.num_test


@dataclass(frozen=True)
class Event:
    """A shape on the screen from `start_s` to `end_s` (not included), doing one thing."""

    colour: str
    shape: str
    action: str
    start_s: float
    end_s: float

    @property
    def sentence(self) -> str:
        """Return what happens, in words."""
        return f"the {self.colour} {self.shape} {self.action}"


@dataclass(frozen=True)
class DemoVideo:
    """Everything that determines the pixels and queries of a video."""

    video_id: str
    split: str
    num_frames: int
    fps: int
    background: int  # grey level
    events: tuple[Event, ...]

    @property
    def duration_s(self) -> float:
        """The seconds from the first frame's beginning to the last frame's end."""
        return self.num_frames / self.fps

    def queries(self) -> list[dict[str, Any]]:
        """Return one query an event, in order of time; equal events are told apart by an ordinal number."""
        rows = []
        sentences = [event.sentence for event in self.events]
        for number, event in enumerate(self.events):
            twice = sentences.count(event.sentence) > 1
            row = {
                "annotation_id": f"{self.video_id}_{number}",
                "video_id": self.video_id,
                "query": event.sentence + (ORDINALS[sentences[:number].count(event.sentence)] if twice else ""),
                "start_s": event.start_s,
                "end_s": event.end_s,
                "duration_s": self.duration_s,
                "split": self.split,
                "group": "ordinal" if twice else "plain",
            }
            rows.append(row)
        return rows


def run(config: DemoConfig, *, map: Map = map) -> Path:
    """Make what is missing of the data set. Return its folder."""
    with Manifest.open(config.out, stage=STAGE, identity=made_by(config), code_version=CODE_VERSION) as manifest:
        if manifest.is_complete:
            log.info("%s: %s is complete, nothing to do", STAGE, config.out)
            return config.out
        (config.out / "videos").mkdir(exist_ok=True)
        videos = [plan_video(index, config) for index in range(len(config.splits))]
        missing = [video for video in videos if video.video_id not in manifest.records]
        records = map(functools.partial(make_video, config.out), missing)
        for record in tracked(records, "demo", total=len(missing), unit="video"):
            manifest.add(record)
        rows = [row for video in videos for row in video.queries()]
        for split in dict.fromkeys(config.splits):
            write_text(config.out / f"{split}.jsonl", _lines(json.dumps(row) for row in rows if row["split"] == split))
        write_text(config.out / "vectors.txt", _lines(word_vectors(config.seed)))
        counts = {key: Counter(row[key] for row in rows) for key in ("split", "group")}
        manifest.complete({"num_videos": len(videos), "num_queries": len(rows), **counts})
    return config.out


def made_by(config: DemoConfig) -> dict[str, Any]:
    """Return the settings that determine the data set."""
    return identity(config)


def make_video(out: Path, video: DemoVideo) -> dict[str, Any]:
    """Write one video into the data set's folder `out`; returns its record."""
    file = f"videos/{video.video_id}.mp4"
    write_video(out / file, video)
    return {"id": video.video_id, "file": file, "num_frames": video.num_frames, "duration_s": video.duration_s}


def write_video(path: Path, video: DemoVideo) -> None:
    """Encode the video as H.264 in mp4, whole or not at all."""
    # One thread, and no metadata of the day: the same pixels everywhere, and the same file from the same encoder.
    options = {"preset": "veryfast", "crf": "20", "threads": "1"}
    with atomic_write(path) as temporary, av.open(temporary, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=video.fps, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for frame in render_frames(video):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def word_vectors(seed: int) -> Iterator[str]:
    """Yield lines of GloVe's text format: every word that a query can have and some others, in alphabetical order."""
    words = {*" ".join([*COLOURS, *SHAPES, *ACTIONS, *ORDINALS]).split(), *EXTRA_WORDS}
    for word in sorted(words):
        vector = np.random.default_rng([seed, zlib.crc32(word.encode())]).normal(scale=0.4, size=VECTOR_SIZE)
        yield " ".join([word, *(f"{value:.5f}" for value in vector)])


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def plan_video(index: int, config: DemoConfig) -> DemoVideo:
    """Return what video number `index` shows, drawn from (seed, index) alone."""
    rng = np.random.default_rng([config.seed, index])
    longest = math.floor(config.max_seconds * config.fps)
    shortest = min(math.ceil(config.min_seconds * config.fps), longest)
    num_frames = int(rng.integers(shortest, longest, endpoint=True))
    kinds = _draw_kinds(num_frames / config.fps, rng)
    edges = _draw_edges(kinds, num_frames, config.fps, rng)
    events = tuple(
        Event(*kind, start_s=start / config.fps, end_s=end / config.fps)
        for kind, start, end in zip(kinds, edges[::2], edges[1::2], strict=True)
    )
    background = int(rng.integers(30, 71))
    return DemoVideo(f"demo_{index:04d}", config.splits[index], num_frames, config.fps, background, events)


Kind = tuple[str, str, str]  # colour, shape, action


def _draw_kinds(duration_s: float, rng: np.random.Generator) -> list[Kind]:
    """Return what happens, in order of time: as much as fits, all of it different, but in some videos one thing twice."""
    slack_s = duration_s - GAP_S[0] - (TWIN_GAP_S - GAP_S[0])
    numbers = [number for number in NUM_EVENTS if number * (EVENT_S[0] + GAP_S[0]) <= slack_s]
    shares = np.array([NUM_EVENTS[number] for number in numbers])
    num_events = int(rng.choice(numbers, p=shares / shares.sum()))
    every = list(itertools.product(COLOURS, SHAPES, ACTIONS))
    kinds = [every[i] for i in rng.choice(len(every), size=num_events, replace=False)]
    if rng.random() < SHARE_TWICE:
        kinds[-1] = kinds[0]
    return [kinds[i] for i in rng.permutation(num_events)]


def _draw_edges(kinds: list[Kind], num_frames: int, fps: int, rng: np.random.Generator) -> list[int]:
    """The frames at which the events begin and end, in turn; gaps and events as drawn, fitted to the video's length."""
    inner = [(TWIN_GAP_S if before == after else GAP_S[0], GAP_S[1]) for before, after in itertools.pairwise(kinds)]
    bounds = [GAP_S, *itertools.chain(*((EVENT_S, gap) for gap in [*inner, GAP_S]))]  # gap, event, gap, ..., gap
    low, high = fps * np.array(bounds).T
    spans = rng.uniform(low, high)
    if spans.sum() > num_frames:
        spans = low + (spans - low) * (num_frames - low.sum()) / (spans - low).sum()
    else:
        spans = high - (high - spans) * (high.sum() - num_frames) / (high - spans).sum()
    return [round(edge) for edge in np.cumsum(spans)[:-1]]


def render_frames(video: DemoVideo) -> Iterator[np.ndarray]:
    """The frames in order, uint8 [128, 160, 3] RGB: a plain background, and during an event its shape."""
    background = np.full((HEIGHT, WIDTH, 3), video.background, np.uint8)
    position = 0
    for event in video.events:
        start, end = round(event.start_s * video.fps), round(event.end_s * video.fps)
        yield from itertools.repeat(background, start - position)
        for number in range(end - start):
            frame = background.copy()
            _paint(frame, event, number, end - start)
            yield frame
        position = end
    yield from itertools.repeat(background, video.num_frames - position)


def _paint(frame: np.ndarray, event: Event, number: int, num_frames: int) -> None:
    """Put the event's shape into the frame as it is in frame `number` of the event's `num_frames`."""
    halves = 2 * round((event.end_s - event.start_s) / BLINK_S) + 1  # odd: seen at the beginning and at the end
    if event.action == "blinks" and number * halves // num_frames % 2:
        return
    progress = number / (num_frames - 1)
    radius = round(GROWS_FROM + (GROWS_TO - GROWS_FROM) * progress) if event.action == "grows" else RADIUS
    down, right = WAYS.get(event.action, (0, 0))
    reach = round((2 * progress - 1) * (INNER // 2 - RADIUS))
    top, leftmost = HEIGHT // 2 + down * reach - radius, WIDTH // 2 + right * reach - radius
    mask = _mask(event.shape, radius)
    frame[top : top + len(mask), leftmost : leftmost + len(mask)][mask] = COLOURS[event.colour]


@functools.cache
def _mask(shape: str, radius: int) -> np.ndarray:
    """Return where the shape is, bool [2 * radius, 2 * radius]."""
    down, right = np.mgrid[-radius:radius, -radius:radius] + 0.5
    if shape == "circle":
        return down**2 + right**2 <= radius**2
    if shape == "square":
        return np.ones_like(down, dtype=bool)
    return 2 * np.abs(right) <= down + radius  # the triangle's point is up
