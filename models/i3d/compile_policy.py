"""torch.compile where it pays: not before a shape has cost so much time that compiling it would have been worth it.

Nobody knows beforehand how much of a shape is still to come, so the rule is that of renting skis: rent until the rent paid
would have bought them. The time lost is then never more than what compiling costs. What was compiled is kept on disk in the
cache folder, where PyTorch finds it again by shape, code and machine.
"""

from __future__ import annotations

import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from excl.models.download import cache_folder
from excl.models.lazy_module import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")

log = logging.getLogger(__name__)

Compile = Literal["auto", "always", "never"]
# Seconds that a shape must have cost before compiling it is tried: what compiling costs, by the share of time that it saves.
# On a CPU 25 s and a tenth were measured; on a GPU nothing was, and the figures are a guess.
WORTH_S = {"cpu": 25 / 0.1, "cuda": 60 / 0.25}

MAX_SHAPES = 8  # of a process: PyTorch compiles one piece of code for no more, and goes on without a word

Steps = Callable[["Tensor"], "Tensor"]
_shapes: list[tuple[int, ...]] = []


class Compiler:
    """Calls a function of a tensor, compiled for the tensor's shape where that pays or is asked for."""

    def __init__(self, mode: Compile, device: torch.device, *, tolerance: float) -> None:
        self.mode, self.tolerance = mode, tolerance
        self.worth_s = 0.0 if mode == "always" else WORTH_S.get(device.type, float("inf"))
        if mode == "never":
            self.worth_s = float("inf")
        self._spent_s: dict[tuple[int, ...], float] = defaultdict(float)
        self._compiled: dict[tuple[int, ...], Steps] = {}

    def __call__(self, function: Steps, x: Tensor) -> Tensor:
        """function(x)."""
        shape = tuple(x.shape)
        if shape in self._compiled:
            return self._compiled[shape](x)
        if self._spent_s[shape] >= self.worth_s and len(_shapes) < MAX_SHAPES:
            return self._compile(function, x)
        return function(x)

    def spent(self, shape: tuple[int, ...], seconds: float) -> None:
        """Take note that a call for this shape has taken so long."""
        self._spent_s[shape] += seconds

    def _compile(self, function: Steps, x: Tensor) -> Tensor:
        """function(x), and from now on compiled for its shape, unless that fails or is wrong: then as it was."""
        shape = tuple(x.shape)
        _shapes.append(shape)
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
        expected = function(x)
        self._compiled[shape] = function
        started = time.monotonic()
        options: dict[str, bool | int | str | Callable[..., object]] = {"freezing": True}
        if x.is_cuda:
            options["max_autotune"] = True
        try:
            compiled = torch.compile(function, dynamic=False, options=options)
            error = float((compiled(x) - expected).abs().max() / expected.abs().max())
        except Exception as problem:  # noqa: BLE001  (of the compiler, of many kinds: no C++ compiler, for one)
            log.warning("clips of %s cannot be compiled (%s); it goes on without", shape, _first_line(problem))
            return expected
        if error <= self.tolerance:
            self._compiled[shape] = compiled
            log.info("compiled for clips of %s in %.0f s, relative error %.1e", shape, time.monotonic() - started, error)
        else:
            log.warning("compiled for clips of %s it is off by %.1e; it goes on without", shape, error)
        return expected


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0][:160]}"
