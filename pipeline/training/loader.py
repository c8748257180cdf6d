"""The batches of a training, epoch after epoch, from any step on: the same ones whatever the number of loader workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from excl.pipeline.training.distributed import RankContext
from excl.pipeline.training.examples import Batch, Example, collate
from excl.pipeline.training.samplers import BucketBatchSampler, ShuffledBatchSampler


class _Examples(Dataset[Any]):
    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]


class _FixedBatchSampler(Sampler[list[int]]):
    """A batch sampler that yields the batches it was given."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


@dataclass(frozen=True)
class RankBatch:
    """This process's part of a step's batch: the examples, the weight of their mean loss, the size of the whole batch."""

    batch: Batch
    weight: float
    whole_size: int


class TrainLoader:
    """The training examples in batches; seed and epoch alone determine which examples share a batch."""

    def __init__(
        self, examples: Sequence[Example], *, batch_size: int, seed: int, buckets: bool, workers: int, ranks: RankContext
    ) -> None:
        lengths = [len(example.features) for example in examples]
        kind = BucketBatchSampler if buckets else ShuffledBatchSampler
        self.order, self.ranks, self.plan = kind(lengths, batch_size=batch_size, seed=seed), ranks, _FixedBatchSampler()
        self.loader: DataLoader[Batch] = DataLoader(
            _Examples(examples),
            batch_sampler=self.plan,
            collate_fn=collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=ranks.device.type == "cuda",
            generator=torch.Generator(),  # of the workers' seeds, which nothing here uses: dropout's shall not be drawn from
        )

    def __len__(self) -> int:
        return len(self.order)

    def epoch(self, number: int, *, skip: int) -> Iterator[RankBatch]:
        """Yield the batches of an epoch without the first `skip`."""
        self.order.set_epoch(number)
        whole = list(self.order)[skip:]
        parts = [self.ranks.shard_batch(batch) for batch in whole]
        self.plan.batches = [indices for indices, _ in parts]
        for batch, (_, weight), all_of_it in zip(self.loader, parts, whole, strict=True):
            yield RankBatch(batch, weight, len(all_of_it))
