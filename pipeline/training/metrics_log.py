"""The learning curve of a training: metrics.jsonl, and on request TensorBoard's files next to it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from excl.pipeline.artifacts.atomic_files import write_text


def require_tensorboard() -> None:
    """Raise ValueError, which says what to install, if TensorBoard is missing."""
    if importlib.util.find_spec("tensorboard") is None:
        raise ValueError("--tensorboard: TensorBoard is not installed; `pip install 'excl[tensorboard]'` installs it")


class MetricsLog:
    """The writer of a run's learning curve, called after every epoch."""

    def __init__(self, folder: Path, *, tensorboard: bool) -> None:
        self.folder, self.writer = folder, None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  (an extra)

            self.writer = SummaryWriter(folder / "tensorboard")

    def write(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Rewrite metrics.jsonl, a line an epoch, and send the last one to TensorBoard."""
        write_text(self.folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in history))
        if self.writer is not None:
            for name, value in scalars(history[-1]).items():
                self.writer.add_scalar(name, value, history[-1]["epoch"])
            self.writer.flush()


def scalars(line: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the numbers of a line by name, those of single data sets as `sets/<name>/<figure>`."""
    flat: dict[str, float] = {}
    for name, value in line.items():
        if isinstance(value, Mapping):
            flat |= scalars(value, f"{prefix}{name}/")
        elif name != "epoch":
            flat[prefix + name] = float(value)
    return flat
