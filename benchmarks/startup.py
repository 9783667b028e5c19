"""How soon a client has its tools: the front, the real server behind it, and a bare MCPServer, in one run.

Run as: python benchmarks/startup.py [--repeats 9]        (with the Python that has the control-plane libraries)

Prints the median seconds from spawn to tools/list answered, and last the two ratios that must hold: the front takes at
most a fifth of a bare MCPServer's time, the real server at most 1.15 times that. Exit code 1 when one does not hold.
Every repeat measures each kind once, in changing order, with the same interpreter and warm bytecode. A ratio is the
median of the repeats' own ratios, so that other load on the machine, which comes and goes, weighs on both sides alike.
`server, through the front` is the time until a request that only the real server can answer came back by launch.py.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

Request = tuple[str, dict[str, object]]
MCP_SERVER = Path(__file__).resolve().parent.parent / "mcp_server"
FRONT_AT_MOST, SERVER_AT_MOST = 0.2, 1.15
BARE = '''
from mcp.server import MCPServer

server = MCPServer("bare")


@server.tool()
def greet(name: str) -> str:
    """Say hello."""
    return f"Hello {name}"


server.run("stdio")
'''
CLIENT: dict[str, object] = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "clientInfo": {"name": "startup", "version": "1"},
}
LIST: Request = ("tools/list", {})
PROMPT: Request = ("prompts/get", {"name": "diagnose", "arguments": {"run": "x"}})


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9, help="of each kind, at least 7")
    repeats = max(7, parser.parse_args().repeats)
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder) / "bare.py"
        bare.write_text(BARE, encoding="utf-8")
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment.update(
            PYTHONPATH=str(MCP_SERVER),
            PEFTSMITH_HOME=folder,
            PEFTSMITH_SERVER_PYTHON=sys.executable,
            CLAUDE_PLUGIN_DATA="",
        )
        front = [sys.executable, str(MCP_SERVER / "launch.py")]
        kinds = {
            "bare MCPServer, one tool": ([sys.executable, str(bare)], LIST),
            "front (launch.py)": (front, LIST),
            "server (peftsmith.server)": ([sys.executable, "-P", "-m", "peftsmith.server"], LIST),
            "server, through the front": (front, PROMPT),
        }
        seconds: dict[str, list[float]] = {name: [] for name in kinds}
        for repeat in range(repeats + 1):
            for name, (argv, request) in random.sample(list(kinds.items()), len(kinds)):
                took = measure(argv, request, environment, folder)
                if repeat:  # the first round only warms the caches
                    seconds[name].append(took)
    return report(seconds)


def measure(argv: list[str], request: Request, environment: dict[str, str], folder: str) -> float:
    """Seconds from spawn to the answer of `request`, asked after the handshake."""
    start = time.perf_counter()
    process = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, cwd=folder
    )
    with process:
        try:
            ask(process, 1, "initialize", CLIENT)
            send(process, {"jsonrpc": "2.0", "method": "notifications/initialized"})
            ask(process, 2, *request)
            return time.perf_counter() - start
        finally:
            process.kill()


def ask(process: subprocess.Popen[bytes], id_: int, method: str, params: dict[str, object]) -> Any:
    """The result of a request."""
    send(process, {"jsonrpc": "2.0", "id": id_, "method": method, "params": params})
    for line in process.stdout or ():
        message = json.loads(line)
        if message.get("id") == id_:
            if "result" not in message:
                raise SystemExit(f"{method} failed: {message}")
            return message["result"]
    raise SystemExit(f"{process.args!r} ended before it answered {method}")


def send(process: subprocess.Popen[bytes], message: dict[str, object]) -> None:
    if process.stdin is not None:
        process.stdin.write(json.dumps(message).encode("utf-8") + b"\n")
        process.stdin.flush()


def report(seconds: dict[str, list[float]]) -> int:
    bare = next(iter(seconds.values()))
    ratios = []
    print(f"{'':28}{'median':>9}{'min':>9}{'max':>9}{'/ bare':>9}")
    for name, values in seconds.items():
        ratios.append(statistics.median(own / its_bare for own, its_bare in zip(values, bare, strict=True)))
        print(f"{name:28}{statistics.median(values):8.3f}s{min(values):8.3f}s{max(values):8.3f}s{ratios[-1]:9.2f}")
    _, front, server, _ = ratios
    print(f"front/bare {front:.3f} (at most {FRONT_AT_MOST})")
    print(f"real/bare {server:.3f} (at most {SERVER_AT_MOST})")
    return 0 if front <= FRONT_AT_MOST and server <= SERVER_AT_MOST else 1


if __name__ == "__main__":
    sys.exit(main())
