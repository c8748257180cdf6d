"""Show one video with its timeline: a page of what is annotated in it, and of what a trained run answers.

Reads a video file and a run, or a video of a store by its id. Leaves the page.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro
from pydantic.dataclasses import dataclass

from excl.datasets.parsing import shortened
from excl.models.i3d.extractor import choose_device
from excl.pipeline.artifacts.file_cache import checksums
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.config import STRICT, PositiveInt, SaidInText
from excl.pipeline.execution.video_reading import VideoReading, decoders_stopped
from excl.pipeline.localize import AskConfig, ask, make_examples
from excl.pipeline.store.feature_store import FeatureStore
from excl.pipeline.store.shard import VideoFeatures
from excl.pipeline.store.training_store import Query, TrainingStore
from excl.pipeline.training.examples import load_examples
from excl.pipeline.training.trained_run import TrainedRun, load_run, store_of
from excl.workflows.pages import localize_page, views
from excl.workflows.pages.page import Page
from excl.workflows.pages.timeline import TimelineQuery


@dataclass(frozen=True, config=STRICT)
class ShowConfig:
    """Make a page of one video with its timeline: probabilities, answers, annotated moments."""

    video: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="VIDEO")]
    """A video file, or the id of a video of the store. A file without --query is the store's video of that name."""
    run: Path | None = None
    """The run that `excl train` wrote, which answers. Without it the page shows what is annotated."""
    query: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A sentence to ask; give it several times for several. Default, for a video of the store: those that it has."""
    store: SaidInText[Path | None] = None
    """The store that has the video. Default: the one that the run was trained on."""
    videos: Path | None = None
    """The folder of the video files, for a video that is given by its id."""
    top: PositiveInt = 5
    """Number of moments to answer with, the best first."""
    out: SaidInText[Path | None] = None
    """The page to write. Default: VIDEO.html in this folder."""
    device: str = "auto"
    """Device to compute on: auto (a GPU if there is one), cpu, cuda, cuda:1, mps."""

    def __post_init__(self) -> None:
        choose_device(self.device)
        if self.run is None and self.store is None:
            raise ValueError("run and store: give at least one, so that there is something to show")
        if self.query and self.run is None:
            raise ValueError("query: needs --run, the run that is to answer")
        if not all(query.strip() for query in self.query):
            raise ValueError("query: a sentence may not be empty")
        if self.videos is not None and not self.videos.is_dir():
            raise ValueError(f"videos: {self.videos} is not a folder; give the one that has the video files")

    @property
    def page(self) -> Path:
        """The file to write."""
        return self.out or Path(f"{Path(self.video).stem}.html")


def run(config: ShowConfig) -> Path:
    """Make the page and return its path; ValueError if there is no such video."""
    with decoders_stopped():
        make(config, config.page).save(config.page)
    return config.page


def make(config: ShowConfig, path: Path | None, *, height_px: int = 720) -> Page:
    """Return the page; without its path the video's file is copied into it."""
    file = Path(config.video) if Path(config.video).is_file() else None
    if file is not None and config.query:
        return _page_of_file(config, path, height_px=height_px)
    store = _store(config)
    video_id = config.video if file is None else _stored_id(file, store)
    if video_id not in store:
        raise ValueError(
            f"{config.video}: neither a file nor a video of {store.path}, which has {shortened(list(store), most=5)}"
        )
    trained = None if config.run is None else load_run(config.run, device=config.device)
    if trained is not None and trained.recipe != store.recipe:
        raise ValueError(f"{store.path}: its features are of another recipe than those of {trained.path}")
    video = store[video_id]
    records = _records(config, trained, store, video)
    file = file or views.video_file(config.videos, video)
    record = views.timeline(video, records, file=file, page=path, reading=VideoReading())
    return localize_page.one_video(record, trained, height_px=height_px)


def _page_of_file(config: ShowConfig, path: Path | None, *, height_px: int) -> Page:
    assert config.run is not None
    about = AskConfig(run=config.run, video=Path(config.video), query=config.query, top=config.top, device=config.device)
    return localize_page.page(about, ask(about), path, height_px=height_px)


def _stored_id(file: Path, store: FeatureStore) -> str:
    """Return the id of the store's video that a file is, by its name; ValueError if there is none, or of another content."""
    parts = file.with_suffix("").parts
    names = ["/".join(parts[first:]) for first in range(len(parts))]
    video_id = next((name for name in names if name in store), None)
    if video_id is None:
        raise ValueError(
            f"{file}: not a video of {store.path} by its name, so it needs --run and at least one --query; a video of the "
            "store has its own"
        )
    sha256 = store[video_id].facts.get("source", {}).get("sha256")
    if sha256 is not None and sha256 != checksums(file).sha256:
        raise ValueError(
            f"{file}: another file than the one of that name of which {store.path} has features; say with --run and --query "
            f"what to ask about it, or give {video_id!r} for the store's"
        )
    return video_id


def _store(config: ShowConfig) -> FeatureStore:
    if config.store is None:
        assert config.run is not None
        return TrainingStore(store_of(config.run))
    return (TrainingStore if Manifest.read(config.store).header["stage"] == "pack" else FeatureStore)(config.store)


def _records(
    config: ShowConfig, trained: TrainedRun | None, store: FeatureStore, video: VideoFeatures
) -> list[TimelineQuery]:
    """Return what is annotated in the video, with answers if there is a run, or the answers to the queries given."""
    if trained is not None and config.query:
        return views.answer(trained, make_examples(trained, video, config.query), top=config.top)
    about = _annotated(store, video.video_id)
    records = views.annotated(about)
    if trained is None or not about:
        return records
    assert isinstance(store, TrainingStore)
    first = {query.key: query for query in reversed(about)}
    asked = trained.with_token_ids(store, [first[key] for key in dict.fromkeys(query.key for query in about)])
    answers = views.answer(trained, load_examples(store, asked), top=config.top)
    return [
        TimelineQuery(**{**answered, "moments": record["moments"]})
        for answered, record in zip(answers, records, strict=True)
    ]


def _annotated(store: FeatureStore, video_id: str) -> list[Query]:
    return store.queries_about(video_id) if isinstance(store, TrainingStore) else []


def show(path: Path) -> str:
    """Return where the page is."""
    return f"page: {path.absolute()}"
