"""How long one video's features take from file to file, as whole processes: `excl extract` against the plain way.

    python bench/whole.py [--rounds 3] [--seconds 60]

The plain way: FFmpeg re-encodes the video to 5 frames a second, OpenCV reads that file, scales the shorter side to 256
pixels and crops 224 x 224, and the layers of the public port, as bench/i3d.py has them, run once over all frames. Both read
the same file of random weights, and a video of 640 x 360 pixels at 30 frames a second that is made here. They run in turn;
the figures are medians, in seconds of wall and of processor time. `ffmpeg` and OpenCV (opencv-python-headless) are needed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from i3d import Plain, write_video

from excl.models.i3d.weights import load_weights


def plain(video: Path, weights: Path, out: Path) -> None:
    """Make the features of a video the plain way."""
    import cv2

    small = out.with_suffix(".mp4")
    command = ["ffmpeg", "-nostdin", "-v", "error", "-y", "-i", str(video), "-filter:v", "fps=fps=5", str(small)]
    subprocess.run(command, check=True)
    capture, frames = cv2.VideoCapture(str(small)), []
    while True:
        ok, picture = capture.read()
        if not ok:
            break
        height, width = picture.shape[:2]
        scale = 256 / min(height, width)
        picture = cv2.resize(picture, (round(width * scale), round(height * scale)))
        top, left = (picture.shape[0] - 224) // 2, (picture.shape[1] - 224) // 2
        frames.append(cv2.cvtColor(picture[top : top + 224, left : left + 224], cv2.COLOR_BGR2RGB))
    network = Plain(torch.device("cpu"), autocast=False, state=torch.load(weights))
    steps = network(np.stack(frames)[None])[0]
    np.save(out, (steps[:-1] + steps[1:]) / 2)


def timed(command: list[str], log: Path) -> tuple[float, float]:
    """Run a command; return its seconds of wall time, and of processor time with those of its children."""
    before, started = os.times(), time.perf_counter()
    with log.open("w") as stderr:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=stderr)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - started, spent


def main() -> None:
    """Time both in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=60, help="of video")
    parser.add_argument("--plain", type=Path, nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain:  # as a process of its own
        plain(*options.plain)
        return
    if importlib.util.find_spec("cv2") is None or shutil.which("ffmpeg") is None:
        print("nothing to compare with: the plain way needs ffmpeg and OpenCV (pip install opencv-python-headless)")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        video, weights = folder / "video.mp4", folder / "weights.pt"
        write_video(video, options.seconds)
        torch.save(load_weights("random:0").state_dict, weights)
        times: dict[str, list[tuple[float, float]]] = {"plain": [], "excl extract": []}
        for number in range(options.rounds):
            arguments = [str(video), str(weights), str(folder / f"plain-{number}.npy")]
            times["plain"].append(timed([sys.executable, __file__, "--plain", *arguments], folder / "plain.log"))
            command = [sys.executable, "-m", "excl.workflows.cli", "extract", "--videos", str(video), "--weights"]
            command += [str(weights), "--device", "cpu", "--out", str(folder / f"store-{number}")]
            times["excl extract"].append(timed(command, folder / "excl.log"))
        print(f"{options.seconds} s of 640 x 360 video to features, {torch.get_num_threads()} threads")
        print(f"{'':16}{'wall':>8}{'ratio':>8}{'processor':>11}{'ratio':>8}")
        medians = {way: [statistics.median(values) for values in zip(*runs, strict=True)] for way, runs in times.items()}
        for way, (wall_s, processor_s) in medians.items():
            ratios = [value / base for value, base in zip((wall_s, processor_s), medians["plain"], strict=True)]
            print(f"{way:16}{wall_s:8.1f}{ratios[0]:8.2f}{processor_s:11.1f}{ratios[1]:8.2f}")
        print("\n".join(line for line in (folder / "excl.log").read_text().splitlines() if "I3D: " in line))


if __name__ == "__main__":
    main()
