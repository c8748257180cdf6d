"""A million videos: what planning, scheduling and the records cost, without decoding anything.

    python bench/scale.py [--videos 1000000] [--folder DIR] [--executor inline|local] [--rounds]

Makes a folder of empty-handed files (one byte each, named like videos), and runs the stage that `extract` is over them, with
work that writes nothing but the record that extract would. So what is timed is all that is there once for every video and
every shard but decoding, the network and the features' bytes: finding the files, planning, tasks, journals, records, the
shards' own records, and a second run, which finds everything done and looks at every file again. Prints time and the peak of
the driver's memory, for this many videos and for a tenth of them, with the ratio, which is 10 if cost is in proportion.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from excl.datasets.video.discovery import find_videos
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.artifacts.video_records import video_key
from excl.pipeline.execution import pending_videos
from excl.pipeline.execution.shard_work import Executor, inline
from excl.pipeline.execution.sharded_stage import ShardedStage, part_name
from excl.pipeline.execution.source_files import file_stat

SHARD_VIDEOS, FOLDER_VIDEOS = 64, 1000
SOURCE, EMPTY = "0" * 64, hashlib.sha256(b"").hexdigest()
RECIPE = {"fps": 5.0, "short_side": 256, "crop": 224, "weights": {"source": "nothing, this is a benchmark"}}


def record_of(out: Path, item: pending_videos.VideoTask) -> dict[str, Any]:
    """What extract records of a video, with its part, which is empty here."""
    stat = file_stat(item.path)
    (out / part_name(item.number)).touch()
    facts = {"duration_s": 118.2, "claimed_duration_s": 118.2, "backend": "pyav", "frames_expected": 3543}
    counts = {"frames_decoded": 3543, "frames_skipped": 0, "bad_packets": 0, "corrupt_frames": 0, "largest_gap_s": 0.034}
    return {
        "id": video_key(item.video_id),
        "part": part_name(item.number),
        "part_sha256": EMPTY,
        "videos": [item.video_id],
        "source": {"file": item.path.name, "bytes": stat[0], "sha256": SOURCE},
        "num_frames": 591,
        "num_rows": 73,
        "frames_repeated": 1,
        "duration_s": 118.2,
        "quality": {**facts, **counts},
        "device": "cuda:0",
        "stat": stat,
        "wall_s": 1.5,
        "timing": {"decoding": 1.2, "I3D": 0.2, "writing": 0.1},
    }


def join(target: Path, sources: list[tuple[str, Path]]) -> dict[str, Any]:
    """An empty shard."""
    target.write_text(json.dumps([video_id for video_id, _ in sources]))
    return {"num_rows": 73 * len(sources)}


def stage(out: Path) -> ShardedStage:
    return ShardedStage(
        name="extract",
        code_version=1,
        out=out,
        identity=RECIPE,
        shard_videos=SHARD_VIDEOS,
        work=partial(record_of, out),
        join=join,
        identify=items_are_the_same,
        at_once=one,
    )


def items_are_the_same(_: pending_videos.VideoTask) -> dict[str, Any]:
    return {"sha256": SOURCE}


def one() -> int:
    return 1


def make_files(folder: Path, number: int) -> None:
    """So many files, a thousand a folder."""
    for first in range(0, number, FOLDER_VIDEOS):
        inner = folder / f"{first // FOLDER_VIDEOS:05d}"
        inner.mkdir(parents=True)
        for index in range(first, min(number, first + FOLDER_VIDEOS)):
            (inner / f"v_{index:09d}.mp4").write_bytes(b"x")


def executor(name: str) -> Executor:
    if name == "inline":
        return inline(map)
    from excl.pipeline.execution.executor_settings import ExecutorSettings
    from excl.workflows.cluster.dask_cluster import dask_executor

    return dask_executor(ExecutorSettings(executor=name, workers=2), gpus=[])


class BegunError(Exception):
    """Work begins."""


def begins(work: Any, tasks: Any, manifest: Any, stop: Any) -> Iterator[Any]:  # noqa: ARG001
    """An executor that goes home when it is given its first task."""
    next(iter(tasks), None)
    raise BegunError
    yield


def plan(videos: Path, out: Path) -> None:
    with contextlib.suppress(BegunError):
        stage(out).run(find_videos(videos), retry_failed=False, executor=begins)


def work(videos: Path, out: Path, *, how: str) -> None:
    stage(out).run(find_videos(videos), retry_failed=False, executor=executor(how))


def resume(videos: Path, out: Path) -> None:
    """A run of which half is done, up to the moment when it begins to work."""
    plan(videos, out)


def halve(out: Path) -> None:
    """Forget the later half of the records, as if the run had been killed there."""
    path = out / "records.jsonl"  # line by line: a process that is started next has this one's peak of memory as its own
    with path.open("rb") as file:
        number = sum(1 for _ in file)
        file.seek(0)
        size = sum(map(len, itertools.islice(file, number // 2)))
    os.truncate(path, size)


def read(out: Path) -> None:
    Manifest.read(out)


def again(videos: Path, out: Path) -> None:
    """A run of which all is done."""
    stage(out).run(find_videos(videos), retry_failed=False, executor=inline(map))


def measured(function: Callable[..., None], *arguments: Any, **keywords: Any) -> tuple[float, float]:
    """Seconds and peak memory in GB of a call in a process of its own."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_measure, args=(queue, function, arguments, keywords))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{function.__name__}: exit code {process.exitcode}")
    return queue.get()


def _measure(queue: Any, function: Callable[..., None], arguments: Any, keywords: Any) -> None:
    began = time.perf_counter()
    function(*arguments, **keywords)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    queue.put((seconds, peak / 1e9))


def bench(folder: Path, number: int, how: str) -> dict[str, tuple[float, float]]:
    videos, out = folder / f"videos{number}", folder / f"out{number}"
    make_files(videos, number)
    found = {
        "planning, up to the first task": measured(plan, videos, out),
        f"working, {how}": measured(work, videos, out, how=how),
        "reading the records": measured(read, out),
        "a second run, all done": measured(again, videos, out),
    }
    size = (out / "records.jsonl").stat().st_size
    halve(out)
    found["resuming with half done, up to the first task"] = measured(resume, videos, out)
    print(f"{number:,} videos in {-(-number // SHARD_VIDEOS):,} shards; records {size / 1e6:,.0f} MB")
    shutil.rmtree(videos)
    shutil.rmtree(out)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=None, help="where files are made; by default the system's for such")
    parser.add_argument("--executor", default="local", choices=["inline", "local"])
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=settings.folder) as name:
        small = bench(Path(name), max(1, settings.videos // 10), settings.executor)
        large = bench(Path(name), settings.videos, settings.executor)
    print(f"{'':50}{'a tenth':>10}{'all':>10}{'ratio':>8}{'memory':>10}")
    for what, (seconds, peak) in large.items():
        print(f"{what:50}{small[what][0]:9.1f}s{seconds:9.1f}s{seconds / small[what][0]:8.1f}{peak:8.2f}GB")


if __name__ == "__main__":
    main()
