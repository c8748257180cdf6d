"""I3D: the network, its weights, the features of a whole video, and the seconds that each feature row describes."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from excl.models.i3d.row_layout import Continuous, RowLayout, Windows

if TYPE_CHECKING:
    from excl.models.i3d.network import FEATURE_DIM, I3D

__all__ = ["FEATURE_DIM", "I3D", "Continuous", "RowLayout", "Windows"]


def __getattr__(name: str) -> Any:
    """Import the network, and PyTorch with it, when `I3D` or `FEATURE_DIM` is used for the first time (PEP 562)."""
    if name in ("FEATURE_DIM", "I3D"):
        return getattr(import_module("excl.models.i3d.network"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
