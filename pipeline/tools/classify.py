"""Show what I3D's classifier sees in a video, so that people can tell whether weights and pictures fit together."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import tyro
from pydantic import Field
from pydantic.dataclasses import dataclass

from excl.datasets.video.backends import Choice, resolve_backends
from excl.datasets.video.geometry import Geometry
from excl.models.i3d.extractor import MAX_SIZE, Extractor, choose_device
from excl.models.i3d.runner import keep_freed_memory
from excl.models.i3d.weights import Weights, check_spec, load_weights
from excl.models.lazy_module import LazyModule
from excl.pipeline.config import STRICT, PositiveFloat, PositiveInt, WithoutPrefix
from excl.pipeline.decode import check_sampled
from excl.pipeline.execution.sharded_stage import MAX_THREADS
from excl.pipeline.execution.video_reading import VideoReading, num_cores

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

DEFAULT_FPS = 25.0  # of weights that do not say what they were trained on


@dataclass(frozen=True, config=STRICT)
class ClassifyConfig:
    """Show the classes that I3D sees in a video: with fitting weights and pictures they make sense."""

    video: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="VIDEO")]
    """The video file."""
    weights: str = "kinetics"
    """kinetics (400 classes), charades (157), a file, or the name of an imported file."""
    fps: PositiveFloat | None = None
    """Frames a second, by default those of the videos that the weights were trained on."""
    short_side: int | str = 256
    """Pixels to which the shorter side of the picture is scaled, or like 226-upscale-only."""
    crop: Annotated[int, Field(ge=32, le=MAX_SIZE)] = 224
    """Pixels of the centred square that is kept."""
    top: PositiveInt = 5
    """Number of classes to show."""
    json: bool = False
    """Print one JSON object, for programs."""
    backend: Choice = "pyav"
    """Decoder: pyav, decord, torchcodec, torchcodec-cuda, or auto."""
    device: str = "auto"
    """Device that runs I3D: auto (a GPU if there is one), cpu, cuda, cuda:1, mps."""
    reading: WithoutPrefix[VideoReading] = field(default_factory=VideoReading)
    """The settings for reading the video."""

    def __post_init__(self) -> None:
        check_sampled(self.short_side, self.crop, self.backend)
        check_spec(self.weights)
        choose_device(self.device)


@dataclasses.dataclass(frozen=True)
class RankedClass:
    """A class: its number, its name (None if unknown), its mean logit over the whole video, and its probability."""

    number: int
    name: str | None
    logit: float
    probability: float


@dataclasses.dataclass(frozen=True)
class ClassReport:
    """The most probable classes of a video, with the weights and the frames."""

    video: str
    weights: str
    random: bool
    fps: float
    num_frames: int
    duration_s: float
    top: list[RankedClass]
    as_json: bool


def run(config: ClassifyConfig) -> ClassReport:
    """Classify the video. Raises ValueError (VideoError) for one that cannot be read."""
    weights = load_weights(config.weights)
    if choose_device(config.device).type == "cpu":
        keep_freed_memory()
    fps = config.fps or weights.facts.fps or DEFAULT_FPS
    video = config.reading.open(
        config.video,
        fps=fps,
        geometry=Geometry.parse(config.short_side, config.crop),
        backends=resolve_backends(config.backend),
        threads=min(MAX_THREADS, num_cores()),
    )
    rows = Extractor(weights, device=choose_device(config.device))(video)
    facts = video.facts
    top = most_probable(weights, logits_of(weights, rows).mean(axis=0), config.top)
    return ClassReport(
        str(config.video), weights.source, weights.is_random, fps, facts.num_frames, facts.duration_s, top, config.json
    )


def logits_of(weights: Weights, rows: np.ndarray) -> np.ndarray:
    """Return class scores before any softmax, float32 [n, classes], of feature rows [n, 1024]."""
    weight, bias = weights.state_dict["logits.conv3d.weight"], weights.state_dict["logits.conv3d.bias"]
    return torch.nn.functional.linear(torch.from_numpy(rows).float(), weight.flatten(1), bias).numpy()


def most_probable(weights: Weights, logits: np.ndarray, count: int) -> list[RankedClass]:
    """Return the `count` most probable classes of logits [classes], in order."""
    probabilities = torch.from_numpy(logits).double().softmax(0).numpy()
    names = weights.class_names
    return [
        RankedClass(int(index), names[index] if names else None, float(logits[index]), float(probabilities[index]))
        for index in np.argsort(-logits, kind="stable")[:count]
    ]


def show(report: ClassReport) -> str:
    """Return the classes for people, or as JSON."""
    if report.as_json:
        values = dataclasses.asdict(report)
        del values["as_json"]
        return json.dumps(values)
    lines = [
        f"{report.video}: {report.num_frames} frames, {report.fps:g} a second over {report.duration_s:.1f} s, "
        f"weights {report.weights}",
        *class_lines(report.top),
    ]
    if report.random:
        lines.append("The weights are RANDOM: these classes mean nothing.")
    return "\n".join(lines)


def class_lines(top: list[RankedClass]) -> list[str]:
    """Return one line for each class: probability, logit, name."""
    return [f"{100 * c.probability:9.4f} %  {c.logit:9.4f}  {c.name or f'class {c.number}'}" for c in top]
