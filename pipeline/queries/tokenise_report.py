"""The report of `tokenise` about annotations, tokens and word vectors: as JSON values, and as lines for people."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from itertools import combinations
from typing import Any

import numpy as np

from excl.datasets.annotations.cleaning import FLAWS, Cleaning, CleaningPolicy, find_flaws, list_moments
from excl.datasets.annotations.moments import Moment
from excl.datasets.parsing import printable
from excl.datasets.text.glove import WordVectors
from excl.datasets.text.vocabulary import UNK, Vocabulary
from excl.pipeline.queries.annotation_sources import SPLITS, AnnotationSources

UNKNOWN = "not in the vocabulary"
WORDS_SHOWN = 8


def annotations_report(
    sources: AnnotationSources, moments: Sequence[Moment], hygiene: CleaningPolicy, *, why_unusable: Callable[[Moment], str]
) -> dict[str, Any]:
    """Return what the files hold, split by split, before cleaning."""
    report = {}
    for split in SPLITS:
        chosen = [m for m in moments if m.split == split]
        if not chosen:
            continue
        flaws = find_flaws(chosen, why_unusable=why_unusable)
        beyond = [max(-m.start_s, m.end_s - (m.duration_s or m.end_s)) for m in flaws["beyond_video"]]
        lengths = np.array([m.end_s - m.start_s for m in chosen])
        lengths = lengths[np.isfinite(lengths) & (lengths > 0)]
        official = [sources.parts.get(path) for path in sources.files.get(split, ())]
        report[split] = {
            "rows": len(chosen),
            "videos": len({m.video_id for m in chosen}),
            "official_rows": sum(part.rows or 0 for part in official if part) or None,
            "official_videos": official[0].videos if len(official) == 1 and official[0] else None,
            "moment_s": {"mean": _rounded(lengths.mean()), "std": _rounded(lengths.std())} if len(lengths) else None,
            "flaws": {
                flaw: {"rows": len(rows), "policy": getattr(hygiene, flaw), "first": list_moments(rows)}
                for flaw, rows in flaws.items()
            },
            "furthest_beyond_s": _rounded(max(beyond, default=0.0)),
        }
    return report


def cleaning_report(cleaning: Cleaning) -> dict[str, Any]:
    """Return which moments were changed or dropped."""
    return {
        "kept": len(cleaning.usable),
        "changed": [{"annotation_id": m.annotation_id, "source": m.source, "how": change} for m, change in cleaning.changed],
        "dropped": [{"annotation_id": m.annotation_id, "source": m.source, "why": reason} for m, reason in cleaning.dropped],
    }


def splits_report(
    moments: Sequence[Moment],
    tokens: Sequence[Sequence[str]],
    vocabulary: Vocabulary,
    vectors: WordVectors | None,
    unseen: Set[str],
) -> dict[str, Any]:
    """Return for every split the tokens outside the vocabulary and, with word vectors, those without one.

    `unseen` are the words outside the vocabulary that keep a vector of their own.
    """
    with_vector = None
    if vectors is not None:
        with_vector = {word for word, has_row in zip(vocabulary.words, vectors.found, strict=True) if has_row} | unseen
    report = {}
    for split in SPLITS:
        chosen = [(m, t) for m, t in zip(moments, tokens, strict=True) if m.split == split]
        if not chosen:
            continue
        ids = [vocabulary.ids(t) for _, t in chosen]
        report[split] = {
            "videos": len({m.video_id for m, _ in chosen}),
            "moments": len(chosen),
            "tokens": sum(map(len, ids)),
            "unknown": _share((word for word, i in zip(t, row, strict=True) if i == UNK) for (_, t), row in
                              zip(chosen, ids, strict=True)),
        }  # fmt: skip
        if with_vector is not None:
            report[split]["unseen_with_vector"] = _share((word for word in t if word in unseen) for _, t in chosen)
            report[split]["without_vector"] = _share((word for word in t if word not in with_vector) for _, t in chosen)
    return report


def _share(words_by_query: Iterable[Iterable[str]]) -> dict[str, Any]:
    """Return how many tokens and queries the words are in, and the words, the most frequent first."""
    words: Counter[str] = Counter()
    queries = 0
    for row in words_by_query:
        listed = list(row)
        words.update(listed)
        queries += bool(listed)
    ranked = sorted(words.items(), key=lambda item: (-item[1], item[0]))
    return {"tokens": words.total(), "queries": queries, "words": dict(ranked)}


def vectors_report(vocabulary: Vocabulary, vectors: WordVectors, file: Mapping[str, Any]) -> dict[str, Any]:
    """Return which file the vectors are from, and which words of the vocabulary it lacks."""
    without = [word for word, has_row in zip(vocabulary.words[2:], vectors.found[2:], strict=True) if not has_row]
    return {**file, "dim": vectors.dim, "words_without_vector": len(without), "without_vector": without}


def shared_videos(moments: Sequence[Moment]) -> list[str]:
    """Return a line for every two splits with videos in common: a choice on one is then not new to the other."""
    videos = {split: {m.video_id for m in moments if m.split == split} for split in SPLITS}
    pairs = [(a, b, len(videos[a] & videos[b])) for a, b in combinations(videos, 2)]
    return [
        f"{count:,} videos are both in {a} and in {b}: what is chosen on the one is not new to the other"
        for a, b, count in pairs
        if count
    ]


def lines(report: Mapping[str, Any]) -> list[str]:
    """Return the report for people."""
    shown = [f"{report['dataset']}; " + "; ".join(f"{split} is {origin}" for split, origin in report["made_of"].items())]
    for split, facts in report["annotations"].items():
        shown += _annotation_lines(split, facts)
    done = report["cleaning"]
    counted = Counter(row["how"] for row in done["changed"])
    changed = "".join(f", {count:,} of them {change}" for change, count in counted.items())
    shown.append(f"{done['kept']:,} moments kept{changed}; {len(done['dropped']):,} dropped")
    reasons: dict[str, list[str]] = {}
    for row in done["dropped"]:
        reasons.setdefault(row["why"], []).append(row["source"])
    for reason, sources in reasons.items():
        shown.append(f"  dropped, {reason}: {len(sources):,}, {', '.join(sources[:5])}{', …' if len(sources) > 5 else ''}")
    words = report["vocabulary"]
    paper = f"; the paper states {words['paper']:,}" if words["paper"] else ""
    shown.append(f"vocabulary of train by {report['tokeniser']}: {words['words']:,} words{paper}")
    for split, facts in report["splits"].items():
        shown += _token_lines(split, facts)
    if vectors := report.get("vectors"):
        identity = f", which is {vectors['known']}" if vectors["known"] else ", which is none of the published files we know"
        shown.append(
            f"{vectors['words_without_vector']:,} of {words['words']:,} words have no vector in {vectors['file']}{identity} "
            f"(numbers a word: {vectors['dim']})"
        )
    return shown + list(report["shared_videos"])


def _annotation_lines(split: str, facts: Mapping[str, Any]) -> list[str]:
    rows = _beside(facts["rows"], facts["official_rows"])
    videos = _beside(facts["videos"], facts["official_videos"])
    as_published = facts["official_rows"] == facts["rows"] and facts["official_videos"] in (None, facts["videos"])
    length = "" if facts["moment_s"] is None else "; moments of {mean} ± {std} s".format(**facts["moment_s"])
    same = " (as published)" if as_published else ""
    shown = [f"{split}: {rows} rows, {videos} videos{same}{length}"]
    for flaw, rows_of_flaw in facts["flaws"].items():
        if rows_of_flaw["rows"]:
            extent = f", by {facts['furthest_beyond_s']} s at most" if flaw == "beyond_video" else ""
            shown.append(
                f"  {rows_of_flaw['rows']:,} {FLAWS[flaw]}{extent} ({rows_of_flaw['policy']}): {rows_of_flaw['first']}"
            )
    return shown


def _beside(count: int, published: int | None) -> str:
    return f"{count:,}" if published in (None, count) else f"{count:,} (published: {published:,})"


def _token_lines(split: str, facts: Mapping[str, Any]) -> list[str]:
    shown = [f"{split}: {facts['moments']:,} moments of {facts['videos']:,} videos, {facts['tokens']:,} tokens"]
    with_vector = bool(facts.get("unseen_with_vector", {}).get("tokens"))
    for name, description in (
        ("unknown", UNKNOWN),
        ("unseen_with_vector", f"{UNKNOWN}, but with a vector, which answers use"),
        ("without_vector", "without a vector" if with_vector else f"{UNKNOWN}, or without a vector"),
    ):
        share = facts.get(name)
        if share and share["tokens"]:
            words = [printable(word) for word in list(share["words"])[:WORDS_SHOWN]]
            ellipsis = ", …" if len(share["words"]) > WORDS_SHOWN else ""
            shown.append(
                f"  {description}: {share['tokens']:,} tokens in {share['queries']:,} queries, {len(share['words']):,} words"
                f": {', '.join(words)}{ellipsis}"
            )
    return shown


def _rounded(value: float) -> float:
    return round(float(value), 2)


def policies(hygiene: CleaningPolicy) -> dict[str, str]:
    """Return the policies as JSON values."""
    return dataclasses.asdict(hygiene)
