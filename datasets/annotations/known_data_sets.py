"""The data sets that are known by name: their official files, the counts of these, and the parts of each split.

A split (train, val, test) is made of parts of a data set. Which parts is a choice, and papers differ in it, above all for
ActivityNet Captions; so it is named wherever a result stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Part:
    """One official file: its name, and how many annotations of how many videos are in it, None where that is not known."""

    file: str
    rows: int | None = None
    videos: int | None = None


@dataclass(frozen=True)
class KnownDataSet:
    """A data set with published files: parts by name, and the parts of each split unless one says otherwise.

    Where `splits` has no val, it is carved out of train. `durations` are sets of files of which one is needed; `paper_words`
    is the size of the vocabulary that the ExCL paper states.
    """

    parts: Mapping[str, Part]
    splits: Mapping[str, str]
    durations: tuple[tuple[str, ...], ...] = ()
    paper_words: int | None = None


# Counts: computed from the official files (Charades-STA by TALL's authors, ActivityNet Captions by Stanford, TACoS in the
# JSON of 2D-TAN). Vocabularies: ExCL paper, section 4; 3,720 is the size of Charades-STA's test split, so surely a slip.
KNOWN: Mapping[str, KnownDataSet] = MappingProxyType({
    "charades-sta": KnownDataSet(
        {"train": Part("charades_sta_train.txt", 12_408, 5_338), "test": Part("charades_sta_test.txt", 3_720, 1_334)},
        {"train": "train", "test": "test"},
        durations=(("Charades_v1_train.csv", "Charades_v1_test.csv"), ("charades.json",)),
        paper_words=3_720,
    ),
    # val_2 has the videos of val_1, annotated by others: choosing on the one and testing on the other is choosing on test.
    # So the validation split is carved out of train; val_1 is what most later papers test on.
    "activitynet-captions": KnownDataSet(
        {
            "train": Part("train.json", 37_421, 10_009),
            "val_1": Part("val_1.json", 17_505, 4_917),
            "val_2": Part("val_2.json", 17_031, 4_885),
        },
        {"train": "train", "test": "val_1"},
        paper_words=10_000,
    ),
    "tacos": KnownDataSet(
        {
            "train": Part("train.json", 9_790, 75),
            "val": Part("val.json", 4_436, 27),
            "test": Part("test.json", 4_001, 25),
        },
        {"train": "train", "val": "val", "test": "test"},
        paper_words=1_438,
    ),
    # The version that the paper cites. TALL's files come without sentences, so these names are ours.
    "tacos-tall": KnownDataSet(
        {"train": Part("train.txt", 10_146), "val": Part("val.txt", 4_589), "test": Part("test.txt", 4_083)},
        {"train": "train", "val": "val", "test": "test"},
        paper_words=1_438,
    ),
    # The windows of the test split are public since 2026-03-08 (moment_detr, commit 7c61a84); rows are windows.
    "qvhighlights": KnownDataSet(
        {
            "train": Part("highlight_train_release.jsonl", 12_803, 7_100),
            "val": Part("highlight_val_release.jsonl", 2_803, 1_519),
            "test": Part("highlight_test_with_gt.jsonl", 2_761, 1_529),
        },
        {"train": "train", "val": "val", "test": "test"},
    ),
})  # fmt: skip
