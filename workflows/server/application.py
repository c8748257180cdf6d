"""The web application that `excl serve` and `excl annotate` share: on this machine alone, behind a token.

It listens on 127.0.0.1 and nowhere else. A request is answered if all of this is true, and refused in one sentence if not:

- Its Host is this machine's name for itself: a page of another name whose address was changed to 127.0.0.1 (DNS rebinding)
  is refused.
- It has the token of the address that was printed, as the parameter `token` or in the cookie that the page was given.
- It comes from this page: an Origin, if the browser sends one, is this server's. No other origin is ever allowed (no CORS).

Starlette and uvicorn do the rest: ranges of files, by which browsers seek in videos, bodies that arrive slowly, connections.
"""

from __future__ import annotations

import logging
import secrets
import signal
import socket
import webbrowser
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from excl.datasets.parsing import parse_object
from excl.datasets.video.container import require_regular_file
from excl.pipeline.config import STRICT
from excl.workflows.pages.timeline import timeline_script, timeline_style

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
HOSTS = (LOOPBACK, "localhost")
MAX_CONNECTIONS = 100
MAX_JSON_BYTES = 1 << 16
STOP_S = 2  # for requests that are being answered when the server is stopped
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; media-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
TEXT_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
# The media type of a video for browsers. Most of them look into the file, and play what they can.
VIDEO_TYPES = {".webm": "video/webm", ".ogv": "video/ogg", ".ogg": "video/ogg", ".mkv": "video/x-matroska"}


@checked_dataclass(frozen=True, config=STRICT)
class PageConfig:
    """The address of a page."""

    port: Annotated[int, Field(ge=0, le=65535)] = 0
    """The port on 127.0.0.1 (no other machine can connect); 0 takes one that is free."""
    open: bool = False
    """Open the page in the browser."""


@dataclass(frozen=True)
class Access:
    """The key to the page, which every request has to have: the token, as a parameter or in the cookie of this name."""

    token: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    cookie: str = field(default_factory=lambda: f"excl-{secrets.token_hex(4)}")  # ports of a host share their cookies

    def allows(self, request: HTTPConnection) -> bool:
        """Return whether the request has the token; comparing takes the same time wherever a wrong one differs."""
        given = (request.query_params.get("token", ""), request.cookies.get(self.cookie, ""))
        right = [secrets.compare_digest(token.encode(), self.token.encode()) for token in given]
        return any(right)


class Guard:
    """Refuses requests without the token or from other pages, and adds the security headers to every answer."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = HTTPConnection(scope)
        origin = request.headers.get("origin")
        app = self.app
        if not self.access.allows(request):
            app = _message(HTTPStatus.FORBIDDEN, "The token is wrong or missing: open the address that excl has printed.")
        elif origin is not None and origin != f"http://{request.headers.get('host')}":
            app = _message(HTTPStatus.FORBIDDEN, "Only the page of this server may send it requests.")

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(SECURITY_HEADERS)
            await send(message)

        await app(scope, receive, send_with_headers)


def make_application(page: str, routes: Sequence[BaseRoute], access: Access) -> Starlette:
    """Return the application: the page (one of static/), the files that it loads, and its routes."""

    def first_page(_request: Request) -> Response:
        response = Response(_static(page), media_type="text/html")
        response.set_cookie(access.cookie, access.token, httponly=True, samesite="strict")
        return response

    def static(request: Request) -> Response:
        name = request.path_params["name"]
        content = _static(name)
        return Response(content, media_type=TEXT_TYPES[Path(name).suffix])

    # The last of the list is the innermost: the headers are on every answer but those to a wrong Host and of our own errors.
    middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=[*HOSTS]), Middleware(Guard, access=access)]
    handlers: Mapping[Any, Any] = {
        HTTPException: _refused, ValueError: _wrong, OSError: _wrong, ClientDisconnect: _left, Exception: _failed,
    }  # fmt: skip
    first = [Route("/", first_page), Route("/static/{name}", static)]
    return Starlette(routes=[*first, *routes], middleware=middleware, exception_handlers=handlers)


def _static(name: str) -> str:
    """Return a file of the page, of a fixed list; HTTPException for any other name."""
    if name == "timeline.js":
        return timeline_script()
    if name == "timeline.css":
        return timeline_style()
    folder = files("excl.workflows.server") / "static"
    if name not in {entry.name for entry in folder.iterdir()}:
        raise HTTPException(HTTPStatus.NOT_FOUND, "There is no such file.")
    return (folder / name).read_text(encoding="utf-8")


def _message(status: int, message: str) -> Response:
    return JSONResponse({"message": message}, status)


def _refused(_request: Request, error: HTTPException) -> Response:
    return _message(error.status_code, error.detail)


def _wrong(_request: Request, error: Exception) -> Response:
    return _message(HTTPStatus.BAD_REQUEST, str(error))


def _left(_request: Request, _error: Exception) -> Response:
    return _message(HTTPStatus.BAD_REQUEST, "The page was closed while it sent this.")


def _failed(request: Request, error: Exception) -> Response:
    log.error("%s %s: %s: %s", request.method, request.url.path, type(error).__name__, error)
    return _message(HTTPStatus.INTERNAL_SERVER_ERROR, f"An error in excl or in a library: {type(error).__name__}: {error}")


async def read_json(request: Request) -> dict[str, Any]:
    """Return the JSON object in a request; HTTPException if it is too large, ValueError if it is none."""
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > MAX_JSON_BYTES:
            raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"More than {MAX_JSON_BYTES:,} bytes are not read.")
    return parse_object(content.decode(errors="replace"), Path("request"))


def video_response(path: Path, *, suffix: str | None = None) -> Response:
    """Return a video file, or the range of it that is asked for; VideoError if it cannot be read."""
    require_regular_file(path)
    return FileResponse(path, media_type=VIDEO_TYPES.get((suffix or path.suffix).lower(), "video/mp4"))


def run_page(app: Starlette, access: Access, config: PageConfig, *, what: str) -> None:
    """Serve the page until Ctrl-C, SIGTERM or the end of the terminal; OSError if the port is taken."""
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((LOOPBACK, config.port))
        except OSError as error:
            raise OSError(f"port {config.port} of {LOOPBACK}: {error.strerror}; choose another with --port") from error
        listening.listen()
        address = f"http://{LOOPBACK}:{listening.getsockname()[1]}/?token={access.token}"
        log.info("%s: open %s in a browser on this machine; Ctrl-C stops", what, address)
        if config.open:
            webbrowser.open(address)
        server = uvicorn.Server(uvicorn.Config(
            app, log_config=None, log_level="critical", access_log=False, server_header=False, ws="none", lifespan="off",
            limit_concurrency=MAX_CONNECTIONS, timeout_graceful_shutdown=STOP_S,
        ))  # fmt: skip
        _end_as_with_ctrl_c()
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listening])
    log.info("stopped")


def _end_as_with_ctrl_c() -> None:
    """Let SIGTERM and SIGHUP end the server as Ctrl-C does, so that temporary files are removed."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)  # until uvicorn handles it, and when uvicorn raises it again at its end
    signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
