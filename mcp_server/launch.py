"""The front of the MCP server: answers a client at once while the server behind it is installed and started.

Run as: python3 launch.py        (Python 3.8 or newer, standard library only)

Knows: JSON-RPC lines, one child process, which requests wait for it. Once the server is up, lines pass unchanged.
Does not know: the tools; what is answered alone (launch_answers.py); how the environment is made (launch_install.py).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from launch_answers import Answers, parameters  # noqa: E402  (-I leaves this folder out of sys.path)

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    from typing import IO, Any, NoReturn

    from launch_install import Installer

    Message = dict[str, Any]

LONGEST_BACKOFF = 60.0
KEPT_LOGS = 8


class Front:
    """One client, and at most one server. `lock` guards everything below it; the threads wait on it."""

    def __init__(self, manifest: dict[str, Any], out: IO[bytes], patience: float) -> None:
        self.out = out
        self.patience = patience  # seconds that a request waits for the server
        self.since = time.monotonic()
        self.lock = threading.Condition(threading.RLock())
        self.answers = Answers(manifest)
        self.initialized: bytes | None = None  # the client's notification that follows its handshake
        self.child: subprocess.Popen[bytes] | None = None
        self.probe: str | None = None  # id of the front's own first request to the child
        self.ready = False
        self.waiting: list[
            tuple[float, Message, bytes]
        ] = []  # (arrived, request, line) that only the server can answer
        self.in_flight: dict[str, Message] = {}  # requests that the server has and has not answered, by id
        self.trouble = ""
        self.installer: Installer | None = None
        self.log = Path(os.devnull)

    def from_client(self, line: bytes) -> None:
        """Answer, keep or pass on one line."""
        try:
            message = json.loads(line.decode("utf-8"))
        except ValueError:
            return  # as the SDK does: there is no id to answer to
        if not isinstance(message, dict):
            return
        with self.lock:
            if not isinstance(message.get("method"), str) or "id" not in message:
                self._notification(message, line)
                return
            self.answers.note(message)
            answer = None if self.ready else self.answers.known(message)
            if answer is not None:
                self._send(answer)
            elif self.ready:
                self._forward(message, line)
            else:
                self.waiting.append((time.monotonic(), message, line))
            self._greet()
            self.lock.notify_all()

    def _notification(self, message: Message, line: bytes) -> None:
        if message.get("method") == "notifications/initialized":
            self.initialized = line
        if self.ready:
            self._to_child(line)
        elif message.get("method") == "notifications/cancelled":
            gone = parameters(message).get("requestId")
            self.waiting = [item for item in self.waiting if item[1]["id"] != gone]

    def _greet(self) -> None:
        """Open the connection to a new server, as soon as it and the client's own opening are there."""
        if self.child is not None and self.probe is None:
            id_ = f"peftsmith-front-{self.child.pid}"
            opening = self.answers.opening(id_)
            if opening is not None:
                self.probe = id_
                self._to_child(json.dumps(opening).encode("utf-8") + b"\n")

    def _forward(self, message: Message, line: bytes) -> None:
        self.in_flight[json.dumps(message["id"])] = message
        self._to_child(line)

    def _to_child(self, line: bytes) -> None:
        if self.child is None or self.child.stdin is None:
            return
        try:
            self.child.stdin.write(line if line.endswith(b"\n") else line + b"\n")
            self.child.stdin.flush()
        except (OSError, ValueError):
            return  # it has died: its reader sees the end, and answers what is pending

    def read_child(self, child: subprocess.Popen[bytes]) -> None:
        """Pass on what the server says until it ends, then answer what it left open. Runs in its own thread."""
        for line in child.stdout or ():
            try:
                message = json.loads(line.decode("utf-8"))
            except ValueError:
                message = None
            with self.lock:
                if isinstance(message, dict) and "method" not in message and "id" in message:
                    if not self.ready and message["id"] == self.probe:
                        self._become_ready()
                        continue
                    self.in_flight.pop(json.dumps(message["id"]), None)
                self._write(line)
        code = child.wait()
        with self.lock:
            again = "It is started again at the next call."
            if not self.ready and self.installer is not None:
                again += f" If that does not help, delete {self.installer.folder()} to have it made again."
            self.child, self.probe, self.ready = None, None, False
            lost = [*self.in_flight.values(), *(item[1] for item in self.waiting)]
            self.in_flight, self.waiting = {}, []
            end = _end_of(self.log)
            for request in lost:
                self._refuse(request, f"peftsmith's server ended unexpectedly (exit code {code}). {again} {end}")
            self.lock.notify_all()

    def _become_ready(self) -> None:
        self.ready = True
        if self.initialized is not None:
            self._to_child(self.initialized)
        for _, message, line in self.waiting:
            self._forward(message, line)
        self.waiting = []

    def bring_up(self) -> None:
        """Install and start the server, and again when a request comes after it failed. Runs in its own thread."""
        backoff, retry_at = 0.0, 0.0
        while True:
            try:
                self._start_child()
                backoff = 0.0
            except Exception as error:
                backoff = min(LONGEST_BACKOFF, backoff * 2 or 2.0)
                retry_at = time.monotonic() + backoff
                with self.lock:
                    self.trouble = str(error) or type(error).__name__
                    self._refuse_waiting()
            with self.lock:
                while self.child is not None or not self.waiting:
                    self.lock.wait()
                    if self.child is None and time.monotonic() < retry_at:
                        self._refuse_waiting()

    def _refuse_waiting(self) -> None:
        for _, message, _ in self.waiting:
            self._refuse(message, self.trouble)
        self.waiting = []

    def _start_child(self) -> None:
        import subprocess

        from launch_install import Installer, data_folder

        data = data_folder()
        python = os.environ.get("PEFTSMITH_SERVER_PYTHON")
        if not python:
            if self.installer is None:
                self.installer = Installer(data, HERE.parent / "requirements" / "control.txt")
            python = str(self.installer.ensure())
        environment = dict(os.environ, PYTHONPATH=str(HERE))
        environment.pop("PYTHONHOME", None)
        self.log = _log_file(data / "logs")
        with self.log.open("ab") as log:
            # -P: a file in the user's project must not shadow a module of the server.
            argv = [python, "-P", "-m", "peftsmith.server"]
            child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment)
        with self.lock:
            self.child = child
            self._greet()
        threading.Thread(target=self.read_child, args=(child,), daemon=True).start()
        if self.installer is not None:
            self.installer.remove_unused()

    def be_patient(self) -> None:
        """Answer a waiting request before its client gives up. Runs in its own thread."""
        with self.lock:
            while True:
                now = time.monotonic()
                for item in [item for item in self.waiting if now >= item[0] + self.patience]:
                    self.waiting.remove(item)
                    self._refuse(item[1], self._progress(now))
                self.lock.wait(min((item[0] + self.patience - now for item in self.waiting), default=None))

    def _progress(self, now: float) -> str:
        since = self.installer.installing_since if self.installer else None
        doing = "starting" if since is None else "installing its libraries"
        return f"peftsmith is {doing} ({now - (since or self.since):.0f} s so far); call again in a little while."

    def _refuse(self, request: Message, text: str) -> None:
        self._send(self.answers.refusal(request, text))

    def _send(self, message: Message) -> None:
        self._write(json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode("utf-8") + b"\n")

    def _write(self, line: bytes) -> None:
        try:
            self.out.write(line)
            self.out.flush()
        except (OSError, ValueError):
            self.end(0)  # the client has gone

    def end(self, code: int) -> NoReturn:
        """Leave at once, and take the server and an installation along. Waits for no lock."""
        if self.installer is not None:
            self.installer.stop()
        if self.child is not None and self.child.poll() is None:
            self.child.terminate()
        os._exit(code)


