"""Everything about a GPU in one run: is it right, how fast, how much memory, and what bounds it.

    python bench/gpu.py [--device cuda] [--out gpu.json] [--minutes 6] [--parts parity rates …]
    python bench/gpu.py --device cpu --small    # the same lines on a CPU

Six parts, each a process of its own with a time limit: one that fails, crashes or runs out of time leaves what it has
measured, with the traceback, and the others follow. The tables are printed as they come, the JSON has all of it. Needs
no network, no installed excl and no files: videos, weights and stores are made here (docs/howto/gpu.md says what a bare
machine needs).

    parity          features of fixed frames against the CPU's float32, by length, stride, windows, precision; batches of
                    mixed lengths; the layer-by-layer form of the public port
    rates           the network by batch and length: eager, tuned, channels last or not, graphs, compiled; against the
                    card's own matrix rate
    memory          bytes a frame, the largest batch, out of memory taken back, no growth over many clips
    extract         `excl extract` from files, decoded by the CPU and by the GPU, and which was the bottleneck
    train           an epoch against bare nn.LSTM layers and against a CPU; twice the same; resumed the same
    two-processes   a sweep with two trainings at once on the card, and one training shared by two processes
"""

from __future__ import annotations

import argparse
import atexit
import concurrent.futures
import contextlib
import functools
import gc
import importlib.metadata
import importlib.util
import io
import json
import logging
import os
import platform
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def make_importable() -> None:
    """Let this process and those it starts import excl from the tree, where it is not installed: a link with its name."""
    if importlib.util.find_spec("excl") is None:
        folder = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        (Path(folder) / "excl").symlink_to(ROOT)
        sys.path.insert(0, folder)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))


make_importable()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

SECONDS = {"parity": 45, "rates": 110, "memory": 30, "extract": 85, "train": 50, "two-processes": 35}  # 355 of 360
PACKAGES = ("numpy", "h5py", "av", "torchcodec", "torchvision", "triton")


# ---------------------------------------------------------------------------------------------------------------------------
# The run: parts one after another, each in a process; what they report.
# ---------------------------------------------------------------------------------------------------------------------------


