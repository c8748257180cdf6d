"""Stage 2, extract: reads videos (or the frames that `decode` left), leaves a store of I3D features.

Several videos are decoded at once, each ahead of the network by what it takes at a time; the network takes them in turn.
How videos become parts and parts become shards: `sharded_stage.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic import Field
from pydantic.dataclasses import dataclass

from excl.datasets.video.backends import Choice
from excl.datasets.video.discovery import find_videos
from excl.datasets.video.errors import InternalError, VideoError
from excl.datasets.video.sampling import Video
from excl.models.i3d.compilation import Compile
from excl.models.i3d.device_checks import Precision, check_precision
from excl.models.i3d.extractor import MAX_BATCH_FRAMES, MAX_SIZE, Extractor, choose_devices
from excl.models.i3d.presets import PRESETS, PresetName
from excl.models.i3d.row_layout import Pool
from excl.models.i3d.runner import keep_freed_memory
from excl.models.i3d.weights import Weights, check_spec, load_weights
from excl.pipeline import decode
from excl.pipeline.artifacts.atomic_files import sha256_file
from excl.pipeline.artifacts.header import matching_folder, read_header
from excl.pipeline.artifacts.made_with import DECODING, package_versions
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.artifacts.video_records import VideoRecord, video_key
from excl.pipeline.config import STRICT, PositiveFloat, PositiveInt, WithoutPrefix
from excl.pipeline.decode import check_sampled, source_of, stored_videos
from excl.pipeline.execution import pending_videos, sharded_stage
from excl.pipeline.execution.executor_settings import INLINE, LOCAL, ExecutorSettings
from excl.pipeline.execution.shard_work import Executor
from excl.pipeline.execution.sharded_stage import Preview, ShardedStage, part_name
from excl.pipeline.execution.source_files import file_facts, file_stat, require_unchanged
from excl.pipeline.execution.video_reading import ReadingSeveral, TimedReading, num_cores
from excl.pipeline.store.feature_recipe import FeatureRecipe, RowOptions, compute_features, resolve_recipe, weights_identity
from excl.pipeline.store.frame_codec import LOSSLESS
from excl.pipeline.store.frame_store import StoredFrames
from excl.pipeline.store.shard import Shard, VideoFeatures, write_shard
from excl.pipeline.store.virtual_index import write_index

log = logging.getLogger(__name__)

STAGE, CODE_VERSION = "extract", 4
LITTLE_WAITING, ADVICE_AFTER_S = 0.1, 5.0  # a share of the time; a shorter run says nothing about longer ones
CODE_VERSIONS = {decode.STAGE: decode.CODE_VERSION, STAGE: CODE_VERSION}  # of all code that makes a feature


OfPreset = tyro.conf.arg(help_behavior_hint="(default: the preset's)")
OfWindows = tyro.conf.arg(help_behavior_hint="(default: the preset's, if it has windows)")


@dataclass(frozen=True, config=STRICT)
class ExtractConfig:
    """Make I3D RGB features of videos: rows of 1024 numbers, with the seconds that each describes."""

    out: Path
    """The feature store to write. Run again with the same settings, it resumes where it stopped."""
    videos: Path | None = None
    """A folder, searched recursively for videos, one video file, or a list: a .txt file with a path a line, from the
    list's own folder."""
    frames: Path | None = None
    """A folder that `excl decode` wrote, in place of --videos."""
    preset: PresetName = "excl"
    """Rate, picture, weights and rows by name: excl, a row every 8 of 5 frames a second, or excl-dense, a row for every
    frame; the others as published features were made (docs/features.md). Settings given as well override the preset's."""
    bug_compatible: bool = False
    """Also repeat those mistakes of a published pipeline that change which rows there are."""
    weights: Annotated[str | None, OfPreset] = None
    """kinetics or charades (downloaded on first use), a file in the format of the public PyTorch port or of safetensors, the
    name of an imported file, or random:SEED: weights by formula, with which results mean nothing, to try commands out."""
    fps: Annotated[PositiveFloat | Literal["native"] | None, OfPreset] = None
    """Frames a second of presentation time (the paper uses 5), or native, the rate of each video itself."""
    nearest: bool = False
    """Take the frames that FFmpeg's filter fps takes, half a period later than those on screen at each sampling time, to
    make features like those of people who re-encoded their videos to a lower rate."""
    short_side: Annotated[int | str | None, OfPreset] = None
    """Pixels of the shorter side of the picture after scaling; 226-upscale-only scales smaller pictures and leaves larger
    ones; 340x256 scales to this width and height, whatever the picture's shape."""
    antialias: bool = True
    """Average the pixels of a picture that is made smaller; without it the four nearest are taken, as OpenCV's bilinear
    resize does, by which most published features were made."""
    crop: Annotated[Annotated[int, Field(ge=32, le=MAX_SIZE)] | None, OfPreset] = None
    """Pixels of the centred square that is kept; the published weights were trained on 224."""
    stride: Annotated[Literal[8, 4, 2, 1] | None, OfPreset] = None
    """A row every so many frames of the whole video. 4, 2 and 1 take 1.1, 1.2 and 2.4 times as long as 8."""
    window: Annotated[Annotated[PositiveInt, Field(le=MAX_BATCH_FRAMES)] | None, OfWindows] = None
    """Use windows of so many frames, each seen by itself, in place of the whole video, as many published features were
    made."""
    hop: Annotated[PositiveInt | None, OfWindows] = None
    """Frames from one window's start to the next; if only --window is given, as many."""
    window_mean: Annotated[bool | None, OfWindows] = None
    """Average the rows of each window into one."""
    last_window: Annotated[Literal["pad", "drop"] | None, OfWindows] = None
    """Treatment of the video's end: pad fills the last window up with copies of the last frame, drop leaves out what fills
    no window."""
    pool: Annotated[Pool | None, OfPreset] = None
    """2x7x7 averages neighbouring steps of 8 frames in pairs, as the published network does; 1x7x7 does not."""
    backend: Choice = "pyav"
    """Decoder: pyav, the reference; decord, torchcodec, torchcodec-cuda (NVDEC), which refuse files that they would get
    wrong; or auto, the GPU's decoder if there is one, with pyav for what it refuses, and otherwise pyav."""
    precision: Precision = "float32"
    """Precision of I3D: float32, tf32 (NVIDIA's GPUs, three digits), bfloat16 (faster; relative error below 1e-2)."""
    dtype: Literal["float16", "float32"] = "float16"
    """Type in which features are stored."""
    shard_videos: PositiveInt = 64
    """Videos in one shard."""
    device: str = "auto"
    """Device that runs I3D: auto (a GPU if there is one), cpu, cuda, cuda:1, mps, or several GPUs: cuda:0,cuda:1."""
    chunk_frames: Annotated[PositiveInt, Field(multiple_of=8, le=MAX_BATCH_FRAMES)] = 512
    """Frames that the network sees at once of a long video: fewer need less memory and more time, the rows are the same."""
    compile: Compile = "never"
    """Use of torch.compile: always, which takes 10 to 20 s for each length of clip and then saves a tenth of the time on a
    CPU; or never."""
    new_version: bool = False
    """If --out was made from another recipe, do not refuse, but write next to it, to OUT-2, OUT-3, …"""
    retry_failed: bool = False
    """Try the videos that failed before again."""
    reading: WithoutPrefix[ReadingSeveral] = field(default_factory=ReadingSeveral)
    """The settings for reading videos."""
    running: WithoutPrefix[ExecutorSettings] = field(default_factory=ExecutorSettings)
    """The settings for where the work is done."""

    def __post_init__(self) -> None:
        feature_recipe = self.feature_recipe()
        check_sampled(feature_recipe.short_side, feature_recipe.crop, self.backend)
        check_spec(self.weights_spec)
        simple = self.device in ("auto", "cpu") and self.precision != "tf32"  # any machine has these: PyTorch can wait
        if self.running.executor in (INLINE, LOCAL) and not simple:  # other machines may have other devices
            for device in choose_devices(self.device):
                check_precision(self.precision, device)
        if (self.videos is None) == (self.frames is None):
            raise ValueError("give either --videos or --frames")
        if self.frames is not None and (self.nearest or not self.antialias):
            flag = "--nearest" if self.nearest else "--no-antialias"
            raise ValueError(f"{flag}: the frames of `excl decode` are made without it; give --videos in place of --frames")

    def feature_recipe(self) -> FeatureRecipe:
        """Return how the features are made; ValueError for settings that contradict each other."""
        names = [field.name for field in dataclasses.fields(RowOptions)]
        return resolve_recipe(
            RowOptions(**{name: getattr(self, name) for name in names}),
            fps=self.fps,
            short_side=self.short_side,
            crop=self.crop,
            backend=self.backend,
            precision=self.precision,
            dtype=self.dtype,
            nearest=self.nearest,
            antialias=self.antialias,
        )

    @property
    def weights_spec(self) -> str:
        """The weights, by name."""
        return self.weights or PRESETS[self.preset].weights

    def elsewhere(self) -> ExtractConfig:
        """Return the same settings for a process with another working directory."""
        paths = {name: path.absolute() for name in ("videos", "frames", "out") if (path := getattr(self, name)) is not None}
        spec = self.weights_spec
        return dataclasses.replace(self, **paths, weights=str(Path(spec).absolute()) if Path(spec).is_file() else spec)


