"""The published check of I3D's Kinetics weights: the scores that they must give for a clip that was published with them.

The clip is UCF-101's v_CricketShot_g04_c01 as DeepMind's kinetics-i3d repository holds it, 79 frames of 224 x 224 pixels
that are already scaled to [-1, 1]; the scores are those of the same repository (`out/imagenet_rgb.txt`), computed with
TensorFlow. The public PyTorch port, whose weights these are, was made to give them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic.dataclasses import dataclass

from excl.models.i3d.weight_catalogue import PUBLISHED, class_names, git_blob_id
from excl.models.i3d.weights import Weights, check_spec, load_weights
from excl.models.lazy_module import LazyModule
from excl.pipeline.config import STRICT, WithoutPrefix
from excl.pipeline.execution.video_reading import VideoReading
from excl.pipeline.tools import classify
from excl.pipeline.tools.classify import class_lines

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

CLIP_URL = "https://github.com/google-deepmind/kinetics-i3d/raw/master/data/v_CricketShot_g04_c01_rgb.npy"
CLIP_BLOB_ID = "d756c5020a6e0fb56a99b210e32f5865da712bba"
CLIP_SHAPE = (79, 224, 224, 3)
NUM_CLASSES = 400
LOGITS_NORM = 87.108871
LOGITS = {
    "playing cricket": 25.856646,
    "playing kickball": 12.330335,
    "catching or throwing baseball": 11.254371,
    "shooting goal (soccer)": 10.883866,
    "catching or throwing softball": 10.393131,
    "throwing discus": 10.008317,
    "javelin throw": 9.804514,
    "golf putting": 9.681604,
    "jogging": 9.49558,
    "hitting baseball": 9.490318,
    "triple jump": 9.3243265,
    "hurling (sport)": 8.685253,
    "skateboarding": 8.533437,
    "hurdling": 8.181894,
    "playing tennis": 8.133075,
    "breakdancing": 8.048665,
    "hammer throw": 7.969584,
    "shot put": 7.9668636,
    "long jump": 7.8151855,
    "headbutting": 7.7918606,
}
MAX_DIFFERENCE, MAX_RELATIVE_NORM = 2e-2, 1e-3


@dataclass(frozen=True, config=STRICT)
class VerifyWeightsConfig:
    """Check Kinetics weights by the scores that were published for one clip. The exit code is 3 if they differ."""

    clip: Path | None = None
    """v_CricketShot_g04_c01_rgb.npy of DeepMind's kinetics-i3d repository; or the same clip as a video, of which only the
    most probable class is checked. Without it only the file of the weights is verified."""
    weights: str = "kinetics"
    """The weights to check: kinetics, a file, or the name of an imported file."""
    reading: WithoutPrefix[VideoReading] = field(default_factory=VideoReading)
    """The settings for reading the video."""

    def __post_init__(self) -> None:
        check_spec(self.weights)
        if self.clip is not None and not self.clip.is_file():
            raise ValueError(f"clip: {self.clip}: there is no such file")


@dataclasses.dataclass(frozen=True)
class WeightsCheck:
    """The result: lines for people, and whether something is not as published."""

    lines: list[str]
    wrong: bool


def run(config: VerifyWeightsConfig) -> WeightsCheck:
    """Check the weights; ValueError for a file that is not the clip."""
    weights = load_weights(config.weights)
    published = weights.source in PUBLISHED
    headline = f"weights {weights.source}: " + (
        f"the published file (git blob id {weights.facts.git_blob_id})" if published else "not a published file"
    )
    if config.clip is None:
        hint = f"The clip is not at hand: {CLIP_URL} (git blob id {CLIP_BLOB_ID}); give it as --clip FILE"
        return WeightsCheck([headline, hint], wrong=False)
    if config.clip.suffix.lower() != ".npy":
        return _check_video(config, headline)
    return _check_array(config.clip, weights, headline)


def num_wrong(check: WeightsCheck) -> int:
    """Return 1 if something is not as published, otherwise 0."""
    return int(check.wrong)


def show(check: WeightsCheck) -> str:
    """Return the result for people."""
    return "\n".join(check.lines)


def _check_video(config: VerifyWeightsConfig, headline: str) -> WeightsCheck:
    assert config.clip is not None
    top = classify.run(classify.ClassifyConfig(video=config.clip, weights=config.weights, reading=config.reading)).top
    published = next(iter(LOGITS))
    right = top[0].name == published
    verdict = f"its most probable class {'is' if right else 'is NOT'} {published!r}, as published"
    return WeightsCheck([headline, *class_lines(top), f"{config.clip}: {verdict}"], wrong=not right)


def _check_array(path: Path, weights: Weights, headline: str) -> WeightsCheck:
    """Run the network on the clip without any padding of ours, and compare with the published scores."""
    if weights.num_classes != NUM_CLASSES:
        raise ValueError(f"{weights.source}: has {weights.num_classes} classes; the check is for Kinetics' {NUM_CLASSES}")
    frames = _read_clip(path)
    x = torch.from_numpy(frames).permute(3, 0, 1, 2)[None]  # [1, 3, T, H, W]
    with torch.inference_mode():
        logits = weights.network().logits(x)[0].mean(dim=0).numpy()
    scores = dict(zip(class_names("kinetics"), logits.tolist(), strict=True))
    worst = max(abs(scores[name] - logit) for name, logit in LOGITS.items())
    norm = float(np.linalg.norm(logits))
    lines = [headline]
    lines += [f"{scores[name]:9.4f}  published {logit:9.4f}  {name}" for name, logit in LOGITS.items()]
    right = (
        worst <= MAX_DIFFERENCE
        and abs(norm / LOGITS_NORM - 1) <= MAX_RELATIVE_NORM
        and max(scores, key=scores.__getitem__) == next(iter(LOGITS))
    )
    lines.append(
        f"norm of the logits {norm:.4f}, published {LOGITS_NORM:.4f}; largest difference of the twenty {worst:.4f}: "
        + ("as published" if right else f"NOT as published (allowed are {MAX_DIFFERENCE} and {MAX_RELATIVE_NORM:.1%})")
    )
    return WeightsCheck(lines, wrong=not right)


def _read_clip(path: Path) -> np.ndarray:
    if git_blob_id(path) != CLIP_BLOB_ID:
        raise ValueError(f"{path}: not the published clip, whose git blob id is {CLIP_BLOB_ID}; it is at {CLIP_URL}")
    try:
        frames = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path}: not a readable .npy file ({error})") from error
    if not isinstance(frames, np.ndarray) or frames.shape[-4:] != CLIP_SHAPE:
        raise ValueError(f"{path}: holds an array {getattr(frames, 'shape', '')}, the clip is {CLIP_SHAPE} or (1, …)")
    if frames.dtype.kind != "f" or np.abs(frames).max() > 1 + 1e-6:
        raise ValueError(f"{path}: holds {frames.dtype} up to {np.abs(frames).max()}; the frames must lie in [-1, 1]")
    return np.ascontiguousarray(frames.reshape(CLIP_SHAPE), dtype=np.float32)
