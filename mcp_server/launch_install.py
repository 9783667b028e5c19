"""Makes the environment that the server runs in: once for each set of pins, whole or not at all.

Runs under Python 3.8, with the standard library only.

Knows: where it lies, how it is made (uv, else venv and pip, hashes required), who else uses it, what went wrong.
Does not know: MCP, or what the server does (launch.py starts it).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO

OLDEST = (3, 11)
NEWER_NAMES = ("python3.13", "python3.12", "python3.11", "python3.14")
PROBE = "import sys, venv, ensurepip; print(sys.version_info[0], sys.version_info[1])"
NO_NETWORK = (
    "connection",
    "resolve",
    "resolution",
    "unreachable",
    "error sending request",
    "request failed",
    "dns error",
    "timed out",
    "no matching distribution",
)
# What would let another Python, or another place to install to, leak into the environment.
STRAY = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PIP_REQUIRE_VIRTUALENV", "PIP_TARGET", "PIP_PREFIX", "PIP_USER")


class Trouble(Exception):
    """What the user has to know or do before the server can start."""


def data_folder() -> Path:
    """Where the environment and the logs lie: the plugin's own data folder, else peftsmith's cache."""
    chosen = os.environ.get("CLAUDE_PLUGIN_DATA") or os.environ.get("PEFTSMITH_HOME")
    cache = os.environ.get("XDG_CACHE_HOME")
    folder = Path(chosen) if chosen else (Path(cache) if cache else Path.home() / ".cache") / "peftsmith"
    return folder.absolute()


def interpreter_of(folder: Path) -> Path:
    """The Python of a virtual environment."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


