"""Lazy imports, for which `models` has the class, too."""

from excl.models.lazy_module import LazyModule

__all__ = ["LazyModule"]
