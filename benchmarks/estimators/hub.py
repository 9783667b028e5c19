"""A loopback stand-in for the model hub: serves config.json files, so that estimators that look models up there run
offline and unchanged (HF_ENDPOINT points to it).

Knows: the two requests that such a lookup makes. Does not know: weights, tokens, revisions.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "5" * 40


@contextmanager
def serve(root: Path) -> Iterator[str]:
    """The URL of a hub whose models are the folders root/owner/name."""
    handler = type("Handler", (_Handler,), {"root": root})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    root: Path

    def log_message(self, *_: object) -> None:
        return

    def do_HEAD(self) -> None:
        self._answer(send=False)

    def do_GET(self) -> None:
        self._answer(send=True)

    def _answer(self, *, send: bool) -> None:
        path = self.path.split("?")[0]
        if path.startswith("/api/models/"):
            model = path.removeprefix("/api/models/").split("/revision/")[0]
            config = self._read(model, "config.json")
            if config is None:
                self._end(404, {"X-Error-Code": "RepoNotFound"}, b"", send=send)
                return
            known = {"id": model, "sha": COMMIT, "library_name": "transformers", "config": json.loads(config)}
            siblings = [{"rfilename": "config.json"}]
            self._end(200, {}, json.dumps({**known, "siblings": siblings}).encode(), send=send)
            return
        model, _, rest = path[1:].partition("/resolve/")
        body = self._read(model, rest.partition("/")[2])
        if body is None:
            self._end(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, b"", send=send)
        else:
            self._end(200, {"ETag": f'"{len(body):040x}"', "X-Repo-Commit": COMMIT}, body, send=send)

    def _read(self, model: str, name: str) -> bytes | None:
        folder = (self.root / model).resolve()
        path = folder / name
        inside = folder.is_relative_to(self.root.resolve()) and name == "config.json"
        return path.read_bytes() if inside and path.is_file() else None

    def _end(self, status: int, fields: dict[str, str], body: bytes, *, send: bool) -> None:
        self.send_response(status)
        for name, value in {**fields, "Content-Type": "application/json", "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if send:
            self.wfile.write(body)
