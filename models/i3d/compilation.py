"""torch.compile for the network: once for each shape of clips, and checked against the original before it is used.

What was compiled is kept on disk in the cache folder, where PyTorch finds it again by shape, code and machine.
"""

from __future__ import annotations

import logging
import os
import time
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

Compile = Literal["always", "never"]
MAX_SHAPES = 8  # of a process: PyTorch compiles one piece of code for no more, and runs other shapes uncompiled in silence

Steps = Callable[["Tensor"], "Tensor"]
_compiled_shapes: list[tuple[int, ...]] = []


class Compiler:
    """A caller of a function of a tensor, which it compiles for the tensor's shape."""

    def __init__(self, *, tolerance: float) -> None:
        self.tolerance = tolerance
        self._functions: dict[tuple[int, ...], Steps] = {}

    def __call__(self, function: Steps, x: Tensor) -> Tensor:
        """Return function(x)."""
        shape = tuple(x.shape)
        if shape in self._functions:
            return self._functions[shape](x)
        expected = function(x)
        if len(_compiled_shapes) < MAX_SHAPES:
            _compiled_shapes.append(shape)
            self._functions[shape] = self._compile(function, x, expected)
        return expected

    def _compile(self, function: Steps, x: Tensor, expected: Tensor) -> Steps:
        """Return the function compiled for the shape of x, or the function itself if compiling fails or is wrong."""
        shape = tuple(x.shape)
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
        started = time.monotonic()
        options: dict[str, bool | int | str | Callable[..., object]] = {"freezing": True}
        if x.is_cuda:
            options["max_autotune"] = True
        try:
            compiled = torch.compile(function, dynamic=False, options=options)
            error = float((compiled(x) - expected).abs().max() / expected.abs().max())
        except Exception as problem:  # noqa: BLE001  (of the compiler, of many kinds, such as a missing C++ compiler)
            summary = f"{type(problem).__name__}: {(str(problem).strip() or '-').splitlines()[0][:160]}"
            log.warning("clips of %s cannot be compiled (%s); they are computed uncompiled", shape, summary)
            return function
        if not error <= self.tolerance:
            log.warning("compiled for clips of %s I3D is off by %.1e; they are computed uncompiled", shape, error)
            return function
        log.info("compiled for clips of %s in %.0f s, relative error %.1e", shape, time.monotonic() - started, error)
        return compiled