def _log_file(folder: Path) -> Path:
    """A log for this process; of the older ones only the newest are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    dated = []
    for path in folder.glob("server-*.log"):
        try:
            dated.append((path.stat().st_mtime, path))
        except FileNotFoundError:  # another client tidies up as well
            continue
    for _, path in sorted(dated)[: -(KEPT_LOGS - 1)]:
        path.unlink(missing_ok=True)
    return folder / f"server-{os.getpid()}.log"


def _end_of(log: Path) -> str:
    try:
        lines = log.read_bytes().decode("utf-8", "replace").strip().splitlines()
    except OSError:
        lines = []
    return f"The end of its log ({log}): {' | '.join(lines[-3:])[-600:] or 'empty'}"


def main() -> None:
    """Serve the client on stdin and stdout until it leaves."""
    manifest = json.loads((HERE / "manifest.json").read_text(encoding="utf-8"))
    front = Front(manifest, sys.stdout.buffer, float(os.environ.get("PEFTSMITH_FRONT_PATIENCE") or 20))
    # Python runs a handler between two steps of the main thread, which may already be on its way into a read that never
    # ends. The byte that the interpreter writes when a signal arrives wakes a thread in any case.
    signals, wake = socket.socketpair()
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: None)
    for target in (front.bring_up, front.be_patient, lambda: front.end(128 + signals.recv(1)[0])):
        threading.Thread(target=target, daemon=True).start()
    for line in sys.stdin.buffer:
        front.from_client(line)
    front.end(0)


if __name__ == "__main__":
    main()
