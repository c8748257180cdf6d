"""The content of an export: the videos as they are to be written, and the queries that other trainers can be asked."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any, Literal

import numpy as np

from excl.pipeline.exchange import resampling
from excl.pipeline.store.feature_store import FeatureStore
from excl.pipeline.store.shard import VideoFeatures
from excl.pipeline.store.training_store import Query, TrainingStore

Task = Literal["charades", "activitynet", "tacos"]
TASKS: dict[str, Task] = {
    "charades-sta": "charades",
    "activitynet-captions": "activitynet",
    "tacos": "tacos",
    "tacos-tall": "tacos",
}
AVI = ".avi"


@dataclass(frozen=True)
class ExportReport:
    """The facts of the written videos by their names, and names (or ids of annotations) under a remark about them."""

    videos: dict[str, dict[str, Any]]
    remarks: dict[str, list[str]]


@dataclass(frozen=True)
class ExportView:
    """A store as one trainer is to see it; `task` is the data set in whose form annotations and names are.

    `avi` says whether ids end in .avi (None: as they are), `dtype` None keeps the store's. `least_rows` is the least number
    of rows that the trainer can read.
    """

    store: FeatureStore
    task: Task
    dtype: str | None
    seconds_per_row: float | None = None
    avi: bool | None = None
    least_rows: int = 1

    def name(self, video_id: str) -> str:
        """The name of a video in the export."""
        if self.avi is None:
            return video_id
        return video_id.removesuffix(AVI) + (AVI if self.avi else "")

    @cached_property
    def names(self) -> dict[str, str]:
        """The ids of the videos by their names in the export."""
        return {self.name(video_id): video_id for video_id in self.store}

    @cached_property
    def queries(self) -> dict[str, list[Query]]:
        """The queries whose video has features, by split, in the annotations' order; empty for a store without queries."""
        if not isinstance(self.store, TrainingStore):
            return {}
        splits = {split: self.store.queries(split) for split, counts in self._coverage.items() if counts["covered"]}
        return {
            split: sorted((query for query in queries if query.video_id in self.store), key=_annotated_order)
            for split, queries in splits.items()
        }

    @cached_property
    def _coverage(self) -> dict[str, dict[str, Any]]:
        path = self.store.path / "coverage.json"
        return json.loads(path.read_text(encoding="utf-8"))["splits"] if isinstance(self.store, TrainingStore) else {}

    @property
    def num_uncovered(self) -> dict[str, int]:
        """The number of queries of each split whose video has no features, so that they cannot be asked."""
        return {split: counts["queries"] - counts["covered"] for split, counts in self._coverage.items()}

    @cached_property
    def durations_s(self) -> dict[str, float]:
        """The videos' durations by their names: as annotated, since metrics are computed with that, or the file's."""
        queries = chain.from_iterable(self.queries.values())
        annotated = {query.video_id: query.duration_s for query in queries if query.duration_s is not None}
        return {name: annotated.get(video_id) or self.store.duration_s(video_id) for name, video_id in self.names.items()}

    def videos(self, ids: Set[str] | None = None) -> Iterator[VideoFeatures]:
        """The videos (with `ids` only these) under their names, in the order of ids, with rows and types as exported."""
        for name, video_id in self.names.items():
            if ids is None or video_id in ids:
                video = replace(self.store[video_id], video_id=name)
                if self.seconds_per_row is not None:
                    video = resampling.resample(video, self.seconds_per_row)
                if len(video.features) < self.least_rows:  # one row becomes several, each for an equal part of its time
                    edges = np.linspace(video.start_s[0], video.end_s[0], self.least_rows + 1)
                    features = np.repeat(video.features, self.least_rows, axis=0)
                    video = replace(video, features=features, start_s=edges[:-1], end_s=edges[1:])
                yield resampling.cast(video, self.dtype)

    def report(self, written: Iterable[VideoFeatures]) -> ExportReport:
        """Write the videos, by consuming a generator of `feature_writers`, and report them."""
        videos = {}
        for video in written:
            name, num_rows = video.video_id, len(video.features)
            duration_s = self.durations_s[name]
            videos[name] = {
                "id": self.names[name],
                "rows": num_rows,
                "duration_s": duration_s,
                "seconds_per_row": duration_s / num_rows,
                "error_if_even_s": resampling.error_if_even_s(video, duration_s),
            }
        repeated = [name for name in videos if self._num_rows(self.names[name]) < self.least_rows]
        return ExportReport(videos, {"videos of one row, which was written twice": repeated} if repeated else {})

    def _num_rows(self, video_id: str) -> int:
        """The number of rows before they are repeated."""
        if self.seconds_per_row is None:
            return self.store.num_rows(video_id)
        return resampling.num_rows(self.store.duration_s(video_id), self.seconds_per_row)


def _annotated_order(query: Query) -> tuple[Any, ...]:
    """Return a key that sorts by annotation id, with its numbers as numbers: `train:charades_sta_train:17` is line 17."""
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in query.annotation_id.split(":"))
