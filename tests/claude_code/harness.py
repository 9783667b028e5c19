"""The real Claude Code client, run offline in a home of its own against scripted conversations.

Knows: the client's command line and environment, where it leaves what it did.
Does not know: what is said (the tests), how replies travel (messages_api.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.claude_code.messages_api import Conversation, MessagesApi
from tests.conftest import REPOSITORY

PREFIX = "mcp__plugin_peftsmith_peftsmith__"


@dataclass(frozen=True)
class Outcome:
    """How a client's run ended, and the first event of its stream (tools, servers, agents, skills)."""

    code: int
    init: dict[str, Any]
    stderr: str
    stdout: str


def environment(home: Path, **more: str) -> dict[str, str]:
    """Nothing of the user's: own home, dummy key, no traffic but the scripted API and what `more` brings."""
    home.mkdir(parents=True, exist_ok=True)
    # The server runs with the tests' own Python: how it installs itself is tests/system/test_cold_start.py's matter.
    kept = {"PATH": os.environ["PATH"], "PEFTSMITH_SERVER_PYTHON": sys.executable}
    return {
        **kept,
        "HOME": str(home),
        "TERM": "dumb",
        "LANG": "C.UTF-8",
        "ANTHROPIC_API_KEY": "dummy",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
        "DISABLE_TELEMETRY": "1",
        "MCP_CONNECTION_NONBLOCKING": "0",  # the first request waits for the server
        "MCP_TIMEOUT": "120000",
        "MCP_TOOL_TIMEOUT": "600000",
        **more,
    }


def manage(claude: Path, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`claude ARGUMENTS` (plugin validate and the like), in the repository."""
    return subprocess.run(
        [str(claude), *arguments], cwd=REPOSITORY, env=environment(home), capture_output=True, text=True, timeout=180
    )


def converse(
    claude: Path,
    folder: Path,
    conversations: list[Conversation],
    *,
    allowed: tuple[str, ...],
    prompt: str = "go",
    installed: bool = False,
    timeout: float = 900,
    **variables: str,
) -> Outcome:
    """One `claude -p` in `folder`/project; a failed scenario is raised here.

    The plugin is this repository, or with `installed` what `folder`/home has from a marketplace.
    """
    project = folder / "project"
    project.mkdir(parents=True, exist_ok=True)
    home = folder / "home"
    (home / ".claude").mkdir(parents=True, exist_ok=True)
    if not (home / ".claude.json").exists():
        (home / ".claude.json").write_text(json.dumps({"hasCompletedOnboarding": True}), encoding="utf-8")
    with MessagesApi(conversations) as api:
        done = subprocess.run(
            [
                *(str(claude), "-p", prompt, "--output-format", "stream-json", "--verbose"),
                *(() if installed else ("--plugin-dir", str(REPOSITORY))),
                *("--allowedTools", *allowed),
            ],
            cwd=project,
            env=environment(home, ANTHROPIC_BASE_URL=api.url, **variables),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    if api.failure:
        raise api.failure
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    init: dict[str, Any] = next((event for event in events if event.get("subtype") == "init"), {})
    return Outcome(done.returncode, init, done.stderr, done.stdout)
