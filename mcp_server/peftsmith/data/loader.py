"""A user's own loader: written from a template, and run in a process of its own, never in this one.

Knows: the two files of a new loader, starting it, its limits of time and size, what its failure says.
Does not know: what rows mean (prepare.py takes them as JSON lines).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from peftsmith import assets, files
from peftsmith.errors import PeftsmithError

MOST_SECONDS = 3600.0
LARGEST_OUTPUT = 64 << 30
_LEAST_FREE = 1 << 30
_CHUNK = 1 << 20
_SHOWN = 1500
# Neither tokens nor keys of this process reach the loader.
_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "SYSTEMROOT", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")


@dataclass(frozen=True)
class Loader:
    """A loader's file and the Python that runs it; limits in seconds and bytes of rows."""

    file: Path
    python: str = sys.executable
    seconds: float = MOST_SECONDS
    largest: int = LARGEST_OUTPUT


def python(which: Literal["own", "training"], project: Path) -> str:
    """The interpreter of this process, or that of the training environment (PeftsmithError where there is none)."""
    if which == "own":
        return sys.executable
    from peftsmith.machine import environment

    return environment.require(project).interpreter


def write(folder: Path, name: str = "my_loader") -> list[Path]:
    """NAME.py with rows(path), and test_NAME.py that pytest runs, in `folder`; neither may exist yet."""
    if not name.isidentifier() or not name.isascii():
        raise PeftsmithError("This is no name of a Python module", value=name, next_step="Take one like my_loader.")
    targets = [folder / f"{name}.py", folder / f"test_{name}.py"]
    for target in targets:
        if target.exists():
            raise PeftsmithError("The file exists", value=str(target), next_step="Take another name.")
    for target, template in zip(targets, ("loader.py.txt", "test_loader.py.txt"), strict=True):
        text = (assets.folder("templates") / "loader" / template).read_text(encoding="utf-8")
        files.write_text(target, text.replace("my_loader", name))
    return targets


def run(loader: Loader, data: Path, output: Path) -> None:
    """Write the rows that `loader` makes of `data` into `output` as JSON lines.

    Raises PeftsmithError, leaving no output behind, when the loader fails (with the end of what it said), takes longer
    than its limit, writes more than its limit or than the disk has, or gives no rows.
    """
    if not loader.file.is_file() or loader.file.suffix != ".py":
        raise PeftsmithError("The loader must be a Python file", value=str(loader.file), next_step="Check the path.")
    room = min(loader.largest, shutil.disk_usage(output.parent).free - _LEAST_FREE)
    with output.open("xb") as out, output.with_suffix(".log").open("w+b") as said:
        try:
            reason = _rows(loader, data, out, said, room)
            said.seek(max(0, said.tell() - 4 * _SHOWN))
            told = files.clean(said.read().decode("utf-8", errors="replace"), 4 * _SHOWN).strip()[-_SHOWN:]
            if not reason and not out.tell():
                reason = "gave no rows"
            if reason:
                raise PeftsmithError(
                    f"The loader {reason}{f'; it said: {told}' if told else ''}",
                    value=loader.file.name,
                    next_step=f"Repair it; its test (pytest test_{loader.file.name}) shows how it behaves by itself.",
                )
        except BaseException:
            output.unlink()
            raise
        finally:
            output.with_suffix(".log").unlink()


def _rows(loader: Loader, data: Path, out: IO[bytes], said: IO[bytes], room: int) -> str:
    """Copy the loader's rows into `out`; why it failed, "" when it did not."""
    process = subprocess.Popen(
        [
            loader.python,
            "-B",
            "-X",
            "utf8",
            str(Path(__file__).with_name("loader_process.py")),
            str(loader.file),
            str(data),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=said,
        cwd=loader.file.parent,
        env={name: os.environ[name] for name in _KEPT if name in os.environ},
        start_new_session=True,
    )
    late = threading.Event()

    def kill() -> None:
        late.set()
        _kill(process)

    timer = threading.Timer(loader.seconds, kill)
    timer.daemon = True
    timer.start()
    try:
        assert process.stdout is not None
        while chunk := process.stdout.read(_CHUNK):
            if out.tell() + len(chunk) > room:
                return f"wrote more than {room >> 20} MiB of rows"
            out.write(chunk)
        status = _wait(process)
    finally:
        timer.cancel()
        _end(process)
        if process.stdout is not None:
            process.stdout.close()
    said.seek(0, os.SEEK_END)
    if late.is_set():
        return f"ran longer than {loader.seconds:.0f} s"
    return f"ended with status {status}" if status else ""


def _wait(process: subprocess.Popen[bytes]) -> int:
    """The loader's status; what it started and left running ends with it."""
    if hasattr(os, "waitid"):
        # Not reaped yet: its id cannot have gone to another process when its group is killed.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        _kill(process)
    return process.wait()


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.returncode is None:
        _kill(process)
        process.wait()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the loader, which leads a session of its own, and everything in it."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):  # macOS refuses when only a zombie is left
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
