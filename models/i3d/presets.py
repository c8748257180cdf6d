"""The presets: published I3D features, and how excl makes their like: rate, picture, weights and rows by name.

They follow the publishers' public code and documentation. They do not repeat published features to the bit: the frames of
those went through JPEG files and other scalers. Row counts are for a video of T sampled frames.

| preset | frames a second | short side | rows | published for |
|---|---|---|---|---|
| excl | 5 | 256 | max(1, ceil(T/8) - 1) | the ExCL paper |
| excl-dense | 5 | 256 | max(1, T - 1) | a row for every frame |
| vslnet-charades | 24 | 226, upscale only | ceil(T/12) | Charades-STA features of VSLNet |
| vslnet-tacos | the video's | 224 | ceil(T/16) | TACoS and ActivityNet features of VSLNet |
| piergiaj | 24 | 226, upscale only | max(1, ceil(T/8) - 1) | the PyTorch port's own script |
| video-features | the video's | 256 | max(1, floor(T/64)) | v-iashin/video_features |
| finspire | 25 | 256 | max(1, floor((T - 16)/16) + 1) | Finspire13/pytorch-i3d-feature-extraction |
| rgb600 | 16 | 224 x 224 | seven every 64 frames | Charades-STA features of SCDM |

rgb600 is the Kinetics-600 checkpoint of DeepMind's kinetics-i3d at 16 frames a second, by which a user made SCDM's features
again (yytzsy/SCDM, issue 3); picture and windows are those of the script that SCDM names, JaywongWang/I3D-Feature-Extractor.
That script keeps T/8 rows, of which the last eighth are of windows that begin with the video again; they are left out here.

Where the published code has a mistake that changes which rows there are, `bugs` is the layout that repeats it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from excl.models.i3d.published_layouts import PortChunks, ShiftedWindows, StacksWithOneMore
from excl.models.i3d.row_layout import Continuous, RowLayout, Windows

PresetName = Literal[
    "excl", "excl-dense", "vslnet-charades", "vslnet-tacos", "piergiaj", "video-features", "finspire", "rgb600"
]

_UPSCALE_226 = "226-upscale-only"


@dataclass(frozen=True)
class Preset:
    """Frames a second (None: the video's own), geometry as `Geometry.parse` takes it, weights, rows, rows with mistakes."""

    layout: RowLayout
    fps: float | None = 5.0
    short_side: int | str = 256
    crop: int = 224
    weights: str = "kinetics"
    bugs: RowLayout | None = None


PRESETS: dict[str, Preset] = {
    "excl": Preset(Continuous()),
    "excl-dense": Preset(Continuous(stride=1)),
    "vslnet-charades": Preset(
        Windows(window=24, hop=24), 24.0, _UPSCALE_226, weights="charades", bugs=ShiftedWindows(window=24)
    ),
    "vslnet-tacos": Preset(Windows(window=16, hop=16), None, 224, bugs=ShiftedWindows(window=16)),
    "piergiaj": Preset(Continuous(), 24.0, _UPSCALE_226, weights="charades", bugs=PortChunks()),
    "video-features": Preset(Windows(window=64, hop=64, mean=True, last="drop"), None, bugs=StacksWithOneMore()),
    "finspire": Preset(Windows(window=16, hop=16, last="drop"), 25.0),
    "rgb600": Preset(Windows(window=64, hop=64), 16.0, "224x224", weights="rgb600"),
}
assert set(PRESETS) == set(get_args(PresetName))

_LAYOUTS: tuple[type[Any], ...] = (Continuous, Windows, PortChunks, ShiftedWindows, StacksWithOneMore)


def layout_from_json(values: Mapping[str, Any]) -> RowLayout:
    """Return the layout that `to_json` described by these values."""
    settings = dict(values)
    kind = settings.pop("kind")
    return next(layout for layout in _LAYOUTS if layout.kind == kind)(**settings)