class Report:
    """The results of a part: rows as they come, in a file that is whole at any time, and on standard output."""

    def __init__(self, settings: argparse.Namespace) -> None:
        self.settings, self.device, self.small = settings, torch.device(settings.device), settings.small
        self.fast = "float32" if settings.small else "bfloat16"  # which some CPUs only pretend to have
        self.ends = time.monotonic() + settings.seconds
        self.content: dict[str, Any] = {"rows": []}

    def row(self, what: str, **values: Any) -> None:
        """Report one measurement."""
        self.content["rows"].append({"what": what, **values})
        print(f"  {what:<58} " + "  ".join(f"{name} {_shown(value)}" for name, value in values.items()), flush=True)
        self.save()

    def save(self) -> None:
        path = Path(self.settings.report)
        path.with_suffix(".tmp").write_text(json.dumps(self.content, indent=1, default=str))
        path.with_suffix(".tmp").replace(path)

    def enough(self, seconds: float, what: str) -> bool:
        """Return whether there is time for something that takes so long; say so if not."""
        left = self.ends - time.monotonic()
        if left < seconds:
            self.row(what, skipped=f"{left:.0f} s are left, it may take {seconds:.0f}")
        return left >= seconds

    @contextlib.contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Report an error of what is tried, and go on."""
        try:
            yield
        except Exception as error:  # whatever one row meets, the others are measured
            self.row(what, error=f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}")
            self.content.setdefault("tracebacks", []).append(traceback.format_exc())
            self.save()


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < abs(value) < 0.01 else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def run_part(settings: argparse.Namespace) -> None:
    """Run one part in this process."""
    report = Report(settings)
    logging.getLogger("excl").setLevel(logging.ERROR)
    try:
        PARTS[settings.part](report)
        report.content["finished"] = True
    except Exception as error:  # the boundary of a part's process, whose report has the traceback
        report.content["traceback"] = traceback.format_exc()
        print(f"  {settings.part} ended: {type(error).__name__}: {error}", flush=True)
    report.save()


def run_all(settings: argparse.Namespace) -> int:
    """Run the parts, print and write everything; return how many did not finish."""
    began, folder = time.monotonic(), Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["EXCL_CACHE"] = str(folder / "cache")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "compiled")
    borrow_ffmpeg(folder / "ffmpeg")
    result: dict[str, Any] = {"about": about(settings), "parts": {}}
    print("\n".join(f"{name}: {value}" for name, value in result["about"].items()), flush=True)
    shared = ["--device", settings.device, "--folder", str(folder), *(["--small"] if settings.small else [])]
    making = None
    if "extract" in settings.parts:
        making = subprocess.Popen([sys.executable, __file__, *shared, "--part", "make-videos"], start_new_session=True)
    scale, unspent = settings.minutes * 60 / (sum(SECONDS.values()) + 5), 0.0
    for part in settings.parts:
        limit_s, part_began = SECONDS[part] * scale + unspent, time.monotonic()
        print(f"\n{part} (at most {limit_s:.0f} s)", flush=True)
        report = folder / f"{part}.json"
        more = ["--part", part, "--report", str(report), "--seconds", str(limit_s - 3)]
        outcome = wait_for([sys.executable, __file__, *shared, *more], limit_s)
        content = json.loads(report.read_text()) if report.exists() else {"rows": []}
        spent_s = time.monotonic() - part_began
        unspent = max(0.0, limit_s - spent_s)
        result["parts"][part] = {"seconds": round(spent_s, 1), **({"ended": outcome} if outcome else {}), **content}
        result["seconds"] = round(time.monotonic() - began, 1)
        settings.out.write_text(json.dumps(result, indent=1))
        if outcome:
            print(f"  {part} {outcome}", flush=True)
    if making:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(making.pid, signal.SIGKILL)
        making.wait()
    unfinished = [part for part, content in result["parts"].items() if not content.get("finished")]
    wrong = [row for content in result["parts"].values() for row in content["rows"] if row.get("right") is False]
    errors = [row for content in result["parts"].values() for row in content["rows"] if "error" in row]
    print(f"\n{time.monotonic() - began:.0f} s; {settings.out} has everything")
    print(f"not finished: {', '.join(unfinished) or 'none'}; wrong: {len(wrong)}; errors: {len(errors)}")
    for row in wrong + errors:
        print(f"  {row}")
    return len(unfinished) + len(wrong)


def borrow_ffmpeg(folder: Path) -> None:
    """Let processes that start from now on find FFmpeg's libraries inside PyAV's wheel, which torchcodec needs."""
    spec = importlib.util.find_spec("av")
    folder.mkdir()
    for path in Path(spec.origin).parents[1].glob("av.libs/lib[as][vw]*-*.so.*") if spec and spec.origin else ():
        name, version = re.fullmatch(r"(lib\w+)-\w+\.so\.(\d+).*", path.name).groups()  # type: ignore[union-attr]
        (folder / f"{name}.so.{version}").symlink_to(path)
    os.environ["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, [os.environ.get("LD_LIBRARY_PATH"), str(folder)]))


def wait_for(command: list[str], limit_s: float) -> str | None:
    """Run a command in a session of its own, which is ended when its time is over; return how it ended, None for well."""
    with subprocess.Popen(command, start_new_session=True) as process:
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and what it started
    return "was stopped, its time was over" if code is None else f"ended with exit code {code}" if code else None


def about(settings: argparse.Namespace) -> dict[str, Any]:
    """Return what the figures belong to."""
    facts: dict[str, Any] = {"device": settings.device, "small": settings.small}
    if settings.device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(settings.device)
        facts["card"] = (
            f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {properties.multi_processor_count} SMs"
        )
        facts["compute capability"] = f"{properties.major}.{properties.minor}"
    cpu = next((x for x in _lines("/proc/cpuinfo") if x.startswith("model name")), platform.machine()).split(": ")[-1]
    facts["cpu"] = f"{cpu}, {len(os.sched_getaffinity(0))} cores"
    facts["versions"] = f"python {platform.python_version()}, torch {torch.__version__}, CUDA {torch.version.cuda}, "
    facts["versions"] += f"cuDNN {torch.backends.cudnn.version()}, "
    facts["versions"] += ", ".join(f"{name} {_installed(name)}" for name in PACKAGES)
    return facts


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def _installed(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


# ---------------------------------------------------------------------------------------------------------------------------
# What the parts share.
# ---------------------------------------------------------------------------------------------------------------------------


@functools.cache
def weights() -> Any:
    """Return I3D's weights by formula."""
    from excl.models.i3d.weights import load_weights

    return load_weights("random:0")


def picture_frames(number: int, size: int, seed: int = 0) -> np.ndarray:
    """Return frames by formula, uint8 [T, size, size, 3]: waves that travel, and a fixed grain."""
    t = np.arange(number, dtype=np.float32)[:, None, None, None] + 100 * seed
    y, x = np.arange(size, dtype=np.float32)[:, None, None], np.arange(size, dtype=np.float32)[:, None]
    colour = np.arange(3, dtype=np.float32)
    waves = np.sin(0.07 * y + 0.11 * t + colour) * np.cos(0.05 * x - 0.05 * t)
    grain = (np.float32(37) * y * x + 11 * x + 5 * y + 71 * colour) % 41
    return (107 + 100 * waves + grain - 20).clip(0, 255).astype(np.uint8)


def relative_error(computed: Any, expected: Any) -> float:
    """Return the largest difference relative to the largest value; infinite where shapes differ or a value is not finite."""
    computed, expected = np.asarray(computed, np.float64), np.asarray(expected, np.float64)
    if computed.shape != expected.shape or not np.isfinite(computed).all():
        return float("inf")
    return float(np.abs(computed - expected).max() / np.abs(expected).max())


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(function: Callable[[], Any], device: torch.device, *, least_s: float = 0.3, warm_up: int = 2) -> float:
    """Return the median seconds of a call on the device, each timed by the device's own clock where it has one."""
    for _ in range(warm_up):
        function()
    synchronise(device)
    times: list[float] = []
    while len(times) < 3 or (sum(times) < least_s and len(times) < 50):
        if device.type == "cuda":
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record()
            function()
            after.record()
            after.synchronize()
            times.append(before.elapsed_time(after) / 1000)
        else:
            began = time.perf_counter()
            function()
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def again(report: Report, part: str, path: str, *more: str) -> list[str]:
    """Return the command that does some of a part in a process of its own, with its report at a path."""
    small = ["--small"] if report.small else []
    given = ["--device", str(report.device), "--folder", report.settings.folder, "--report", path, "--part", part]
    return [sys.executable, __file__, *given, *small, *more]