def run(config: ExtractConfig, *, executor: Executor | None = None) -> Path:
    """Extract what is not extracted yet; failures are recorded and do not stop the run. Return the store's folder."""
    videos = _videos(config, warn=True)
    recipe = made_by(config)
    if config.new_version:
        out = matching_folder(config.out, stage=STAGE, identity=recipe, code_version=CODE_VERSION)
        if out != config.out:
            log.info("%s was made from another recipe; writing %s", config.out, out)
        config = dataclasses.replace(config, out=out)
    stage = ShardedStage(
        name=STAGE,
        code_version=CODE_VERSION,
        out=config.out,
        identity=recipe,
        shard_videos=config.shard_videos,
        work=functools.partial(extract_video, config, recipe),
        join=functools.partial(join_features, recipe=recipe),
        identify=_identify(config),
        at_once=functools.partial(_videos_at_once, config),
        about={"weights": _weights(config.weights_spec).facts.to_json(), "made_with": _made_with(config)},
        after=write_index,
    )
    stage.run(videos, retry_failed=config.retry_failed, executor=executor, share=config.running.share)
    EXTRACTORS.log_usage(config)
    return config.out


def _videos_at_once(config: ExtractConfig) -> int:
    """Return how many videos to read at once: on a CPU I3D takes longest and all cores, so one video ahead is enough."""
    enough = 2 if choose_devices(config.device)[0].type == "cpu" else num_cores()
    return config.reading.decoders or enough


