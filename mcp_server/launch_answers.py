"""What the front can answer alone: the opening and the lists, from the committed manifest. Python 3.8, stdlib only.

Knows: both eras of MCP's opening, the server's recorded answers, how a refusal reaches the model.
Does not know: the client, the server process, or time.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VERSION_KEY = "io.modelcontextprotocol/protocolVersion"
CAPABILITIES_KEY = "io.modelcontextprotocol/clientCapabilities"
INTERNAL_ERROR = -32603


class Answers:
    """The protocol state of one connection: its era, the agreed version, and the client's own handshake."""

    def __init__(self, manifest: dict[str, Any]) -> None:
        self.manifest = manifest
        self.modern: bool | None = None  # decided by the first request, as in the SDK
        self.version: str | None = None  # agreed in the older era's handshake
        self.handshake: dict[str, Any] | None = None

    def note(self, request: dict[str, Any]) -> None:
        """Learn from a request which era the connection is in and what its handshake was."""
        if self.modern is None:
            self.modern = request["method"] != "initialize" and VERSION_KEY in _meta(request)
        if request["method"] == "initialize" and not self.modern:
            asked, known = parameters(request).get("protocolVersion"), self.manifest["handshake"]
            self.version = asked if asked in known else known[-1]
            self.handshake = request

    def known(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """The response that needs no server, or None: anything unusual is left to the real one."""
        method, meta = request["method"], _meta(request)
        if self.modern:
            version = meta.get(VERSION_KEY)
            if (
                method == "initialize"
                or not isinstance(version, str)
                or not isinstance(meta.get(CAPABILITIES_KEY), dict)
            ):
                return None
            if version not in self.manifest["modern"]:
                error = dict(self.manifest["unsupported"])
                error["data"] = dict(error["data"], requested=version)
                return _response(request, error=error)
        elif VERSION_KEY in meta:
            return None
        elif self.version is None:
            if method != "ping":
                return _response(request, error=self.manifest["uninitialized"])
            version = self.manifest["handshake"][-1]
        else:
            version = self.version
        result = self._recorded(version, method)
        return None if result is None else _response(request, result=result)

    def opening(self, id_: str) -> dict[str, Any] | None:
        """The request that opens a connection to a new server as the client opened this one; None before it did."""
        if self.modern:
            meta = {VERSION_KEY: self.manifest["modern"][-1], CAPABILITIES_KEY: {}}
            return {"jsonrpc": "2.0", "id": id_, "method": "server/discover", "params": {"_meta": meta}}
        return dict(self.handshake, id=id_) if self.handshake else None

    def refusal(self, request: dict[str, Any], text: str) -> dict[str, Any]:
        """The response that gives a reason in words: as a tool's result, where the model reads it, else as an error."""
        if request["method"] != "tools/call":
            return _response(request, error={"code": INTERNAL_ERROR, "message": text})
        result: dict[str, Any] = {"content": [{"type": "text", "text": text}], "isError": True}
        if self.modern:
            recorded = self.manifest["answers"][self.manifest["modern"][-1]]["tools/list"]
            result.update(resultType="complete", _meta=recorded["_meta"])
        return _response(request, result=result)

    def _recorded(self, version: str, method: str) -> Any:
        result = self.manifest["answers"][version].get(method)
        return self._recorded(result, method) if isinstance(result, str) else result


def parameters(message: dict[str, Any]) -> dict[str, Any]:
    """The message's params, empty when they are missing or not an object."""
    params = message.get("params")
    return params if isinstance(params, dict) else {}


def _meta(message: dict[str, Any]) -> dict[str, Any]:
    meta = parameters(message).get("_meta")
    return meta if isinstance(meta, dict) else {}


def _response(request: dict[str, Any], **body: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": request["id"], **body}
