"""The warm worker: one process per training environment that has imported the libraries and forks a child per job.

Knows: how to import once, listen on a unix socket, fork, enforce deadlines, report killed children, end when idle.
Does not know: what a job does (jobs/), who asks (client.py), or anything of peftsmith outside of worker/.

Runs under the training environment's Python as `python main.py --socket PATH [--quantise]`. The libraries are imported
before any tensor work, and with every thread pool held back: a fork of a process with threads can deadlock.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import gc
import importlib
import importlib.util
import json
import os
import selectors
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

IDLE_SECONDS = 600.0
LARGEST_REQUEST = 16 << 20
LOG_TAIL = 4000
EXIT_TAKEN = 75  # another worker holds this socket's lock
HERE = Path(__file__).resolve().parent

# Jobs use no network and no GPU, and one thread: with tiny matrices, waiting for a second costs more than it computes.
SURROUNDINGS = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "MKL_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "PYTHONDONTWRITEBYTECODE": "1",
}


@dataclass
class Guest:
    """One connection: first its request arrives, then a child (its own process group) answers it."""

    connection: socket.socket
    buffer: bytearray = field(default_factory=bytearray)
    pid: int = 0
    deadline: float = float("inf")
    seconds: float = 0.0
    late: bool = False
    log: IO[bytes] | None = None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--quantise", action="store_true")
    arguments = parser.parse_args(argv)
    place: Path = arguments.socket
    lock = os.open(place.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return EXIT_TAKEN
    os.ftruncate(lock, 0)
    os.write(lock, str(os.getpid()).encode("ascii"))
    with contextlib.suppress(OSError):  # the error of the worker before this one
        os.truncate(place.with_suffix(".log"), 0)
    place.unlink(missing_ok=True)  # left by a killed worker: the lock proves that nobody listens there
    os.environ.update(SURROUNDINGS)
    sys.dont_write_bytecode = True
    adopt_package()
    import_libraries(quantise=arguments.quantise)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        previous = os.umask(0o177)
        listener.bind(str(place))
        os.umask(previous)
        listener.listen(16)
        try:
            serve(listener, lock, idle_seconds=float(os.environ.get("PEFTSMITH_WORKER_IDLE_SECONDS") or IDLE_SECONDS))
        finally:
            place.unlink(missing_ok=True)
    return 0


def adopt_package() -> None:
    """Make `peftsmith.worker` importable without its parent folder on sys.path.

    In an installed wheel that folder is the control plane's site-packages, which would hide this environment's own.
    """
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]
    package = HERE.parent
    spec = importlib.util.spec_from_file_location(
        "peftsmith", package / "__init__.py", submodule_search_locations=[str(package)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{package} is not a package")
    module = importlib.util.module_from_spec(spec)
    sys.modules["peftsmith"] = module
    spec.loader.exec_module(module)


def import_libraries(*, quantise: bool) -> None:
    """Import what every job needs. bitsandbytes takes seconds and is hidden from PEFT unless jobs quantise."""
    if not quantise:
        sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
    for name in ("torch", "transformers", "datasets", "accelerate", "peft", "trl"):
        importlib.import_module(name)
    # transformers and trl are lazy: touching the classes is what loads them
    for module, names in {
        "transformers": ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer", "GenerationConfig", "Trainer"),
        "transformers.models.llama.modeling_llama": ("LlamaForCausalLM",),
        "peft": ("LoraConfig", "PeftModel", "get_peft_model"),
        "trl": ("SFTConfig", "SFTTrainer"),
    }.items():
        loaded = importlib.import_module(module)
        for name in names:
            getattr(loaded, name)
    for module in ("sklearn.feature_extraction.text", "sklearn.linear_model"):  # generated evaluations compare with it
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    if quantise:  # a shortcut of some processors, which refuses the small widths of a twin and which no GPU takes
        importlib.import_module("bitsandbytes.nn.modules").has_avx512bf16 = lambda: False  # type: ignore[attr-defined]
    gc.collect()
    gc.freeze()


def serve(listener: socket.socket, lock: int, *, idle_seconds: float) -> None:
    """Answer connections until none has been open for `idle_seconds`, or SIGTERM."""
    woken, wake = socket.socketpair()
    for end in (woken, wake, listener):
        end.setblocking(False)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    guests: dict[int, Guest] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(woken, selectors.EVENT_READ)
        last = time.monotonic()
        try:
            while guests or time.monotonic() - last < idle_seconds:
                now = time.monotonic()
                due = min((guest.deadline for guest in guests.values()), default=last + idle_seconds)
                for key, _ in selector.select(max(0.0, min(due - now, 60.0))):
                    if key.fileobj is listener:
                        _welcome(listener, selector, guests)
                    elif key.fileobj is woken:
                        with contextlib.suppress(BlockingIOError):
                            woken.recv(4096)
                    elif key.fd in guests:
                        _hear(guests[key.fd], guests, [listener, woken, wake], lock, selector)
                _enforce_deadlines(guests)
                _reap(guests, selector)
                if guests:
                    last = time.monotonic()
        finally:
            signal.set_wakeup_fd(-1)
            for guest in guests.values():
                _kill(guest)


def _welcome(listener: socket.socket, selector: selectors.BaseSelector, guests: dict[int, Guest]) -> None:
    with contextlib.suppress(BlockingIOError):
        connection, _ = listener.accept()
        connection.setblocking(False)
        selector.register(connection, selectors.EVENT_READ)
        guests[connection.fileno()] = Guest(connection)


def _hear(
    guest: Guest, guests: dict[int, Guest], own: list[socket.socket], lock: int, selector: selectors.BaseSelector
) -> None:
    """Take in more of a request; start its job when it is complete; a guest that hung up needs no answer."""
    try:
        chunk = guest.connection.recv(1 << 16)
    except BlockingIOError:
        return
    except OSError:
        chunk = b""
    if guest.pid:
        if not chunk:
            selector.unregister(guest.connection)
            _kill(guest)
        return
    guest.buffer += chunk
    if not chunk or len(guest.buffer) > LARGEST_REQUEST:
        _dismiss(guest, guests, selector)
    elif b"\n" in chunk:
        try:
            request = json.loads(guest.buffer.split(b"\n", 1)[0])
            guest.seconds = float(request["deadline"])
            job, arguments = str(request["job"]), dict(request["arguments"])
        except (ValueError, KeyError, TypeError) as error:
            say(guest.connection, {"error": f"this is not a request: {error!r}", "traceback": ""})
            _dismiss(guest, guests, selector)
            return
        guest.deadline = time.monotonic() + guest.seconds
        _start(guest, job, arguments, guests, own, lock)


def _start(
    guest: Guest, job: str, arguments: dict[str, Any], guests: dict[int, Guest], own: list[socket.socket], lock: int
) -> None:
    guest.log = tempfile.TemporaryFile()  # noqa: SIM115 - parent and child share it until the job has ended
    guest.pid = os.fork()
    if guest.pid:
        with contextlib.suppress(OSError):  # both sides do it, so that neither has to wait for the other
            os.setpgid(guest.pid, guest.pid)
        return
    status = 1
    try:
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for other in guests.values():
            if other is not guest:
                other.connection.close()
        for end in own:
            end.close()
        os.close(lock)
        from peftsmith.worker import child

        status = child.answer(guest.connection, job, arguments, guest.log.fileno())
    finally:
        os._exit(status)  # never run the parent's clean-up here


def _enforce_deadlines(guests: dict[int, Guest]) -> None:
    now = time.monotonic()
    for guest in guests.values():
        if guest.pid and guest.deadline <= now:
            guest.late, guest.deadline = True, float("inf")
            _kill(guest)


def _reap(guests: dict[int, Guest], selector: selectors.BaseSelector) -> None:
    """Close the connections whose child has ended; one that did not answer gets an error line with the log's end."""
    for guest in [each for each in guests.values() if each.pid]:
        pid, status = os.waitpid(guest.pid, os.WNOHANG)
        if not pid:
            continue
        code = os.waitstatus_to_exitcode(status)
        if guest.late:
            cause = f"the job did not end within {guest.seconds:.0f} s and was killed"
        elif code < 0:
            cause = f"the job was killed by signal {-code} ({signal.Signals(-code).name})"
        else:
            cause = f"the job ended with exit code {code} without an answer"
        if code != 0:
            say(guest.connection, {"error": cause, "traceback": "", "log": tail(guest.log)})
        _kill(guest)  # whatever the child itself has left running
        _dismiss(guest, guests, selector)


def _dismiss(guest: Guest, guests: dict[int, Guest], selector: selectors.BaseSelector) -> None:
    with contextlib.suppress(KeyError, ValueError):
        selector.unregister(guest.connection)
    guests.pop(guest.connection.fileno(), None)
    guest.connection.close()
    if guest.log is not None:
        guest.log.close()


def _kill(guest: Guest) -> None:
    if guest.pid:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(guest.pid, signal.SIGKILL)


def say(connection: socket.socket, message: dict[str, Any]) -> None:
    """Send one JSON line; a peer that has gone is no error."""
    with contextlib.suppress(OSError):
        connection.setblocking(True)
        connection.settimeout(10)
        connection.sendall(json.dumps(message, default=str).encode("utf-8") + b"\n")


def tail(log: IO[bytes] | None) -> str:
    """The last part of a job's output as text."""
    if log is None:
        return ""
    log.seek(0, os.SEEK_END)
    log.seek(max(0, log.tell() - LOG_TAIL))
    return log.read().decode("utf-8", "replace")


if __name__ == "__main__":
    sys.exit(main())
