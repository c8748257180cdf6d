"""A stage whose work needs no videos and no network, workers that do it in this process, and what must come of it."""

from __future__ import annotations

import contextlib
import os
import random
import time
from functools import partial

import numpy as np

from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.artifacts.video_records import video_key
from excl.pipeline.execution.shard_work import run_shard
from excl.pipeline.execution.sharded_stage import ShardedStage, part_name
from excl.pipeline.execution.source_files import file_stat
from excl.pipeline.extract import join_features
from excl.pipeline.store.shard import VideoFeatures, write_shard
from excl.workflows.cluster.dispatch import WorkerDiedError, dispatch_executor

SMALL = {"weights": "random:0", "short_side": 32, "crop": 32, "device": "cpu"}
FLAGS = ["--weights", "random:0", "--short-side", "32", "--crop", "32", "--device", "cpu"]
RECIPE = {"made": "here"}


def shard_bytes(out):
    return {path.name: path.read_bytes() for path in sorted((out / "shards").iterdir())}


def same(out, wanted):
    """Whether two folders hold the same, byte for byte, and nothing of the work is left lying about."""
    assert shard_bytes(out) == shard_bytes(wanted)
    assert os.listdir(out / "parts") == []
    assert not (out / "journals").exists() or os.listdir(out / "journals") == []
    assert Manifest.read(out).fingerprint() == Manifest.read(wanted).fingerprint()


def make(item, *, out, slow_s=0.0, deadly=(), at=None):
    """A stage's work without videos: the same numbers for a video wherever it is done."""
    time.sleep(slow_s)
    if item.video_id in deadly:
        os._exit(7) if at is None else at(item)
    if item.video_id.startswith("bad"):
        return {"id": video_key(item.video_id), "error": "corrupt", "message": f"{item.video_id}: is bad"}
    features = np.random.default_rng(item.number).standard_normal((3, 8)).astype(np.float16)
    edges = np.arange(3.0)
    write_shard(out / part_name(item.number), [VideoFeatures(item.video_id, features, edges, edges + 1, {})], recipe=RECIPE)
    stat = file_stat(item.path)
    source = {"sha256": "0" * 64}
    made = {"part": part_name(item.number), "videos": [item.video_id]}
    return {"id": video_key(item.video_id), **made, "source": source, "stat": stat}


def stage(out, *, shard_videos=4, **how):
    return ShardedStage(
        name="extract",
        code_version=1,
        out=out,
        identity=RECIPE,
        shard_videos=shard_videos,
        work=partial(make, out=out, **how),
        join=partial(join_features, recipe=RECIPE),
        identify=lambda _: {"sha256": "0" * 64},
        at_once=two_at_once,
    )


def two_at_once():
    return 2


class Workers:
    """A pool that does tasks in this process when it is waited for, and dies of `deadly` videos."""

    def __init__(self, number, deadly=()):
        self.number, self.deadly, self.given = number, set(deadly), []
        self.tasks_done, self.most = [], 0

    def capacity(self):
        return self.number

    def submit(self, work, task):
        self.given.append((work, task))
        self.most = max(self.most, len(self.given))

    def wait(self, timeout_s):  # noqa: ARG002  (as pools have it)
        work, task = self.given.pop(random.randrange(len(self.given)))
        self.tasks_done.append([item.video_id for item in task.todo])

        def die(item):
            raise SystemExit(item.video_id)

        function = partial(work.work, deadly=self.deadly, at=die)
        try:
            return [(task, run_shard(type(work)(work.name, work.out, function, work.join, lambda: 1), task))]
        except SystemExit:
            return [(task, WorkerDiedError("a worker died"))]
        except OSError as error:
            return [(task, error)]


def over(workers):
    return dispatch_executor(lambda: contextlib.nullcontext(workers))
