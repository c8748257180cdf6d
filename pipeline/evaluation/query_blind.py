"""The query-blind baseline: the score of a model that is asked another video's query about every video.

Whatever it gets right it knows from the video alone, or from when moments usually happen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from excl.pipeline.store.training_store import Query
from excl.pipeline.training.examples import Example

SEED = 0
RULE = (
    "the queries of the split whose videos have features are permuted among each other, by seed 0; no video gets a query of "
    "its own, nor one of the same words, wherever swapping two can avoid it"
)


def swap_queries(examples: Sequence[Example]) -> tuple[list[Example], int]:
    """The examples with each other's queries, and how many of them could only get a query of their own video."""
    queries = [example.query for example in examples]
    sources = permutation(queries, seed=SEED)
    texts = _texts(queries)
    swapped, num_own = [], 0
    for example, source in zip(examples, sources, strict=True):
        text = {name: getattr(queries[source], name) for name in ("query", "tokens", "token_ids")}
        swapped.append(replace(example, query=replace(example.query, **text)))
        num_own += text["tokens"] in texts[example.query.video_id]
    return swapped, num_own


def permutation(queries: Sequence[Query], *, seed: int) -> np.ndarray:
    """The index of the query that replaces each query, int [Q], by RULE.

    First the queries are put in an order by video (videos, and the queries of each, in random order), and each gets the
    query that is m places further on, where m is the largest number of queries of a video: if that is at most half of all,
    no query stays with its video. Then a query whose words are asked about the video anyway is swapped with the first one,
    in random order, for which the swap mends it and spoils nothing.
    """
    random, texts = np.random.default_rng(seed), _texts(queries)
    videos = {video_id: rank for rank, video_id in enumerate(random.permutation(sorted(texts)).tolist())}
    order = np.lexsort((random.random(len(queries)), np.array([videos[query.video_id] for query in queries])))
    most = max(Counter(query.video_id for query in queries).values())
    sources = np.empty(len(queries), dtype=np.int64)
    sources[order] = np.roll(order, -most)

    def is_own(index: int, source: int) -> bool:
        return queries[source].tokens in texts[queries[index].video_id]

    for index in range(len(queries)):
        if is_own(index, sources[index]):
            for partner in random.permutation(len(queries)):
                if not is_own(index, sources[partner]) and not is_own(partner, sources[index]):
                    sources[[index, partner]] = sources[[partner, index]]
                    break
    return sources


def _texts(queries: Sequence[Query]) -> dict[str, set[tuple[str, ...]]]:
    """The words of all queries about each video."""
    texts: dict[str, set[tuple[str, ...]]] = {}
    for query in queries:
        texts.setdefault(query.video_id, set()).add(query.tokens)
    return texts
