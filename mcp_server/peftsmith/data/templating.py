"""Rendering a chat template without trusting it: the parent's side of template_process.py.

Knows: starting, asking, timing and killing the process that renders.
Does not know: tokens, or what the rendered text is for.
"""

from __future__ import annotations

import json
import marshal
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from peftsmith import files
from peftsmith.errors import PeftsmithError

START_SECONDS = 30.0
BATCH_SECONDS = 10.0
# In all, a template may take this long plus so much a rendering: far above any real one (about 50 microseconds).
TOTAL_SECONDS, SECONDS_A_RENDERING = 20.0, 0.005
MEMORY = 1 << 30
_ROOM = 1 << 18  # characters that a template may add to a row by itself
_GROWTH = 8  # and how often it may repeat the row
_BATCH = 128
_KEPT = ("SYSTEMROOT", "TZ", "LANG", "LC_ALL", "LC_TIME")


class TemplateRefused(PeftsmithError):
    """The template raised its own error for one conversation; others may render."""


class TemplateStopped(PeftsmithError):
    """The template broke a limit (time, memory, output, recursion) or took its process down."""


class Conversation(NamedTuple):
    """What a template is asked to render; `tools` are JSON schemas."""

    messages: list[dict[str, Any]]
    add_generation_prompt: bool = False
    tools: list[dict[str, Any]] | None = None


class Rendered(NamedTuple):
    """A conversation's text, and where in it `{% generation %}` blocks lie: (first, behind the last) character."""

    text: str
    spans: list[tuple[int, int]]


class Pair(NamedTuple):
    """A whole conversation's text; its prompt is the first `prompt` characters, or another text where they differ."""

    text: str
    prompt: int | str


