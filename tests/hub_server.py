"""A stand-in for the Hugging Face hub on this machine: what `huggingface_hub` asks to make repositories, push and pull.

Large files (.h5, .safetensors) go the way of LFS, all others come inside the commit. It keeps everything in memory.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import threading
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = (".h5", ".safetensors")


class HubServer:
    """Repositories by kind and name, each a list of commits, and each of these a mapping from names to contents."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], list[dict[str, bytes]]] = {}
        self.private: dict[tuple[str, str], bool] = {}
        self.large: dict[str, bytes] = {}
        self.uploads: list[str] = []  # the large files that were sent, by their sha256
        self.allowed_uploads = 1 << 30  # later ones are refused
        self.cut_after: int | None = None  # bytes of the first large file that is asked for; then it is refused
        self.cut_name = ""
        self.sent: list[str] = []  # the names of files that were sent to their end
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.answer(self)

            do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def close(self) -> None:
        """Answer no more."""
        self.http.shutdown()
        self.http.server_close()

    def files(self, kind: str, name: str) -> dict[str, bytes]:
        """The files of a repository's latest commit."""
        return self.repositories[kind, name][-1]

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:  # noqa: PLR0911
        """Answer one request."""
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(request.path).path)
        if path.startswith("/lfs/"):
            return self._receive(request, path.removeprefix("/lfs/"), body)
        if request.headers.get("Authorization") != "Bearer hf_test":
            return _send(request, 401, {"error": "Invalid username or password."})
        if path == "/api/validate-yaml":
            return _send(request, 200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self._create(request, json.loads(body))
        if match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return self._batch(request, json.loads(body))
        if match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            kind = "dataset" if match[1] else "model"
            return self._resolve(request, (kind, match[2]), match[3], match[4])
        match = re.fullmatch(r"/api/(dataset|model)s/([^/]+/[^/]+)(?:/(revision|tree|preupload|commit)/([^/]+))?", path)
        assert match, path
        key = match[1], match[2]
        if key not in self.repositories:
            return _send(request, 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        if match[3] == "preupload":
            modes = [(file["path"], file["path"].endswith(LARGE)) for file in json.loads(body)["files"]]
            modes_of_files = [
                {"path": p, "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False} for p, is_large in modes
            ]
            return _send(request, 200, {"files": modes_of_files})
        if match[3] == "commit":
            return self._commit(request, key, body)
        number = self._number(key, match[4])
        if number is None:
            return _send(request, 404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        files = self.repositories[key][number]
        if match[3] == "tree":
            listing = [{"type": "file", "path": name, "oid": "0" * 40, "size": len(files[name])} for name in files]
            return _send(request, 200, listing)
        siblings = [{"rfilename": name} for name in files]
        info = {"id": key[1], "sha": _sha(number), "siblings": siblings, "private": self.private[key]}
        return _send(request, 200, info)

    def _number(self, key: tuple[str, str], revision: str | None) -> int | None:
        last = len(self.repositories[key]) - 1
        return last if revision in (None, "main") else next((n for n in range(last + 1) if _sha(n) == revision), None)

    def _create(self, request: Any, wanted: dict[str, Any]) -> None:
        key = wanted.get("type", "model"), f"{wanted['organization']}/{wanted['name']}"
        self.repositories.setdefault(key, [{".gitattributes": b""}])
        self.private[key] = wanted.get("visibility") == "private" or wanted.get("private") is True
        _send(request, 200, {"url": f"{self.url}/{'datasets/' if key[0] == 'dataset' else ''}{key[1]}"})

    def _batch(self, request: Any, wanted: dict[str, Any]) -> None:
        objects = []
        for one in wanted["objects"]:
            actions = {} if one["oid"] in self.large else {"actions": {"upload": {"href": f"{self.url}/lfs/{one['oid']}"}}}
            objects.append({**one, **actions})
        _send(request, 200, {"transfer": "basic", "objects": objects})

    def _receive(self, request: Any, oid: str, body: bytes) -> None:
        if len(self.uploads) >= self.allowed_uploads:
            return _send(request, 403, {"error": "the line was cut"})
        assert hashlib.sha256(body).hexdigest() == oid
        self.large[oid] = body
        self.uploads.append(oid)
        return _send(request, 200, {})

    def _commit(self, request: Any, key: tuple[str, str], body: bytes) -> None:
        lines = [json.loads(line) for line in body.splitlines()]
        parent = lines[0]["value"].get("parentCommit")
        if parent not in (None, _sha(len(self.repositories[key]) - 1)):
            return _send(request, 412, {"error": "A commit has happened since"})
        files = dict(self.files(*key))
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.large[value["oid"]]
            else:
                assert line["key"] == "deletedFile"
                del files[value["path"]]
        self.repositories[key].append(files)
        oid = _sha(len(self.repositories[key]) - 1)
        return _send(
            request, 200, {"commitUrl": f"{self.url}/{key[1]}/commit/{oid}", "commitOid": oid, "pullRequestUrl": None}
        )

    def _resolve(self, request: Any, key: tuple[str, str], revision: str, name: str) -> None:
        number = self._number(key, revision) if key in self.repositories else None
        if number is None or name not in self.repositories[key][number]:
            return _send(request, 404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        content = self.repositories[key][number][name]
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": _sha(number),
            "Accept-Ranges": "bytes",
        }
        asked = request.headers.get("Range")
        start = 0
        if asked and request.command == "GET":
            start = int(re.match(r"bytes=(\d+)-", asked)[1])  # type: ignore[index]
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cut = None
        if request.command == "GET" and name.endswith(LARGE) and self.cut_after is not None:
            if self.cut_name == name:
                return _send(request, 403, {"error": "the line was cut"})
            if not self.cut_name:
                self.cut_name, cut = name, self.cut_after
        if request.command == "GET" and cut is None:
            self.sent.append(name)
        return _send(request, 206 if start else 200, content[start:], headers, cut=cut)


def _sha(number: int) -> str:
    return hashlib.sha1(str(number).encode()).hexdigest()


def _send(request: Any, status: int, body: Any, headers: dict[str, str] | None = None, *, cut: int | None = None) -> None:
    """Send an answer; with `cut` only so many bytes of it, and close the connection."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    request.send_response(status)
    request.send_header("Content-Type", "application/octet-stream" if isinstance(body, bytes) else "application/json")
    request.send_header("Content-Length", str(len(content)))
    for name, value in (headers or {}).items():
        request.send_header(name, value)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(content[:cut])
    if cut is not None:
        request.close_connection = True
