"""A check that videos can be decoded at all on this machine: a process makes a small one and reads it.

`python -m excl.datasets.video.self_check` ends with exit code 0 if its frames came back.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

PATIENCE_S = 60.0
NUM_FRAMES, RATE, SIDE = 10, 5, 64


def decoder_works() -> bool:
    """Run the check; returns False if the library that decodes is missing, raises or crashes."""
    command = [sys.executable, "-m", "excl.datasets.video.self_check"]
    try:
        return subprocess.run(command, capture_output=True, timeout=PATIENCE_S, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def _write_video(path: Path) -> None:
    """Write a video of grey frames, each lighter than the one before."""
    import av  # noqa: PLC0415  (the libraries are imported in the child process alone)
    import numpy as np  # noqa: PLC0415

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        assert isinstance(stream, av.VideoStream)
        stream.width = stream.height = SIDE
        for number in range(NUM_FRAMES):
            frame = av.VideoFrame.from_ndarray(np.full((SIDE, SIDE, 3), 20 * number, np.uint8), "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _check() -> None:
    import numpy as np  # noqa: PLC0415

    from excl.datasets.video.backends import sample_frames  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "check.mp4"
        _write_video(path)
        frames = np.concatenate([chunk.frames for chunk in sample_frames(path, fps=RATE, size=SIDE, crop=SIDE)])
    levels = frames.mean(axis=(1, 2, 3))
    if len(frames) != NUM_FRAMES or not (np.diff(levels) > 0).all():
        raise SystemExit(f"{len(frames)} frames came back, of the levels {levels}")


if __name__ == "__main__":
    _check()
