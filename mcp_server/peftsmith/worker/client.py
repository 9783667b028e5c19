"""The control plane's side of the warm worker: find it or start it, send one job, wait for the answer.

Knows: where a worker's socket lies, how to start one so that it outlives this process, what to say when it fails.
Does not know: what a job does, or how an environment was chosen (machine/environment.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftsmith import files
from peftsmith.errors import PeftsmithError
from peftsmith.secrets import redact

if TYPE_CHECKING:
    from peftsmith.machine.environment import Environment

START_SECONDS = 240.0  # importing from a cold disk takes the better part of a minute
EXIT_TAKEN = 75  # as in main.py, which runs under another Python
_MAIN = Path(__file__).resolve().with_name("main.py")
_LONGEST_SOCKET = 100  # AF_UNIX allows 107 bytes on Linux and 103 on macOS
# glibc gives large blocks back at once, and the loss over a whole vocabulary then spends half its time on page faults.
# Kept, they are reused; the children that use them live for seconds. Has to be set before the process starts.
_ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(16 << 30)}
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSW|API_?KEY|CREDENTIAL", re.IGNORECASE)
Progress = Callable[[dict[str, Any]], None]


class JobFailed(PeftsmithError):
    """A job that raised, was killed or ran out of time. `traceback` and `log` are cleaned and may be empty."""

    def __init__(self, cause: str, *, traceback: str, log: str, next_step: str) -> None:
        super().__init__(cause, next_step=next_step)
        self.traceback = traceback
        self.log = log


def call(
    environment: Environment,
    job: str,
    arguments: dict[str, Any],
    *,
    timeout: float,
    quantise: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """What worker/jobs/<job>.py returns for `arguments`, run in a fork of the environment's warm worker.

    `timeout` in seconds counts from when the worker has the job; starting a worker has its own limit. `quantise` asks
    for a worker that has bitsandbytes. Raises JobFailed, or PeftsmithError when no worker can be started.
    """
    if not hasattr(os, "fork"):
        raise PeftsmithError(
            "The proofs need a system that can fork processes", next_step="Use Linux, macOS or WSL2 for this step."
        )
    place = socket_path(environment, quantise=quantise)
    request = json.dumps({"job": job, "arguments": arguments, "deadline": timeout}).encode("utf-8") + b"\n"
    for _ in range(3):
        connection = _connect(place) or _start(environment, place, quantise=quantise)
        with connection:
            answer = _ask(connection, request, timeout, progress)
        if answer is not None:
            return _unpack(answer, job)
        # the worker was just ending: its socket was there, but nobody took the request
    raise PeftsmithError("The worker keeps ending before it answers", value=job, next_step="Run check_project again.")


def socket_path(environment: Environment, *, quantise: bool = False) -> Path:
    """Where the worker of this environment (interpreter and library versions) and this code listens."""
    name = files.sha256_json([environment.key, quantise, str(_MAIN), files.sha256_file(_MAIN)])[:16]
    return _folder() / f"{name}.sock"


def _folder() -> Path:
    """The private folder of the workers' sockets: in the cache, or below the temporary folder if that is too long."""
    folder = files.cache_folder("workers")
    if len(os.fsencode(folder)) + len("/0123456789abcdef.sock") > _LONGEST_SOCKET:
        short = files.sha256_text(str(folder))[:12]
        folder = Path(tempfile.gettempdir()) / f"peftsmith-{os.getuid()}-{short}"
        folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PeftsmithError(
            "The folder for the worker's socket belongs to somebody else",
            value=str(folder),
            next_step="Remove it, or set PEFTSMITH_HOME to a folder of your own.",
        )
    folder.chmod(0o700)
    return folder


def stop(environment: Environment, *, quantise: bool = False) -> bool:
    """End the environment's warm worker; True when there was one."""
    return _stop(socket_path(environment, quantise=quantise))


def stop_all() -> int:
    """End every warm worker of this cache; returns how many there were."""
    return sum(_stop(place) for place in _folder().glob("*.lock"))


def _stop(place: Path) -> bool:
    pid = _holder(place) if _locked(place) else None
    if pid is None:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    return True


