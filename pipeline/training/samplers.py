"""Queries with the rows of their videos for PyTorch's DataLoader: a dataset, and batches of videos of similar length.

    store = TrainingStore("store")
    dataset = QueryDataset(store, "train")
    batches = BucketBatchSampler(dataset.num_rows, batch_size=32, seed=0)
    for epoch in range(30):
        batches.set_epoch(epoch)
        for batch in DataLoader(dataset, batch_sampler=batches, collate_fn=collate, num_workers=4):
            ...

Works with any number of workers, forked or spawned: each maps the shards itself when it first reads of them. The order is
settled by seed and epoch alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Dataset, Sampler

from excl.pipeline.store.training_store import TrainingStore
from excl.pipeline.training.examples import Example, collate, load_examples

__all__ = ["BucketBatchSampler", "QueryDataset", "ShuffledBatchSampler", "collate"]

BATCHES_IN_POOL = 50  # so many batches are sorted by length at a time: little padding, and still another mix every epoch


class QueryDataset(Dataset[Example]):
    """The queries of a split whose videos have features, as `Example`s, each read on request."""

    def __init__(self, store: TrainingStore, split: str) -> None:
        self.store = store
        self.queries = [query for query in store.queries(split) if query.video_id in store]
        self.num_rows = [store.num_rows(query.video_id) for query in self.queries]

    def __len__(self) -> int:
        return len(self.queries)

    def __getitem__(self, index: int) -> Example:
        return load_examples(self.store, [self.queries[index]])[0]


class ShuffledBatchSampler(Sampler[list[int]]):
    """Batches of indices in random order: every index once an epoch."""

    def __init__(self, lengths: Sequence[int], *, batch_size: int, seed: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected at least 1")
        self.lengths, self.batch_size, self.seed, self.epoch = list(lengths), batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, from 0, which determines the order."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(len(self.lengths) / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(len(self.lengths), generator=self._generator()).tolist()
        yield from self._cut(order)

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)

    def _cut(self, order: list[int]) -> list[list[int]]:
        return [order[first : first + self.batch_size] for first in range(0, len(order), self.batch_size)]


class BucketBatchSampler(ShuffledBatchSampler):
    """Batches of indices in random order, each of items of similar length: every index once an epoch.

    The indices are shuffled, sorted by length in pools of some batches, cut into batches, and these shuffled.
    """

    def __iter__(self) -> Iterator[list[int]]:
        generator = self._generator()
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        pool = self.batch_size * BATCHES_IN_POOL
        batches = []
        for first in range(0, len(order), pool):
            batches += self._cut(sorted(order[first : first + pool], key=self.lengths.__getitem__))
        for index in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[index]
