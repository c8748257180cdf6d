"""How fast word vectors are read, as ratios to reading the file's bytes and doing nothing with them.

    python bench/glove.py [--lines 100000] [--words 10000] [--rounds 3] [--full]

The file is made here in the shape of glove.840B.300d.txt: a word and 300 numbers a line, 2.5 kB; with --full 2.2 million
lines, 5.6 GB, for which 9 GB of room are needed in the temporary folder. One word of the vocabulary is not in it, so nothing
can stop early. Each figure is the median processor time of the rounds, in which all ways take turns. The file is in the
system's cache by then; from a disk, every way takes at least the time of that disk.
"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import shutil
import statistics
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from excl.datasets.text.glove import load_vectors
from excl.datasets.text.vocabulary import PAD_TOKEN, UNK_TOKEN, Vocabulary
from excl.models.download import cache_folder
from excl.pipeline.artifacts.file_cache import checksums
from excl.pipeline.queries.word_vectors import vectors_for

DIM = 300
FULL_LINES = 2_196_017
BLOCK_BYTES = 1 << 20


def write_glove(path: Path, num_lines: int) -> None:
    """Write `num_lines` words, w0, w1, …, with numbers that repeat after 4096 lines."""
    values = np.random.default_rng(0).normal(0, 0.4, (4096, DIM))
    tails = [(" " + " ".join(f"{value:.5f}" for value in row) + "\n").encode() for row in values]
    with path.open("wb") as file:
        for number in range(num_lines):
            file.write(b"w%d" % number + tails[number % len(tails)])


def read_bytes(path: Path) -> None:
    """Read the bytes alone."""
    block = bytearray(BLOCK_BYTES)
    with path.open("rb", buffering=0) as file:
        while file.readinto(block):
            pass


def unzip(path: Path) -> None:
    """Unpack alone, with Python's zipfile as excl does."""
    with zipfile.ZipFile(path) as archive, archive.open(archive.namelist()[0]) as file:
        while file.read(BLOCK_BYTES):
            pass


def plain(path: Path, vocabulary: Vocabulary) -> None:
    """Decode and split every line and parse all its numbers, as most loaders do."""
    words, vectors = set(vocabulary.words), {}
    with path.open(encoding="utf-8") as file:
        for line in file:
            word, *numbers = line.rstrip().split(" ")
            vector = np.array([float(number) for number in numbers], dtype=np.float32)
            if word in words:
                vectors[word] = vector


def without_cache(work: Callable[[], object]) -> Callable[[], object]:
    """Return `work` after which the cache is empty."""

    def run() -> object:
        shutil.rmtree(cache_folder(), ignore_errors=True)
        return work()

    return run


def measure(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median processor time of each way in seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, work in ways.items():
            started = time.process_time()
            work()
            seconds[name].append(time.process_time() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def show(figures: dict[str, float], num_bytes: int) -> None:
    """Print a table with ratios to the first way."""
    baseline_s = next(iter(figures.values()))
    for name, seconds in figures.items():
        print(f"{name:52}{seconds:9.3f} s{num_bytes / seconds / 1e9:8.2f} GB/s{seconds / baseline_s:10.2f}")


def main() -> None:
    """Write the file, time all ways in turn, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--words", type=int, default=10_000, help="of the vocabulary")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="as many lines as glove.840B has")
    options = parser.parse_args()
    num_lines = FULL_LINES if options.full else options.lines
    logging.disable(logging.WARNING)
    numbers = np.random.default_rng(1).permutation(num_lines)[: options.words - 1]
    vocabulary = Vocabulary((PAD_TOKEN, UNK_TOKEN, *(f"w{number}" for number in numbers), "missing"))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["EXCL_CACHE"] = str(Path(folder) / "cache")
        text, packed = Path(folder) / "glove.txt", Path(folder) / "glove.zip"
        write_glove(text, num_lines)
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            archive.write(text, text.name)
        num_bytes = text.stat().st_size
        sizes = f"{num_bytes / 1e9:.2f} GB, {packed.stat().st_size / 1e9:.2f} GB packed"
        print(f"{num_lines:,} lines, {sizes}; {len(numbers):,} words are in it and one is not")
        text_ways: dict[str, Callable[[], object]] = {
            "reading the bytes": lambda: read_bytes(text),
            "excl, load_vectors": lambda: load_vectors(text, vocabulary),
            "excl, load_vectors with cased_fallback": lambda: load_vectors(text, vocabulary, cased_fallback=True),
            "sha256 and sha1 alone": without_cache(lambda: checksums(text)),
            "excl, first run: checksums, vectors, cache written": without_cache(lambda: vectors_for(text, vocabulary)),
            "excl, second run: from the cache": lambda: vectors_for(text, vocabulary),
            "a plain loader": lambda: plain(text, vocabulary),
        }
        show(measure(text_ways, options.rounds), num_bytes)
        print()
        zip_ways: dict[str, Callable[[], object]] = {
            "unpacking the zip": lambda: unzip(packed),
            "excl, load_vectors from the zip": lambda: load_vectors(packed, vocabulary),
        }
        show(measure(zip_ways, options.rounds), num_bytes)
    print(f"largest memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
