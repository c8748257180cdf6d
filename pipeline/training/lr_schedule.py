"""The schedule of the learning rate: a function of the share of a training that is done, so there is no state to save."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["none", "cosine", "step"]


def learning_rate(schedule: Schedule, highest: float, done: float) -> float:
    """Return the learning rate when the share `done`, in [0, 1), of all epochs is done."""
    match schedule:
        case "none":
            return highest
        case "cosine":
            return highest * (1 + math.cos(math.pi * done)) / 2
        case "step":
            return highest / 10 ** int(3 * done)
