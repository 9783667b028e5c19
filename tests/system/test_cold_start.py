"""First start with an empty cache behind a network of 1 MB/s: connected at once, tools work without a restart."""

from __future__ import annotations

import hashlib
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.wire import MCP_SERVER, Wire

PINS = MCP_SERVER.parent / "requirements" / "control.txt"
BYTES_PER_SECOND = 1_000_000
PIECE = 16 * 1024
SLOWER_THAN_PYTHON = 10  # the start and four lists, against a Python that does nothing


def installers() -> list[str]:
    """pip always; uv as well where there is one, on PATH or beside the tests' own Python."""
    return ["pip", *(["uv"] if find_uv() else [])]


def find_uv() -> str | None:
    for found in (shutil.which("uv", path=str(Path(sys.executable).parent)), shutil.which("uv")):
        if found and subprocess.run([found, "--version"], capture_output=True, check=False).returncode == 0:
            return found
    return None


def link(name, digest):
    return f'<a href="/files/{name}#sha256={digest}" data-core-metadata="true">{name}</a>'


def metadata(wheel: Path) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (entry for entry in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", entry))
        return archive.read(name)


def time_of_a_bare_python() -> float:
    """Seconds that the same Python takes here and now to do nothing: on a busy machine everything is slower."""
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    return time.monotonic() - start


class Line:
    """One network line for all downloads together."""

    def __init__(self, bytes_per_second):
        self._rate = bytes_per_second
        self._lock = threading.Lock()
        self._free_at = 0.0
        self.sent = 0

    def take(self, size):
        with self._lock:
            now = time.monotonic()
            self._free_at = max(now, self._free_at) + size / self._rate
            self.sent += size
            wait = self._free_at - now
        time.sleep(wait)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--require-hashes", "-r", str(PINS), "-d", str(folder)],
        check=True,
    )
    return folder


@pytest.fixture
def index(wheels):
    """A package index on loopback (PEP 503, with PEP 658 metadata) that serves `wheels` at 1 MB/s in all."""
    by_project = {}
    for path in wheels.iterdir():
        name = re.sub(r"[-_.]+", "-", path.name.split("-")[0]).lower()
        by_project.setdefault(name, []).append((path.name, hashlib.sha256(path.read_bytes()).hexdigest()))
    line = Line(BYTES_PER_SECOND)

    class Index(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            part = unquote(self.path).strip("/").split("/")
            if part[0] == "simple" and part[-1] in by_project:
                links = [link(name, digest) for name, digest in by_project[part[-1]]]
                self.reply(200, "\n".join(["<!DOCTYPE html><html><body>", *links, "</body></html>"]).encode())
            elif (
                part[0] == "files"
                and (wheels / part[-1].removesuffix(".metadata")).is_file()
                and ".metadata" in part[-1]
            ):
                self.reply(200, metadata(wheels / part[-1].removesuffix(".metadata")), "text/plain")
            elif part[0] == "files" and (wheels / part[-1]).is_file():
                self.reply(200, (wheels / part[-1]).read_bytes(), "application/octet-stream")
            else:
                self.reply(404, b"")

        def reply(self, status, body, kind="text/html"):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            try:
                for start in range(0, len(body), PIECE):
                    line.take(len(body[start : start + PIECE]))
                    self.wfile.write(body[start : start + PIECE])
            except ConnectionError:  # the installer has seen enough
                self.close_connection = True

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/simple", line
        server.shutdown()


@pytest.mark.system
@pytest.mark.parametrize("installer", installers())
def test_a_first_start_connects_at_once_and_ends_with_working_tools(installer, index, tmp_path):
    url, line = index
    tools = tmp_path / "bin"
    tools.mkdir()
    if installer == "uv":
        (tools / "uv").symlink_to(find_uv())
    home = tmp_path / "home"
    settings = {
        "PATH": f"{tools}{os.pathsep}/usr/bin{os.pathsep}/bin",
        "HOME": home,
        "CLAUDE_PLUGIN_DATA": home / "data",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": url,
        "PIP_FIND_LINKS": "",
        "PIP_NO_CACHE_DIR": "1",
        "UV_NO_CONFIG": "1",
        "UV_DEFAULT_INDEX": url,
        "UV_CACHE_DIR": home / "uv",
        "UV_PYTHON_DOWNLOADS": "never",
        "PEFTSMITH_FRONT_PATIENCE": "5",
    }
    project = tmp_path / "project"
    project.mkdir()

    bare = time_of_a_bare_python()
    start = time.monotonic()
    with Wire([sys.executable, MCP_SERVER / "launch.py"], cwd=project, **settings) as wire:
        wire.shake_hands()
        for method in ("tools/list", "prompts/list", "resources/list", "resources/templates/list"):
            assert "result" in wire.ask(method, seconds=5)
        connected = time.monotonic() - start
        text, failed = wire.call("list_runs", seconds=30)
        first = time.monotonic() - start
        assert failed is True
        assert "peftsmith is installing its libraries" in text
        while failed and time.monotonic() - start < 540:
            text, failed = wire.call("list_runs", seconds=60)
            assert "could not install" not in text, text
        ready = time.monotonic() - start
        assert failed is False, text
        assert wire.call("scan_secrets", {"path": "."})[1] is False
    assert wire.errors == ""
    print(
        f"\n{installer}: connected after {connected:.2f} s (bare Python {bare:.2f} s), "
        f"first call told after {first:.1f} s, tools work after {ready:.0f} s "
        f"({line.sent / 1e6:.0f} MB at {BYTES_PER_SECOND / 1e6:.0f} MB/s)"
    )
    assert connected < max(1, SLOWER_THAN_PYTHON * bare)
    assert ready > line.sent / BYTES_PER_SECOND * 0.9, "the line was not throttled"
    (environment,) = (path for path in (home / "data").glob("env-*") if path.is_dir())
    compiled = len(list(environment.rglob("*.pyc")))
    assert compiled > 0.8 * len(list(environment.rglob("site-packages/mcp*/**/*.py")))

    start = time.monotonic()
    del settings["PEFTSMITH_FRONT_PATIENCE"]
    with Wire([sys.executable, MCP_SERVER / "launch.py"], cwd=project, **settings) as wire:
        wire.shake_hands()
        assert wire.call("list_runs")[1] is False
    assert time.monotonic() - start < 30
