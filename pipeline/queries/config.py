"""The settings by which annotations become queries: flags, recipe keys and the identity of the folder."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path

from pydantic.dataclasses import dataclass

from excl.datasets.annotations.cleaning import CleaningPolicy
from excl.datasets.text.vocabulary import Tokeniser, UnseenWords
from excl.pipeline.config import STRICT, Fraction01, NonNegativeInt, PositiveInt, RunOnly, SaidInText
from excl.pipeline.queries.annotation_sources import AnnotationSources, find_sources
from excl.pipeline.queries.word_vectors import local_file


@dataclass(frozen=True, config=STRICT)
class TokeniseConfig:
    """Turn annotations into moments with tokens, a vocabulary of the training split, and its word vectors."""

    dataset: str
    """A data set of your own: a file of JSON lines (.jsonl) or a table (.csv, .tsv) with video_id, query, start_s, end_s
    and, if you like, split, duration_s, annotation_id, query_id, group. Or the name of a data set or a format:
    charades-sta, activitynet-captions, tacos (JSON, in frames), tacos-tall, qvhighlights, moment-detr, timelens,
    charades-reannotated, jsonl, csv."""
    annotations: RunOnly[Path | None] = None
    """The folder with the official files of a named data set, under their own names."""
    train: SaidInText[tuple[str, ...]] = ()
    """The training split: annotation files; with --annotations parts of the data set, several joined by + (default: the
    official ones)."""
    val: SaidInText[tuple[str, ...]] = ()
    """The validation split, likewise. Without any, --carve-val takes one from the training split."""
    test: SaidInText[tuple[str, ...]] = ()
    """The test split, likewise: for activitynet-captions val_1 (the default), val_2 or val_1+val_2. Of several files, as
    those of a data set's changing distributions, results are given for each too."""
    durations: SaidInText[tuple[Path, ...]] = ()
    """The files with the videos' durations where the annotations have none: Charades_v1_train.csv and Charades_v1_test.csv
    or charades.json for charades-sta and charades-reannotated, the numbers of frames for tacos-tall (JSON or TALL's
    pickle)."""
    glove: str | None = None
    """Word vectors: a file in GloVe's text format, a zip with one in it, or 6B or 840B for the published ones, which are
    downloaded on first use."""
    out: RunOnly[Path | None] = None
    """The folder to write."""
    report: RunOnly[bool] = False
    """Print what is found in the annotations, and write nothing: needs no --out, and without --glove says nothing of it."""
    glove_member: str | None = None
    """File of the zip to read, if it has several: glove.6B.300d.txt, for example."""
    glove_cased_fallback: bool = False
    """Give a word without a vector the vector of the same word in another case (glove.840B is cased, queries are not)."""
    hygiene: CleaningPolicy = field(default_factory=CleaningPolicy)
    """The treatment of annotations that are wrong."""
    tokeniser: Tokeniser = "nltk"
    """Tokeniser, which makes words of queries: nltk (words and marks), whitespace, words (letters and digits),
    no-punctuation."""
    unseen_words: UnseenWords = "vector"
    """Treatment of words outside the vocabulary in answers (never in training). vector: each gets its own word vector, if
    the file has one; unk: all are one unknown word."""
    carve_val: Fraction01 = 0.1
    """Share of training videos, chosen by --seed, that becomes the validation split if there is none."""
    seed: NonNegativeInt = 0
    """Seed of the validation split, and of the rows of words that have no vector."""
    min_count: PositiveInt = 1
    """Words of the training split rarer than this are unknown."""
    max_words: PositiveInt | None = None
    """Largest number of words, the most frequent ones; the paper has 10000 on ActivityNet Captions."""

    def __post_init__(self) -> None:
        self.sources()
        if not self.report:
            for name in ("glove", "out"):
                if getattr(self, name) is None:
                    raise ValueError(f"{name}: missing; only --report goes without it")

    def sources(self) -> AnnotationSources:
        """The files to read, and as which split."""
        chosen = {"train": self.train, "val": self.val, "test": self.test}
        return find_sources(self.dataset, self.annotations, chosen, self.durations)

    def inputs(self) -> list[Path]:
        """The files that are read, except word vectors that are downloaded."""
        glove = None if self.glove is None else local_file(self.glove)
        return [*self.sources().all_files(), *([] if glove is None else [glove])]
