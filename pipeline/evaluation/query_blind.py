"""The query-blind baseline: what a model scores that is asked somebody else's question about every video.

Whatever it gets right it knows from the video alone, or from when moments usually happen.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np

from excl.pipeline.store.training_store import Query
from excl.pipeline.training.examples import Example

SEED = 0
RULE = (
    "the queries of the split whose videos have features are permuted among each other, by seed 0; no video gets a query of "
    "its own, nor one of the same words, wherever swapping two can avoid it"
)


def swap_queries(examples: Sequence[Example]) -> tuple[list[Example], int]:
    """The examples with each other's queries, and how many could not but get one of their own video's."""
    queries = [example.query for example in examples]
    given = permutation(queries, seed=SEED)
    texts = _texts(queries)
    own = sum(queries[other].tokens in texts[query.video_id] for query, other in zip(queries, given, strict=True))
    return [_asked(example, queries[other]) for example, other in zip(examples, given, strict=True)], own


def permutation(queries: Sequence[Query], *, seed: int) -> np.ndarray:
    """Which query each is replaced by, int [Q], by RULE.

    Queries in an order by video (videos, and each one's queries, in random order) get the one that is as many places on as
    the video with most has queries: if that is no more than half of all, none is of the same video. Then those whose words
    are asked about the video anyway swap with the first, in random order, with whom both are rid of it.
    """
    random, texts = np.random.default_rng(seed), _texts(queries)
    videos = {video_id: rank for rank, video_id in enumerate(random.permutation(sorted(texts)).tolist())}
    order = np.lexsort((random.random(len(queries)), np.array([videos[query.video_id] for query in queries])))
    most = max(Counter(query.video_id for query in queries).values())
    given = np.empty(len(queries), dtype=np.int64)
    given[order] = np.roll(order, -most)

    def is_own(index: int, other: int) -> bool:
        return queries[other].tokens in texts[queries[index].video_id]

    for index in range(len(queries)):
        if is_own(index, given[index]):
            for other in random.permutation(len(queries)):
                if not is_own(index, given[other]) and not is_own(other, given[index]):
                    given[[index, other]] = given[[other, index]]
                    break
    return given


def _texts(queries: Sequence[Query]) -> dict[str, set[tuple[str, ...]]]:
    """The words of all queries about each video."""
    texts: dict[str, set[tuple[str, ...]]] = {}
    for query in queries:
        texts.setdefault(query.video_id, set()).add(query.tokens)
    return texts


def _asked(example: Example, other: Query) -> Example:
    query = dataclasses.replace(example.query, query=other.query, tokens=other.tokens, token_ids=other.token_ids)
    return dataclasses.replace(example, query=query)