def _holder(place: Path) -> int | None:
    """The process id of the worker that holds, or held last, the lock of this name."""
    try:
        return int(place.with_suffix(".lock").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _connect(place: Path) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(str(place))
        return connection
    except (FileNotFoundError, ConnectionRefusedError, ConnectionResetError):
        connection.close()
        return None
    except BaseException:
        connection.close()
        raise


def _start(environment: Environment, place: Path, *, quantise: bool) -> socket.socket:
    """Start a worker, detached, and wait until it listens. When another client was faster, wait for that one's."""
    deadline = time.monotonic() + START_SECONDS
    process: subprocess.Popen[bytes] | None = None
    while time.monotonic() < deadline:
        connection = _connect(place)
        if connection is not None:
            if process is not None and _holder(place) != process.pid:
                process.terminate()  # another client's worker was faster; ours would take over when that one ends
            return connection
        code = process.poll() if process is not None else EXIT_TAKEN
        if code == EXIT_TAKEN and not _locked(place):
            process = _spawn(environment, place, quantise=quantise)
        elif code not in (None, EXIT_TAKEN):
            raise PeftsmithError(
                f"The training environment's libraries cannot be imported (exit code {code}): {_last_lines(place)}",
                value=environment.interpreter,
                next_step="Repair that environment, or make a new one with make_environment.",
            )
        time.sleep(0.05)
    if process is not None:
        process.kill()
    raise PeftsmithError(
        f"The training environment did not get ready within {START_SECONDS:.0f} s: {_last_lines(place)}",
        value=environment.interpreter,
        next_step="Try again when the machine is less busy.",
    )


def _locked(place: Path) -> bool:
    """True while a worker of this name lives, even if it does not listen yet."""
    import fcntl  # there is none on native Windows, where call() has refused already

    try:
        with place.with_suffix(".lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _spawn(environment: Environment, place: Path, *, quantise: bool) -> subprocess.Popen[bytes]:
    argv = [environment.interpreter, "-u", str(_MAIN), "--socket", str(place), *(["--quantise"] if quantise else [])]
    kept = {
        name: value
        for name, value in os.environ.items()
        # PYTHON* would carry the control plane's libraries across; jobs are offline and need no key
        if not name.startswith("PYTHON") and name != "VIRTUAL_ENV" and not _SECRET_NAME.search(name)
    }
    with place.with_suffix(".log").open("ab") as log:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=place.parent,
            env={**kept, **_ALLOCATOR},
            start_new_session=True,
        )
    threading.Thread(target=process.wait, daemon=True).start()  # a worker that ends must not stay a zombie of ours
    return process


def _ask(connection: socket.socket, request: bytes, timeout: float, progress: Progress | None) -> dict[str, Any] | None:
    """The worker's last line; None when it hung up without a word."""
    connection.settimeout(timeout + 30.0)
    heard = False
    try:
        connection.sendall(request)
        with connection.makefile("rb") as lines:
            for line in lines:
                heard = True
                message: dict[str, Any] = json.loads(line)
                if "progress" not in message:
                    return message
                if progress is not None:
                    progress(message["progress"])
    except TimeoutError:
        return {"error": f"no answer within {timeout:.0f} s", "traceback": "", "log": ""}
    except (ConnectionError, ValueError):
        return {"error": "the worker broke off in the middle of its answer", "traceback": ""} if heard else None
    return {"error": "the worker ended before the job did", "traceback": ""} if heard else None


def _unpack(answer: dict[str, Any], job: str) -> dict[str, Any]:
    if isinstance(answer.get("result"), dict):
        result: dict[str, Any] = answer["result"]
        return result
    log = shown(str(answer.get("log") or ""))
    raise JobFailed(
        shown(f"The job {job} failed in the training environment: {answer.get('error')}"),
        traceback=shown(str(answer.get("traceback") or "")),
        log=log,
        next_step=f"Its output ended with: {log[-300:]}" if log else "Read the cause, correct it and try again.",
    )


def shown(text: str, limit: int = 2000) -> str:
    """The end of foreign text, without control characters and secrets."""
    return redact(files.clean(text[-limit:], limit)).strip()


def _last_lines(place: Path) -> str:
    try:
        text = place.with_suffix(".log").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "it left no message"
    return shown(text, 600) or "it left no message"
