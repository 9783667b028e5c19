"""Telling whoever waits how far long work in this process has come.

Knows: one listener for the work that runs in this context (a thread of its own copies it).
Does not know: how progress is shown (cli.py, server/tools.py).
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

Listener = Callable[[int, int | None], None]  # done, of how many (None where that is not known)
_listener: ContextVar[Listener | None] = ContextVar("peftsmith_progress", default=None)


def listen(listener: Listener | None) -> None:
    """From now on `listener` hears of the progress of work that this context starts."""
    _listener.set(listener)


def listener() -> Listener | None:
    return _listener.get()