def preview(config: ExtractConfig) -> Preview:
    """Return the videos whose features `run` would make; nothing is written."""
    videos = _videos(config)
    return sharded_stage.preview(config.out, videos, identify=_identify(config), retry_failed=config.retry_failed)


def _videos(config: ExtractConfig, *, warn: bool = False) -> Mapping[str, Path]:
    """Return the files to read by video id; `warn` logs how many files of a folder are left out."""
    if config.videos is not None:
        return find_videos(config.videos, warn=warn)
    assert config.frames is not None
    recipe = config.feature_recipe()
    return stored_videos(
        config.frames, fps=recipe.fps, short_side=recipe.short_side, crop=recipe.crop, backends=recipe.backends
    )


def _identify(config: ExtractConfig) -> Callable[[pending_videos.VideoTask], Mapping[str, Any]]:
    return _identify_file if config.frames is None else source_of


def _identify_file(item: pending_videos.VideoTask) -> Mapping[str, Any]:
    return file_facts(item.path)


def made_by(config: ExtractConfig) -> dict[str, Any]:
    """Return what determines the features, for the manifest and every shard: the settings, and what the weights are.

    How frames were kept on the way counts, too: "png" is without loss, and so the same as not at all.
    """
    pictures = LOSSLESS
    if config.frames is not None:
        pictures = Manifest.read(config.frames, stage=decode.STAGE).header["identity"]["pictures"]
    return {
        **config.feature_recipe().to_json(),
        "weights": weights_identity(_weights(config.weights_spec)),
        "pictures": pictures,
        "network": "i3d-rgb",
        "shard_videos": config.shard_videos,
        "code_versions": CODE_VERSIONS,
    }


def _made_with(config: ExtractConfig) -> dict[str, str]:
    """Return the versions of what made the features: of the decoders when frames were kept, if that was before."""
    decoders = package_versions(DECODING)
    if config.frames is not None:
        decoders = read_header(config.frames)["about"].get("made_with", {})
    return {**decoders, **package_versions(("torch",))}


@functools.lru_cache(maxsize=1)
def _weights(spec: str) -> Weights:
    return load_weights(spec)


class ExtractorPool:
    """The networks of this process: one a device, made when it is first needed and kept while the settings are the same."""

    def __init__(self) -> None:
        self._lock, self._turns = threading.Lock(), itertools.count()
        self._settings: tuple[object, ...] = ()
        self._extractors: dict[str, Extractor] = {}

    def extractor(self, config: ExtractConfig) -> Extractor:
        """Return the network for the next video, on each device in turn."""
        devices = choose_devices(config.device)
        device = devices[next(self._turns) % len(devices)]
        feature_recipe = config.feature_recipe()
        # A fork has no threads, so its networks are made anew.
        settings = (os.getpid(), config.weights_spec, feature_recipe, config.chunk_frames, config.compile)
        with self._lock:
            if settings != self._settings:
                self.clear()
                self._settings = settings
            if device.type == "cpu":
                keep_freed_memory()
            if str(device) not in self._extractors:
                self._extractors[str(device)] = feature_recipe.extractor(
                    _weights(config.weights_spec), device, chunk_frames=config.chunk_frames, compile=config.compile
                )
            return self._extractors[str(device)]

    def clear(self) -> None:
        """Forget all networks."""
        self._extractors.clear()

    def log_usage(self, config: ExtractConfig) -> None:
        """Log how the time of each network was spent since the last call, and what would have made it faster."""
        for extractor in self._extractors.values():
            usage = extractor.runner.take_usage()
            if usage.frames:
                log.info("%s", usage.summary())
            if usage.wall_s > ADVICE_AFTER_S:
                log.info("%s", advice(config, extractor.runner.device.type, waited=usage.waited))