def precisions(report: Report) -> list[str]:
    """Return the precisions that the device has; a CPU that only emulates bfloat16 does not have it."""
    from excl.models.i3d.device_checks import check_precision
    from excl.models.i3d.network import has_onednn

    names = []
    for name in ("float32", "tf32", "bfloat16"):
        try:
            check_precision(name, report.device)
            if name == "bfloat16" and report.device.type == "cpu" and not has_onednn(torch.bfloat16):
                raise ValueError("this CPU has no instructions for it")
            names.append(name)
        except ValueError as error:
            report.row(name, refused=str(error))
    return names


# ---------------------------------------------------------------------------------------------------------------------------
# 1. Parity
# ---------------------------------------------------------------------------------------------------------------------------


def parity(report: Report) -> None:
    """Compare features with the CPU's float32 and with the port's layers, and refuse what is off."""
    from i3d import Plain

    from excl.models.i3d.extractor import Extractor
    from excl.models.i3d.row_layout import Continuous, Windows
    from excl.models.i3d.runner import TOLERANCE

    size, lengths = (16, (9, 16, 24)) if report.small else (224, (9, 16, 33, 64, 150, 304, 600))
    middle, cpu = lengths[-1] if report.small else 150, torch.device("cpu")
    strides = (8, 2) if report.small else (8, 4, 2, 1)
    layouts: dict[str, Any] = {f"a row every {stride} frames": Continuous(stride) for stride in strides}
    layouts |= {
        "windows of 16": Windows(window=16, hop=16),
        "windows of 64 every 8": Windows(window=24 if report.small else 64, hop=8),
    }
    cases = [(f"{length} frames", layouts["a row every 8 frames"], length) for length in lengths]
    cases += [(f"{middle} frames, {name}", layout, middle) for name, layout in layouts.items()]
    references = {layout: Extractor(weights(), device=cpu, layout=layout) for layout in layouts.values()}
    exact = {name: references[layout](iter(picture_frames(length, size))) for name, layout, length in cases}
    for precision in precisions(report):
        allowed = TOLERANCE[precision]
        with report.attempt(precision):
            tried = cases[:1] if report.small and precision != "float32" else cases
            extractors = {
                layout: Extractor(weights(), device=report.device, layout=layout, precision=precision)
                for layout in {layout for _, layout, _ in tried}
            }
            errors = {n: relative_error(extractors[y](iter(picture_frames(t, size))), exact[n]) for n, y, t in tried}
            worst = max(errors, key=errors.__getitem__)
            report.row(
                f"{precision}: {len(tried)} lengths and layouts, the worst is {worst}",
                error_is=errors[worst],
                allowed=allowed,
                right=errors[worst] <= allowed,
                errors=errors,
            )
            extractor = extractors[layouts["a row every 8 frames"]]
            often = lengths[0] if report.small else middle
            frames = picture_frames(often, size)
            repeated = [
                extractor(iter(frames)) for _ in range(2 if report.small else 5)
            ]  # from the fourth time on cuDNN's algorithms are tuned
            error = relative_error(repeated[-1], exact[f"{often} frames"])
            report.row(
                f"{precision}: tuned",
                error_is=error,
                allowed=allowed,
                right=error <= allowed,
                differs_from_untuned=relative_error(repeated[-1], repeated[0]),
            )
            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                jobs = [(n, t) for n, y, t in tried if y == layouts["a row every 8 frames"] for _ in range(4)]
                futures = [pool.submit(extractor, iter(picture_frames(length, size))) for _, length in jobs]
                rows = [future.result() for future in futures]
            errors = [relative_error(row, exact[name]) for row, (name, _) in zip(rows, jobs, strict=True)]
            report.row(
                f"{precision}: {len(jobs)} videos of mixed lengths at once",
                error_is=max(errors),
                allowed=allowed,
                right=max(errors) <= allowed,
            )
    with report.attempt("the port's layers"):
        frames = picture_frames(24 if report.small else 64, size)[None]
        expected = Plain(cpu, False)(frames)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            port = Plain(report.device, False)(frames)
        runner = Extractor(weights(), device=report.device).runner
        ours = runner.submit(frames).result().numpy()
        for name, computed, reference in (("the port's layers, CPU", ours, expected), ("the port's layers", ours, port)):
            error = relative_error(computed, reference)
            report.row(
                f"float32 against {name}", error_is=error, allowed=TOLERANCE["float32"], right=error <= TOLERANCE["float32"]
            )


# ---------------------------------------------------------------------------------------------------------------------------
# 2. Rates
# ---------------------------------------------------------------------------------------------------------------------------


