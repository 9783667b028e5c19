"""A raw MCP client over a child's pipes, for tests that look at what really goes over the wire."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import threading
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
MCP_SERVER = REPOSITORY / "mcp_server"
HANDSHAKE = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
MODERN = {
    "_meta": {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
    }
}


class Wire:
    """One child process that speaks JSON lines. Answers are collected by id; everything else lies in `others`."""

    def __init__(self, argv, *, cwd, **environment):
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PEFTSMITH_", "CLAUDE_"))}
        self.process = subprocess.Popen(
            [str(part) for part in argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd,
            env={**kept, "PYTHONPATH": str(MCP_SERVER), **{name: str(value) for name, value in environment.items()}},
        )
        self.answers = {}
        self.others = []
        self._arrived = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._next = 0

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(10)
        self._reader.join(10)
        self.process.stdin.close()
        self.process.stdout.close()
        self.errors = self.process.stderr.read().decode()
        self.process.stderr.close()

    def _read(self):
        for line in self.process.stdout:
            self._arrived.put(line)
        self._arrived.put(None)

    def send(self, message):
        line = message if isinstance(message, bytes) else json.dumps(message).encode() + b"\n"
        self.process.stdin.write(line)
        self.process.stdin.flush()

    def request(self, method, params=None, id_=None):
        self._next += 1
        id_ = self._next if id_ is None else id_
        self.send({"jsonrpc": "2.0", "id": id_, "method": method, "params": params or {}})
        return id_

    def answer(self, id_, seconds=60):
        """The response to a request; fails when the child ends first or stays silent."""
        end = time.monotonic() + seconds
        while id_ not in self.answers:
            line = self._arrived.get(timeout=max(0.01, end - time.monotonic()))
            assert line is not None, f"the process ended without answering {id_}"
            message = json.loads(line)
            if "id" in message and "method" not in message:
                assert message["id"] not in self.answers, f"answered twice: {message}"
                self.answers[message["id"]] = message
            else:
                self.others.append(message)
        return self.answers[id_]

    def ask(self, method, params=None, seconds=60):
        return self.answer(self.request(method, params), seconds)

    def call(self, tool, arguments=None, params=None, seconds=60):
        """A tool's result as (text, isError)."""
        reply = self.ask("tools/call", {"name": tool, "arguments": arguments or {}, **(params or {})}, seconds)
        return reply["result"]["content"][0]["text"], reply["result"]["isError"]

    def shake_hands(self):
        reply = self.ask("initialize", HANDSHAKE)
        self.send({"jsonrpc": "2.0", "method": "notifications/initialized"})
        return reply
