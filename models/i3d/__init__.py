"""I3D: the network, its weights, the features of a whole video, and the seconds that each feature row describes."""

from excl.models.i3d.network import FEATURE_DIM, I3D
from excl.models.i3d.timemap import num_rows, row_times

__all__ = ["FEATURE_DIM", "I3D", "num_rows", "row_times"]