def rates(report: Report) -> None:
    """Time the network by batch, length and way of running it."""
    from excl.models.i3d.runner import flops_of_clip

    if report.settings.way:  # a compiler, in a process that can be stopped
        compiled_rate(report, report.settings.way)
        return
    size = 16 if report.small else 224
    shapes = (
        [(1, 16), (2, 16)]
        if report.small
        else [(1, 16), (64, 16), (1, 64), (16, 64), (1, 152), (8, 152), (1, 304), (8, 304), (1, 608), (8, 512)]
    )
    peak: dict[str, float] = {}
    for name, dtype, tf32 in (
        ("bfloat16", torch.bfloat16, True),
        ("tf32", torch.float32, True),
        ("float32", torch.float32, False),
    ):
        if name != "tf32" or report.device.type == "cuda":
            with report.attempt(f"matrices, {name}"):
                peak[name] = matrix_flops(report.device, dtype, tf32=tf32, size=128 if report.small else 8192)
                report.row(f"matrices, {name}", TFLOPs=peak[name] / 1e12)
    networks: dict[tuple[str, bool], Any] = {}

    def measure(precision: str, way: str, clips: int, length: int) -> None:
        last = way != "contiguous"
        if (precision, last) not in networks:
            networks[precision, last] = plain_network(report.device, precision, channels_last=last)
        frames = torch.from_numpy(picture_frames(length, size))[None].expand(clips, -1, -1, -1, -1)
        steps = functools.partial(networks[precision, last], frames.contiguous().to(report.device))
        with (
            torch.no_grad(),
            torch.backends.cudnn.flags(enabled=True, benchmark=way != "eager", allow_tf32=precision == "tf32"),
        ):
            began = time.perf_counter()
            steps()
            synchronise(report.device)
            first_s = time.perf_counter() - began
            call = captured(steps) if way == "graph" else steps
            seconds = seconds_of(call, report.device)
        flops = clips * flops_of_clip(length, size) / seconds
        report.row(
            f"{precision}, {way}, {clips} x {length}",
            ms=1000 * seconds,
            clips_s=clips / seconds,
            frames_s=clips * length / seconds,
            TFLOPs=flops / 1e12,
            of_matrices=flops / peak[precision],
            first_call_s=first_s,
        )

    some = [shape for shape in shapes if shape in ((2, 16), (1, 152), (8, 152), (8, 304), (8, 512))]
    plan = [(report.fast, "tuned", shapes), (report.fast, "eager", shapes)]
    plan += [("bfloat16", "graph", shapes[::2] if not report.small else some)] * (report.device.type == "cuda")
    plan += [(report.fast, "contiguous", some[:2]), ("float32", "tuned", some[:2])]
    plan += [("tf32", "tuned", some[:3])] * (report.device.type == "cuda")
    half = report.ends - 0.35 * report.settings.seconds  # what comes after must have its time, too
    for precision, way, of in plan:
        for clips, length in of:
            what = f"{precision}, {way}, {clips} x {length}"
            if time.monotonic() < half:
                with report.attempt(what):
                    measure(precision, way, clips, length)
            else:
                report.row(what, skipped="out of time")
    with report.attempt("profile"):
        profile(report, plain_network(report.device, report.fast, channels_last=True), some[-1], size)
    networks.clear()
    with report.attempt("fed"):
        fed(report, size, peak[report.fast])
    for way, share in (("compiled", 0.5), ("compiled and autotuned", 1.0)):
        if report.enough(25, way):
            limit_s, path = (
                min(120.0, share * (report.ends - time.monotonic()) - 1),
                f"{report.settings.report}.{len(way)}.json",
            )
            if outcome := wait_for(again(report, "rates", path, "--way", way), limit_s):
                report.row(way, skipped=f"{outcome} ({limit_s:.0f} s)")
            with contextlib.suppress(FileNotFoundError):
                report.content["rows"] += json.loads(Path(path).read_text())["rows"]


def plain_network(device: torch.device, precision: str, *, channels_last: bool) -> Callable[[Tensor], Tensor]:
    """Return the network as the runner has it: uint8 frames [B, T, H, W, 3] on the device in, steps out."""
    from excl.models.i3d import network
    from excl.models.i3d.runner import _normalise

    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    model = network.fold_batch_norm(weights().network()).to(device, dtype)
    if not channels_last:
        return lambda frames: model.steps(_normalise(frames, dtype).contiguous())
    model.to(memory_format=torch.channels_last_3d)
    return lambda frames: model.steps(_normalise(frames, dtype))


def captured(function: Callable[[], Any]) -> Callable[[], None]:
    """Return the replay of a function as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def matrix_flops(device: torch.device, dtype: torch.dtype, *, tf32: bool, size: int) -> float:
    """Return the device's operations a second for large square matrices of random numbers."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = seconds_of(lambda: a @ b, device)
    torch.backends.cuda.matmul.allow_tf32 = before
    return 2 * size**3 / seconds


def profile(report: Report, steps: Callable[[Tensor], Tensor], shape: tuple[int, int], size: int) -> None:
    """Report which kernels take the time of one tuned call."""
    from torch.profiler import ProfilerActivity

    frames = torch.from_numpy(picture_frames(shape[1], size))[None].expand(shape[0], -1, -1, -1, -1).contiguous()
    frames, is_cuda = frames.to(report.device), report.device.type == "cuda"
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
        steps(frames)
        with torch.profiler.profile(activities=[ProfilerActivity.CUDA if is_cuda else ProfilerActivity.CPU]) as profiler:
            steps(frames)
            synchronise(report.device)
    times = {e.key: e.self_device_time_total if is_cuda else e.self_cpu_time_total for e in profiler.key_averages()}
    total = sum(times.values())
    for name, spent in sorted(times.items(), key=lambda item: -item[1])[:8]:
        report.row(f"profile {shape[0]} x {shape[1]}: {name[:40]}", share=spent / total, ms=spent / 1000, name=name[:200])


