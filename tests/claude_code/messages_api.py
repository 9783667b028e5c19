"""A scripted Messages API on loopback: the model's part in a conversation with the real Claude Code client.

Knows: the wire format of streamed replies, which conversation a request belongs to, retried requests.
Does not know: the client (harness.py) or what any scenario wants to show.

A conversation is a generator: it yields what the model says, a list of `say(...)` and `use(...)`, and is sent the
results of the tools it used, so that later steps can take values out of earlier results.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Block = dict[str, Any]


@dataclass(frozen=True)
class Shown:
    """A tool's result as the model is shown it."""

    text: str
    is_error: bool

    def json(self) -> Any:
        assert not self.is_error, self.text
        return json.loads(self.text)


Talk = Generator[list[Block], list[Shown], None]


def say(text: str) -> Block:
    return {"type": "text", "text": text}


def use(tool: str, /, **arguments: Any) -> Block:
    return {"type": "tool_use", "id": f"toolu_{uuid.uuid4().hex[:20]}", "name": tool, "input": arguments}


def text_of(value: Any) -> str:
    """All text in a system prompt, a message or a list of content blocks."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "\n".join(map(text_of, value))
    return text_of(value.get("text") or value.get("content") or "") if isinstance(value, dict) else ""


@dataclass
class Conversation:
    """One speaker: the main loop, or the subagent in whose system prompt `marker` stands."""

    start: Callable[[], Talk]
    marker: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    results: list[Shown] = field(default_factory=list)
    _said: list[list[Block]] = field(default_factory=list)
    _talk: Talk | None = None

    def answer(self, request: dict[str, Any]) -> list[Block]:
        """The next words; a request that carries no more of our words than an earlier one is a retry."""
        turn = sum(message["role"] == "assistant" for message in request["messages"])
        if turn < len(self._said):
            return self._said[turn]
        self.requests.append(request)
        try:
            if self._talk is None:
                self._talk = self.start()
                blocks = next(self._talk)
            else:
                shown = _last_results(request)
                self.results += shown
                blocks = self._talk.send(shown)
        except StopIteration:
            blocks = [say("That is all.")]
        self._said.append(blocks)
        return blocks


def _last_results(request: dict[str, Any]) -> list[Shown]:
    """The results that follow the last assistant message, in the order in which the tools were used."""
    found: list[Shown] = []
    for message in reversed(request["messages"]):
        if message["role"] == "assistant":
            break
        blocks = message["content"] if isinstance(message["content"], list) else []
        here = [block for block in blocks if block.get("type") == "tool_result"]
        found = [Shown(text_of(block.get("content")), bool(block.get("is_error"))) for block in here] + found
    return found


class MessagesApi:
    """Serves the conversations on 127.0.0.1 while the `with` block runs. `failure` is what went wrong in a talk."""

    def __init__(self, conversations: list[Conversation]) -> None:
        self.conversations = sorted(conversations, key=lambda each: not each.marker)
        self.failure: BaseException | None = None
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> MessagesApi:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def reply(self, request: dict[str, Any]) -> list[Block]:
        if not request.get("tools"):  # titles and other asides
            return [say("ok")]
        system = text_of(request.get("system") or "")
        with self._lock:
            for conversation in self.conversations:
                if conversation.marker in system:
                    try:
                        return conversation.answer(request)
                    except Exception as error:
                        self.failure = self.failure or error
                        return [say("The scenario failed.")]
        raise LookupError("no conversation for this request")


def _message(blocks: list[Block]) -> dict[str, Any]:
    used = any(block["type"] == "tool_use" for block in blocks)
    usage = {"input_tokens": 100, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 10}
    return {
        "id": f"msg_{uuid.uuid4().hex}",  # the client merges messages that share an id
        "type": "message",
        "role": "assistant",
        "model": "scripted",
        "content": blocks,
        "stop_reason": "tool_use" if used else "end_turn",
        "stop_sequence": None,
        "usage": usage,
    }


def _events(blocks: list[Block]) -> list[dict[str, Any]]:
    whole = _message(blocks)
    events: list[dict[str, Any]] = [{"type": "message_start", "message": {**whole, "content": [], "stop_reason": None}}]
    empty: Block
    for index, block in enumerate(blocks):
        if block["type"] == "text":
            empty, delta = {"type": "text", "text": ""}, {"type": "text_delta", "text": block["text"]}
        else:
            empty = {**block, "input": {}}
            delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
        events += [
            {"type": "content_block_start", "index": index, "content_block": empty},
            {"type": "content_block_delta", "index": index, "delta": delta},
            {"type": "content_block_stop", "index": index},
        ]
    end = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    return [*events, {"type": "message_delta", "delta": end, "usage": {"output_tokens": 10}}, {"type": "message_stop"}]


def _handler(api: MessagesApi) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            """Quiet: the test reports what matters."""

        def do_GET(self) -> None:
            self._send(200, "application/json", json.dumps({"data": [], "has_more": False}))

        do_HEAD = do_GET

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            path = self.path.split("?")[0]
            if path == "/v1/messages/count_tokens":
                self._send(200, "application/json", json.dumps({"input_tokens": len(body) // 4}))
            elif path == "/v1/messages":
                request = json.loads(body)
                blocks = api.reply(request)
                if request.get("stream"):
                    lines = (f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in _events(blocks))
                    self._send(200, "text/event-stream", "".join(lines))
                else:
                    self._send(200, "application/json", json.dumps(_message(blocks)))
            else:
                self._send(404, "application/json", "{}")

        def _send(self, status: int, kind: str, text: str) -> None:
            data = text.encode()
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    return Handler
