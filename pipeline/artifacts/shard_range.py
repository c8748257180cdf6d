"""A share of a stage's shards, for job arrays: `--shard-range i/n`."""

from __future__ import annotations

import re
from dataclasses import dataclass

_SHARE = re.compile(r"(\d+)/(\d+)")


@dataclass(frozen=True)
class ShardRange:
    """One of `of` equal shares of a stage's shards: those whose number leaves this remainder, so that a share stays the
    same when videos are added."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> ShardRange:
        """Return the share that `i/n` names; ValueError for any other text."""
        match = _SHARE.fullmatch(text)
        if match is None or int(match[1]) >= int(match[2]):
            raise ValueError(f"{text!r}; expected i/n with i from 0 to n - 1, such as 0/4")
        return cls(int(match[1]), int(match[2]))

    def has(self, shard: int) -> bool:
        """Return whether a shard is of this share."""
        return shard % self.of == self.number

    @property
    def name(self) -> str:
        """The name of the share, for its journal and its lock."""
        return f"{self.number}-of-{self.of}"
