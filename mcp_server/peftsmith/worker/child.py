"""What a forked child of the warm worker does: run one job, send progress and the answer as JSON lines.

Knows: how a job module is found and called, where its output goes, what a failure looks like on the wire.
Does not know: deadlines and killing (main.py), or what any job does.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any

Report = Callable[[str, dict[str, Any]], None]
_JOB = re.compile(r"[a-z][a-z_]{0,40}")


def answer(connection: socket.socket, job: str, arguments: dict[str, Any], log: int) -> int:
    """Run jobs/<job>.py's `run(arguments, report)`; its dict goes out as {"result"}, an exception as {"error"}."""
    connection.setblocking(True)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    sys.stdout = open(1, "w", encoding="utf-8", errors="replace", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="replace", buffering=1, closefd=False)  # noqa: SIM115

    def send(message: dict[str, Any]) -> None:
        connection.sendall(json.dumps(message).encode("utf-8") + b"\n")

    def report(step: str, details: dict[str, Any]) -> None:
        send({"progress": {"step": step, **details}})

    try:
        if not _JOB.fullmatch(job):
            raise ValueError(f"no such job: {job[:60]!r}")
        result = importlib.import_module(f"peftsmith.worker.jobs.{job}").run(arguments, report)
        send({"result": result})
    except BrokenPipeError:
        return 1
    except (Exception, SystemExit) as error:
        send({"error": describe(error), "traceback": traceback.format_exc(), "log": ""})
    return 0


def describe(error: BaseException) -> str:
    """`Type: message` on as few lines as the message has."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
