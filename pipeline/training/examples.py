"""Queries and the rows of their videos in the form that ExCL takes: read once into memory, padded into batches.

Shapes: B queries of a batch, T feature rows and L tokens of the longest (padded), F size of a feature row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from excl.models.excl import Targets, moment_to_rows
from excl.models.lazy_module import LazyModule
from excl.pipeline.store.feature_store import FeatureStore, copy_rows
from excl.pipeline.store.shard import VideoFeatures
from excl.pipeline.store.training_store import Query

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")


@dataclass(frozen=True)
class Example:
    """A query, its video's features as stored [n, F], and the rows that stand for its moment."""

    query: Query
    features: Tensor
    row_start_s: np.ndarray
    row_end_s: np.ndarray
    start_row: int
    end_row: int


@dataclass(frozen=True)
class Batch:
    """Padded float32 features [B, T, F], token ids [B, L], their lengths [B], int64, and the targets to learn."""

    features: Tensor
    num_rows: Tensor
    token_ids: Tensor
    num_tokens: Tensor
    targets: Targets

    def to(self, device: torch.device) -> Batch:
        """Return the same batch on a device, except for the lengths, which packing expects on the CPU."""
        return Batch(
            self.features.to(device, non_blocking=True),
            self.num_rows,
            self.token_ids.to(device, non_blocking=True),
            self.num_tokens,
            self.targets.to(device),
        )

    def pin_memory(self) -> Batch:
        """Return the same batch in pinned memory; DataLoader calls this by its name."""
        targets = Targets(**{name: value.pin_memory() for name, value in vars(self.targets).items()})
        return Batch(self.features.pin_memory(), self.num_rows, self.token_ids.pin_memory(), self.num_tokens, targets)


def load_examples(store: FeatureStore, queries: Sequence[Query]) -> list[Example]:
    """Return an example for every query whose video has features, in order. A video's rows are read once and shared."""
    videos: dict[str, tuple[VideoFeatures, Tensor]] = {}
    examples = []
    for query in queries:
        if query.video_id not in store:
            continue
        if query.video_id not in videos:
            videos[query.video_id] = store[query.video_id], store.tensor(query.video_id)
        video, features = videos[query.video_id]
        start_row, end_row = moment_to_rows(query.start_s, query.end_s, video.start_s, video.end_s)
        examples.append(Example(query, features, video.start_s, video.end_s, start_row, end_row))
    return examples


def collate(examples: Sequence[Example]) -> Batch:
    """Return the examples as one batch, padded with zeros."""
    features, num_rows = pad_features([example.features for example in examples])
    token_ids, num_tokens = pad_tokens([example.query.token_ids for example in examples])
    return Batch(features, num_rows, token_ids, num_tokens, _targets(examples, features.shape[1]))


def pad_features(videos: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the rows of videos [n, F] as float32 [B, T, F], followed by zeros, and their row counts n, int64 [B]."""
    num_rows = torch.tensor([len(rows) for rows in videos])
    features = torch.zeros(len(videos), int(num_rows.max()), videos[0].shape[1])
    for index, rows in enumerate(videos):
        copy_rows(rows, features[index])
    return features, num_rows


def pad_tokens(queries: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return the token ids of queries as int64 [B, L], followed by zeros, and their token counts, int64 [B]."""
    num_tokens = torch.tensor([len(tokens) for tokens in queries])
    token_ids = torch.zeros(len(queries), int(num_tokens.max()), dtype=torch.int64)
    for index, tokens in enumerate(queries):
        token_ids[index, : len(tokens)] = torch.tensor(tokens)
    return token_ids, num_tokens


def _targets(examples: Sequence[Example], longest: int) -> Targets:
    """Return the targets of the examples in training. The end of a video's last row stands for its duration."""
    times = torch.zeros(2, len(examples), longest)  # starts and ends of rows, [2, B, T]
    moments = torch.zeros(len(examples), 2)
    for index, example in enumerate(examples):
        duration_s = example.row_end_s[-1]
        rows = np.stack([example.row_start_s, example.row_end_s]) / duration_s  # [2, n]
        times[:, index, : rows.shape[1]] = torch.from_numpy(rows)
        end_s = min(example.query.end_s, duration_s)  # no expected time is behind the last row
        moments[index] = torch.tensor([example.query.start_s, end_s], dtype=torch.float64) / duration_s
    return Targets(
        torch.tensor([example.start_row for example in examples]),
        torch.tensor([example.end_row for example in examples]),
        *moments.T,
        *times,
    )


def normalisation(examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of every feature, float32 [F], over the rows of the examples' videos, each once."""
    total, squares, rows = torch.tensor(0.0), torch.tensor(0.0), 0
    for features in {id(example.features): example.features for example in examples}.values():
        values = features.double()  # [n, F]
        total, squares, rows = total + values.sum(0), squares + values.square().sum(0), rows + len(values)
    mean = total / rows
    return mean.float(), (squares / rows - mean.square()).clamp(min=0).sqrt().float()
