"""The server over Streamable HTTP on the loopback address, for agents that cannot start a process.

Knows: the bearer token, the port, and that both are checked before anything is served.
Does not know: the tools; TLS and other addresses, which are a proxy's work.
"""

from __future__ import annotations

import errno
import hmac
import socket
import sys

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from peftsmith.errors import PeftsmithError
from peftsmith.server.app import build

ADDRESS = "127.0.0.1"
PATH = "/mcp"
TOKEN_VARIABLE = "PEFTSMITH_HTTP_TOKEN"
_SHORTEST_TOKEN = 16


def serve_http(port: int, token: str) -> None:
    """Serve on 127.0.0.1:`port` until SIGINT or SIGTERM; PeftsmithError for a bad token or a port in use.

    The SDK's protection against DNS rebinding (Host and Origin must be loopback) stays on.
    """
    if len(token) < _SHORTEST_TOKEN:
        raise PeftsmithError(
            f"Over HTTP every request needs a bearer token of at least {_SHORTEST_TOKEN} characters",
            next_step=f"Set {TOKEN_VARIABLE}, for example to the output of `openssl rand -hex 32`.",
        )
    app = BearerGate(build().streamable_http_app(streamable_http_path=PATH, host=ADDRESS), token)
    with _bind(port) as bound:
        print(f"peftsmith: listening on http://{ADDRESS}:{bound.getsockname()[1]}{PATH}", file=sys.stderr, flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)).run(sockets=[bound])


class BearerGate:
    """Lets a request through only when it carries `Authorization: Bearer <token>`; compares in constant time."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._expected = b"Bearer " + token.encode("utf-8")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            given = [value for name, value in scope["headers"] if name == b"authorization"]
            if len(given) != 1 or not hmac.compare_digest(given[0], self._expected):
                await _refuse(scope, send)
                return
        await self._app(scope, receive, send)


async def _refuse(scope: Scope, send: Send) -> None:
    if scope["type"] != "http":
        await send({"type": "websocket.close", "code": 1008})
        return
    headers = [(b"content-type", b"application/json"), (b"www-authenticate", b'Bearer realm="peftsmith"')]
    await send({"type": "http.response.start", "status": 401, "headers": headers})
    await send({"type": "http.response.body", "body": b'{"error": "a bearer token is needed"}'})


def _bind(port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((ADDRESS, port))
        bound.listen(128)
    except (OSError, OverflowError) as error:
        bound.close()
        reason = "is in use" if getattr(error, "errno", None) == errno.EADDRINUSE else f"cannot be used: {error}"
        raise PeftsmithError(f"Port {port} {reason}", next_step="Choose another one with --http PORT.") from error
    return bound
