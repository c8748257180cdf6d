"""Text-to-clip localisation from raw videos: I3D features with exact times, and ExCL trained on them.

    import excl

    store = excl.extract(videos="videos/", out="features/", weights="kinetics")  # a FeatureStore
    store["holiday"].features, store["holiday"].start_s                          # [n, 1024], seconds
    excl.tokenise(dataset="annotations.jsonl", glove="6B", out="queries/")
    excl.pack(features="features/", queries="queries/", out="store/")            # a TrainingStore
    excl.train(store="store/", out="run/", epochs=30)                            # a TrainedRun
    excl.evaluate("run/", split="test")["model"]                                 # the metrics, a dict
    excl.localize(run="run/", video="holiday.mp4", query="a dog jumps")          # [Answer(start_s=…, end_s=…, …)]

The functions take the settings of the commands of the same names, and `help(excl.extract)` lists them. Settings that are
wrong and data that cannot be used raise ValueError, files that are missing OSError, each with a sentence.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what editors and type checkers see; a test compares it with the table below
    from excl.datasets.video.backends import sample_frames
    from excl.datasets.video.errors import VideoError
    from excl.models.excl import ExCL, ExCLConfig
    from excl.models.i3d import I3D
    from excl.pipeline.store.feature_store import FeatureStore
    from excl.pipeline.store.frame_store import FrameStore
    from excl.pipeline.store.training_store import TrainingStore
    from excl.pipeline.training.trained_run import TrainedRun, load_run
    from excl.workflows.api import (
        compare,
        decode,
        evaluate,
        extract,
        localize,
        open_store,
        pack,
        report,
        score,
        show,
        tokenise,
        train,
        video_features,
    )

    __version__: str

_MODULES = {
    "ExCL": "excl.models.excl",
    "ExCLConfig": "excl.models.excl",
    "FeatureStore": "excl.pipeline.store.feature_store",
    "FrameStore": "excl.pipeline.store.frame_store",
    "I3D": "excl.models.i3d",
    "TrainedRun": "excl.pipeline.training.trained_run",
    "TrainingStore": "excl.pipeline.store.training_store",
    "VideoError": "excl.datasets.video.errors",
    "load_run": "excl.pipeline.training.trained_run",
    "sample_frames": "excl.datasets.video.backends",
}  # all others are in excl.workflows.api

__all__ = [
    "I3D",
    "ExCL",
    "ExCLConfig",
    "FeatureStore",
    "FrameStore",
    "TrainedRun",
    "TrainingStore",
    "VideoError",
    "compare",
    "decode",
    "evaluate",
    "extract",
    "load_run",
    "localize",
    "open_store",
    "pack",
    "report",
    "sample_frames",
    "score",
    "show",
    "tokenise",
    "train",
    "video_features",
]


def __getattr__(name: str) -> Any:
    """Import a name when it is used for the first time (PEP 562): `import excl` itself imports nothing."""
    if name == "__version__":
        return import_module("importlib.metadata").version("excl")
    if name in _MODULES:
        value = getattr(import_module(_MODULES[name]), name)
    elif name in __all__:
        value = import_module("excl.workflows.api").documented(name)
    else:
        raise AttributeError(f"module 'excl' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, for completion."""
    return [*__all__, "__version__"]
