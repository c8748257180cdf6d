"""What is exported: the videos as they are to be written, and the queries that other trainers can be asked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
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


@dataclass
class ExportView:
    """A store as one trainer is to see it; `task` is the data set in whose form annotations and names are.

    `avi` says whether ids end in .avi (None: as they are), `dtype` None keeps what the store has. `written` is what
    `videos` has given so far, by the names in use: annotations are written after the features, and read it. `remarks` are
    lists of names (or of ids of annotations) under what is to be said of them.
    """

    store: FeatureStore
    task: Task
    dtype: str | None
    seconds_per_row: float | None = None
    avi: bool | None = None
    least_rows: int = 1
    written: dict[str, dict[str, Any]] = field(default_factory=dict)
    remarks: dict[str, list[str]] = field(default_factory=dict)

    def name(self, video_id: str) -> str:
        """What a video is called in the export."""
        if self.avi is None:
            return video_id
        return video_id.removesuffix(AVI) + (AVI if self.avi else "")

    @cached_property
    def queries(self) -> dict[str, list[Query]]:
        """The queries whose video has features, by split, in the annotations' order; empty for a store without queries."""
        return {
            split: sorted((q for q in found if q.video_id in self.store), key=_annotated_order)
            for split, found in self._all_queries().items()
        }

    def _all_queries(self) -> dict[str, list[Query]]:
        if not isinstance(self.store, TrainingStore):
            return {}
        return {split: self.store.queries(split) for split, counts in self._coverage.items() if counts["covered"]}

    @cached_property
    def _coverage(self) -> dict[str, dict[str, Any]]:
        path = self.store.path / "coverage.json"
        return json.loads(path.read_text(encoding="utf-8"))["splits"] if isinstance(self.store, TrainingStore) else {}

    @property
    def num_uncovered(self) -> dict[str, int]:
        """How many queries of each split cannot be asked, since their video has no features."""
        return {split: counts["queries"] - counts["covered"] for split, counts in self._coverage.items()}

    @cached_property
    def durations_s(self) -> dict[str, float]:
        """The videos' durations by their names: as annotated, which is what metrics are computed with, or the file's."""
        annotated = {q.video_id: q.duration_s for found in self.queries.values() for q in found if q.duration_s is not None}
        return {self.name(i): annotated.get(i) or self.store.duration_s(i) for i in self.store}

    def videos(self, among: Set[str] | None = None) -> Iterator[VideoFeatures]:
        """The videos under their names, in the order of ids, with rows and types as they are to be written.

        Only those whose id is `among` these, if they are given.
        """
        for video_id in self.store:
            if among is not None and video_id not in among:
                continue
            video = self.store[video_id]
            video = replace(video, video_id=self.name(video_id))
            if self.seconds_per_row is not None:
                video = resampling.resampled(video, self.seconds_per_row)
            video = self._cast(self._repeated(video))
            count, duration_s = len(video.features), self.durations_s[video.video_id]
            self.written[video.video_id] = {
                "id": video_id,
                "rows": count,
                "duration_s": duration_s,
                "seconds_per_row": duration_s / count,
                "error_if_even_s": resampling.error_if_even_s(video, duration_s),
            }
            yield video

    def _repeated(self, video: VideoFeatures) -> VideoFeatures:
        """With as many rows as a trainer needs at least: one row becomes several, each for an equal part of its time."""
        if len(video.features) >= self.least_rows:
            return video
        assert len(video.features) == 1
        edges = np.linspace(video.start_s[0], video.end_s[0], self.least_rows + 1)
        features = np.repeat(video.features, self.least_rows, axis=0)
        self.remarks.setdefault("videos of one row, which was written twice", []).append(video.video_id)
        return replace(video, features=features, start_s=edges[:-1], end_s=edges[1:])

    def _cast(self, video: VideoFeatures) -> VideoFeatures:
        if self.dtype is None or video.features.dtype == self.dtype:
            return video
        with np.errstate(over="ignore"):  # said below
            features = video.features.astype(self.dtype)
        if not np.isfinite(features).all():
            raise ValueError(f"{video.video_id}: features up to {np.abs(video.features).max():.3g} do not fit {self.dtype}")
        return replace(video, features=features)


def _annotated_order(query: Query) -> tuple[Any, ...]:
    """By annotation id, its numbers as numbers: `train:charades_sta_train:17` is line 17."""
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in query.annotation_id.split(":"))
