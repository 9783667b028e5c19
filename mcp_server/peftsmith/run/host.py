"""Where runs live: this machine for now.

Knows: how to start a supervisor there, read and write its small files, tell which processes still live, end them.
Does not know: what a run means, or which state it is in (watch.py judges).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from peftsmith import files
from peftsmith.errors import PeftsmithError
from peftsmith.run import supervise

_START_SECONDS = 30.0


@dataclass(frozen=True)
class Host:
    """A machine with a training environment. `name` and `boot` say under what its pids are unique."""

    kind: Literal["local"]
    name: str
    boot: str


@dataclass(frozen=True)
class Alive:
    """Which processes of a run live, as far as this host can tell; `here` is False for another host's or boot's run."""

    here: bool
    script: bool
    supervisor: bool


def probe() -> Host:
    """This machine, under its present boot."""
    return Host("local", supervise.host_name(), supervise.boot_id())


def alive(host: Host, status: Mapping[str, Any]) -> Alive:
    """Whether the script and the supervisor that a status names are still the same living processes.

    A pid counts only with the same host, boot and start time: after a reboot, or when the system has given the number
    to another process, it says nothing.
    """
    if (status.get("host"), status.get("boot_id")) != (host.name, host.boot):
        return Alive(here=False, script=False, supervisor=False)
    return Alive(
        here=True,
        script=_lives(status.get("pid"), status.get("pid_started")),
        supervisor=_lives(status.get("supervisor_pid"), status.get("supervisor_started")),
    )


def start(host: Host, folder: Path, environment: Mapping[str, str]) -> None:
    """Start the supervisor of a run, detached from this process, with `environment` as the script's whole environment.

    Returns once the supervisor has written its first status.json. Raises PeftsmithError when it could not start.
    """
    if os.name == "nt":
        raise PeftsmithError(
            "Runs need a POSIX system's process groups, which native Windows does not have",
            value=host.name,
            next_step="Use WSL2.",
        )
    argv = [sys.executable, "-I", str(Path(supervise.__file__).resolve()), str(folder)]
    try:
        with (folder / "supervisor.log").open("ab") as log:
            code = subprocess.run(
                argv,
                cwd=folder,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                check=False,
                timeout=_START_SECONDS,
            ).returncode
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeftsmithError(
            f"The supervisor could not be started: {error}",
            value=str(folder),
            next_step="Check the free space and the permissions of the project, then start the run again.",
        ) from error
    if code != 0:
        said = files.clean(tail(host, folder / "supervisor.log", 2000), 500)
        raise PeftsmithError(
            f"The supervisor ended at once with exit code {code}: {said}",
            value=str(folder),
            next_step="Check the free space and the permissions of the project, then start the run again.",
        )


def stop(host: Host, status: Mapping[str, Any], *, kill: bool) -> None:
    """Ask the run's supervisor to end it; without one, send TERM (or KILL) to the script's process group."""
    seen = alive(host, status)
    try:
        if seen.supervisor and not kill:
            os.kill(int(status["supervisor_pid"]), signal.SIGTERM)
        elif seen.script:
            supervise.signal_group(int(status["pid"]), signal.SIGKILL if kill else signal.SIGTERM)
    except ProcessLookupError:
        return
    except PermissionError as error:
        raise PeftsmithError(
            "The run's processes belong to another user",
            value=status.get("supervisor_pid"),
            next_step="Stop it as the user who started it.",
        ) from error


def put(host: Host, path: Path, text: str) -> None:
    """Write a small file into a run's folder."""
    files.write_text(path, text)


def get(host: Host, path: Path) -> dict[str, Any] | None:
    """The JSON object in one of a run's small files; None when it is missing or not (yet) whole."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def head(host: Host, path: Path, size: int) -> str:
    """The first `size` bytes of a file as text; empty when it is missing."""
    try:
        with path.open("rb") as stream:
            return stream.read(size).decode("utf-8", errors="replace")
    except OSError:
        return ""


def tail(host: Host, path: Path, size: int) -> str:
    """The last `size` bytes of a file as text, from the first whole line on; empty when it is missing."""
    try:
        with path.open("rb") as stream:
            length = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, length - size))
            data = stream.read(size)
    except OSError:
        return ""
    text = data.decode("utf-8", errors="replace")
    return text if length <= size or "\n" not in text else text.partition("\n")[2]


def _lives(pid: object, started: object) -> bool:
    return isinstance(pid, int) and started is not None and supervise.started_at(pid) == started