class Installer:
    """One environment for one file of pins. `ensure` may be called again after it failed."""

    def __init__(self, data: Path, pins: Path) -> None:
        self.data = data
        self.pins = pins
        self.installing_since: float | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._use: IO[str] | None = None
        self._stopped = threading.Event()

    def folder(self) -> Path:
        """The environment's folder: its name changes with the pins, with Python and with the machine."""
        key = f"{sys.implementation.name} {sys.version_info[0]}.{sys.version_info[1]} {platform.machine()}"
        digest = hashlib.sha256(self.pins.read_bytes() + key.encode("utf-8")).hexdigest()
        return self.data / f"env-{digest[:16]}"

    def ensure(self) -> Path:
        """The environment's interpreter; installs what is missing first. Raises Trouble."""
        try:
            self.data.mkdir(parents=True, exist_ok=True)
            folder = self.folder()
            self._hold(folder)
            if not interpreter_of(folder).exists():
                self.installing_since = time.monotonic()
                with self._lock():
                    if not interpreter_of(folder).exists():
                        self._install(folder)
            return interpreter_of(folder)
        except OSError as error:
            raise Trouble(f"peftsmith cannot write its environment to {self.data}: {error}") from error
        finally:
            self.installing_since = None

    def remove_unused(self) -> None:
        """Delete environments of other pins that no client holds, unless an installation is under way."""
        mine = self.folder()
        with (self.data / "install.lock").open("a", encoding="utf-8") as lock:
            if not _try_lock(lock, shared=False):
                return
            for path in self.data.glob("env-*"):
                if path == mine or not path.is_dir():
                    continue
                with _use_file(path).open("a", encoding="utf-8") as use:
                    if _try_lock(use, shared=False):
                        shutil.rmtree(path, ignore_errors=True)
                        _use_file(path).unlink()

    def stop(self) -> None:
        """End an installation under way; what it had done so far is swept up by the next one."""
        self._stopped.set()
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def _hold(self, folder: Path) -> None:
        """Tell other clients, as long as this process lives, that this environment is in use."""
        path = _use_file(folder)
        while self._use is None or self._use.name != str(path):
            stream = path.open("a", encoding="utf-8")
            if _try_lock(stream, shared=True) and path.exists():
                self._use = stream
            else:  # somebody is just removing it
                stream.close()
                self._pause()

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        with (self.data / "install.lock").open("a", encoding="utf-8") as stream:
            while not _try_lock(stream, shared=False):
                self._pause()
            yield

    def _pause(self) -> None:
        if self._stopped.wait(0.2):
            raise Trouble("peftsmith was stopped.")

    def _install(self, folder: Path) -> None:
        for left in self.data.glob("new-*"):  # by an installation that was cut off: we hold the lock, it is nobody's
            shutil.rmtree(left, ignore_errors=True)
        new = self.data / f"new-{os.getpid()}"
        try:
            for step in self._steps(new):
                code, output = self._run(step)
                if code != 0:
                    raise Trouble(self._explain(output))
            new.rename(folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def _steps(self, new: Path) -> list[list[str]]:
        python, pins = str(interpreter_of(new)), ["--require-hashes", "-r", str(self.pins)]
        base, reason = find_base()
        uv = shutil.which("uv")
        if uv and self._run([uv, "--version"])[0] == 0:  # uv needs no ensurepip, and can bring a Python
            wanted = base or f">={OLDEST[0]}.{OLDEST[1]}"
            return [
                [uv, "venv", "--no-project", "--python", wanted, str(new)],
                [uv, "pip", "install", "--python", python, *pins],
            ]
        if base is None:
            raise Trouble(reason)
        return [[base, "-m", "venv", str(new)], [python, "-m", "pip", "install", "--no-input", "--compile", *pins]]

    def _run(self, argv: list[str]) -> tuple[int, str]:
        if self._stopped.is_set():
            raise Trouble("peftsmith was stopped.")
        environment = {name: value for name, value in os.environ.items() if name not in STRAY}
        environment.setdefault("PIP_RETRIES", "2")
        environment.update(UV_COMPILE_BYTECODE="1", PIP_DISABLE_PIP_VERSION_CHECK="1")
        path = self.data / "install.log"
        with path.open("ab") as log:
            log.write(("$ " + " ".join(argv) + "\n").encode("utf-8", "replace"))
            log.flush()
            start = log.tell()
            self._process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=str(self.data)
            )
            code = self._process.wait()
        with path.open("rb") as log:
            log.seek(start)
            return code, log.read().decode("utf-8", "replace")

    def _explain(self, output: str) -> str:
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        errors = [line for line in lines if line.lower().startswith("error")] or lines[-3:]
        said = output.lower()
        if "hash" in said and "match" in said:
            cause = "a downloaded file does not match its pinned hash; nothing was installed"
        elif "no space left" in said:
            cause = "the disk is full"
        elif any(sign in said for sign in NO_NETWORK):
            cause = "the package index cannot be reached; check the network or the proxy"
        else:
            cause = "the installation failed"
        details = " ".join(errors)[:400]
        return (
            f"peftsmith could not install its libraries: {cause}. Call again to retry. "
            f"Details: {details} (log: {self.data / 'install.log'})"
        )


def find_base(mine: str = sys.executable, version: tuple[int, int] = sys.version_info[:2]) -> tuple[str | None, str]:
    """A Python that is new enough and can make environments, or None; and why there is none."""
    reason = (
        f"peftsmith needs Python {OLDEST[0]}.{OLDEST[1]} or newer; this is {version[0]}.{version[1]} ({mine}). "
        "Install a newer one, or uv, and call again."
    )
    candidates = [mine] if version >= OLDEST else []
    candidates += [path for path in map(shutil.which, NEWER_NAMES) if path]
    for python in candidates:
        argv = [python, "-I", "-c", PROBE]
        found = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if found.returncode == 0 and tuple(int(part) for part in found.stdout.split()) >= OLDEST:
            return python, ""
        if b"ensurepip" in found.stderr or b"'venv'" in found.stderr:
            reason = (
                f"{python} cannot make virtual environments. Install the package python3-venv "
                "(Debian, Ubuntu: `sudo apt install python3-venv`), or uv, and call again."
            )
    return None, reason


def _use_file(folder: Path) -> Path:
    return folder.with_name(folder.name + ".use")


def _try_lock(stream: IO[str], *, shared: bool) -> bool:
    """Lock a file between processes, or False at once; the lock ends with the stream or with its process."""
    try:
        import fcntl
    except ImportError as error:
        raise Trouble("peftsmith's plugin does not run natively on Windows; use WSL2.") from error
    try:
        fcntl.flock(stream, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