def fed(report: Report, size: int, peak: float) -> None:
    """Report what the runner itself reaches when threads feed it from memory: batching, copies and all."""
    from excl.models.i3d.extractor import MAX_BATCH_FRAMES
    from excl.models.i3d.runner import Runner

    batch_frames = MAX_BATCH_FRAMES if report.device.type == "cuda" else 0
    runner = Runner(weights(), device=report.device, precision=report.fast, batch_frames=batch_frames)
    for length, number in ((16, 4), (24, 2)) if report.small else ((16, 2000), (152, 300), (608, 96)):
        clips = picture_frames(length, size)[None]
        for many in (max(1, number // 8), number):  # the first to warm up
            runner.take_usage()
            for future in [runner.submit(clips) for _ in range(many)]:
                future.result()
        usage = runner.take_usage()
        report.row(
            f"runner fed with {number} clips of {length}",
            frames_s=usage.frames / usage.wall_s,
            TFLOPs=usage.flops / usage.wall_s / 1e12,
            of_matrices=usage.flops / usage.wall_s / peak,
            waited=usage.waited,
        )


def compiled_rate(report: Report, way: str) -> None:
    """Time the network compiled for one shape, with and without trying out kernels."""
    from excl.models.i3d.runner import flops_of_clip

    # Of its own: a compilation that was stopped when its time was over leaves half of a file behind.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] += f"-{way.rpartition(' ')[2]}"
    clips, length, size = (1, 16, 16) if report.small else (8, 152, 224)
    frames = (
        torch.from_numpy(picture_frames(length, size))[None].expand(clips, -1, -1, -1, -1).contiguous().to(report.device)
    )
    steps = plain_network(report.device, report.fast, channels_last=True)
    options: dict[str, Any] = {"freezing": True, "max_autotune": way.endswith("autotuned") and report.device.type == "cuda"}
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False), report.attempt(way):
        expected = steps(frames)
        began = time.perf_counter()
        function = torch.compile(steps, dynamic=False, options=options)
        error = relative_error(function(frames).cpu(), expected.cpu())
        first_s = time.perf_counter() - began
        seconds = seconds_of(lambda: function(frames), report.device)
        report.row(
            f"{report.fast}, {way}, {clips} x {length}",
            ms=1000 * seconds,
            frames_s=clips * length / seconds,
            TFLOPs=clips * flops_of_clip(length, size) / seconds / 1e12,
            first_call_s=first_s,
            differs=error,
        )


# ---------------------------------------------------------------------------------------------------------------------------
# 3. Memory
# ---------------------------------------------------------------------------------------------------------------------------


def memory(report: Report) -> None:
    """Report bytes a frame and the largest batch; see that memory which ran out is taken back, and that none is lost."""
    from excl.models.i3d.runner import Runner

    cuda, size = report.device.type == "cuda", 16 if report.small else 224
    if cuda:
        total = torch.cuda.get_device_properties(report.device).total_memory
        for precision in ("bfloat16", "float32"):
            for frames in (512, 1024, 2048, 4096, 5248):  # 5300 would make a tensor of 2**31 elements
                with report.attempt(f"{precision}, {frames} frames at once"):
                    steps = plain_network(report.device, precision, channels_last=True)
                    clip = torch.from_numpy(picture_frames(64, size)).repeat(frames // 64, 1, 1, 1)[None].to(report.device)
                    torch.cuda.reset_peak_memory_stats(report.device)
                    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False):
                        assert torch.isfinite(steps(clip)).all()
                    peak = torch.cuda.max_memory_allocated(report.device)
                    report.row(
                        f"{precision}, {frames} frames at once",
                        GiB=peak / 2**30,
                        MB_a_frame=peak / frames / 1e6,
                        card_holds_frames=int(total / peak * frames),
                    )
                del steps, clip
    with report.attempt("out of memory is taken back"):
        out_of_memory(report, size)
    with report.attempt("no growth"):
        number, length = (40, 9) if report.small else (2000, 16)
        batch_frames = 4096 if cuda else 0
        runner = Runner(weights(), device=report.device, precision=report.fast, batch_frames=batch_frames)
        clips, used = picture_frames(length, size)[None], []
        for _ in range(4):
            for future in [runner.submit(clips) for _ in range(number // 4)]:
                future.result()
            gc.collect()
            allocated = torch.cuda.memory_allocated(report.device) if cuda else 0
            reserved = torch.cuda.memory_reserved(report.device) if cuda else 0
            used.append((allocated / 2**20, reserved / 2**20, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))
        growth = [after - before for before, after in zip(used[1], used[-1], strict=True)]
        report.row(
            f"{number} clips of {length}: growth in their second half",
            allocated_MiB=growth[0],
            reserved_MiB=growth[1],
            host_peak_MiB=growth[2],
            right=growth[0] < 1,
        )


def out_of_memory(report: Report, size: int) -> None:
    """Give the runner more clips together than the memory holds; on a CPU the network pretends."""
    from excl.models.i3d.runner import Runner

    length, number = (16, 8) if report.small else (256, 16)
    runner = Runner(weights(), device=report.device, precision=report.fast, batch_frames=number * length * 2)
    clips = [picture_frames(length, size, seed)[None] for seed in range(number)]
    if report.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(report.device)
        runner.submit(clips[0]).result()
        room = 3 * torch.cuda.max_memory_reserved(report.device)  # for less than half of the clips
    alone = [runner.submit(clip).result() for clip in clips]
    compute = runner._compute
    if report.device.type == "cuda":
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(report.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, room / total))
    limit = 3 * length

    def limited(frames: Tensor, **settings: Any) -> Tensor:
        if report.device.type != "cuda" and frames.shape[0] * frames.shape[1] > limit:
            raise torch.OutOfMemoryError("pretended")
        return compute(frames, **settings)

    runner._compute = limited
    try:
        waiting = threading.Event()
        runner._thread.submit(waiting.wait)  # so that all clips are there when the first is taken
        futures = [runner.submit(clip) for clip in clips]
        waiting.set()
        together = [future.result() for future in futures]
    finally:
        if report.device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0)
    errors = [relative_error(one, other) for one, other in zip(together, alone, strict=True)]
    report.row(
        "out of memory is taken back",
        frames_at_once_before=number * length * 2,
        frames_at_once_after=runner.batch_frames,
        error_is=max(errors),
        right=max(errors) <= 3e-2,
    )


# ---------------------------------------------------------------------------------------------------------------------------
# 4. From files to features
# ---------------------------------------------------------------------------------------------------------------------------

KINDS = {"480p": (854, 480, 60), "1080p": (1920, 1080, 30), "720p": (1280, 720, 30), "360p": (640, 360, 60)}
SMALL_KINDS = {"96p": (128, 96, 3)}


def make_videos(settings: argparse.Namespace) -> None:
    """Write one H.264 video of each size, 30 frames a second, all at once; each appears when it is whole."""
    folder = Path(settings.folder)
    with concurrent.futures.ProcessPoolExecutor(4) as pool:
        list(pool.map(make_video, [folder] * 4, (SMALL_KINDS if settings.small else KINDS).items()))


def make_video(folder: Path, kind: tuple[str, tuple[int, int, int]]) -> None:
    """Write one of them: a texture that drifts, with a little noise."""
    from decode import make_video as write

    name, (width, height, seconds) = kind
    write(folder / f"{name}.part.mp4", "libx264", width, height, seconds, variable=False)
    (folder / f"{name}.part.mp4").rename(folder / f"{name}.mp4")


def extraction(report: Report) -> None:
    """Run `excl extract` on videos of each size, decoded by the CPU and by the GPU."""
    from excl.datasets.video.backends import missing_reason

    kinds, cuda = SMALL_KINDS if report.small else KINDS, report.device.type == "cuda"
    cores = len(os.sched_getaffinity(0))
    for name, (_, _, seconds) in kinds.items():
        source, videos = Path(report.settings.folder) / f"{name}.mp4", Path(report.settings.folder) / name
        while not source.exists() and time.monotonic() < report.ends - 10:
            time.sleep(0.1)
        videos.mkdir()
        copies = 2 if report.small else 4 * cores if seconds == 60 else 2 * cores
        for number in range(copies if source.exists() else 0):
            os.link(source, videos / f"v{number:03}.mp4")
        report.row(f"{len(list(videos.iterdir()))} videos, {name}", seconds_each=seconds)
    first, *others = kinds
    run = functools.partial(extract_videos, report)
    run(first, report.fast, "pyav", most=cores)  # to warm up: the network, the decoders' processes
    run(first, report.fast, "pyav")
    reason = missing_reason("torchcodec-cuda")
    if reason is None:
        run(first, report.fast, "torchcodec-cuda", decoders=7, most=7)
        run(first, report.fast, "torchcodec-cuda", decoders=7, most=28)
    else:
        report.row("the GPU's own decoder", skipped=f"not to be had here: {reason}")
    for name in others:
        if report.enough(15, f"extract, {name}"):
            run(name, report.fast, "pyav")
            if reason is None and name == "1080p":
                run(name, report.fast, "torchcodec-cuda", decoders=7, most=28)
    if report.enough(15, "extract, float32"):
        run(first, "float32", "pyav")
    if cuda and reason is None and report.enough(15, "extract, 14 on NVDEC"):
        run(first, report.fast, "torchcodec-cuda", decoders=14, most=28)


def extract_videos(
    report: Report, name: str, precision: str, backend: str, *, decoders: int = 0, most: int | None = None
) -> None:
    """Extract a folder's videos, or only some to warm up; report what the command says at its end."""
    from excl.pipeline import extract
    from excl.pipeline.artifacts.manifest import Manifest
    from excl.pipeline.execution.video_reading import ReadingSeveral

    folder = Path(report.settings.folder)
    videos = sorted((folder / name).iterdir())[:most]
    listed = folder / f"{name}.txt"
    listed.write_text("".join(f"{video}\n" for video in videos))
    out = Path(tempfile.mkdtemp(dir=folder)) / "store"
    sizes = {"short_side": 64, "crop": 64} if report.small else {}
    config = extract.ExtractConfig(
        videos=listed,
        out=out,
        weights="random:0",
        device=str(report.device),
        precision=precision,
        backend=backend,
        reading=ReadingSeveral(decoders=decoders),
        **sizes,
    )
    lines, logger = io.StringIO(), logging.getLogger("excl")
    handler = logging.StreamHandler(lines)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    what = f"extract, {name}, {precision}, {backend}" + (f", {decoders} at once" if decoders else "")
    with report.attempt(what):
        began = time.perf_counter()
        extract.run(config)
        seconds = time.perf_counter() - began
        failed = len(Manifest.read(out).failed)
        video_s = len(videos) * {**KINDS, **SMALL_KINDS}[name][2]
        said = [line for line in lines.getvalue().splitlines() if re.match(r"I3D: |extract: .*(short|real time)", line)]
        waited = re.search(r"waited for frames (\d+)%", lines.getvalue())
        report.row(
            f"{what}, {len(videos)} videos",
            times_real_time=video_s / seconds,
            seconds=seconds,
            waited_percent=waited[1] if waited else "?",
            failed=failed,
            right=failed == 0,
        )
        report.content.setdefault("said", {})[what] = said
        print("\n".join(f"    {line}" for line in said), flush=True)
    logger.removeHandler(handler)
    logger.setLevel(logging.ERROR)
    shutil.rmtree(out.parent, ignore_errors=True)


# ---------------------------------------------------------------------------------------------------------------------------
# 5. Training
# ---------------------------------------------------------------------------------------------------------------------------


def training(report: Report) -> None:
    """Time an epoch on the device, on the CPU, and of bare LSTMs; see that it is the same twice and when resumed."""
    from train import Bench

    from excl.pipeline.training.distributed import cpu_has_bfloat16_lstm

    queries = 32 if report.small else 6400
    cases = [
        (variant, report.device, queries, precision, buckets)
        for variant in ("clf-2-b", "reg-2-c")
        for precision, buckets in (("float32", False), ("float32", True), ("bfloat16", False))
    ]
    cases += [(variant, torch.device("cpu"), min(queries, 320), "float32", False) for variant in ("clf-2-b", "reg-2-c")]
    for variant, device, number, precision, buckets in cases:
        what = f"{variant}, {device.type}, {precision}" + (", buckets" if buckets else "")
        if device.type == "cpu" and precision == "bfloat16" and not cpu_has_bfloat16_lstm():
            report.row(what, skipped="this processor has no LSTM in bfloat16")
            continue
        if not report.enough(8, what):
            continue
        with report.attempt(what):
            bench = Bench(
                argparse.Namespace(
                    variant=variant,
                    queries=number,
                    lengths="charades",
                    device=device,
                    workers=0,
                    buckets=buckets,
                    precision=precision,
                )
            )
            ways = {"bare": bench.bare, "epoch": bench.epoch, "steps": bench.compute, "loading": bench.load}
            times: dict[str, list[float]] = {name: [] for name in ways}
            for turn in range(2 if report.small else 3):
                for name, way in ways.items():
                    seconds = bench.seconds(way)
                    if turn:  # the first to warm up
                        times[name].append(seconds)
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("warn")
                with warnings.catch_warnings(record=True) as waits:
                    warnings.simplefilter("always")
                    bench.step(bench.held[0])
                torch.cuda.set_sync_debug_mode("default")
                report.row(
                    f"{what}: waits for the device in a step", number=len(waits), where=[str(w.message)[:80] for w in waits]
                )
            best = {name: min(values) for name, values in times.items()}
            report.row(
                what,
                ms_a_step=1000 * best["epoch"] / len(bench.held),
                times_bare=best["epoch"] / best["bare"],
                loading=best["loading"] / best["epoch"],
                epoch_of_12408_queries_s=best["epoch"] / number * 12408,
            )
    same(report, "as it is", {})
    if report.device.type == "cuda" and any(row.get("same") is False for row in report.content["rows"]):
        same(report, "with CUBLAS_WORKSPACE_CONFIG=:4096:8", {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"})


def same(report: Report, how: str, environment: dict[str, str]) -> None:
    """See in a process of its own, with this environment, whether trainings are the same."""
    if report.enough(10, f"the same twice, {how}"):
        path, left_s = f"{report.settings.report}.same.json", report.ends - time.monotonic()
        with report.attempt(how):
            subprocess.run(again(report, "same", path), env={**os.environ, **environment}, check=True, timeout=left_s)
            for row in json.loads(Path(path).read_text())["rows"]:
                report.row(row.pop("what") + f", {how}", **row)


def trained_twice(report: Report) -> None:
    """Train with one seed twice, and once more with a stop in between; compare the weights."""
    from excl.pipeline.training import trainer

    store = small_store(Path(tempfile.mkdtemp(dir=report.settings.folder)))
    for variant in ("clf-2-b", "reg-2-c"):
        one, other, stopped = (train_once(store, report, variant, name) for name in ("one", "other", None))
        step, steps = trainer.Trainer._step, iter(range(8))

        def limited_step(self: Any, *arguments: Any, step: Any = step, steps: Any = steps) -> Tensor:
            if next(steps, None) is None:
                raise KeyboardInterrupt
            return step(self, *arguments)

        trainer.Trainer._step = limited_step
        with contextlib.suppress(KeyboardInterrupt):
            stopped()
        trainer.Trainer._step = step
        weights_of = [function() for function in (one, other, stopped)]
        for what, tensors in (("the same seed twice", weights_of[1]), ("resumed", weights_of[2])):
            errors = {name: relative_error(tensors[name], value) for name, value in weights_of[0].items() if value.any()}
            worst = max(errors, key=errors.__getitem__)
            report.row(f"{variant}: {what}", same=errors[worst] == 0, differs=errors[worst], worst=worst)
    torch.use_deterministic_algorithms(True)
    with report.attempt("an operation without a deterministic form"):  # its error names it
        train_once(store, report, "clf-2-b", "deterministic")()
        report.row("deterministic algorithms", accepted=True)


def train_once(store: Path, report: Report, variant: str, name: str | None) -> Callable[[], dict[str, np.ndarray]]:
    """Return a function that trains a little, or resumes that, and returns the weights."""
    from excl.models.excl import ExCLConfig
    from excl.pipeline import train

    out = store / f"{variant}-{name or 'stopped'}"
    sizes = {f"{part}_hidden": 16 for part in ("text", "video", "predictor", "mlp")} if report.small else {}
    config = train.TrainConfig(
        store=(store,),
        out=out,
        model=ExCLConfig(variant=variant, **sizes),
        epochs=3,
        batch_size=8,
        device=str(report.device),
        checkpoint_steps=3,
    )

    def work() -> dict[str, np.ndarray]:
        model = train.load_run(train.run(config), device=report.device).model
        return {key: value.detach().float().cpu().numpy() for key, value in model.state_dict().items()}

    return work


def small_store(folder: Path) -> Path:
    """Make a training store of 80 videos with rows of 1024 numbers."""
    sys.path.append(str(ROOT / "tests"))
    import train_data

    train_data.SIZE = 1024
    return train_data.make_store(folder / "data", num_videos=80)


# ---------------------------------------------------------------------------------------------------------------------------
# 6. Two processes
# ---------------------------------------------------------------------------------------------------------------------------


def two_processes(report: Report) -> None:
    """Run two trainings at once on the device, and one training in two processes that average their gradients."""
    from excl.pipeline.sweep import reproduce

    store = small_store(Path(tempfile.mkdtemp(dir=report.settings.folder)))
    small = {f"{part}_hidden": 16 for part in ("text", "video", "predictor", "mlp")} if report.small else {}
    for parallel in (2, 1):
        what = f"reproduce, two trainings, {parallel} at once"
        if report.enough(10, what):
            with report.attempt(what):
                from excl.models.excl import ExCLConfig

                began = time.perf_counter()
                shared = reproduce.SharedTrainConfig(
                    epochs=2, batch_size=8, device=str(report.device), model=ExCLConfig(**small)
                )
                done = reproduce.run(
                    reproduce.ReproduceConfig(
                        stores=(store,),
                        out=store / f"table-{parallel}",
                        variants=("clf-2-b", "reg-2-c"),
                        seeds=1,
                        parallel=parallel,
                        training=shared,
                    )
                )
                report.row(what, seconds=time.perf_counter() - began, failed=len(done.errors), right=not done.errors)
    for backend, world in (("gloo", 2), ("nccl", 1)):
        what = f"one training in {world} processes, {backend}"
        if backend == "nccl" and report.device.type != "cuda":
            report.row(what, skipped="nccl is for NVIDIA's GPUs")
        elif report.enough(8, what):
            with report.attempt(what):
                began = time.perf_counter()
                arguments = (world, backend, str(report.device), store, tempfile.mkdtemp(dir=store), report.small)
                torch.multiprocessing.spawn(share_training, args=(arguments,), nprocs=world)
                path = Path(arguments[4]) / "run" / "metrics.jsonl"
                losses = [json.loads(line)["train_loss"] for line in path.read_text().splitlines()]
                report.row(what, seconds=time.perf_counter() - began, losses=losses, right=bool(np.isfinite(losses).all()))


def share_training(rank: int, of_all: tuple[int, str, str, Path, str, bool]) -> None:
    """Be one of the processes, all on the same device."""
    world, backend, device, store, folder, small = of_all
    import torch.distributed as dist

    from excl.models.excl import ExCLConfig
    from excl.pipeline.config import identity
    from excl.pipeline.training.config import TrainConfig
    from excl.pipeline.training.distributed import RankContext
    from excl.pipeline.training.trainer import Trainer

    sizes = {f"{part}_hidden": 16 for part in ("text", "video", "predictor", "mlp")} if small else {}
    config = TrainConfig(
        store=(store,), out=Path(folder) / "run", model=ExCLConfig(**sizes), epochs=2, batch_size=8, device=device
    )
    config.out.mkdir(exist_ok=True)
    dist.init_process_group(backend, init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    try:
        ranks = RankContext(torch.empty(0, device=device).device, rank, world)
        if world == 1:  # RankContext wraps nothing for one process, and it is NCCL that is to be tried
            network = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(8, 8).to(device))
            network(torch.ones(1, 8, device=device)).sum().backward()
        Trainer(config, ranks, identity=identity(config)).run()
        gc.collect()
        dist.barrier()
    finally:
        dist.destroy_process_group()


PARTS: dict[str, Callable[[Report], None]] = {
    "parity": parity,
    "rates": rates,
    "memory": memory,
    "extract": extraction,
    "train": training,
    "two-processes": two_processes,
    "same": trained_twice,  # of the fifth, in a process of its own
}


def main() -> int:
    """Run all parts, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="little of everything, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--minutes", type=float, help="after which it has ended: 6, of a small one 30")
    parser.add_argument("--parts", nargs="+", choices=list(SECONDS), default=list(SECONDS))
    for flag in ("--part", "--report", "--folder", "--way"):
        parser.add_argument(flag, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=60, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.part == "make-videos":
        make_videos(settings)
        return 0
    if settings.part:
        run_part(settings)
        return 0
    settings.minutes = settings.minutes or (30.0 if settings.small else 6.0)
    return min(1, run_all(settings))


if __name__ == "__main__":
    sys.exit(main())
