"""Kinds of queries: by length and place of the moment, by similar moments in the video, by words that training never had."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from excl.models.excl import summary
from excl.models.excl.metrics import interval_iou
from excl.pipeline.evaluation.data_baselines import TextSimilarity
from excl.pipeline.evaluation.split_metrics import GroundTruth
from excl.pipeline.store.training_store import Query

SIMILAR = 0.5
"""The similarity of words from which another query about the video counts as similar."""


def query_kinds(
    queries: Sequence[Query], truth: GroundTruth, training: Sequence[Query], *, training_words: frozenset[str]
) -> dict[str, dict[str, np.ndarray]]:
    """Return masks [N] of the moments of each kind, by what is told apart and by kind; kinds without a moment are left out.

    The moments of one query can be of several kinds; those of a kind then count for it. Similar moments are those of other
    queries about the same video with a tf-idf cosine of at least SIMILAR and an IoU below 0.5. `training_words` are those of
    the model's vocabulary; without any, nothing is said of unseen words.
    """
    lengths_s = truth.moments[:, 1] - truth.moments[:, 0]
    centres = truth.moments.mean(axis=1) / truth.durations_s  # NaN where the duration is not known
    similar = _num_similar(queries, training or queries)
    kinds = {
        "length": {
            "up to 10 s": lengths_s <= 10,
            "10 to 30 s": (lengths_s > 10) & (lengths_s <= 30),
            "over 30 s": lengths_s > 30,
        },
        "place in the video": {
            "first third": centres < 1 / 3,
            "middle third": (centres >= 1 / 3) & (centres < 2 / 3),
            "last third": centres >= 2 / 3,
        },
        "similar moments in the video": {"none": similar == 0, "1": similar == 1, "2 or more": similar >= 2},
    }
    if training_words:
        unseen = np.array([not training_words.issuperset(query.tokens) for query in queries])
        kinds["words"] = {"all in training": ~unseen, "some unseen": unseen}
    with_moments = {name: {kind: mask for kind, mask in masks.items() if mask.any()} for name, masks in kinds.items()}
    return {name: masks for name, masks in with_moments.items() if masks}


def metrics_by_kind(
    approaches: Mapping[str, np.ndarray], truth: GroundTruth, kinds: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, dict[str, dict[str, dict[str, float | int]]]]:
    """Return the summary of every approach's predictions [N, 2] or [N, k, 2] on every kind: by name, kind, approach."""
    return {
        name: {
            kind: {
                approach: summary(predicted[mask], truth.moments[mask], truth.query_ids[mask])
                for approach, predicted in approaches.items()
            }
            for kind, mask in masks.items()
        }
        for name, masks in kinds.items()
    }


def _num_similar(queries: Sequence[Query], corpus: Sequence[Query]) -> np.ndarray:
    """Return for every moment how many moments of similar queries its video has, int [N]."""
    by_video: dict[str, list[int]] = defaultdict(list)
    for index, query in enumerate(queries):
        by_video[query.video_id].append(index)
    text = TextSimilarity(corpus)
    counts = np.zeros(len(queries), dtype=np.int64)
    for indexes in by_video.values():
        rows = [queries[index] for index in indexes]
        cosine = text.among(rows)
        starts_s, ends_s = np.array([[query.start_s, query.end_s] for query in rows]).T
        iou = interval_iou(starts_s[:, None], ends_s[:, None], starts_s[None], ends_s[None])
        is_other = np.array([[a.key != b.key for b in rows] for a in rows])
        counts[indexes] = (is_other & (cosine >= SIMILAR) & (iou < 0.5)).sum(axis=1)
    return counts
