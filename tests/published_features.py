"""Features as other people's pipelines make them: FFmpeg writes a video at a rate, frames are scaled as OpenCV does, and a
literal I3D sees them. Nothing here is shared with `excl identify`, which has to say how they were made.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from literal_i3d import literal_features

HAS_FFMPEG = shutil.which("ffmpeg") is not None and shutil.which("ffprobe") is not None


@dataclass(frozen=True)
class Published:
    """A pipeline. Rate None is the video's own; `size` is a short side, "WxH", or "up" (crop + 2, never made smaller).

    A `window` of 0 is the whole video, padded with its last frame to a multiple of 8. `end` drops or pads an unfinished last
    window. `sampled` takes frames of the original by their number, as decord's users do, in place of FFmpeg's filter.
    """

    fps: float | None
    size: int | str
    window: int = 0
    hop: int = 0
    end: str = "drop"
    mean: bool = True
    colours: str = "rgb"
    normalised: bool = False
    pairs: bool = True
    crf: int = 12
    sampled: bool = False


def frames_of(video: Path, recipe: Published, folder: Path) -> np.ndarray:
    """Return the frames, uint8 RGB [T, rows, columns, 3], as FFmpeg writes and reads them."""
    path = video
    if not recipe.sampled:
        path = folder / f"{video.stem}-{recipe.fps}-{recipe.crf}.mp4"
        if not path.exists():
            rate = [] if recipe.fps is None else ["-filter:v", f"fps={recipe.fps:g}"]
            coding = f"-c:v libx264 -preset veryfast -crf {recipe.crf} -pix_fmt yuv420p -an -threads 1".split()
            subprocess.run(["ffmpeg", "-v", "error", "-y", "-i", video, *rate, *coding, path], check=True)
    about: list[str] = [
        "ffprobe",
        "-v",
        "error",
        "-select_streams",
        "v:0",
        "-of",
        "json",
        "-show_entries",
        "stream=width,height,avg_frame_rate",
    ]
    stream = json.loads(subprocess.run([*about, str(path)], check=True, capture_output=True).stdout)["streams"][0]
    read = ["ffmpeg", "-v", "error", "-i", str(path), "-fps_mode", "passthrough", "-pix_fmt", "rgb24", "-f", "rawvideo", "-"]
    raw = subprocess.run(read, check=True, capture_output=True).stdout
    frames = np.frombuffer(raw, np.uint8).reshape(-1, stream["height"], stream["width"], 3)
    if recipe.sampled and recipe.fps is not None:
        top, bottom = map(int, stream["avg_frame_rate"].split("/"))
        count = int(np.ceil(len(frames) * bottom / top * recipe.fps))
        numbers = (np.arange(count) * top) // np.array(round(bottom * recipe.fps))
        frames = frames[np.minimum(numbers, len(frames) - 1)]
    return frames


def scaled(frames: np.ndarray, recipe: Published, crop: int) -> torch.Tensor:
    """Return float32 [T, crop, crop, 3] from 0 to 255: bilinear without antialiasing, rounded, the centre cut out."""
    rows, columns = frames.shape[1:3]
    if isinstance(recipe.size, str) and "x" in recipe.size:
        width, height = map(int, recipe.size.split("x"))
    else:
        short = crop + 2 if recipe.size == "up" else int(recipe.size)
        factor = short / min(rows, columns)
        factor = max(1.0, factor) if recipe.size == "up" else factor
        width, height = round(columns * factor), round(rows * factor)
    top, left = round((height - crop) / 2), round((width - crop) / 2)
    parts = []
    for part in np.array_split(frames, max(1, len(frames) // 32)):
        x = torch.from_numpy(part.copy()).permute(0, 3, 1, 2).float()
        if (width, height) != (columns, rows):
            x = torch.nn.functional.interpolate(x, (height, width), mode="bilinear", align_corners=False, antialias=False)
        parts.append(x.round()[:, :, top : top + crop, left : left + crop].permute(0, 2, 3, 1))
    return torch.cat(parts)


def rows_of(video: Path, recipe: Published, state: dict[str, torch.Tensor], folder: Path, *, crop: int) -> np.ndarray:
    """Return the published rows of a video, float16 [n, 1024]."""
    x = scaled(frames_of(video, recipe, folder), recipe, crop)
    x = x.flip(-1) if recipe.colours == "bgr" else x
    x = x / 255 if recipe.colours == "0..1" else x / 127.5 - 1
    count = len(x)

    def network(clip: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return literal_features(state, clip.permute(3, 0, 1, 2)[None], pairs=recipe.pairs)[0]

    if recipe.window == 0:
        rows = network(torch.cat([x, x[-1:].expand(-count % 8, -1, -1, -1)]))
    else:
        starts = list(range(0, count - recipe.window + 1, recipe.hop))
        if recipe.end == "pad" and (not starts or starts[-1] + recipe.window < count):
            starts.append(starts[-1] + recipe.hop if starts else 0)
        clips = [x[start : start + recipe.window] for start in starts]
        clips[-1] = torch.cat([clips[-1], clips[-1][-1:].expand(recipe.window - len(clips[-1]), -1, -1, -1)])
        of_clips = [network(clip) for clip in clips]
        rows = torch.cat([of_clip.mean(dim=0, keepdim=True) if recipe.mean else of_clip for of_clip in of_clips])
    if recipe.normalised:
        rows = rows / rows.norm(dim=1, keepdim=True)
    return rows.numpy().astype(np.float16)


def publish(videos: list[Path], recipe: Published, state: dict[str, torch.Tensor], folder: Path, *, crop: int) -> Path:
    """Write the features of videos as one .npz file; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    words = "-".join(str(value).replace("/", "") for value in dataclasses.astuple(recipe))
    path = folder / f"{words}.npz"
    arrays: dict[str, Any] = {video.stem: rows_of(video, recipe, state, folder, crop=crop) for video in videos}
    np.savez(path, **arrays)
    return path
