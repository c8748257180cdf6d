"""I3D: the network, its weights, the features of a whole video, and the seconds that each feature row describes."""

from excl.models.i3d.network import FEATURE_DIM, I3D
from excl.models.i3d.timemap import Continuous, Layout, Windows

__all__ = ["FEATURE_DIM", "I3D", "Continuous", "Layout", "Windows"]
