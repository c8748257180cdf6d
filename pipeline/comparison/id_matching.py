"""Match the video ids of two sources, where people name them in their own ways: `v_abc`, `abc.mp4`, `abc_i3d`."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from excl.datasets.parsing import shortened

PREFIX = "v_"
VIDEO_ENDINGS = frozenset({".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".flv", ".3gp", ".ts"})
ENOUGH = 0.5  # of the smaller side: with that many equal names no rule is looked for


@dataclass(frozen=True)
class Rule:
    """The parts taken off every name of one side, in this order: a common suffix, a video's ending, the prefix `v_`."""

    suffix: str = ""
    ending: bool = False
    prefix: bool = False

    def __call__(self, name: str) -> str:
        name = name.removesuffix(self.suffix)
        name = os.path.splitext(name)[0] if self.ending else name
        return name.removeprefix(PREFIX) if self.prefix else name

    def __str__(self) -> str:
        parts = [repr(self.suffix)] if self.suffix else []
        parts += ["the ending of a video file"] if self.ending else []
        parts += [repr(PREFIX)] if self.prefix else []
        return " and ".join(parts)

    @property
    def steps(self) -> tuple[int, int, int]:
        """Return how much the rule takes off: of rules that match equally well, the one that takes least is used."""
        return bool(self.suffix) + self.ending + self.prefix, int(self.ending), len(self.suffix)


@dataclass(frozen=True)
class Pairing:
    """The names of A and B that are one video, under its common id, and a sentence on the rule that matched them."""

    pairs: dict[str, tuple[str, str]]
    only_a: list[str]
    only_b: list[str]
    rule: str


def pair(names_a: Iterable[str], names_b: Iterable[str]) -> Pairing:
    """The videos in common: by equal names, or where fewer than half are, by the rule that finds the most.

    ValueError where two names of a side become one, two rules find different pairs equally well, or nothing is common.
    """
    a, b = sorted(names_a), sorted(names_b)
    exact = set(a) & set(b)
    if len(exact) >= ENOUGH * min(len(a), len(b)):
        return _pairing({name: (name, name) for name in sorted(exact)}, a, b, "equal ids")
    rules_a = [(rule, {rule(name) for name in a}) for rule in _rules(a)]
    rules_b = [(rule, {rule(name) for name in b}) for rule in _rules(b)]
    scores = {}
    for (rule_a, ids_a), (rule_b, ids_b) in itertools.product(rules_a, rules_b):
        steps = tuple(x + y for x, y in zip(rule_a.steps, rule_b.steps, strict=True))
        scores[rule_a, rule_b] = (-len(ids_a & ids_b), steps)
    best = min(scores.values())
    if best[0] == 0:
        raise ValueError(
            f"no video of A is in B, neither by equal ids nor without prefixes and suffixes that all ids of a side have: "
            f"A has {_examples(a)}; B has {_examples(b)}"
        )
    pairing, *alternatives = [_pair_by_rules(a, b, *rules) for rules, score in scores.items() if score == best]
    for alternative in alternatives:
        if set(alternative.pairs.values()) != set(pairing.pairs.values()):
            raise ValueError(f"two rules match ids equally well: {pairing.rule}; or {alternative.rule}; rename one side")
    return pairing


def strip_suffix(names: Iterable[str], suffix: str, *, place: str) -> dict[str, str]:
    """The names that end in `suffix`, by the part before it; ValueError if none does."""
    by_id = {name.removesuffix(suffix): name for name in names if name.endswith(suffix)}
    if not by_id:
        raise ValueError(f"{place}: no id ends in {suffix!r}; it has {_examples(sorted(names))}")
    return by_id


def _pair_by_rules(a: Sequence[str], b: Sequence[str], rule_a: Rule, rule_b: Rule) -> Pairing:
    by_a, by_b = _group_by_id(a, rule_a), _group_by_id(b, rule_b)
    common = sorted(by_a.keys() & by_b.keys())
    for side, groups in (("A", by_a), ("B", by_b)):
        for video_id in common:
            if len(groups[video_id]) > 1:
                raise ValueError(
                    f"ids are ambiguous: {' and '.join(map(repr, groups[video_id][:3]))} of {side} would all be "
                    f"{video_id!r}; rename or remove all but one"
                )
    rules = [f"those of {side} without {rule}" for side, rule in (("A", rule_a), ("B", rule_b)) if rule != Rule()]
    pairs = {video_id: (by_a[video_id][0], by_b[video_id][0]) for video_id in common}
    return _pairing(pairs, a, b, "ids, " + ", ".join(rules) if rules else "equal ids")


def _pairing(pairs: dict[str, tuple[str, str]], a: Sequence[str], b: Sequence[str], rule: str) -> Pairing:
    in_a, in_b = {name_a for name_a, _ in pairs.values()}, {name_b for _, name_b in pairs.values()}
    return Pairing(pairs, [name for name in a if name not in in_a], [name for name in b if name not in in_b], rule)


def _group_by_id(names: Sequence[str], rule: Rule) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(rule(name), []).append(name)
    return groups


def _rules(names: Sequence[str]) -> list[Rule]:
    """Return all rules that apply to every one of these names and leave something of each."""
    shared = names[0]
    for name in names:
        while not name.endswith(shared):
            shared = shared[1:]
    suffixes = ["", *(shared[match.start() :] for match in re.finditer(r"[-_.]", shared))]
    rules = [Rule(*parts) for parts in itertools.product(suffixes, (False, True), (False, True))]
    return [rule for rule in rules if all(_applies(rule, name) for name in names)]


def _applies(rule: Rule, name: str) -> bool:
    stem = name.removesuffix(rule.suffix)
    if rule.ending and PurePath(stem).suffix.lower() not in VIDEO_ENDINGS:
        return False
    return bool(rule(name)) and (not rule.prefix or name.startswith(PREFIX))


def _examples(names: Sequence[str]) -> str:
    return shortened(names, most=3)
