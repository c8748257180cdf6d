"""How fast videos are sampled at 5 frames a second, as ratios to the codec's own speed.

    python bench/decode.py [--seconds 60] [--rounds 3]

It makes videos (H.264 at 480p, 720p and 1080p, HEVC, VP9, variable rate: 30 frames a second of moving, noisy pictures),
then lets every method that is installed make the same thing of them, [T, 224, 224, 3] uint8, one after another in turn, with
one decoding thread. The limit is FFmpeg decoding the file and throwing the pictures away (`ffmpeg -threads 1 -f null`); it
has to be on the PATH; 1.00 means as fast as that. Each method is a process of its own: the first figure is the whole
process, the second the work without the start of Python and its imports.

A second table is of excl alone: several videos at once, one video with several threads, sampling that is sparse.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from excl.datasets.video.container import Limits
from excl.datasets.video.decoder_process import DecoderProcess
from excl.datasets.video.geometry import Geometry
from excl.datasets.video.pyav_backend import PyAVVideo
from excl.datasets.video.sampling import Sampling

FPS, SIDE, CROP = 5, 256, 224
KINDS = {
    "h264 480p": ("h264.mp4", "libx264", 854, 480, False),
    "h264 720p": ("h264.mp4", "libx264", 1280, 720, False),
    "h264 1080p": ("h264.mp4", "libx264", 1920, 1080, False),
    "hevc 480p": ("hevc.mp4", "libx265", 854, 480, False),
    "vp9 480p": ("vp9.webm", "libvpx-vp9", 854, 480, False),
    "h264 480p vfr": ("vfr.mkv", "libx264", 854, 480, True),
}
OPTIONS = {
    "libx264": {"preset": "veryfast", "g": "250", "bf": "3"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=error"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "b": "2M"},
}


def make_video(path: Path, codec: str, width: int, height: int, seconds: int, *, variable: bool) -> None:
    """A texture that drifts, with a little noise: about as hard to code as a hand-held camera."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (height // 8 + 60, width // 8 + 60, 3))
    texture = np.kron(coarse, np.ones((8, 8, 1))).astype(np.int16)
    noise = generator.integers(-6, 7, (4, height, width, 1), dtype=np.int16)
    pts = 0
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30, options=OPTIONS[codec])
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(30 * seconds):
            x, y = int(200 + 190 * np.sin(number / 40)), int(200 + 190 * np.cos(number / 55))
            picture = np.clip(texture[y : y + height, x : x + width] + noise[number % 4], 0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = pts, Fraction(1, 1000)
            pts += int(generator.integers(10, 57)) if variable else 33
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def limit(path: Path) -> int:
    """FFmpeg's own decoding."""
    command = ["ffmpeg", "-v", "fatal", "-threads", "1", "-i", str(path), "-map", "0:v:0", "-fps_mode", "passthrough"]
    subprocess.run([*command, "-f", "null", "-"], check=True)
    return 0


def ours(path: Path) -> int:
    """excl, in this process."""
    return len(list(PyAVVideo(path, Sampling(FPS, Geometry(SIDE, CROP)))))


def isolated(path: Path) -> int:
    """excl, in a decoder's process of its own, as the stages do it."""
    return len(list(DecoderProcess(timeout_s=60, memory_bytes=2**33).read(path, Sampling(FPS, Geometry(SIDE, CROP)))))


def ffmpeg_pipe(path: Path) -> int:
    """The ffmpeg command with filters, raw pictures read from a pipe."""
    filters = f"fps={FPS}:round=up,scale=-2:{SIDE}:flags=bilinear,crop={CROP}:{CROP}"
    command = [
        "ffmpeg",
        "-v",
        "error",
        "-threads",
        "1",
        "-i",
        str(path),
        "-vf",
        filters,
        "-pix_fmt",
        "rgb24",
        "-f",
        "rawvideo",
    ]
    out = subprocess.run([*command, "-"], check=True, capture_output=True).stdout
    return len(np.frombuffer(out, np.uint8).reshape(-1, CROP, CROP, 3))


def reencode(path: Path) -> int:
    """The widespread way: re-encode at 5 frames a second, then read every frame and resize it."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "5fps.mp4"
        command = ["ffmpeg", "-v", "error", "-threads", "1", "-i", str(path), "-filter:v", f"fps={FPS}", str(target)]
        subprocess.run(command, check=True)
        with av.open(str(target)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return len([_crop(frame) for frame in frames])


def _crop(frame: np.ndarray) -> np.ndarray:
    picture = av.VideoFrame.from_ndarray(frame, "rgb24")
    scale = SIDE / min(picture.width, picture.height)
    small = picture.reformat(round(picture.width * scale), round(picture.height * scale)).to_ndarray()
    top, left = (small.shape[0] - CROP) // 2, (small.shape[1] - CROP) // 2
    return small[top : top + CROP, left : left + CROP]


def decord_batch(path: Path) -> int:
    """decord 0.6, sampled by its timestamps."""
    import decord

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        width, height = stream.width, stream.height
    scale = SIDE / min(width, height)
    reader = decord.VideoReader(str(path), width=round(width * scale), height=round(height * scale), num_threads=1)
    starts = reader.get_frame_timestamp(range(len(reader)))[:, 0]
    times = np.arange(int(np.ceil(FPS * (starts[-1] + 1 / 30)))) / FPS
    frames = reader.get_batch(np.maximum(np.searchsorted(starts, times, "right") - 1, 0)).asnumpy()
    return len(frames[:, 16 : 16 + CROP, :CROP])


def torchcodec_exact(path: Path) -> int:
    """torchcodec, asked for the frames played at the sampling times, with its own resizing."""
    from torchcodec.decoders import VideoDecoder
    from torchvision.transforms import v2

    transforms = [v2.Resize(_size(path)), v2.CenterCrop((CROP, CROP))]
    decoder = VideoDecoder(str(path), num_ffmpeg_threads=1, transforms=transforms)
    end = decoder.metadata.end_stream_seconds
    return len(decoder.get_frames_played_at(np.arange(int(np.ceil(FPS * end - 1e-6))) / FPS).data)


def _size(path: Path) -> tuple[int, int]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        scale = SIDE / min(stream.width, stream.height)
        return round(stream.height * scale), round(stream.width * scale)


def opencv_grab(path: Path) -> int:
    """OpenCV, retrieving every sixth frame (which is only right at a constant rate)."""
    import cv2

    cv2.setNumThreads(1)
    reader = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    frames, number = [], 0
    while reader.grab():
        if number % 6 == 0:
            _, frame = reader.retrieve()
            scale = SIDE / min(frame.shape[:2])
            small = cv2.resize(frame, None, fx=scale, fy=scale)[16 : 16 + CROP, :CROP]
            frames.append(cv2.cvtColor(small, cv2.COLOR_BGR2RGB))
        number += 1
    return len(frames)


METHODS: dict[str, Callable[[Path], int]] = {
    "ffmpeg -f null": limit,
    "excl": ours,
    "excl, isolated": isolated,
    "ffmpeg pipe": ffmpeg_pipe,
    "re-encode": reencode,
    "decord": decord_batch,
    "torchcodec": torchcodec_exact,
    "OpenCV grab": opencv_grab,
}
NEEDS = {"decord": "decord", "torchcodec": "torchcodec", "OpenCV grab": "cv2"}


def timed(method: str, path: Path) -> tuple[float, float] | None:
    """Seconds of the whole process and of its work alone; None if the method cannot do it."""
    if method == "ffmpeg -f null":
        started = time.perf_counter()
        limit(path)
        whole = time.perf_counter() - started
        return whole, whole
    started = time.perf_counter()
    command = [sys.executable, __file__, "--method", method, "--path", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    whole = time.perf_counter() - started
    if result.returncode != 0:
        print(f"  {method}: {result.stderr.strip().splitlines()[-1][:120]}")
        return None
    return whole, float(result.stdout.split()[-1])


def warm_up(method: str) -> None:
    """Import what the method imports, outside its own time."""
    if method in NEEDS:
        importlib.import_module({"torchcodec": "torchcodec.decoders"}.get(method, NEEDS[method]))
    if method == "torchcodec":
        importlib.import_module("torchvision.transforms.v2")


def compare(folder: Path, seconds: int, rounds: int) -> None:
    """The table of methods by kinds of video."""
    compared = [m for m in METHODS if m not in NEEDS or importlib.util.find_spec(NEEDS[m])]
    print(f"{'':16}{'limit fps':>10}" + "".join(f"{name:>17}" for name in compared[1:]))
    for kind, (name, codec, width, height, variable) in KINDS.items():
        path = folder / f"{height}{name}"
        make_video(path, codec, width, height, seconds, variable=variable)
        found: dict[str, list[tuple[float, float] | None]] = {method: [] for method in compared}
        for _ in range(rounds):
            for method in compared:
                found[method].append(timed(method, path))
        medians = {
            method: [statistics.median(times) for times in zip(*(t for t in runs if t), strict=True)]
            for method, runs in found.items()
        }
        limit_s = medians[compared[0]][0]
        cells = [
            f"{limit_s / m[0]:.2f} / {limit_s / m[1]:.2f}" if (m := medians[method]) else "fails" for method in compared[1:]
        ]
        print(f"{kind:16}{30 * seconds / limit_s:10.0f}" + "".join(f"{cell:>17}" for cell in cells), flush=True)


def scale(path: Path, rounds: int) -> None:
    """excl alone: how much faster with more videos at once, more threads, and less to be decoded."""
    cores = len(os.sched_getaffinity(0))
    geometry = Geometry(SIDE, CROP)

    started_decoders = [DecoderProcess(timeout_s=60, memory_bytes=2**33) for _ in range(min(4, cores))]
    for decoder in started_decoders:
        decoder.probe(path, Limits())

    def many(workers: int) -> None:
        decoders = started_decoders[:workers]
        with ThreadPoolExecutor(workers) as pool:
            for worker in range(workers):
                pool.submit(lambda d: [len(list(d.read(path, Sampling(FPS, geometry)))) for _ in range(8 // workers)],
                            decoders[worker])  # fmt: skip

    def one(threads: int) -> None:
        assert list(PyAVVideo(path, Sampling(FPS, geometry, threads=threads)))

    def sparse(decode_all: bool) -> None:
        assert list(PyAVVideo(path, Sampling(0.1, geometry), decode_all=decode_all))

    def null(workers: int) -> None:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(limit, [path] * 8))

    pairs: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {
        f"ffmpeg -f null, {min(4, cores)} at once, to one at a time": (lambda: null(1), lambda: null(min(4, cores))),
        f"eight videos, {min(4, cores)} at once, to one at a time": (lambda: many(1), lambda: many(min(4, cores))),
        f"one video, {cores} threads, to 1": (lambda: one(1), lambda: one(cores)),
        "a frame every 10 s, to decoding all": (lambda: sparse(True), lambda: sparse(False)),
    }
    for name, pair in pairs.items():
        times: list[list[float]] = [[], []]
        for _ in range(rounds):
            for which, function in enumerate(pair):
                started = time.perf_counter()
                function()
                times[which].append(time.perf_counter() - started)
        print(f"{name:50}{statistics.median(times[0]) / statistics.median(times[1]):6.2f}")


def main() -> None:
    """Make the videos, time everything in turn, print the tables of ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--method", choices=list(METHODS), help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.method:  # as a process of its own
        warm_up(options.method)
        started = time.perf_counter()
        METHODS[options.method](options.path)
        print(time.perf_counter() - started)
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), options.seconds, options.rounds)
        print()
        scale(Path(folder) / "480h264.mp4", options.rounds)


if __name__ == "__main__":
    main()
