"""The small process that stands beside a run: starts its script, renews its status, ends its whole process group.

Knows: run.json's argv and cwd, status.json, the stop file, signals; nothing but the standard library.
Does not know: what the script does, or who reads the status. Runs as `python -I supervise.py RUN_FOLDER`.

The process that is started forks once and ends as soon as the fork has written status.json, so that the starter has
no child to reap and knows that the supervisor listens. The environment reaches the script by inheritance alone: no
value of it is ever written down.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

LEASE_SECONDS = float(os.environ.get("PEFTSMITH_LEASE_SECONDS", "15"))
RENEW_SECONDS = min(2.0, LEASE_SECONDS / 5)
STOP_SECONDS = float(os.environ.get("PEFTSMITH_STOP_SECONDS", "10"))
STATUS, STOP, DONE, LOG = "status.json", "stop", "done.json", "log.txt"
FINAL = ("done", "failed", "stopped")

Status = dict[str, Any]


def host_name() -> str:
    return socket.gethostname()


def boot_id() -> str:
    """What a pid is unique under: this boot, and on Linux this pid namespace (containers have their own)."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return _ask("sysctl", "-n", "kern.boottime")  # macOS


def started_at(pid: int) -> str | None:
    """When the process began, as the system tells it (comparable text only); None when it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        fields = _ask("ps", "-o", "stat=,lstart=", "-p", str(pid)).split()  # macOS
        return None if not fields or fields[0].startswith("Z") else " ".join(fields[1:])
    # proc_pid_stat(5): field 3 is the state, field 22 the start time in clock ticks since boot.
    return None if fields[0] in "ZXx" else fields[19]


def _ask(*argv: str) -> str:
    try:
        return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def write_status(folder: Path, status: Status) -> bool:
    """Replace status.json in one step, with a fresh lease; False when that failed (full disk)."""
    status["lease_until"] = time.time() + LEASE_SECONDS
    temporary = folder / f".{STATUS}.new"
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            json.dump(status, stream)
            stream.flush()
            if status["state"] in FINAL:
                os.fsync(stream.fileno())
        temporary.replace(folder / STATUS)
    except OSError as error:
        with contextlib.suppress(OSError):
            print(f"status.json could not be written: {error}", file=sys.stderr, flush=True)
        return False
    return True


def done_ok(folder: Path) -> bool:
    """True when the script itself wrote a done.json that says ok."""
    try:
        done = json.loads((folder / DONE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(done, dict) and done.get("ok") is True


def signal_group(group: int, number: int) -> bool:
    """Send a signal to a process group; False when nobody is left in it."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def end_group(group: int, seconds: float) -> None:
    """TERM what is left of a group whose leader is gone (data loader workers), then KILL it."""
    deadline = time.monotonic() + seconds
    if not signal_group(group, signal.SIGTERM):
        return
    while time.monotonic() < deadline:
        if not signal_group(group, 0):
            return
        time.sleep(0.05)
    signal_group(group, signal.SIGKILL)


class Signals:
    """Signals as bytes in a pipe, so that waiting for them needs no polling."""

    def __init__(self) -> None:
        self._read, write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)

    def wait(self, seconds: float) -> bool:
        """Sleep until something happens, at most `seconds`; True when we were told to stop."""
        select.select([self._read], [], [], max(0.0, seconds))
        try:
            seen = os.read(self._read, 4096)
        except BlockingIOError:
            return False
        return signal.SIGTERM in seen or signal.SIGINT in seen


def supervise(folder: Path, signals: Signals, status: Status) -> None:
    """Start the run's argv and stay until its process group has ended and status.json says how."""
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))

    def announce() -> None:
        # In the child, before exec: there is never a script whose pid is not on record.
        status.update(state="running", pid=os.getpid(), pid_started=started_at(os.getpid()), started=time.time())
        write_status(folder, status)

    if signals.wait(0) or (folder / STOP).exists():
        _finish(folder, status, state="stopped")
        return
    try:
        with (folder / LOG).open("ab") as log:
            process = subprocess.Popen(
                run["argv"],
                cwd=run["cwd"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=announce,
            )
    except (OSError, subprocess.SubprocessError) as error:
        _finish(folder, status, state="failed", error=f"{type(error).__name__}: {error}")
        return
    status.update(state="running", pid=process.pid, pid_started=started_at(process.pid), started=time.time())
    stopping = _watch(folder, signals, status, process)
    end_group(process.pid, min(2.0, STOP_SECONDS))
    ended_well = process.returncode == 0 and done_ok(folder)
    state = "done" if ended_well else "stopped" if stopping else "failed"
    _finish(folder, status, state=state, exit_code=process.returncode)


def _watch(folder: Path, signals: Signals, status: Status, process: subprocess.Popen[bytes]) -> bool:
    """Renew the lease until the script has ended; True when it was stopped on request."""
    kill_at: float | None = None
    while process.poll() is None:
        write_status(folder, status)
        now = time.monotonic()
        pause = RENEW_SECONDS if kill_at is None else min(RENEW_SECONDS, max(0.05, kill_at - now))
        told = signals.wait(pause) or (folder / STOP).exists()
        if told and kill_at is None:
            kill_at = time.monotonic() + STOP_SECONDS
            signal_group(process.pid, signal.SIGTERM)
        elif kill_at is not None and time.monotonic() >= kill_at and process.poll() is None:
            signal_group(process.pid, signal.SIGKILL)
    return kill_at is not None


def _finish(folder: Path, status: Status, **fields: Any) -> None:
    status.update(fields, ended=time.time())
    while not write_status(folder, status) and folder.is_dir():
        time.sleep(RENEW_SECONDS)


def main(folder: Path) -> int:
    ready, tell = os.pipe()
    if os.fork():
        os.close(tell)
        return 0 if os.read(ready, 1) == b"1" else 1
    os.close(ready)
    signals = Signals()
    status: Status = {
        "state": "starting",
        "pid": None,
        "pid_started": None,
        "supervisor_pid": os.getpid(),
        "supervisor_started": started_at(os.getpid()),
        "boot_id": boot_id(),
        "host": host_name(),
        "exit_code": None,
        "error": None,
        "started": None,
        "ended": None,
    }
    if not write_status(folder, status):
        return 1
    os.write(tell, b"1")
    os.close(tell)
    supervise(folder, signals, status)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
