"""Make a few rows by each candidate recipe, coarse to fine, and see which come closest to the published ones.

A row costs what its window costs, so the search never makes a whole video's rows. The most probable recipes are tried on the
first row with every picture. Where one is close, only its neighbours follow: rates, windows, hops, ways to sample in time
and pictures, on two rows; else more candidates of the row counts, colours and ranges before that. At the end more rows of
the best are made, for the verdict. A recipe that is wrong in one respect is farther off than the same recipe with that put
right, which is why one respect is tried at a time; where two respects compensate each other the search may stop early, and
the distance then says so. A recipe whose first row alone puts it farther off than the best is not tried on a second row.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from excl.datasets.parsing import printable
from excl.datasets.video.errors import VideoError
from excl.datasets.video.geometry import Geometry
from excl.datasets.video.pyav_backend import PyAVVideo
from excl.datasets.video.sampling import Sampling
from excl.models.i3d.extractor import choose_device
from excl.models.i3d.row_layout import Continuous
from excl.models.i3d.runner import keep_freed_memory
from excl.models.i3d.weights import Weights
from excl.models.lazy_module import LazyModule
from excl.pipeline.comparison.verdicts import EQUAL, Verdict, VideoVerdict, judge
from excl.pipeline.execution.video_reading import VideoReading
from excl.pipeline.identify.row_fit import Candidate

if TYPE_CHECKING:
    import torch

    from excl.models.i3d import network
else:
    torch = LazyModule("torch")
    network = LazyModule("excl.models.i3d.network")

log = logging.getLogger(__name__)

MOST_FRAMES = 64  # of a window that is tried for being another one than the most usual
REACH = 64  # frames from a row's first on that the whole-video network needs for it
KEPT_READINGS = 12  # samplings of a video that are remembered
SEVERAL, FEW, NEIGHBOURS = 8, 3, 5  # candidates tried again, with every hop and sampling, and about or beside the best one
FIRST_ROWS, ROWS = 4, 8  # of a video, by which it is chosen; and for the verdict
TIE = 1.01  # times the least distance: nearer to each other no two recipes are told apart, and the more usual one is taken
ALIKE = 1.25  # times the least distance on two rows, up to which recipes are compared on more
CLOSE = 0.02  # a distance that frames coded anew may have; a recipe with wrong colours or another rate has more
PRECISE = 0.01  # a distance below which windows that begin at another frame are not tried
VERDICT_FRAMES = 256  # of windows for the verdict, at least of three
MOST_READ = 1000  # frames of a video, which are all in memory
WHOLE_FRAMES = 96  # of a whole video, to tell it from long windows

Values = Callable[["torch.Tensor"], "torch.Tensor"]
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _by_statistics(x: torch.Tensor) -> torch.Tensor:
    return (x / 255 - x.new_tensor(_MEAN)) / x.new_tensor(_STD)


VALUES: dict[str, Values] = {  # of float32 RGB [..., 3] from 0 to 255
    "RGB from -1 to 1": lambda x: x / 127.5 - 1,
    "BGR from -1 to 1": lambda x: x.flip(-1) / 127.5 - 1,
    "RGB from 0 to 1": lambda x: x / 255,
    "RGB from 0 to 255": lambda x: x,
    "RGB by ImageNet's mean and deviation": _by_statistics,
}
RGB = next(iter(VALUES))


@dataclass(frozen=True)
class Making:
    """One recipe to try: rate and rows, where in its period a frame is taken, the picture, its values, the first frame."""

    candidate: Candidate
    geometry: Geometry
    nearest: bool = True
    values: str = RGB
    first_frame: int = 0

    @property
    def key(self) -> tuple[object, ...]:
        """The settings that decide the values of rows before the video's end."""
        rule = self.candidate.rule
        rows = (rule.window, rule.hop, rule.rows == 1, rule.pool, rule.overlapping_chunks, not rule.window and rule.end)
        nearest = self.nearest or self.candidate.fps is None  # of all frames there is nothing to choose
        return self.candidate.fps, rows, self.geometry, nearest, self.values, self.first_frame

    def __str__(self) -> str:
        scaling = "" if self.geometry.antialias else ", scaled without averaging"
        nearest = "frames as FFmpeg's fps filter" if self.nearest else "frames on screen at k/rate"
        sampling = "" if self.candidate.fps is None else f", {nearest}"
        first = f", from frame {self.first_frame} on" if self.first_frame else ""
        values = "" if self.values == RGB else f", {self.values}"
        rule = self.candidate.rule
        return f"{self.candidate.rate}{sampling}{first}, picture {self.geometry}{scaling}{values}, {rule}"


