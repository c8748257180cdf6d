"""What an epoch of training costs, against a bare stack of nn.LSTM of the same shapes on the same data, padded in memory.

    python bench/train.py [--variant clf-2-b] [--queries 640] [--rounds 3] [--device cpu] [--precision float32] [--buckets]

Features are made up: float16, 1024 numbers a row, one row for 1.6 s of video, lengths as those of a data set (`--lengths`).
The stack has the LSTMs of the variant and nothing else: of the text, the video and the predictor, forward and backward, on
padded float32 batches of the same queries that are already on the device; no loss, no optimiser, no dropout, no lengths.
Every step of the training is timed in parts. Times and ratios are medians of the rounds, in which all ways take turns; a
ratio is to the stack of its own round. Where others use the CPU, OMP_NUM_THREADS=1 keeps threads from waiting in vain.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import starmap
from operator import truediv

import numpy as np
import torch
from torch import nn

from excl.models.excl import ExCL, ExCLConfig, span_loss
from excl.pipeline.store.training_store import Query
from excl.pipeline.training.distributed import RankContext
from excl.pipeline.training.examples import Batch, Example
from excl.pipeline.training.loader import TrainLoader

SIZE, WORDS, WORD_SIZE, BATCH, ROW_S = 1024, 2000, 300, 32, 1.6
LENGTHS = {"charades": (30.6, 0.25), "activitynet": (118.0, 0.55), "tacos": (287.0, 0.5)}  # seconds: mean, spread of the log


def made_up(number: int, lengths: str) -> list[Example]:
    """Examples of as many queries, three to a video."""
    generator = np.random.default_rng(0)
    mean_s, spread = LENGTHS[lengths]
    examples: list[Example] = []
    while len(examples) < number:
        rows = max(4, round(mean_s / ROW_S * generator.lognormal(-(spread**2) / 2, spread)))
        features = torch.from_numpy(generator.standard_normal((rows, SIZE), np.float32).astype(np.float16))
        starts = np.arange(rows) * ROW_S
        for _ in range(3):
            ids = tuple(generator.integers(2, WORDS, int(generator.integers(4, 15))).tolist())
            first, last = sorted(generator.integers(0, rows, 2).tolist())
            query = Query("", str(len(examples)), "", starts[first], starts[last] + ROW_S, None, "train", "", ids, ids)
            examples.append(Example(query, features, starts, starts + ROW_S, first, last))
    return examples[:number]


class Stack(nn.Module):
    """The LSTMs of a variant, one after another."""

    def __init__(self, config: ExCLConfig) -> None:
        super().__init__()
        _, video, predictor = config.parts
        text_dim, video_dim = 2 * config.text_hidden, 2 * config.video_hidden if video == "lstm" else SIZE
        self.text = _lstm(WORD_SIZE, config.text_hidden)
        self.video = _lstm(SIZE, config.video_hidden) if video == "lstm" else None
        self.predictors = nn.ModuleList()
        if predictor != "mlp":
            self.predictors.append(_lstm(video_dim + text_dim, config.predictor_hidden))
        if predictor == "conditioned-lstm":
            self.predictors.append(_lstm(2 * config.predictor_hidden, config.predictor_hidden))

    def forward(self, rows: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """A number that depends on all outputs, for rows [B, T, F] and words [B, L, D]."""
        text, _ = self.text(words)  # [B, L, S]
        if self.video is not None:
            rows, _ = self.video(rows)  # [B, T, V]
        if self.predictors:
            rows = torch.cat([rows, text[:, -1:].expand(-1, rows.shape[1], -1)], dim=2)
        for lstm in self.predictors:
            rows, _ = lstm(rows)
        return rows.sum() + text.sum()


def _lstm(size: int, hidden: int) -> nn.LSTM:
    return nn.LSTM(size, hidden, batch_first=True, bidirectional=True)


class Bench:
    """The training step in parts, and the stack, on the same batches."""

    def __init__(self, settings: argparse.Namespace) -> None:
        self.device, self.precision = torch.device(settings.device), settings.precision
        config = ExCLConfig(variant=settings.variant)
        examples = made_up(settings.queries, settings.lengths)
        torch.manual_seed(0)
        vectors = torch.randn(WORDS, WORD_SIZE)
        self.model = ExCL(config, vectors=vectors, feature_dim=SIZE).to(self.device)
        self.stack = Stack(config).to(self.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3, fused=self.device.type == "cpu" or None)
        self.batches = TrainLoader(examples, batch_size=BATCH, seed=0, buckets=settings.buckets, workers=settings.workers,
                               ranks=RankContext(self.device))  # fmt: skip
        held = [share.batch.to(self.device) for share in self.batches.epoch(0, skip=0)]
        self.held = held
        self.inputs = [(batch.features, vectors.to(self.device)[batch.token_ids]) for batch in held]
        valid = sum(int(batch.num_rows.sum()) for batch in held)
        self.valid = valid / sum(batch.features.shape[0] * batch.features.shape[1] for batch in held)

    def wait(self) -> float:
        """The time when the device has done all it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def load(self) -> None:
        for share in self.batches.epoch(0, skip=0):
            share.batch.to(self.device)

    def step(self, batch: Batch) -> None:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            logits = self.model(batch.features, batch.num_rows, batch.token_ids, batch.num_tokens)
        loss = span_loss(self.model.config, *logits, batch.targets)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def compute(self) -> None:
        for batch in self.held:
            self.step(batch)

    def epoch(self) -> None:
        for share in self.batches.epoch(0, skip=0):
            self.step(share.batch.to(self.device))

    def bare(self) -> None:
        for value in starmap(self.stack, self.inputs):
            self.stack.zero_grad()
            value.backward()

    def adam(self) -> None:
        for _ in self.held:
            self.optimizer.step()

    def forward(self) -> None:
        with torch.no_grad():
            for batch in self.held:
                self.model(batch.features, batch.num_rows, batch.token_ids, batch.num_tokens)

    def seconds(self, way: Callable[[], None]) -> float:
        began = self.wait()
        way()
        return self.wait() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="clf-2-b")
    parser.add_argument("--queries", type=int, default=640)
    parser.add_argument("--lengths", choices=LENGTHS, default="charades")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--precision", choices=("float32", "bfloat16"), default="float32", help="of the training, not of the stack"
    )
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--buckets", action="store_true")
    settings = parser.parse_args()
    bench = Bench(settings)
    ways = {"bare nn.LSTM stack": bench.bare, "whole epoch": bench.epoch, "its steps alone": bench.compute,
            "loading alone": bench.load, "Adam alone": bench.adam, "forward alone": bench.forward}  # fmt: skip
    for way in ways.values():
        way()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(settings.rounds):
        for name, way in ways.items():
            times[name].append(bench.seconds(way))
    stack = times["bare nn.LSTM stack"]
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = {name: statistics.median(map(truediv, values, stack)) for name, values in times.items()}
    about = f"{settings.queries} queries, lengths of {settings.lengths}, device {bench.device}"
    about += f", {torch.get_num_threads()} threads, {settings.precision}, buckets {settings.buckets}"
    print(f"ExCL {settings.variant}, {about}: {bench.valid:.0%} of the padded rows are real")
    for name, value in medians.items():
        print(f"{name:22}{value:8.2f} s{ratios[name]:8.2f} times the stack")
    print(f"loading is {medians['loading alone'] / medians['whole epoch']:.1%} of an epoch")


if __name__ == "__main__":
    main()
