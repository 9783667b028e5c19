"""Rows looked at in several processes: one interpreter cannot use more than one core for them.

Knows: starting processes of crew_process.py, handing them lots, and their parts in the order of the lots.
Does not know: what is looked for (examine.py).
"""

from __future__ import annotations

import contextlib
import marshal
import os
import queue
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO

from peftsmith import files
from peftsmith.data.examine import Checks
from peftsmith.data.lots import Lot
from peftsmith.data.part import Part
from peftsmith.errors import PeftsmithError

_MOST = 8
_PATIENCE = 5.0
_FROM_BYTES = 8 << 20  # below this, starting processes takes longer than they save
_KEPT = ("SYSTEMROOT", "LANG", "LC_ALL", "LC_TIME", "TZ", "HOME", "TMPDIR", "TEMP", "PATH")


def processes_for(size: int) -> int:
    """How many processes a data set of `size` bytes is worth; 1 means this one."""
    return 1 if size < _FROM_BYTES else min(_MOST, cores())


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parts(checks: Checks, lots: Iterable[Lot], count: int) -> Iterator[Part]:
    """What `count` processes make of the lots, in order; at most two lots a process are under way.

    Raises PeftsmithError when a process fails or is ended.
    """
    idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
    crew = [_started(checks) for _ in range(count)]
    for process in crew:
        idle.put(process)

    def ask(lot: Lot) -> Part:
        process = idle.get()
        try:
            return _asked(process, lot)
        finally:
            idle.put(process)

    pending: deque[Future[Part]] = deque()
    pool = ThreadPoolExecutor(count, "crew")
    try:
        for lot in lots:
            pending.append(pool.submit(ask, lot))
            if len(pending) >= 2 * count:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
        for process in crew:
            _end(process, _PATIENCE)
    finally:
        for process in crew:
            process.kill()
        pool.shutdown(cancel_futures=True)
        for process in crew:
            _end(process, None)


def _started(checks: Checks) -> subprocess.Popen[bytes]:
    package = str(Path(__file__).resolve().parents[2])
    process = subprocess.Popen(
        [sys.executable, "-X", "utf8", "-m", "peftsmith.data.crew_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={
            **{name: os.environ[name] for name in _KEPT if name in os.environ},
            "PYTHONPATH": os.pathsep.join([package, *(entry for entry in sys.path if entry)]),
            "PYTHONSAFEPATH": "1",
            "TOKENIZERS_PARALLELISM": "false",
        },
    )
    assert process.stdin is not None
    write(process.stdin, marshal.dumps(checks.plain()))
    return process


def _asked(process: subprocess.Popen[bytes], lot: Lot) -> Part:
    """Frames are marshalled: both processes are this program, of the same interpreter."""
    assert process.stdin is not None and process.stdout is not None
    try:
        write(process.stdin, marshal.dumps(tuple(lot)))
        answer = read(process.stdout)
    except OSError:
        answer = None
    if answer is None:
        process.kill()
        raise PeftsmithError(
            f"A process that looked at rows ended early (exit code {process.wait()})",
            value=f"rows from {lot.numbers[0]} to {lot.numbers[-1]}",
            next_step="Free some memory and try again; its error output stands above.",
        )
    if answer[:1] == b"!":
        raise PeftsmithError(
            f"Looking at rows failed: {files.clean(answer[1:].decode('utf-8', 'replace'), 300)}",
            value=f"rows from {lot.numbers[0]} to {lot.numbers[-1]}",
            next_step="Report this; the rows before and behind these can be audited on their own meanwhile.",
        )
    return Part.unpacked(answer[1:])


def _end(process: subprocess.Popen[bytes], seconds: float | None) -> None:
    """Close its pipes, which tells it to end, and wait for it."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


def write(stream: IO[bytes], body: bytes) -> None:
    stream.write(len(body).to_bytes(8, "big") + body)
    stream.flush()


def read(stream: IO[bytes]) -> bytes | None:
    """One frame: eight bytes of length and what follows; None at the end."""
    head = stream.read(8)
    size = int.from_bytes(head, "big")
    body = stream.read(size) if len(head) == 8 else b""
    return body if len(head) == 8 and len(body) == size else None