@dataclass(frozen=True)
class Trial:
    """A recipe with the relative L2 distance of its rows from the published ones, over `rows` rows."""

    making: Making
    distance: float
    rows: int


@dataclass(frozen=True)
class Search:
    """The result: the trials, those on most rows first; the number of recipes; the verdict on the first one's rows."""

    video_id: str
    trials: tuple[Trial, ...]
    num_tried: int
    verdict: VideoVerdict
    weights: str

    @property
    def best(self) -> Trial:
        """The nearest recipe."""
        return self.trials[0]

    @property
    def is_equal(self) -> bool:
        """Whether rows made by it are the published ones, up to the precision that `compare` calls equal."""
        return self.verdict.verdict in (*EQUAL, Verdict.FACTOR)


def pictures(crop: int) -> list[Geometry]:
    """Return the pictures to try, the most usual first: those of 224 pixels in proportion for another crop."""
    short, wide = round(crop * 256 / 224), round(crop * 340 / 224)
    shapes = (
        Geometry(short, crop),
        Geometry(crop, crop),
        Geometry(crop + 2, crop, upscale_only=True),
        Geometry(crop, crop, width=crop),
        Geometry(short, crop, width=wide),
        Geometry(short, crop, width=short),
    )
    return [dataclasses.replace(shape, antialias=antialias) for antialias in (False, True) for shape in shapes]


