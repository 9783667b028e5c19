"""A loopback server that answers as the hub does: model information, files, ranges, gated and missing models."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "5" * 40


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, models: dict[str, Path], *, ranges: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models, self.ranges = models, ranges
        self.seen: list[tuple[str, str, str | None]] = []
        self.sent = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_):
        return

    def do_HEAD(self):
        self._answer(send=False)

    def do_GET(self):
        self._answer(send=True)

    def _answer(self, *, send: bool) -> None:
        self.server.seen.append((self.command, self.path, self.headers.get("Range")))
        if self.path.startswith("/api/models/"):
            self._information(self.path.removeprefix("/api/models/").split("?")[0])
        elif "/resolve/" in self.path:
            model, _, rest = self.path[1:].partition("/resolve/")
            self._file(model, rest.partition("/")[2], send=send)
        else:
            self._end(404, {"X-Error-Code": "EntryNotFound"})

    def _information(self, name: str) -> None:
        model, _, revision = name.partition("/revision/")
        if model == "own/broken":
            self._end(500)
        elif model not in self.server.models:
            self._end(404, {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("", "main", COMMIT):
            self._end(404, {"X-Error-Code": "RevisionNotFound"})
        else:
            names = sorted(path.name for path in self.server.models[model].iterdir())
            body = {
                "id": model,
                "sha": COMMIT,
                "siblings": [{"rfilename": each} for each in names],
                "gated": "manual" if model == "own/granted" else False,
                "tags": ["text-generation", "license:apache-2.0"],
            }
            self._end(200, {"Content-Type": "application/json"}, json.dumps(body).encode())

    def _file(self, model: str, name: str, *, send: bool) -> None:
        if model == "own/gated":
            self._end(403, {"X-Error-Code": "GatedRepo"})
            return
        path = self.server.models[model] / name
        if not path.is_file():
            self._end(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        body = path.read_bytes()
        fields = {"ETag": f'"{len(body):040x}"', "X-Repo-Commit": COMMIT, "Content-Type": "application/octet-stream"}
        wanted = self.headers.get("Range")
        if send and wanted and self.server.ranges:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            part = body[int(first) : int(last) + 1]
            fields["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(body)}"
            self._end(206, fields, part)
        else:
            self._end(200, fields, body, send=send)

    def _end(self, status: int, fields: dict[str, str] | None = None, body: bytes = b"", *, send: bool = True) -> None:
        self.send_response(status)
        for name, value in (fields or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if send:
            try:
                self.wfile.write(body)
                self.server.sent += len(body)
            except ConnectionError:
                self.close_connection = True


@contextmanager
def serve(models: dict[str, Path], *, ranges: bool = True):
    hub = Hub(models, ranges=ranges)
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
