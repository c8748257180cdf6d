"""How fast I3D runs, as ratios to a plain implementation of it, and how far each way is from exact.

    python bench/i3d.py [--only lengths|ways|extract] [--frames 304] [--rounds 3] [--batch 1] [--device auto]

The plain implementation is below: evaluation mode, float32, batch 1, every layer by itself, every padding a copy, as the
public PyTorch port computes it. All ways get the same random weights and the same frames of 224 x 224 pixels. Each is a
process of its own that runs once to warm up and is then timed, in turn with the others; the figure is the median of the
rounds. (The plain one runs in a process as it would be: the setting of the C library that excl's commands make is timed
beside it.)

On a CPU a table before it (`--only lengths`) is of clips as videos have them: short and long ones, alone and several
together, beside the convolutions that PyTorch chooses when it is left to itself, and beside OpenVINO if that is installed
(`pip install openvino`).

What follows is of excl alone: what it costs to have rows more often, and a whole `excl extract` of made videos with the
share of time that the network waits for frames. On a GPU the achieved operations a second are compared with the device's
own rate for large bfloat16 matrices, measured in the same run.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from excl.models.i3d import network
from excl.models.i3d.extractor import MAX_BATCH_FRAMES, choose_device
from excl.models.i3d.runner import Runner, flops_of_clip, keep_freed_memory
from excl.models.i3d.weights import load_weights
from excl.pipeline import extract

SIZE = 224
Steps = Callable[[np.ndarray], np.ndarray]


class Plain:
    """I3D read out loud: explicit padding of every layer, batch norm as it is trained, nothing fused."""

    def __init__(self, device: torch.device, autocast: bool, state: dict[str, Tensor] | None = None) -> None:
        state = state or load_weights("random:0").state_dict
        self.state = {key: value.to(device) for key, value in state.items()}
        self.device, self.autocast = device, autocast

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Steps of uint8 [B, T, H, W, 3]."""
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            x = torch.from_numpy(frames).to(self.device).permute(0, 4, 1, 2, 3).contiguous().float() / 255 * 2 - 1
            x = self.pool(self.unit("Conv3d_1a_7x7", x, 7, 2), (1, 3, 3), (1, 2, 2))
            x = self.pool(self.unit("Conv3d_2c_3x3", self.unit("Conv3d_2b_1x1", x), 3), (1, 3, 3), (1, 2, 2))
            x = self.pool(self.mixed("Mixed_3c", self.mixed("Mixed_3b", x)), (3, 3, 3), (2, 2, 2))
            for letter in "bcdef":
                x = self.mixed(f"Mixed_4{letter}", x)
            x = self.mixed("Mixed_5c", self.mixed("Mixed_5b", self.pool(x, (2, 2, 2), (2, 2, 2))))
            return x.float().mean(dim=(3, 4)).transpose(1, 2).cpu().numpy()

    @staticmethod
    def pad(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
        """SAME padding as a copy."""
        widths: list[int] = []
        for size, k, s in reversed(list(zip(x.shape[2:], kernel, stride, strict=True))):
            total = max(k - (size % s or s), 0)
            widths += [total // 2, total - total // 2]
        return F.pad(x, widths)

    def unit(self, name: str, x: Tensor, kernel: int = 1, stride: int = 1) -> Tensor:
        """Padding, convolution, batch norm, ReLU."""
        s = self.state
        x = F.conv3d(self.pad(x, (kernel,) * 3, (stride,) * 3), s[f"{name}.conv3d.weight"], stride=stride)
        mean, var = s[f"{name}.bn.running_mean"], s[f"{name}.bn.running_var"]
        return F.relu(F.batch_norm(x, mean, var, s[f"{name}.bn.weight"], s[f"{name}.bn.bias"], eps=1e-3))

    def pool(self, x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
        """Padding, max pool."""
        return F.max_pool3d(self.pad(x, kernel, stride), kernel, stride)

    def mixed(self, name: str, x: Tensor) -> Tensor:
        """Four branches."""
        branches = [
            self.unit(f"{name}.b0", x),
            self.unit(f"{name}.b1b", self.unit(f"{name}.b1a", x), 3),
            self.unit(f"{name}.b2b", self.unit(f"{name}.b2a", x), 3),
            self.unit(f"{name}.b3b", self.pool(x, (3, 3, 3), (1, 1, 1))),
        ]
        return torch.cat(branches, dim=1)


def excl(device: torch.device, keep: bool = True, **settings: Any) -> Steps:
    """excl's own runner."""
    if keep:
        keep_freed_memory()
    runner = Runner(load_weights("random:0"), device=device, **settings)
    return lambda frames: runner.submit(frames).result().numpy()


def plain(device: torch.device, keep: bool = False, autocast: bool = False) -> Steps:
    """The plain implementation."""
    if keep:
        keep_freed_memory()
    return Plain(device, autocast)


def chosen_by_pytorch(device: torch.device) -> Steps:
    """excl's runner with the convolutions that PyTorch itself chooses."""
    network.has_onednn = lambda _: False
    return excl(device)


def openvino(_: torch.device) -> Steps:
    """The same layers, weights and frames in OpenVINO, as float32 for any number and length of clips."""
    import openvino as ov
    from openvino import opset15 as ops

    def unit(layer: network.Unit, x: Any) -> Any:
        conv = layer.conv3d
        assert conv.bias is not None
        weight, bias = conv.weight.contiguous().numpy(), conv.bias.numpy().reshape(1, -1, 1, 1, 1)
        zeros = [0, 0, 0]
        y = ops.convolution(x, weight, list(conv.stride), zeros, zeros, [1, 1, 1], auto_pad="same_upper")
        return ops.relu(ops.add(y, bias))

    def pool(layer: network.Pool, x: Any) -> Any:
        zeros, kernel = [0, 0, 0], list(layer.kernel)
        y = ops.max_pool(x, list(layer.stride), [1, 1, 1], zeros, zeros, kernel, "floor", "same_upper")
        return y.output(0)

    def apply(layer: torch.nn.Module, x: Any) -> Any:
        if isinstance(layer, network.Unit):
            return unit(layer, x)
        if isinstance(layer, network.Pool):
            return pool(layer, x)
        assert isinstance(layer, network.Mixed)
        branches = [unit(layer.b0, x), unit(layer.b1b, unit(layer.b1a, x)), unit(layer.b2b, unit(layer.b2a, x))]
        return ops.concat([*branches, unit(layer.b3b, pool(layer.b3a, x))], 1)

    frames = ops.parameter([-1, -1, SIZE, SIZE, 3], np.uint8)
    x = ops.subtract(ops.divide(ops.convert(frames, "f32"), np.float32(127.5)), np.float32(1))
    x = ops.transpose(x, np.array([0, 4, 1, 2, 3]))
    for _, layer in network.fold_batch_norm(load_weights("random:0").network()).layers():
        x = apply(layer, x)
    steps = ops.transpose(ops.reduce_mean(x, np.array([3, 4]), keep_dims=False), np.array([0, 2, 1]))
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    settings["PERFORMANCE_HINT"] = "LATENCY"
    compiled = ov.Core().compile_model(ov.Model([steps], [frames], "I3D"), "CPU", settings)
    return lambda clips: compiled(clips)[0].copy()


METHODS: dict[str, Callable[[torch.device], Steps]] = {
    "plain": plain,
    "plain, freed memory kept": lambda device: plain(device, keep=True),
    "plain, bfloat16 by autocast": lambda device: plain(device, autocast=True),
    "excl": excl,
    "excl, as PyTorch chooses": chosen_by_pytorch,
    "OpenVINO": openvino,
    "excl, freed memory not kept": lambda device: excl(device, keep=False),
    "excl, compiled": lambda device: excl(device, compile="always"),
    "excl, tf32": lambda device: excl(device, precision="tf32"),
    "excl, bfloat16": lambda device: excl(device, precision="bfloat16"),
    "excl, bfloat16, compiled": lambda device: excl(device, precision="bfloat16", compile="always"),
    "excl, a row every 4 frames": lambda device: excl(device, stride=4),
    "excl, a row every 2 frames": lambda device: excl(device, stride=2),
    "excl, a row every frame": lambda device: excl(device, stride=1),
}
BY_LENGTH = ("excl, as PyTorch chooses", "excl", "OpenVINO")
STRIDES = {"excl, a row every 4 frames": 4, "excl, a row every 2 frames": 2, "excl, a row every frame": 1}


def applicable(method: str, device: torch.device) -> bool:
    """Whether the device has what the method needs."""
    on_cpu = "kept" in method or method in ("excl, as PyTorch chooses", "OpenVINO")
    has_bfloat16 = "bfloat16" not in method or device.type == "cuda" or network.has_onednn(torch.bfloat16)
    has_module = has_bfloat16 and (method != "OpenVINO" or importlib.util.find_spec("openvino") is not None)
    return ("tf32" not in method or device.type == "cuda") and (not on_cpu or device.type == "cpu") and has_module


def work(method: str, device: torch.device, options: argparse.Namespace) -> None:
    """One process: warm up, then time; prints seconds, the first call's seconds, and where the steps were written."""
    logging.disable(logging.WARNING)
    frames = options.frames + 8 - STRIDES.get(method, 8)
    clips = np.random.default_rng(0).integers(0, 256, (options.batch, frames, SIZE, SIZE, 3), dtype=np.uint8)
    steps = METHODS[method](device)
    started = time.perf_counter()
    result = steps(clips)
    first_s = time.perf_counter() - started
    times = []
    for _ in range(2):
        started = time.perf_counter()
        steps(clips)
        times.append(time.perf_counter() - started)
    np.save(options.out, result)
    print(json.dumps([min(times), first_s]))


def compare(device: torch.device, options: argparse.Namespace, folder: Path) -> None:
    """Print the table of all ways."""
    found: dict[str, list[list[float]]] = {method: [] for method in METHODS if applicable(method, device)}
    arguments = ["--frames", str(options.frames), "--batch", str(options.batch), "--device", str(device)]
    for _ in range(options.rounds):
        for method, timings in found.items():
            command = [sys.executable, __file__, *arguments, "--method", method, "--out", str(folder / f"{method}.npy")]
            shown = subprocess.run(command, capture_output=True, text=True, check=False)
            if shown.returncode:
                print(f"{method}: {(shown.stderr.strip() or 'failed').splitlines()[-1]}")
                continue
            timings.append(json.loads(shown.stdout.splitlines()[-1]))
    plain_s = statistics.median(seconds for seconds, _ in found["plain"])
    exact = np.load(folder / "plain.npy")
    rate = matrix_flops(device)
    print(f"{options.batch} x {options.frames} frames of {SIZE} pixels on {device}, {torch.get_num_threads()} threads")
    print(f"{'':30}{'frames/s':>10}{'ratio':>8}{'TFLOP/s':>9}{'of matrices':>12}{'first call':>12}{'error':>10}")
    for method, runs in found.items():
        if not runs:
            continue
        seconds, first_s = (statistics.median(values) for values in zip(*runs, strict=True))
        steps = np.load(folder / f"{method}.npy")
        error = np.abs(steps - exact).max() / np.abs(exact).max() if steps.shape == exact.shape else np.nan
        flops = options.batch * flops_of_clip(options.frames, SIZE) / seconds
        print(
            f"{method:30}{options.batch * options.frames / seconds:10.1f}{plain_s / seconds:8.2f}{flops / 1e12:9.2f}"
            f"{flops / rate:12.0%}{first_s:10.1f} s{error:10.1e}"
        )
    print("(operations of a row every 8 frames; of matrices: the device's rate for large ones, bfloat16 where it has it)")


def work_lengths(method: str, device: torch.device, options: argparse.Namespace) -> None:
    """One process: prints the milliseconds a frame of each shape, wall and processor time, the least of the calls."""
    logging.disable(logging.WARNING)
    steps = METHODS[method](device)
    results = []
    for batch, frames in map(parse_shape, options.lengths.split(",")):
        clips = np.random.default_rng(0).integers(0, 256, (batch, frames, SIZE, SIZE, 3), dtype=np.uint8)
        result, times = steps(clips[:1, :16]), []
        for _ in range(1 if batch * frames > 100 else 2):
            started, spent = time.perf_counter(), time.process_time()
            result = steps(clips)
            times.append([time.perf_counter() - started, time.process_time() - spent])
        results.append([1000 * min(values) / (batch * frames) for values in zip(*times, strict=True)])
        np.save(f"{options.out}-{batch}x{frames}.npy", result)
    print(json.dumps(results))


def parse_shape(text: str) -> tuple[int, int]:
    """Return the number of clips and of frames of `4x64`."""
    batch, frames = text.split("x")
    return int(batch), int(frames)


def compare_lengths(device: torch.device, options: argparse.Namespace, folder: Path) -> None:
    """Print the table of clips of several lengths: how long a frame takes, and how far that is from the best way."""
    shapes = options.lengths.split(",")
    methods = [method for method in BY_LENGTH if applicable(method, device)]
    runs: dict[str, list[Any]] = {method: [] for method in methods}
    for _ in range(options.rounds):
        for method in methods:
            command = [sys.executable, __file__, "--device", str(device), "--lengths", options.lengths]
            command += ["--method", method, "--out", str(folder / method), "--only", "lengths"]
            shown = subprocess.run(command, capture_output=True, text=True, check=True)
            runs[method].append(json.loads(shown.stdout.splitlines()[-1]))
    for index, title in enumerate(("milliseconds a frame", "processor milliseconds a frame")):
        best = {
            method: [min(run[place][index] for run in runs[method]) for place in range(len(shapes))] for method in methods
        }
        print(f"{title + ' (clips x frames)':44}" + "".join(f"{shape:>15}" for shape in shapes))
        for method, values in best.items():
            least = [min(column) for column in zip(*best.values(), strict=True)]
            cells = [f"{value:8.1f} {value / low:5.2f}" for value, low in zip(values, least, strict=True)]
            print(f"{method:44}" + "".join(f"{cell:>15}" for cell in cells))
    for method in methods[1:]:
        errors = []
        for shape in shapes:
            exact, steps = (np.load(folder / f"{name}-{shape}.npy") for name in (methods[0], method))
            errors.append(np.abs(steps - exact).max() / np.abs(exact).max())
        print(f"{method + ', difference from the first':44}" + "".join(f"{error:15.1e}" for error in errors))
    print("(beside each, the ratio to the least of its column)\n")


def matrix_flops(device: torch.device, *dtypes: torch.dtype) -> float:
    """Operations a second of the device for large square matrices, by default the faster of bfloat16 and float32."""
    best = 0.0
    size = 8192 if device.type == "cuda" else 2048
    has_bfloat16 = device.type != "cpu" or network.has_onednn(torch.bfloat16)
    for dtype in dtypes or ((torch.bfloat16, torch.float32) if has_bfloat16 else (torch.float32,)):
        a = torch.randn(size, size, device=device).to(dtype)
        for _ in range(3):
            a @ a
        synchronise(device)
        started = time.perf_counter()
        for _ in range(10):
            a @ a
        synchronise(device)
        best = max(best, 10 * 2 * size**3 / (time.perf_counter() - started))
    return best


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def waiting(device: torch.device) -> None:
    """A GPU that is fed from memory by several threads: its operations a second, and how long it waits."""
    runner = Runner(
        load_weights("random:0"), device=device, precision="bfloat16", batch_frames=MAX_BATCH_FRAMES, compile="always"
    )
    clips = np.random.default_rng(0).integers(0, 256, (1, 512, SIZE, SIZE, 3), dtype=np.uint8)
    for number in (16, 64):  # the first to warm up
        runner.take_usage()
        futures: list[Future[Tensor]] = [runner.submit(clips) for _ in range(number)]
        for future in futures:
            future.result()
    usage = runner.take_usage()
    rate = matrix_flops(device)
    print(f"fed from memory, bfloat16: {usage.summary()}; {usage.flops / usage.busy_s / rate:.0%} of the rate for matrices")


def whole(device: torch.device, folder: Path, options: argparse.Namespace) -> None:
    """`excl extract` of made videos, from the files to the store."""
    videos = folder / "videos"
    videos.mkdir()
    for number in range(options.videos):
        write_video(videos / f"v{number}.mp4", options.seconds)
    for precision in ("float32", "bfloat16"):
        if device.type == "cpu" and not network.has_onednn(getattr(torch, precision)):
            print(f"extract, {precision}: this CPU has no instructions for it")
            continue
        out = folder / f"out-{precision}"
        logging.disable(logging.NOTSET)
        lines = io.StringIO()
        handler = logging.StreamHandler(lines)
        logging.getLogger("excl").addHandler(handler)
        logging.getLogger("excl").setLevel(logging.INFO)
        started = time.perf_counter()
        extract.run(
            extract.ExtractConfig(videos=videos, out=out, weights="random:0", device=str(device), precision=precision)  # type: ignore[arg-type]
        )
        seconds = time.perf_counter() - started
        logging.getLogger("excl").removeHandler(handler)
        summary = next(line for line in lines.getvalue().splitlines() if line.startswith("I3D: "))
        print(f"extract, {precision}: {options.videos * options.seconds / seconds:.1f} times real time. {summary}")
        if device.type == "cpu":
            print(f"large matrices in {precision}: {matrix_flops(device, getattr(torch, precision)) / 1e12:.2f} TFLOP/s")


def write_video(path: Path, seconds: int) -> None:
    """640 x 360 pixels of moving noise, 30 frames a second."""
    noise = np.random.default_rng(0).integers(0, 256, (500, 800, 3), dtype=np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "veryfast", "crf": "28"})
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"  # type: ignore[attr-defined]
        for number in range(30 * seconds):
            top, left = 2 * (number % 300), 3 * (number % 300)
            picture = np.ascontiguousarray(noise[top : top + 360, left : left + 640])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))  # type: ignore[attr-defined]
        container.mux(stream.encode())  # type: ignore[attr-defined]


def main() -> None:
    """Time everything in turn, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=304, help="of a clip, a multiple of 8")
    parser.add_argument("--batch", type=int, default=1, help="clips at once")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--videos", type=int, default=4, help="of the whole extraction")
    parser.add_argument("--seconds", type=int, default=60, help="of each video")
    parser.add_argument("--lengths", default="1x16,1x64,1x152,1x304,16x16,4x64", help="clips x frames of the first table")
    parser.add_argument("--only", choices=["lengths", "ways", "extract"], help="one of the tables")
    parser.add_argument("--method", choices=list(METHODS), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = choose_device(options.device)
    if options.method:  # as a process of its own
        (work_lengths if options.only == "lengths" else work)(options.method, device, options)
        return
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(folder) / "compiled"))
        if options.only in (None, "lengths") and device.type == "cpu":
            compare_lengths(device, options, Path(folder))
        if options.only in (None, "ways"):
            compare(device, options, Path(folder))
            print()
            if device.type == "cuda":
                waiting(device)
        if options.only in (None, "extract"):
            whole(device, Path(folder), options)


if __name__ == "__main__":
    main()
