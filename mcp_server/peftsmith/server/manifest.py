"""The server's own answers to the handshake and the lists, kept in mcp_server/manifest.json for launch.py.

Run as: python -m peftsmith.server.manifest [--check]

Knows: which requests the front may answer alone, in every protocol version that the SDK speaks.
Does not know: how the front uses the answers (launch.py).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import anyio
from mcp.server import MCPServer
from mcp.shared.memory import create_client_server_memory_streams
from mcp.shared.message import SessionMessage
from mcp_types import CLIENT_CAPABILITIES_META_KEY, CLIENT_INFO_META_KEY, PROTOCOL_VERSION_META_KEY
from mcp_types.jsonrpc import jsonrpc_message_adapter
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, MODERN_PROTOCOL_VERSIONS

from peftsmith import __version__, files
from peftsmith.server.app import build

FILE = Path(__file__).resolve().parent.parent.parent / "manifest.json"
LISTS = ("tools/list", "resources/list", "resources/templates/list", "prompts/list")
CLIENT = {"name": "manifest", "version": "1"}
_ELDERS_FIRST = tuple(HANDSHAKE_PROTOCOL_VERSIONS)
_NO_VERSION = "0000-00-00"

Answers = dict[str, Any]


def make() -> dict[str, Any]:
    """The manifest of the server as it is now.

    `answers` maps version to method to the result as it goes over the wire, or to the name of the newer version whose
    result is the same. `unsupported` and `uninitialized` are the errors for a wrong version and for a request before
    the handshake.
    """
    return anyio.run(_collect)


def requests(version: str) -> list[dict[str, Any]]:
    """What a client of this version asks at its start, as JSON-RPC requests in order."""
    if version in MODERN_PROTOCOL_VERSIONS:
        return [_request(method, _envelope(version)) for method in ("server/discover", "ping", *LISTS)]
    handshake = {"protocolVersion": version, "capabilities": {}, "clientInfo": CLIENT}
    return [_request("initialize", handshake), *(_request(method, {}) for method in ("ping", *LISTS))]


async def _collect() -> dict[str, Any]:
    server = build()
    answers: dict[str, Answers] = {}
    for version in (*MODERN_PROTOCOL_VERSIONS, *reversed(_ELDERS_FIRST)):
        replies = await ask(server, requests(version))
        answers[version] = {
            request["method"]: reply["result"]
            for request, reply in zip(requests(version), replies, strict=True)
            if "result" in reply
        }
    (unsupported,) = await ask(server, [_request("server/discover", _envelope(_NO_VERSION))])
    (uninitialized,) = await ask(server, [_request("tools/list", {})])
    return {
        "version": __version__,
        "handshake": list(_ELDERS_FIRST),
        "modern": list(MODERN_PROTOCOL_VERSIONS),
        "answers": _shortened(answers),
        "unsupported": unsupported["error"],
        "uninitialized": uninitialized["error"],
    }


def _shortened(answers: dict[str, Answers]) -> dict[str, Answers]:
    """Each result once: an older version names the newer one that answers the same."""
    short: dict[str, Answers] = {}
    for version, results in answers.items():
        short[version] = {
            method: next((newer for newer in short if answers[newer].get(method) == result), result)
            for method, result in results.items()
        }
    return short


async def ask(server: MCPServer[Any], messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The server's raw replies to requests sent one after the other over one fresh connection."""
    lowlevel = server._lowlevel_server  # the SDK has no public way to serve given streams
    replies = []
    async with create_client_server_memory_streams() as (client, ends), anyio.create_task_group() as group:
        received, send = client
        group.start_soon(lowlevel.run, *ends, lowlevel.create_initialization_options())
        for message in messages:
            await send.send(SessionMessage(jsonrpc_message_adapter.validate_python(message, by_name=False)))
            item = await received.receive()
            if isinstance(item, Exception):
                raise item
            replies.append(item.message.model_dump(by_alias=True, mode="json", exclude_unset=True))
        group.cancel_scope.cancel()
    return replies


def _request(method: str, params: dict[str, Any]) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": method, "method": method, "params": params}


def _envelope(version: str) -> dict[str, Any]:
    meta = {PROTOCOL_VERSION_META_KEY: version, CLIENT_CAPABILITIES_META_KEY: {}, CLIENT_INFO_META_KEY: CLIENT}
    return {"_meta": meta}


def text() -> str:
    """The manifest as it lies in the repository."""
    return json.dumps(make(), indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    """Write the manifest; with --check, 1 when the file differs from the server."""
    parser = argparse.ArgumentParser(description="Write mcp_server/manifest.json from the real server's answers.")
    parser.add_argument("--check", action="store_true", help="only compare")
    check = parser.parse_args().check
    made = text()
    if check and (not FILE.exists() or FILE.read_text(encoding="utf-8") != made):
        print(f"{FILE.name} differs from the server: run python -m peftsmith.server.manifest", file=sys.stderr)
        return 1
    if not check:
        files.write_text(FILE, made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
