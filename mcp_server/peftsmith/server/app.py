"""The server itself, put together from the operations and the documents, on stdio.

Knows: which parts it has, the folders it may touch, how a stdio process starts and ends.
Does not know: any tool's work; HTTP (http.py).
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mcp.server import MCPServer

from peftsmith import __version__, files
from peftsmith.operations import OPERATIONS
from peftsmith.server.documents import INSTRUCTIONS, prompts, resources
from peftsmith.server.tools import make_tool


def build() -> MCPServer[Any]:
    """The server with all its tools, resources and prompts. Lists never change, so it offers no subscriptions."""
    # A root handler of our own first: the SDK's would draw boxes around log lines in the log file.
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s"
    )
    server: MCPServer[Any] = MCPServer(
        "peftsmith",
        title="peftsmith",
        description="From a base model and data to a PEFT adapter that is proven and can be served.",
        instructions=INSTRUCTIONS,
        version=__version__,
        tools=[make_tool(operation) for operation in OPERATIONS.values()],
        resources=resources(),
        subscriptions=False,
        log_level="WARNING",
    )
    for prompt in prompts():
        server.add_prompt(prompt)
    gc.freeze()  # what is there now stays
    gc.enable()
    return server


def set_roots(environment: Mapping[str, str]) -> None:
    """Open the project (CLAUDE_PROJECT_DIR, else the working folder) and what PEFTSMITH_ROOTS adds, and nothing else.

    The working folder becomes the project, so that relative paths mean the same to the user and the server.
    """
    project = environment.get("CLAUDE_PROJECT_DIR")
    if project and Path(project).is_dir():
        os.chdir(project)
    more = [root for root in environment.get("PEFTSMITH_ROOTS", "").split(os.pathsep) if root]
    files.set_roots([Path.cwd(), *(Path(root).expanduser() for root in more)])


def serve_stdio() -> None:
    """Serve one client until it closes the pipe; does not return.

    Work that a call left in a thread is cut off: runs are processes of their own, and files are replaced whole.
    """
    # Clients end a server with SIGINT and expect it gone at once; there is nothing to clean up.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    build().run("stdio")
    sys.stdout.flush()
    logging.shutdown()
    os._exit(0)
