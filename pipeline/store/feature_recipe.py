"""The recipe of a video's features, from the settings of `extract` or the recipe of a store, and the making of them."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from excl.datasets.video.backends import resolve_backends
from excl.datasets.video.errors import VideoError
from excl.datasets.video.geometry import Geometry
from excl.datasets.video.sampling import Video
from excl.models.i3d.compilation import Compile
from excl.models.i3d.device_checks import Precision
from excl.models.i3d.extractor import Extractor
from excl.models.i3d.presets import PRESETS, layout_from_json
from excl.models.i3d.row_layout import MIN_POOLED_FRAMES, Continuous, NoRowsError, Pool, RowLayout, Windows
from excl.models.i3d.weight_catalogue import PUBLISHED
from excl.models.i3d.weights import Weights
from excl.pipeline.store.shard import VideoFeatures

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

NATIVE: Literal["native"] = "native"
OWN_FILE = "a file"
IMPORTED = "imported"  # in place of weights, where others made the features


@dataclass(frozen=True)
class FeatureRecipe:
    """The settings of features, but for the weights: sampling (fps None: the video's own rate), rows, precision, storage.

    With `nearest` frames are sampled as FFmpeg's filter fps does it (`sampling.py`), without `antialias` scaled as OpenCV
    does it (`geometry.py`).
    """

    fps: float | None
    short_side: int | str
    crop: int
    backends: tuple[str, ...]
    layout: RowLayout
    precision: Precision
    dtype: Literal["float16", "float32"]
    nearest: bool = False
    antialias: bool = True

    @property
    def geometry(self) -> Geometry:
        """The part of a picture that is kept."""
        return Geometry.parse(self.short_side, self.crop, antialias=self.antialias)

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as JSON values."""
        return {
            "fps": NATIVE if self.fps is None else self.fps,
            "short_side": self.short_side,
            "crop": self.crop,
            "backend": list(self.backends),
            "rows": self.layout.to_json(),
            "precision": self.precision,
            "dtype": self.dtype,
            **({"nearest": True} if self.nearest else {}),  # stores without these two say nothing of them
            **({} if self.antialias else {"antialias": False}),
        }

    @classmethod
    def from_recipe(cls, recipe: Mapping[str, Any]) -> FeatureRecipe:
        """Return the feature recipe in a store's recipe."""
        return cls(
            fps=None if recipe["fps"] == NATIVE else recipe["fps"],
            short_side=recipe["short_side"],
            crop=recipe["crop"],
            backends=tuple(recipe["backend"]),
            layout=layout_from_json(recipe["rows"]),
            precision=recipe["precision"],
            dtype=recipe["dtype"],
            nearest=recipe.get("nearest", False),
            antialias=recipe.get("antialias", True),
        )

    def extractor(
        self, weights: Weights, device: torch.device, *, chunk_frames: int = 512, compile: Compile = "never"
    ) -> Extractor:
        """Return the network that makes the features."""
        return Extractor(
            weights,
            device=device,
            layout=self.layout,
            precision=self.precision,
            chunk_frames=chunk_frames,
            compile=compile,
        )


@dataclass(frozen=True)
class RowOptions:
    """The settings that choose a layout of rows; None stands for the preset's value."""

    preset: str = "excl"
    bug_compatible: bool = False
    stride: Literal[8, 4, 2, 1] | None = None
    window: int | None = None
    hop: int | None = None
    window_mean: bool | None = None
    last_window: Literal["pad", "drop"] | None = None
    pool: Pool | None = None

    def layout(self) -> RowLayout:
        """Return the layout; ValueError if settings contradict each other."""
        preset = PRESETS[self.preset]
        window_options = ("window", "hop", "window_mean", "last_window")
        options = [name for name in window_options if getattr(self, name) is not None]
        if self.bug_compatible:
            return self._buggy_layout([*options, *(name for name in ("stride", "pool") if getattr(self, name))])
        if self.stride is not None:
            if options:
                raise ValueError(
                    f"stride: rows of the whole video have a stride, windows have {options[0]}; give one of the two"
                )
            return Continuous(self.stride, self.pool or preset.layout.pool)
        if self.window is None and not isinstance(preset.layout, Windows):
            if options:
                raise ValueError(f"{options[0]}: there are no windows without a window's length; give window, too")
            assert isinstance(preset.layout, Continuous)
            return dataclasses.replace(preset.layout, pool=self.pool or preset.layout.pool)
        return self._windows(preset.layout)

    def _windows(self, preset_layout: RowLayout) -> Windows:
        base = preset_layout if isinstance(preset_layout, Windows) else Windows()
        window = self.window or base.window
        chosen = Windows(
            window=window,
            hop=self.hop or (base.hop if self.window is None else window),
            mean=base.mean if self.window_mean is None else self.window_mean,
            last=self.last_window or base.last,
            pool=self.pool or base.pool,
        )
        several = dataclasses.replace(chosen, mean=False).rows_of(window) > 1
        return dataclasses.replace(chosen, mean=chosen.mean and several)  # the mean of one row is that row: one recipe

    def _buggy_layout(self, options: list[str]) -> RowLayout:
        bugs = PRESETS[self.preset].bugs
        if bugs is None:
            names = ", ".join(name for name, preset in PRESETS.items() if preset.bugs)
            raise ValueError(f"bug_compatible: the preset {self.preset} has no bugs to repeat; those that have: {names}")
        if options:
            raise ValueError(
                f"bug_compatible: with {options[0]} it is no longer what {self.preset} does; give one of the two"
            )
        return bugs


def resolve_recipe(
    rows: RowOptions,
    *,
    fps: float | Literal["native"] | None,
    short_side: int | str | None,
    crop: int | None,
    backend: str,
    precision: Precision,
    dtype: Literal["float16", "float32"],
    nearest: bool = False,
    antialias: bool = True,
) -> FeatureRecipe:
    """Return the recipe for these settings, of which None stands for the preset's value."""
    preset = PRESETS[rows.preset]
    crop = preset.crop if crop is None else crop
    geometry = Geometry.parse(preset.short_side if short_side is None else short_side, crop)
    chosen_fps = preset.fps if fps is None else None if fps == NATIVE else fps
    return FeatureRecipe(
        fps=chosen_fps,
        short_side=int(str(geometry)) if str(geometry).isdecimal() else str(geometry),
        crop=crop,
        backends=resolve_backends(backend),
        layout=rows.layout(),
        precision=precision,
        dtype=dtype,
        nearest=nearest and chosen_fps is not None,  # at the video's own rate every frame is a sample
        antialias=antialias,
    )


def weights_identity(weights: Weights) -> dict[str, Any]:
    """Return what recipes say about the weights; about a file of your own its content, not its name or description."""
    is_known = weights.source in PUBLISHED or weights.is_random
    return {
        "source": weights.source if is_known else OWN_FILE,
        "sha256": weights.sha256,
        "classes": weights.num_classes,
        "random": weights.is_random,
        "facts": weights.facts.to_json() if is_known else {},
    }


def compute_features(
    video: Video,
    extractor: Extractor,
    *,
    video_id: str,
    dtype: str,
    source: Mapping[str, Any],
    frames: Iterable[np.ndarray] | None = None,
) -> VideoFeatures:
    """Return the feature rows of one video and their seconds; VideoError if it is unreadable, or has no rows in this layout.

    `frames` are the video's frames, if the caller watches them on their way.
    """
    try:
        rows = extractor(video if frames is None else frames)
        facts = video.facts
        start_s, end_s = extractor.layout.row_times(facts.num_frames, fps=facts.fps, duration_s=facts.duration_s)
    except NoRowsError as error:
        raise VideoError("features", f"{video.path}: {error}") from error
    repeated = extractor.layout.repeated(facts.num_frames)
    if facts.num_frames < MIN_POOLED_FRAMES and extractor.layout.pool == "2x7x7":
        log.info(
            "%s: %d frames are fewer than the %d that I3D needs; the last one is repeated",
            video_id, facts.num_frames, MIN_POOLED_FRAMES,
        )  # fmt: skip
    elif repeated > facts.num_frames:
        log.info("%s: the network saw %d frames and %d copies of them", video_id, facts.num_frames, repeated)
    described = {**facts.to_json(), "frames_repeated": repeated, "source": source}
    with np.errstate(over="ignore"):  # said below
        stored = rows.astype(np.dtype(dtype))
    if not np.isfinite(stored).all():
        raise VideoError(
            "features", f"{video.path}: features up to {np.abs(rows).max():.3g} do not fit {dtype}; use dtype float32"
        )
    return VideoFeatures(video_id, stored, start_s, end_s, described)
