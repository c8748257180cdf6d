"""Annotate: a page on which one watches videos, marks what happens when, and so writes the annotations that `init` began."""

from __future__ import annotations

import logging
import math
import shlex
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import field
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any

import tyro
from anyio import to_thread
from pydantic.dataclasses import dataclass
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from excl.datasets.parsing import get, get_number
from excl.datasets.video.discovery import find_videos
from excl.datasets.video.errors import InternalError, VideoError
from excl.datasets.video.probe import Probe
from excl.datasets.video.remedies import playable_copy
from excl.pipeline.config import STRICT, SaidInText, WithoutPrefix
from excl.pipeline.execution.video_reading import VideoLimits, decoders_stopped
from excl.workflows.init import ANNOTATIONS, RECIPE
from excl.workflows.pages.page import folder_title
from excl.workflows.pages.timeline import VideoTimeline
from excl.workflows.runner.recipe import load_recipe
from excl.workflows.server.annotation_file import AnnotationFile, StaleError
from excl.workflows.server.application import (
    Access,
    PageConfig,
    make_application,
    read_json,
    run_page,
    video_response,
)

log = logging.getLogger(__name__)

PROBLEMS_SHOWN = 5


@dataclass(frozen=True, config=STRICT)
class AnnotateConfig:
    """Annotate videos on a page in your browser: watch, mark start and end by two keys, type what happens."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """A folder that `excl init` made, or any folder of videos."""
    videos: SaidInText[Path | None] = None
    """The videos: a folder, searched recursively, or a list of paths. Default: those of DIR's recipe, or DIR itself."""
    annotations: SaidInText[Path | None] = None
    """The file of JSON lines to write. Default: that of DIR's recipe, or annotations.jsonl in DIR."""
    page: WithoutPrefix[PageConfig] = field(default_factory=PageConfig)
    """The address of the page."""


def run(config: AnnotateConfig) -> None:
    """Serve the page until it is stopped. ValueError without videos, OSError if the port is taken."""
    annotating, access = Annotating(config.folder, *sources(config)), Access()
    try:
        with decoders_stopped():
            app = make_application("annotate.html", annotating.routes(), access)
            run_page(app, access, config.page, what=f"{len(annotating.paths):,} videos, {annotating.file.path}")
        log.info("%s", annotating.summary())
    finally:
        annotating.prober.shutdown()


def sources(config: AnnotateConfig) -> tuple[dict[str, Path], Path]:
    """Return the videos by id, and the annotation file, by the settings, the recipe, and what is in the folder."""
    if not config.folder.is_dir():
        raise FileNotFoundError(f"{config.folder}: there is no such folder; give one of `excl init`, or of videos")
    videos, annotations = config.videos, config.annotations
    recipe_file = config.folder / RECIPE
    if recipe_file.is_file():
        tables = load_recipe(str(recipe_file)).tables
        source, dataset = tables.get("extract", {}).get("videos"), tables.get("tokenise", {}).get("dataset")
        if videos is None and isinstance(source, str):
            videos = config.folder / source
        if annotations is None and isinstance(dataset, str) and dataset.endswith(".jsonl"):
            annotations = config.folder / dataset
        elif annotations is None and dataset is not None:
            raise ValueError(f"{recipe_file}: its annotations are {dataset!r}; say with --annotations which .jsonl to write")
    return dict(find_videos(videos or config.folder, warn=True)), annotations or config.folder / ANNOTATIONS


