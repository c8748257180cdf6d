"""A server of one file on this machine, which misbehaves as it is told."""

from __future__ import annotations

import http.server
import random
import threading

CONTENT = random.Random(0).randbytes(1_000_003)


class Server:
    """The port's repository: what it serves, how it misbehaves, and what it was asked."""

    def __init__(self):
        self.content, self.etag, self.content_type = CONTENT, '"first"', "application/octet-stream"
        self.ranges, self.status, self.cuts, self.asked = True, 200, [], []
        self.stall = threading.Event()  # set: bodies end; otherwise a cut body stays open until the client goes away
        self.stall.set()
        self.reached = threading.Event()  # a cut was reached
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/"

    def answer(self, request):
        asked, tag = request.headers.get("Range"), request.headers.get("If-Range")
        self.asked.append((asked, tag))
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.ranges else 0
        if tag is not None and tag != self.etag:
            start = 0
        if start and start >= len(self.content):
            request.send_error(416)
            return
        body = self.content[start:]
        request.send_response(206 if start else self.status)
        request.send_header("Content-Type", self.content_type)
        request.send_header("Content-Length", str(len(body)))
        if self.etag:
            request.send_header("ETag", self.etag)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        request.end_headers()
        cut = self.cuts.pop(0) if self.cuts else None
        request.wfile.write(body[:cut])
        request.wfile.flush()
        if cut is not None:
            self.reached.set()
            self.stall.wait()
