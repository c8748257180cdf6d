"""Videos that are sent to the page: into a folder of their own, under numbers, within limits of size, time and number."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import anyio
from pydantic.dataclasses import dataclass
from starlette.exceptions import HTTPException
from starlette.requests import Request

from excl.pipeline.config import STRICT, PositiveFloat, PositiveInt

RECEIVED_AT_ONCE = 4
IDLE_S = 20.0  # without a byte
SPARED_BYTES = 1 << 30  # that stay free on the disk of the temporary folder


@dataclass(frozen=True, config=STRICT)
class UploadLimits:
    """The limits on the videos that are sent to the page."""

    upload_gb: PositiveFloat = 2.0
    """Largest size of a video that is sent, in gigabytes."""
    upload_minutes: PositiveFloat = 30.0
    """Longest time that sending a video may take, in minutes."""
    uploads: PositiveInt = 8
    """Number of sent videos to keep; a new one replaces the oldest."""

    @property
    def max_bytes(self) -> int:
        """The largest size in bytes."""
        return round(self.upload_gb * 1e9)


class UploadFolder:
    """The folder, in which the file of an upload has its number for a name."""

    def __init__(self, folder: Path, limits: UploadLimits) -> None:
        self.folder, self.limits = folder, limits
        self._receiving = 0

    @contextlib.contextmanager
    def place(self, request: Request, number: int) -> Iterator[Path]:
        """Yield the path for one video while it is received and looked at; an error inside removes the file.

        HTTPException for one that is too large by its announced size, or if too many are being received.
        """
        self._require_room(request.headers.get("content-length", "0"))
        if self._receiving >= RECEIVED_AT_ONCE:
            raise HTTPException(
                HTTPStatus.SERVICE_UNAVAILABLE, f"{RECEIVED_AT_ONCE} videos are being received; send this one after them."
            )
        path = self.folder / str(number)
        self._receiving += 1
        try:
            yield path
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        finally:
            self._receiving -= 1

    async def write(self, request: Request, path: Path) -> None:
        """Write the body of a request into a file; HTTPException beyond a limit of size or time."""
        try:
            async with asyncio.timeout(self.limits.upload_minutes * 60):
                await self._write(request, path)
        except TimeoutError as error:
            allowed = f"{self.limits.upload_minutes:g} minutes, and {IDLE_S:g} s without a byte"
            raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, f"The video came too slowly; allowed: {allowed}.") from error

    def _require_room(self, announced: str) -> None:
        num_bytes = int(announced) if announced.isdecimal() else 0
        if num_bytes > self.limits.max_bytes:
            raise self._too_large()
        if num_bytes > shutil.disk_usage(self.folder).free - SPARED_BYTES:
            raise HTTPException(HTTPStatus.INSUFFICIENT_STORAGE, f"There is no room for it in {self.folder.parent}.")

    async def _write(self, request: Request, path: Path) -> None:
        received, chunks = 0, request.stream()
        async with await anyio.open_file(path, "xb") as file:
            while True:
                async with asyncio.timeout(IDLE_S):
                    chunk = await anext(chunks, None)
                if chunk is None:
                    return
                received += len(chunk)
                if received > self.limits.max_bytes:
                    raise self._too_large()
                await file.write(chunk)

    def _too_large(self) -> HTTPException:
        return HTTPException(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The video is larger than {self.limits.upload_gb:g} GB (--upload-gb)."
        )