class Template:
    """A compiled chat template in a process of its own, started at the first rendering and gone with this object."""

    def __init__(self, source: str, variables: Mapping[str, str]) -> None:
        self._source = source
        self._variables = dict(variables)
        self._process: subprocess.Popen[bytes] | None = None
        self._spent = 0.0
        self._rendered = 0
        self._lock = threading.Lock()

    def render(self, conversations: Sequence[tuple[list[dict[str, Any]], bool]]) -> list[str | TemplateRefused]:
        """Text for each (messages, add_generation_prompt), or the template's refusal of it.

        Raises TemplateStopped when the template breaks a limit; the process is gone then, and the next call starts one.
        """
        answers = self.render_marked([Conversation(*conversation) for conversation in conversations])
        return [answer if isinstance(answer, TemplateRefused) else answer.text for answer in answers]

    def render_marked(self, conversations: Sequence[Conversation]) -> list[Rendered | TemplateRefused]:
        """`render` with tools, and with the places of the template's generation blocks."""
        rows = [_row(messages, prompt, tools) for messages, prompt, tools in conversations]
        return [
            answer
            if isinstance(answer, TemplateRefused)
            else Rendered(answer["text"], [(a, b) for a, b in answer["spans"]])
            for answer in self._all(rows, pairs=False)
        ]

    def render_pairs(self, conversations: Sequence[tuple[list[Any], int, Any]]) -> list[Pair | TemplateRefused]:
        """For each (messages, turns, tools) the whole, and its first `turns` messages with a generation prompt."""
        rows = [_row(messages, turns, tools) for messages, turns, tools in conversations]
        return [
            answer if isinstance(answer, TemplateRefused) else Pair(answer["text"], answer["prompt"])
            for answer in self._all(rows, pairs=True)
        ]

    def _all(self, rows: list[list[Any]], *, pairs: bool) -> list[dict[str, Any] | TemplateRefused]:
        with self._lock:
            answers: list[dict[str, Any] | TemplateRefused] = []
            for start in range(0, len(rows), _BATCH):
                answers += self._batch(rows[start : start + _BATCH], pairs)
            return answers

    def _batch(self, rows: list[list[Any]], pairs: bool) -> list[dict[str, Any] | TemplateRefused]:
        self._start()
        # a character is at most 12 bytes of escaped JSON, and a differing prompt comes beside the whole
        room = (1 << 16) + 24 * sum(largest for _, _, largest, _ in rows)
        began = time.monotonic()
        answers = self._ask({"seconds": BATCH_SECONDS, "pairs": pairs, "rows": rows}, BATCH_SECONDS, room)
        self._spent += time.monotonic() - began
        self._rendered += len(rows) * (1 + pairs)
        allowed = TOTAL_SECONDS + SECONDS_A_RENDERING * self._rendered
        if self._spent > allowed:
            self._stop()
            raise _stopped(f"it took {self._spent:.0f} s for {self._rendered} renderings")
        return [answer if "text" in answer else self._refusal(answer) for answer in answers]

    def _start(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        process = subprocess.Popen(
            [sys.executable, "-I", "-X", "utf8", str(Path(__file__).with_name("template_process.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in _KEPT if name in os.environ},
            cwd=Path(__file__).parent,
        )
        weakref.finalize(self, _end, process)
        self._process = process
        setup = {
            "path": [entry for entry in sys.path if entry],
            "template": self._source,
            "variables": self._variables,
            "memory": MEMORY,
            "seconds": BATCH_SECONDS,
        }
        [answer] = self._ask(setup, START_SECONDS, 1 << 16)
        if "refused" in answer:
            self._stop()
            raise TemplateRefused(
                f"The chat template is not valid Jinja: {files.clean(answer['refused'], 300)}",
                next_step="Repair chat_template.jinja, or take the template of the model's original repository.",
            )
        if "stopped" in answer:
            self._refusal(answer)

    def _ask(self, request: dict[str, Any], seconds: float, room: int) -> list[dict[str, Any]]:
        """Send one frame and read one, at most `room` bytes and `seconds` long; the process is killed beyond that.

        Requests are marshalled: the process trusts this one. Its answers are JSON and UTF-8: it is not trusted.
        """
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise _stopped("its process could not be started")
        late = threading.Event()

        def kill() -> None:
            late.set()
            process.kill()

        body = marshal.dumps(request)
        timer = threading.Timer(seconds, kill)
        timer.daemon = True
        timer.start()
        try:
            process.stdin.write(len(body).to_bytes(8, "big") + body)
            process.stdin.flush()
            answers = _read(process.stdout, room)
        except OSError:
            answers = None
        finally:
            timer.cancel()
        if answers is None:
            self._stop()
            why = (
                f"it ran longer than {seconds:.0f} s"
                if late.is_set()
                else "it used up its process (time, memory or stack)"
            )
            raise _stopped(why)
        return answers

    def _refusal(self, answer: Mapping[str, Any]) -> TemplateRefused:
        """The template's own error; a broken limit is raised."""
        if "stopped" in answer:
            self._stop()
            raise _stopped(files.clean(answer["stopped"], 200))
        return TemplateRefused(
            f"The chat template refuses the conversation: {files.clean(answer['refused'], 300)}",
            next_step="Change the rows to the roles and order that the template takes.",
        )

    def _stop(self) -> None:
        if self._process is not None:
            _end(self._process)
            self._process = None


def _row(messages: list[dict[str, Any]], place: int | bool, tools: Any) -> list[Any]:
    """A request for one conversation, with the most characters that its text may have."""
    size = sum(len(item) if item.__class__ is str else _size(item) for each in messages for item in each.values())
    return [messages, place, _ROOM + _GROWTH * (size + _size(tools)), tools]


def _size(item: Any) -> int:
    if isinstance(item, str):
        return len(item)
    return 0 if item is None else len(json.dumps(item))


def _read(stream: IO[bytes], room: int) -> list[dict[str, Any]] | None:
    """One frame of template_process.write_frame; None when it ends early or is larger than `room` bytes."""
    head = stream.read(16)
    sizes = int.from_bytes(head[:8], "big"), int.from_bytes(head[8:], "big")
    if len(head) < 16 or sum(sizes) > room:
        return None
    header, body = stream.read(sizes[0]), stream.read(sizes[1])
    if (len(header), len(body)) != sizes:
        return None
    answers: list[dict[str, Any]] = json.loads(header)
    start = 0
    for answer in answers:
        if "text" in answer:
            end = start + answer["text"]
            answer["text"] = body[start:end].decode("utf-8", "surrogatepass")
            start = end
    return answers


def _stopped(why: str) -> TemplateStopped:
    return TemplateStopped(
        f"The chat template was stopped: {why}",
        next_step="Do not use this template; take the one of the model's original repository and read it first.",
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:
                continue
