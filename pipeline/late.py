"""Modules that are slow to import and are not always needed: PyTorch takes seconds, and most commands do without it."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class Late:
    """Stands for a module, which is imported when something in it is asked for first."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self._name), name)