EXTRACTORS = ExtractorPool()  # of this process, which may work on several shards, one after the other


def advice(config: ExtractConfig, device: str, *, waited: float) -> str:
    """Return which of decoding and I3D was the bottleneck, and what helps, for a device type and I3D's share of waiting."""
    import torch  # noqa: PLC0415  (what --help does not need, as below)

    from excl.models.i3d.network import has_onednn  # noqa: PLC0415

    if waited < LITTLE_WAITING:
        helps = ["another GPU (--device cuda:0,cuda:1)" if device == "cuda" else "a GPU"]
        if config.precision != "bfloat16" and (device == "cuda" or has_onednn(torch.bfloat16)):
            helps.append("--precision bfloat16 (other features, so another store)")
        return f"extract: I3D was the bottleneck, decoding waited; what helps: {' or '.join(helps)}; more decoders do not"
    at_once, cores = _videos_at_once(config), num_cores()
    helps = [f"more than {at_once} --decoders (there are {cores} cores)" if at_once < cores else "more cores"]
    if device == "cuda" and config.frames is None and "torchcodec-cuda" not in config.feature_recipe().backends:
        helps.append("the GPU's own decoder (--backend torchcodec-cuda: other pixels, so another store)")
    return f"extract: decoding was the bottleneck, I3D waited; what helps: {' or '.join(helps)}; a faster device does not"


def extract_video(config: ExtractConfig, recipe: dict[str, Any], item: pending_videos.VideoTask) -> VideoRecord:
    """Write the features of one video as a shard of one; return its record."""
    started = time.monotonic()
    name = part_name(item.number)
    try:
        state = file_stat(item.path)
        video = _open_video(config, item)
        source = video.source if isinstance(video, StoredFrames) else file_facts(item.path)
        if weights_identity(_weights(config.weights_spec)) != recipe["weights"]:
            raise ValueError(f"{config.weights_spec}: other weights on this machine than where the run began")
        extractor = EXTRACTORS.extractor(config)
        timed = TimedReading(video)
        features = compute_features(
            video, extractor, video_id=item.video_id, dtype=config.dtype, source=source, frames=timed
        )
        require_unchanged(item.path, state)
    except (VideoError, InternalError) as error:
        return pending_videos.failure(item.video_id, error, item.file)
    writing_since = time.monotonic()
    write_shard(config.out / name, [features], recipe=recipe)
    return {
        "id": video_key(item.video_id),
        "part": name,
        "part_sha256": sha256_file(config.out / name),
        "videos": [item.video_id],
        "source": source,
        "num_frames": features.facts["num_frames"],
        "num_rows": len(features.features),
        "frames_repeated": features.facts["frames_repeated"],
        "duration_s": features.duration_s,
        **pending_videos.quality(features.facts),
        "device": str(extractor.runner.device),
        "stat": state,
        **timed.timing(started, writing_since=writing_since),
    }


def _open_video(config: ExtractConfig, item: pending_videos.VideoTask) -> Video:
    if config.frames is not None:
        return StoredFrames(item.path, item.video_id)
    recipe = config.feature_recipe()
    return config.reading.open(
        item.path,
        fps=recipe.fps,
        geometry=recipe.geometry,
        backends=recipe.backends,
        threads=item.threads,
        nearest=recipe.nearest,
    )


def join_features(target: Path, sources: list[tuple[str, Path]], *, recipe: dict[str, Any]) -> dict[str, Any]:
    """Write a shard of the videos in `sources`, each with the file that holds it; return facts for its record."""
    stored: dict[str, VideoFeatures] = {}
    for path in {path: None for _, path in sources}:
        shard = Shard(path)
        if shard.recipe != recipe:
            raise ValueError(f"{path}: of another recipe than the folder; remove the file and run the same command again")
        videos = [shard.video(position) for position in range(len(shard.videos))]
        stored.update({video.video_id: video for video in videos})
    joined = [stored[video_id] for video_id, _ in sources]
    write_shard(target, joined, recipe=recipe)
    return {"num_rows": sum(len(video.features) for video in joined)}