@dataclass
class RowMaker:
    """A maker of single rows of videos, with the frames that it read last."""

    videos: Mapping[str, Path]
    weights: Weights
    reading: VideoReading
    device: str = "auto"
    _readings: dict[tuple[object, ...], tuple[list[np.ndarray], bool]] = field(default_factory=dict)
    _steps_of: dict[tuple[object, ...], torch.Tensor] = field(default_factory=dict)
    _lengths: dict[tuple[object, ...], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._device = choose_device(self.device)
        if self._device.type == "cpu":
            keep_freed_memory()
        self._network = network.prepare(self.weights.network(), self._device, torch.float32)

    def require_readable(self, video_id: str) -> None:
        """Read a video from end to end in a process of its own, before it is read here; VideoError if that fails."""
        for _ in self.reading.open(self.videos[video_id], fps=None, geometry=Geometry(32, 32)):
            pass

    def rows(self, video_id: str, making: Making, indices: Sequence[int]) -> np.ndarray:
        """Return these rows of a video, float32 [n, 1024]; those that it has not are NaN."""
        made = self._made(video_id, making, indices)
        none = np.full(network.FEATURE_DIM, np.nan, np.float32)
        return np.stack([made.get(i, none) for i in indices])

    def _made(self, video_id: str, making: Making, indices: Sequence[int]) -> dict[int, np.ndarray]:
        rule, begin = making.candidate.rule, making.first_frame
        if rule.window:
            clips = {
                clip: self._clip_rows(video_id, making, clip * rule.hop + begin)
                for clip in {i // rule.rows for i in indices}
            }
            return {clip * rule.rows + j: row for clip, rows in clips.items() for j, row in enumerate(rows)}
        frames, complete = self._frames(video_id, making, rule.hop * max(indices) + REACH + begin)
        frames = frames[begin:]
        layout = Continuous(rule.hop, rule.pool)
        if rule.overlapping_chunks or rule.end == "drop":  # nothing is repeated; SAME padding goes by the length's remainder
            remainder = 0 if rule.end == "drop" else self._num_frames(video_id, making) % 8
            frames = frames[: len(frames) - (len(frames) - remainder) % 8] or frames
        else:
            padded = layout.padded(len(frames)) - layout.lead - len(frames)
            frames = [frames[0]] * layout.lead + frames + [frames[-1]] * padded
        steps = self._steps(frames, making.values, stride=rule.hop)
        made = network.pool_pairs(steps[None], offsets=layout.offsets)[0] if rule.pool == "2x7x7" else steps
        sure = len(made) if complete else max(indices) + 1
        return {i: row.numpy() for i, row in enumerate(made[:sure])}

    def _clip_rows(self, video_id: str, making: Making, start: int) -> np.ndarray:
        """Return the rows of the window that starts with this frame, float32 [n, 1024]; none if the video ends before it."""
        rule = making.candidate.rule
        frames, _ = self._frames(video_id, making, start + rule.window)
        if start >= len(frames):
            return np.zeros((0, network.FEATURE_DIM), np.float32)
        numbers = np.clip(np.arange(start, start + rule.window), 0, len(frames) - 1)
        steps = self._steps([frames[number] for number in numbers], making.values)
        rows = (network.pool_pairs(steps[None])[0] if rule.pool == "2x7x7" else steps).numpy()
        return rows.mean(axis=0, keepdims=True) if rule.rows == 1 else rows

    def _num_frames(self, video_id: str, making: Making) -> int:
        """Return how many frames a whole video has at the recipe's rate, from its first one on."""
        key = video_id, making.candidate.fps, making.nearest
        if key not in self._lengths:
            fps = making.candidate.fps
            video = PyAVVideo(
                self.videos[video_id],
                Sampling(fps, Geometry(32, 32), self.reading.limits(), nearest=making.nearest and fps is not None),
            )
            self._lengths[key] = sum(1 for _ in video)
        return self._lengths[key] - making.first_frame

    def _frames(self, video_id: str, making: Making, count: int) -> tuple[list[np.ndarray], bool]:
        """Return the first frames of a video, uint8 [crop, crop, 3] each, and whether these are all; VideoError if none."""
        fps = making.candidate.fps
        key = video_id, fps, making.geometry, making.nearest
        frames, complete = self._readings.pop(key, ([], False))
        if len(frames) < count and not complete:
            nearest = making.nearest and fps is not None
            video = PyAVVideo(self.videos[video_id], Sampling(fps, making.geometry, self.reading.limits(), nearest=nearest))
            frames = list(itertools.islice(video, count))
            complete = len(frames) < count
        self._readings[key] = frames, complete
        if len(self._readings) > KEPT_READINGS:
            del self._readings[next(iter(self._readings))]
        return frames[:count], complete and len(frames) <= count

    def _steps(self, frames: Sequence[np.ndarray], values: str, *, stride: int = 8) -> torch.Tensor:
        """Return the network's steps of frames, float32 [t, 1024]; the same frames of another recipe are computed once."""
        pixels = np.stack(frames)
        key = hashlib.blake2b(pixels.data).digest(), len(pixels), values, stride
        if key not in self._steps_of:
            x = VALUES[values](torch.from_numpy(pixels).to(self._device).float())
            x = x.permute(3, 0, 1, 2)[None].contiguous(memory_format=torch.channels_last_3d)
            with torch.inference_mode():
                self._steps_of[key] = self._network.steps(x, stride=stride)[0].float().cpu()
        return self._steps_of[key]


def distance(rows: np.ndarray, published: np.ndarray, *, normalised: bool) -> float:
    """Return ||A - B|| / ||B||, of directions if B's rows are normalised; infinite if A lacks a row that B has."""
    defined = np.isfinite(published).all(axis=1)
    if not defined.any() or not np.isfinite(rows[defined]).all():
        return np.inf
    a, b = rows[defined].astype(np.float64), published[defined].astype(np.float64)
    if normalised:
        a, b = (side / np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-12) for side in (a, b))
    return float(np.linalg.norm(a - b)) / max(float(np.linalg.norm(b)), 1e-12)


def search(
    maker: RowMaker,
    published: Mapping[str, np.ndarray],
    candidates: Sequence[Candidate],
    *,
    crop: int,
    normalised: bool,
    first_tried: int,
) -> Search:
    """Search for the recipe of the published rows [n, 1024] by video; the candidates are those of the row counts.

    VideoError if no video can be read.
    """
    video_id = _most_telling(maker, published)
    log.info("making rows of %s by one recipe after the other, which takes minutes on a CPU", printable(video_id))
    rows = published[video_id].astype(np.float32)
    tries = _Tries(maker, video_id, rows, candidates, pictures(crop), normalised)
    begin = tries.to_begin_with(first_tried)
    probable = [dataclasses.replace(making, geometry=shape) for shape in tries.plain for making in begin[:FEW]]
    first = tries.nearest(probable, [0], enough=CLOSE)[0]
    settled = tries.settle(first.making, []) if first.distance <= CLOSE else tries.of_all(begin)
    if settled.distance > PRECISE:
        rule = settled.making.candidate.rule
        shifts = (0, 1, -(rule.window // 2)) if rule.window else (0, 1)
        tries.nearest([dataclasses.replace(settled.making, first_frame=shift) for shift in shifts], tries.both)
    return tries.concluded()


@dataclass
class _Tries:
    """The trials on one video, and the ways to make more."""

    maker: RowMaker
    video_id: str
    rows: np.ndarray
    candidates: Sequence[Candidate]
    shapes: Sequence[Geometry]
    normalised: bool
    tried: dict[tuple[object, ...], Trial] = field(default_factory=dict)

    def __post_init__(self) -> None:
        changes = np.linalg.norm(self.rows[1:FIRST_ROWS] - self.rows[:1], axis=1)
        self.both = [0, 1 + int(np.argmax(changes))] if len(changes) else [0]
        self.plain = [shape for shape in self.shapes if not shape.antialias]
        self.by_first_row: dict[tuple[object, ...], Candidate] = {}  # the most probable of those with the same first row
        for candidate in self.candidates:
            self.by_first_row.setdefault(candidate.first_row_key, candidate)

    def to_begin_with(self, number: int) -> list[Making]:
        """Return the most probable recipes, and half as many of other windows."""
        usual = list(self.by_first_row.values())
        windows = {candidate.rule.window for candidate in usual[:number]}
        others = {
            c.rule.window: c for c in reversed(usual) if 0 < c.rule.window <= MOST_FRAMES and c.rule.window not in windows
        }
        chosen = [*usual[:number], *sorted(others.values(), key=lambda c: -c.share)[: number // 2]]
        return [Making(candidate, self.shapes[0]) for candidate in chosen]

    def of_all(self, begin: Sequence[Making]) -> Trial:
        """Try all recipes to begin with, colours and pictures one after the other and, if nothing is close, together."""
        best = self.near(begin[0], begin)[0].making
        firsts = sorted((t for t in self.tried.values() if t.making.geometry == self.shapes[0]), key=_rank)
        others = [t.making.candidate for t in firsts[:SEVERAL]]
        by_values = [t.making.values for t in self.nearest([dataclasses.replace(best, values=v) for v in VALUES], [0])]
        best = self.of_pictures(dataclasses.replace(best, values=by_values[0]), [0]).making
        settled = self.settle(best, others)
        if settled.distance <= CLOSE:
            return settled
        several = dict.fromkeys(
            [settled.making.candidate, *others[:NEIGHBOURS], *(making.candidate for making in begin[:FEW])]
        )
        mixed = itertools.product(self.plain, by_values[:2], several)
        makings = [dataclasses.replace(settled.making, candidate=c, values=v, geometry=shape) for shape, v, c in mixed]
        return self.settle(self.nearest(makings, [0], enough=CLOSE)[0].making, others)

    def nearest(self, makings: Sequence[Making], indices: Sequence[int], *, enough: float = 0.0) -> list[Trial]:
        """Try recipes on these rows of the video until one is near enough, and return the trials, the nearest first.

        A recipe is left out whose first row alone puts it farther off than another one of them.
        """
        trials: list[Trial] = []
        for making in makings:
            key = (*making.key, tuple(indices))
            if key not in self.tried:
                least = min((trial.distance for trial in trials), default=np.inf)
                if len(indices) > 1 and self._least(making, indices) > TIE * least + 1e-4:
                    continue
                made = self.maker.rows(self.video_id, making, indices)
                away = distance(made, self.rows[list(indices)], normalised=self.normalised)
                self.tried[key] = Trial(making, away, len(indices))
                log.debug("%.4f  %s", away, making)
            trials.append(self.tried[key])
            if trials[-1].distance <= enough:
                break
        return sorted(trials, key=_rank)

    def _least(self, making: Making, indices: Sequence[int]) -> float:
        """Return the least distance over these rows that the first row leaves; 0 if it would have to be made for that."""
        if not making.candidate.rule.window and (*making.key, (0,)) not in self.tried:
            return 0.0  # a row of the whole video costs almost what two do
        lengths = np.ones(len(indices)) if self.normalised else np.linalg.norm(self.rows[list(indices)], axis=1)
        return self.nearest([making], [0])[0].distance * float(lengths[0] / np.linalg.norm(lengths))

    def near(self, base: Making, begin: Sequence[Making]) -> list[Trial]:
        """Try some on the first row, then the neighbours of the best in rate and window, until none of them is better."""
        ranked = self.nearest(begin, [0])
        while True:
            best = ranked[0]
            keys = {t.making.candidate.first_row_key for t in ranked}
            untried = [c for key, c in self.by_first_row.items() if key not in keys]
            untried.sort(key=lambda c: _away(c, best.making.candidate))
            more = [dataclasses.replace(base, candidate=candidate) for candidate in untried[:NEIGHBOURS]]
            ranked = sorted([*ranked, *self.nearest(more, [0])], key=_rank)
            if ranked[0] is best:
                return ranked

    def of_pictures(self, base: Making, indices: Sequence[int]) -> Trial:
        """Try the pictures, and of the best one the scaling that averages."""
        best = self.nearest([dataclasses.replace(base, geometry=shape) for shape in self.plain], indices)[0]
        averaged = dataclasses.replace(best.making.geometry, antialias=True)
        return self.nearest([best.making, dataclasses.replace(best.making, geometry=averaged)], indices)[0]

    def settle(self, best: Making, others: Sequence[Candidate]) -> Trial:
        """Try recipes with the picture and colours of the best, then hops, ways to sample, and pictures on two rows."""
        ranked = self.near(best, [best, *(dataclasses.replace(best, candidate=candidate) for candidate in others)])
        keys = [t.making.candidate.first_row_key for t in ranked[:FEW]]
        hops = [c for key in keys for c in self._hops(key)]
        ranked = self.nearest([dataclasses.replace(best, candidate=candidate) for candidate in hops], self.both)
        ways = [dataclasses.replace(t.making, nearest=way) for t in ranked[:FEW] for way in (True, False)]
        return self.of_pictures(self.nearest(ways, self.both)[0].making, self.both)

    def _hops(self, first_row: tuple[object, ...]) -> list[Candidate]:
        """Return the most probable candidates with a first row; few of the whole video, which cost most."""
        same = [candidate for candidate in self.candidates if candidate.first_row_key == first_row]
        return same[: SEVERAL if same[0].rule.window else FEW]

    def concluded(self) -> Search:
        """Return the result: the recipes that two rows do not tell apart on more rows, then the others on two and on one.

        Of recipes whose rows are equally near the most probable one is the first, and of its pictures the most usual.
        """
        on_both = sorted((t for t in self.tried.values() if t.rows == len(self.both)), key=lambda t: t.distance)
        alike = [t.making for t in on_both if t.distance <= ALIKE * on_both[0].distance + 1e-4][:SEVERAL]
        final = sorted((self.on_more_rows(making) for making in alike), key=lambda t: t.distance)
        first = min(
            (t for t in final if t.distance <= TIE * final[0].distance + 1e-5),
            key=lambda t: (-t.making.candidate.share, self.shapes.index(t.making.geometry)),
        )
        on_one = sorted((t for t in self.tried.values() if t.rows < len(self.both)), key=lambda t: t.distance)
        trials = (first, *(t for t in final if t is not first), *on_both, *on_one)
        made, rows = self.more_rows(first.making)
        num_tried = len({t.making.key for t in trials})
        return Search(self.video_id, trials, num_tried, judge(made, rows, 0), self.maker.weights.source)

    def on_more_rows(self, making: Making) -> Trial:
        """Return the trial of a recipe on the rows for the verdict."""
        made, rows = self.more_rows(making)
        return Trial(making, distance(made, rows, normalised=self.normalised), len(rows))

    def more_rows(self, making: Making) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows for the verdict by this recipe, and the published ones: spread over the video, or its first."""
        rule, count = making.candidate.rule, len(self.rows)
        if rule.window:
            num_windows = max(3, min(ROWS, VERDICT_FRAMES // rule.window))
            last = min(count - 1, int(MOST_READ * rule.rows_a_frame))
            indices = sorted({int(i) for i in np.linspace(0, last, num_windows)})
        else:
            indices = list(range(min(count, 1 + WHOLE_FRAMES // rule.hop)))
        made = self.maker.rows(self.video_id, making, indices)
        defined = np.isfinite(made).all(axis=1)
        return made[defined], self.rows[indices][defined]


def _rank(trial: Trial) -> tuple[float, float]:
    """Return the place of a trial: of equal distances the more probable recipe is first."""
    return round(trial.distance, 4), -trial.making.candidate.share


def _away(a: Candidate, b: Candidate) -> float:
    """Return how far two candidates are apart, in octaves of rate and window; the whole video is far from windows."""
    rates = [candidate.fps or 30.0 for candidate in (a, b)]
    windows = [candidate.rule.window or 256 for candidate in (a, b)]
    other = (a.rule.rows == 1) != (b.rule.rows == 1) or a.rule.pool != b.rule.pool or a.rule.end != b.rule.end
    octaves = abs(math.log2(rates[0] / rates[1])) + abs(math.log2(windows[0] / windows[1])) + 0.1 * other
    return octaves + 0.01 * (a.fps is not b.fps)


def _most_telling(maker: RowMaker, published: Mapping[str, np.ndarray]) -> str:
    """Return the video that can be read whose first rows differ most; VideoError if none can be read."""

    def telling(name: str) -> tuple[int, float]:
        return min(len(published[name]), FIRST_ROWS), _variation(published[name])

    *others, last = sorted(published, key=telling, reverse=True)
    for video_id in others:
        try:
            maker.require_readable(video_id)
        except VideoError as error:
            log.warning("%s; another video is taken", error)
        else:
            return video_id
    maker.require_readable(last)
    return last


def _variation(rows: np.ndarray) -> float:
    """Return how much the first rows of a video differ, of their length: still pictures tell no rate from another."""
    rows = rows[:FIRST_ROWS].astype(np.float64)
    if len(rows) < 2:
        return -1.0
    return float(np.linalg.norm(rows - rows.mean(axis=0))) / max(float(np.linalg.norm(rows)), 1e-12)
