"""Serve: a page on which one picks a video or sends one, types sentences, and sees the moments that a trained run finds."""

from __future__ import annotations

import itertools
import logging
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import field
from http import HTTPStatus
from pathlib import Path
from typing import Any

from anyio import to_thread
from pydantic.dataclasses import dataclass
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from excl.datasets.parsing import get, printable
from excl.datasets.video.discovery import find_videos
from excl.datasets.video.errors import InternalError
from excl.datasets.video.remedies import playable_copy
from excl.models.i3d.extractor import choose_device
from excl.pipeline import decode, extract, train
from excl.pipeline.config import STRICT, PositiveInt, SaidInText, WithoutPrefix
from excl.pipeline.execution.video_reading import VideoReading
from excl.pipeline.store.feature_recipe import IMPORTED
from excl.pipeline.store.training_store import TrainingStore
from excl.pipeline.training.trained_run import TrainedRun, load_run, store_of
from excl.workflows.pages import views
from excl.workflows.pages.page import folder_title
from excl.workflows.pages.timeline import VideoTimeline
from excl.workflows.runner.recipe import bundled, load_recipe
from excl.workflows.server.application import (
    Access,
    PageConfig,
    make_application,
    read_json,
    run_page,
    video_response,
)
from excl.workflows.server.asking import AskableVideo, Asking, AskSettings, in_words
from excl.workflows.server.uploads import UploadFolder, UploadLimits

log = logging.getLogger(__name__)

MAX_LISTED = 200
MAX_QUERIES, MAX_QUERY_LETTERS = 50, 1000
MAX_LABEL_LETTERS = 100


@dataclass(frozen=True, config=STRICT)
class ServeConfig:
    """Answer sentences about videos on a page in your browser, with a trained run."""

    run: Path
    """The run that `excl train` wrote."""
    videos: Path | None = None
    """Videos to choose from: a folder, searched recursively, or a list of paths. Others can be sent to the page. Default:
    the files of the store's videos, where the recipe beside the run has them."""
    store: SaidInText[Path | None] = None
    """The training store whose videos can be asked about. Default: the one that the run was trained on, if it is here."""
    top: PositiveInt = 3
    """Number of moments to answer with, the best first."""
    weights: str | None = None
    """I3D's weights, if the run's features were made with a weight file of your own."""
    device: str = "auto"
    """Device to compute on: auto (a GPU if there is one), cpu, cuda, cuda:1, mps."""
    page: WithoutPrefix[PageConfig] = field(default_factory=PageConfig)
    """The address of the page."""
    upload: WithoutPrefix[UploadLimits] = field(default_factory=UploadLimits)
    """The limits on the videos that are sent to the page."""
    reading: WithoutPrefix[VideoReading] = field(default_factory=VideoReading)
    """The settings for reading a video."""

    def __post_init__(self) -> None:
        choose_device(self.device)


def run(config: ServeConfig) -> None:
    """Serve the page until it is stopped. KeyboardInterrupt if a video was being read then."""
    trained = load_run(config.run, device=config.device)
    asking = Asking(trained, _store(config, trained), AskSettings(config.run, config.weights, config.device, config.reading))
    videos = find_videos(config.videos, warn=True) if config.videos is not None else {}
    access, is_interrupted = Access(), False
    with tempfile.TemporaryDirectory(prefix="excl-serve-") as folder:
        serving = Serving(config, asking, videos, UploadFolder(Path(folder), config.upload))
        try:
            app = make_application("serve.html", serving.routes(), access)
            run_page(app, access, config.page, what=f"{config.run}, {len(serving.videos):,} videos")
        finally:
            is_interrupted = asking.stop()
    if is_interrupted:
        raise KeyboardInterrupt


def _store(config: ServeConfig, trained: TrainedRun) -> TrainingStore | None:
    """Return the store of the videos, if there is one; ValueError if it was asked for and does not fit the run."""
    if config.store is None:
        try:
            return TrainingStore(store_of(config.run))
        except ValueError as error:
            log.info("%s", error)
            return None
    store = TrainingStore(config.store)
    if store.recipe != trained.recipe:
        raise ValueError(f"{store.path}: its features are of another recipe than those of {trained.path}")
    return store