class Annotating:
    """The videos, their annotation file, and what the page asks for. Changes come one after another."""

    def __init__(self, folder: Path, paths: dict[str, Path], annotations: Path) -> None:
        self.folder, self.ids, self.paths = folder, list(paths), list(paths.values())
        self.file, self.next_step = AnnotationFile(annotations), _next_step(folder, annotations)
        self.prober = ThreadPoolExecutor(1)
        self._changing = threading.Lock()
        self._probes: dict[int, Probe] = {}

    def summary(self) -> str:
        """Return what the file has about the videos, and what to do next, in a line."""
        counts = self._counts()
        moments, videos = sum(counts.values()), len(counts)
        if not moments:
            return f"no moments in {self.file.path} yet"
        return f"{moments:,} moments of {videos:,} videos in {self.file.path}; next: `{self.next_step}`"

    def routes(self) -> list[Route]:
        """Return the requests that the page makes."""
        return [
            Route("/videos/{number:int}", self.media),
            Route("/api/state", self.state),
            Route("/api/videos/{number:int}", self.video),
            Route("/api/videos/{number:int}/moments", self.add, methods=["POST"]),
            Route("/api/videos/{number:int}/moments/{line:int}", self.edit, methods=["PUT"]),
            Route("/api/videos/{number:int}/moments/{line:int}", self.delete, methods=["DELETE"]),
            Route("/api/undo", self.undo, methods=["POST"]),
        ]

    def media(self, request: Request) -> Response:
        """Return a video, or a range of it."""
        return video_response(self.paths[self._number(request)])

    def state(self, _request: Request) -> Response:
        """Return the list of videos with their numbers of moments, and what is to know about the file."""
        with self._changing:
            self.file.refresh()
            return JSONResponse(self._state())

    def video(self, request: Request) -> Response:
        """Return what the component shows of a video, its moments, and how to make a copy that browsers play."""
        number = self._number(request)
        probe = self.prober.submit(self._probe, number).result()
        path = self.paths[number]
        with self._changing:
            self.file.refresh()
            moments = self._moments(number)
            state = self._state()
        timeline: VideoTimeline = {
            "title": self.ids[number], "video": f"videos/{number}", "duration_s": probe.duration_s or 0.0, "fps": probe.rate,
            "rows": {"start_s": [], "end_s": []}, "queries": [], "thumbnails": [],
        }  # fmt: skip
        return JSONResponse({"timeline": timeline, "moments": moments, "state": state, "command": playable_copy(path)})

    async def add(self, request: Request) -> Response:
        """Add a moment to a video."""
        number, (version, moment) = self._number(request), await _moment(request)

        def change(duration_s: float | None) -> None:
            self.file.add(self.ids[number], **moment, duration_s=duration_s)

        return await self._changed(version, number, change)

    async def edit(self, request: Request) -> Response:
        """Change a moment."""
        number, line, (version, moment) = self._number(request), request.path_params["line"], await _moment(request)

        def change(duration_s: float | None) -> None:
            self._require_moment(number, line)
            self.file.edit(line, **moment, duration_s=duration_s)

        return await self._changed(version, number, change)

    async def delete(self, request: Request) -> Response:
        """Remove a moment."""
        number, line = self._number(request), request.path_params["line"]

        def change(_duration_s: float | None) -> None:
            self._require_moment(number, line)
            self.file.delete(line)

        return await self._changed(get(await read_json(request), "version", str, "request"), number, change)

    async def undo(self, request: Request) -> Response:
        """Take the last change back."""
        version = get(await read_json(request), "version", str, "request")
        return await self._changed(version, None, lambda _duration_s: self.file.undo())

    async def _changed(self, version: str, number: int | None, change: Callable[[float | None], None]) -> Response:
        """Make a change to the file if it is of the version that the page shows; return what to show now."""

        def make() -> Response:
            duration_s = None if number is None else self.prober.submit(self._probe, number).result().duration_s
            with self._changing:
                status, message = HTTPStatus.OK, ""
                self.file.refresh()
                try:
                    if version != self.file.version:
                        raise StaleError(
                            f"{self.file.path.name} has changed since it was shown here; nothing was written. Look at the "
                            "list again and repeat what you did"
                        )
                    change(duration_s)
                except StaleError as error:
                    status, message = HTTPStatus.CONFLICT, str(error)
                moments = [] if number is None else self._moments(number)
                return JSONResponse({"message": message, "state": self._state(), "moments": moments}, status)

        return await to_thread.run_sync(make)

    def _number(self, request: Request) -> int:
        number = request.path_params["number"]
        if number >= len(self.ids):
            raise HTTPException(HTTPStatus.NOT_FOUND, "There is no such video.")
        return int(number)

    def _require_moment(self, number: int, line: int) -> None:
        """Raise StaleError if this line holds no moment of this video."""
        if line not in {moment["line"] for moment in self._moments(number)}:
            raise StaleError(f"{self.file.path}: line {line + 1} holds no moment of {self.ids[number]}; nothing was written")

    def _probe(self, number: int) -> Probe:
        """Return the facts of a video, remembered; ValueError if it cannot be read. On the prober's thread alone."""
        if number not in self._probes:
            try:
                self._probes[number] = VideoLimits().probe(self.paths[number])
            except (VideoError, InternalError) as error:
                raise ValueError(str(error)) from error
        return self._probes[number]

    def _moments(self, number: int) -> list[dict[str, Any]]:
        """Return the moments of a video in the order of the file, each with the index of its line."""
        rows = [row for row in self.file.rows() if row.fields.get("video_id") == self.ids[number]]
        keys = ("query", "start_s", "end_s", "split", "group")
        return [{"line": row.line, **{key: _sendable(row.fields.get(key)) for key in keys}} for row in rows]

    def _counts(self) -> Counter[str]:
        """Return the numbers of moments by video, of all those that the file names."""
        return Counter(str(row.fields.get("video_id")) for row in self.file.rows())

    def _state(self) -> dict[str, Any]:
        counts, problems = self._counts(), self.file.problems()
        return {
            "folder": folder_title(self.folder),
            "next": self.next_step,
            "file": self.file.path.name,
            "version": self.file.version,
            "can_undo": self.file.can_undo,
            "videos": [{"id": video_id, "count": counts[video_id]} for video_id in self.ids],
            "others": sum(counts.values()) - sum(counts[video_id] for video_id in self.ids),
            "problems": problems[:PROBLEMS_SHOWN],
            "num_problems": len(problems),
        }


def _next_step(folder: Path, annotations: Path) -> str:
    """Return the command that comes after annotating: a check of the folder's recipe, or of the file alone."""
    if (recipe := folder / RECIPE).is_file():
        return f"excl check {shlex.quote(str(recipe))}"
    return f"excl tokenise --dataset {shlex.quote(str(annotations))} --report"


def _sendable(value: Any) -> Any:
    """Return a text or a number from the file as JSON can have it, None for what is neither."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    return value if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)) else None


async def _moment(request: Request) -> tuple[str, dict[str, Any]]:
    """Return the version of the file that the page shows, and the moment, in a request; ValueError if one is missing."""
    sent = await read_json(request)
    moment = {"query": get(sent, "query", str, "request")}
    return get(sent, "version", str, "request"), {
        **moment, "start_s": get_number(sent, "start_s", "request"), "end_s": get_number(sent, "end_s", "request"),
    }  # fmt: skip
