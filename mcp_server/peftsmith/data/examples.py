"""What a row is to its trainer, whatever file and format it came from.

Knows: one small type for each kind of training row, in the shapes that TRL and transformers take.
Does not know: formats (formats.py makes these from rows), templates or tokens (rendering.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]  # role, content, and maybe tool_calls, tool_call_id, name, reasoning_content
Side = list[Message] | str  # messages where there is a conversation, else plain text


@dataclass(frozen=True)
class Chat:
    """A conversation. `completion` holds its last assistant turn (one message; more after a tool call), `prompt` all
    before it. Which assistant turns carry loss is the plan's choice, not the row's. `tools` are JSON schemas."""

    prompt: list[Message]
    completion: list[Message]
    tools: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Plain:
    """Text without roles. An empty prompt means that all of it trains (domain text, continued pre-training)."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Preference:
    """Two answers to one prompt, the better one first (DPO and its kin)."""

    prompt: Side
    chosen: Side
    rejected: Side
    tools: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Judged:
    """One answer and whether it is wanted (KTO)."""

    prompt: Side
    completion: Side
    desirable: bool


@dataclass(frozen=True)
class Classified:
    """A text, or a pair of texts, of one class."""

    text: str
    label: str
    second: str | None = None


@dataclass(frozen=True)
class Tagged:
    """Words with one tag each (token classification)."""

    words: list[str]
    tags: list[str]


@dataclass(frozen=True)
class Answered:
    """A question whose answer is a part of its context. `answers` (of the first the model learns) begin at `starts`,
    in characters; none where the context has no answer."""

    question: str
    context: str
    answers: list[str]
    starts: list[int]


@dataclass(frozen=True)
class Pair:
    """What an encoder-decoder reads and what it writes."""

    source: str
    target: str


AnyExample = Chat | Plain | Preference | Judged | Classified | Tagged | Answered | Pair