def _videos_of_recipe(run: Path) -> Mapping[str, Path]:
    """Return the videos by id of the recipe that makes a run: a file beside it, or a bundled one with this folder as root.

    A store does not say where its videos were. Nothing if there is no such recipe, or if its videos are not there. (A run
    of other settings lies in OUT-2, OUT-3, …; and whether a file is the right one its checksum decides.)
    """
    root = run.absolute().parent
    for recipe in [*map(str, sorted(root.glob("*.toml"))), *bundled()]:
        with suppress(OSError, ValueError):  # somebody's other file, or no videos
            tables = load_recipe(recipe, root).tables
            source = _setting(tables, decode.STAGE, "videos") or _setting(tables, extract.STAGE, "videos")
            if source and run.absolute().name.startswith(_setting(tables, train.STAGE, "out") or "/"):
                return find_videos(root / source)
    return {}


def _setting(tables: Mapping[str, Any], step: str, key: str) -> str | None:
    """Return a text in a table of a file that may be no recipe."""
    table = tables.get(step)
    value = table.get(key) if isinstance(table, dict) else None
    return value if isinstance(value, str) else None


class Serving:
    """The videos, and what the page asks for."""

    def __init__(self, config: ServeConfig, asking: Asking, videos: Mapping[str, Path], uploads: UploadFolder) -> None:
        self.config, self.asking, self.uploads = config, asking, uploads
        self._numbers = itertools.count()
        stored = asking.store if asking.store is not None else ()
        origins = _videos_of_recipe(config.run) if config.videos is None and stored else {}
        self.videos = {
            number: AskableVideo(
                number, label, videos.get(label), has_stored_features=label not in videos, unverified=origins.get(label)
            )
            for label, number in zip(sorted({*videos, *stored}), self._numbers, strict=False)
        }  # uploads too, which are added and removed

    def routes(self) -> list[Route]:
        """Return the requests that the page makes."""
        return [
            Route("/videos/{number:int}", self.media),
            Route("/api/state", self.state),
            Route("/api/videos/{number:int}", self.video),
            Route("/api/videos/{number:int}/answers", self.answers, methods=["POST"]),
            Route("/api/uploads", self.receive, methods=["POST"]),
            Route("/api/uploads/{number:int}", self.remove, methods=["DELETE"]),
        ]

    def media(self, request: Request) -> Response:
        """Return a video, or a range of it."""
        video = self._video(request)
        self.asking.verify(video)
        if video.path is None:
            raise HTTPException(HTTPStatus.NOT_FOUND, f"{video.label}: its file is not here.")
        return video_response(video.path, suffix=Path(video.label).suffix)

    def state(self, request: Request) -> Response:
        """Return the videos whose names have the parameter `search` in them, uploads first, and what is to know."""
        search, trained = request.query_params.get("search", "").lower(), self.asking.trained
        matching = [video for video in [*self.videos.values()] if search in video.label.lower()]
        matching.sort(key=lambda video: -video.number if video.is_upload else 1)
        warnings = [trained.stamp] if trained.stamp else []
        if trained.recipe["weights"].get("random"):
            warnings.append("The features come from an I3D with RANDOM weights: the answers mean nothing.")
        shown = [{"number": v.number, "id": v.label, "is_upload": v.is_upload} for v in matching[:MAX_LISTED]]
        return JSONResponse({
            "run": folder_title(self.config.run), "warnings": warnings, "videos": shown, "num_matching": len(matching),
            "max_bytes": self.config.upload.max_bytes,
        })  # fmt: skip

    def video(self, request: Request) -> Response:
        """Return what the component shows of a video before it is asked about, and the queries that its store has."""
        video = self._video(request)
        self.asking.verify(video)
        rows = self.asking.features(video)
        if rows is not None:
            timeline = views.timeline(rows, [])
        else:
            probe = self._probe(video)
            timeline = VideoTimeline(
                title=video.label, video=None, duration_s=probe.duration_s or 0.0, fps=probe.rate,
                rows={"start_s": [], "end_s": []}, queries=[], thumbnails=[],
            )  # fmt: skip
        timeline["video"] = None if video.path is None else f"videos/{video.number}"
        command = "" if video.path is None or video.is_upload else playable_copy(video.path)
        is_imported = self.asking.trained.recipe["weights"]["source"] == IMPORTED  # then no other can be asked about
        suggestions = [query["text"] for query in self.asking.annotated(video)]
        return JSONResponse({
            "timeline": timeline, "command": command, "suggestions": suggestions[:MAX_QUERIES],
            "remedy": "" if is_imported else "Start excl serve with --videos FOLDER to see it.",
        })  # fmt: skip

    async def answers(self, request: Request) -> Response:
        """Return the answers; or, with status 202, how far the video is read: the page then asks again."""
        queries = _queries(await read_json(request))
        return await to_thread.run_sync(self._answers, self._video(request), queries)

    def _answers(self, video: AskableVideo, queries: list[str]) -> Response:
        self.asking.verify(video)
        rows = self.asking.features(video)
        if rows is None:
            if video.state == "failed":
                video.state = "new"  # asked again, it is tried again
                raise HTTPException(HTTPStatus.UNPROCESSABLE_ENTITY, video.message)
            self.asking.request(video, queries)
            return JSONResponse({
                "state": video.state, "before": self.asking.position(video), "frames": video.frames,
                "expected": video.expected_frames,
            }, HTTPStatus.ACCEPTED)  # fmt: skip
        timeline = self.asking.answer(video, rows, queries, top=self.config.top)
        timeline["video"] = None if video.path is None else f"videos/{video.number}"
        return JSONResponse(timeline)

    async def receive(self, request: Request) -> Response:
        """Take a video in, under a number; its name, the parameter `name`, is shown and never a path."""
        self._oldest_to_remove()  # before anything is received; it is removed once the new one is good
        number = next(self._numbers)
        label = printable(request.query_params.get("name", ""))[:MAX_LABEL_LETTERS] or "video"
        with self.uploads.place(request, number) as path:
            await self.uploads.write(request, path)
            video = AskableVideo(number, label, path, is_upload=True)
            await to_thread.run_sync(self._probe, video)
            if (oldest := self._oldest_to_remove()) is not None:
                self._remove(oldest)
            self.videos[number] = video
        return JSONResponse({"number": number}, HTTPStatus.CREATED)

    def remove(self, request: Request) -> Response:
        """Remove a video that was sent."""
        video = self._video(request)
        if not video.is_upload:
            raise HTTPException(HTTPStatus.FORBIDDEN, "Only videos that were sent here can be removed.")
        self._remove(video)
        return JSONResponse({})

    def _oldest_to_remove(self) -> AskableVideo | None:
        """Return which video that was sent makes room for one more, if one has to; HTTPException if all are busy."""
        sent = [video for video in [*self.videos.values()] if video.is_upload]
        if len(sent) < self.config.upload.uploads:
            return None
        idle = next((video for video in sent if not video.is_busy), None)
        if idle is None:
            raise HTTPException(
                HTTPStatus.SERVICE_UNAVAILABLE, f"{len(sent)} videos that were sent wait to be read; send this one later."
            )
        return idle

    def _remove(self, video: AskableVideo) -> None:
        with suppress(KeyError):
            del self.videos[video.number]
        self.asking.forget(video)
        if video.path is not None:
            video.path.unlink(missing_ok=True)

    def _video(self, request: Request) -> AskableVideo:
        video = self.videos.get(request.path_params["number"])
        if video is None:
            raise HTTPException(HTTPStatus.NOT_FOUND, "There is no such video; perhaps it was removed for newer ones.")
        return video

    def _probe(self, video: AskableVideo) -> Any:
        """Return the facts of a video; HTTPException with one sentence if it cannot be read."""
        assert video.path is not None, "a video without a file has features"
        try:
            return self.asking.probe(video.path)
        except (ValueError, OSError, InternalError) as error:
            raise HTTPException(HTTPStatus.UNPROCESSABLE_ENTITY, in_words(error, video)) from error


def _queries(sent: dict[str, Any]) -> list[str]:
    """Return the sentences in a request; ValueError if there are none, or too many, or one is too long."""
    given = get(sent, "queries", list, "request")
    queries = [" ".join(query.split()) for query in given if isinstance(query, str) and query.strip()]
    if not 0 < len(queries) <= MAX_QUERIES or max(map(len, queries)) > MAX_QUERY_LETTERS:
        raise ValueError(f"write 1 to {MAX_QUERIES} sentences of at most {MAX_QUERY_LETTERS:,} letters, one a line")
    return queries
