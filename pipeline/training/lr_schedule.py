"""How the learning rate falls: a function of how much of a training is done, so that there is no state to keep."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["none", "cosine", "step"]


def learning_rate(schedule: Schedule, highest: float, done: float) -> float:
    """The learning rate when `done`, in [0, 1), of all epochs are done."""
    match schedule:
        case "none":
            return highest
        case "cosine":
            return highest * (1 + math.cos(math.pi * done)) / 2
        case "step":
            return highest / 10 ** int(3 * done)
