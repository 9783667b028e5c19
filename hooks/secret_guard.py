"""PreToolUse hook: stops a Write, Edit or peftsmith call that would put a credential into a file.

Knows: which fields of a tool's input hold new content, how Claude Code wants a refusal, the off switch.
Does not know: what a credential looks like (mcp_server/peftsmith/secrets.py, loaded by its path).

Run as: python3 -I secret_guard.py SECONDS < hook-input.json
Fails closed: whatever goes wrong ends with exit code 2, and hooks.json turns every other failure into 2 as well.
Python 3.8, standard library only.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, Iterator  # noqa: UP035 - Python 3.8

HOW_TO_ALLOW = (
    "If the user confirms that it is no secret, put `peftsmith: allow-secret` into a comment on that line, "
    "or start Claude Code with PEFTSMITH_GUARD=off."
)
_SECRETS = Path(__file__).resolve().parent.parent / "mcp_server" / "peftsmith" / "secrets.py"


def main() -> int:
    if os.environ.get("PEFTSMITH_GUARD", "").lower() == "off":
        return 0
    if hasattr(signal, "SIGALRM"):  # its default action ends the process, even inside a regular expression
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(int(sys.argv[1]) if len(sys.argv) > 1 else 8)
    try:
        call = json.loads(sys.stdin.buffer.read().decode("utf-8"))
        reason = judge(call["tool_name"], call["tool_input"])
    except Exception as error:
        print(
            f"peftsmith's secret guard could not check this call ({type(error).__name__}). {HOW_TO_ALLOW}",
            file=sys.stderr,
        )
        return 2
    if reason:
        decision = {"permissionDecision": "deny", "permissionDecisionReason": reason}
        print(json.dumps({"hookSpecificOutput": {"hookEventName": "PreToolUse", **decision}}))
    return 0


def judge(tool: str, arguments: dict[str, Any]) -> str | None:
    """Why this call must not happen, or None. Names kind and line, never the value."""
    secrets = _load()
    found = []
    for field, text in new_content(tool, arguments):
        for hit in secrets.find_in_text(text):
            if not secrets.allowed(text, hit):
                found.append(f"{secrets.title(hit.kind)} at line {hit.line} of {field}")
    if not found:
        return None
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    return (
        f"peftsmith's secret guard stopped this {tool}: it holds what looks like a credential "
        f"({'; '.join(found[:5])}{more}; the value is not repeated here). Write a placeholder such as "
        "your_service_key_here instead, read the value from an environment variable in code "
        '(os.environ["SERVICE_API_KEY"]), and let the user put the real one into their environment or .env file '
        f"themselves. {HOW_TO_ALLOW}"
    )


def new_content(tool: str, arguments: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The texts that the call would write, with the field each is in; taking a secret out must stay possible."""
    replaced = {"Edit": "old_string", "MultiEdit": "old_string"}.get(tool)

    def walk(value: Any, where: str) -> Iterator[tuple[str, str]]:
        if isinstance(value, str):
            yield where, value
        elif isinstance(value, dict):
            for key, item in value.items():
                if key != replaced:
                    yield from walk(item, f"{where}.{key}" if where else key)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                yield from walk(item, f"{where}[{index}]")

    return walk(arguments, "")


def _load() -> Any:
    spec = importlib.util.spec_from_file_location("peftsmith_secrets", str(_SECRETS))
    if spec is None or spec.loader is None:
        raise ImportError(str(_SECRETS))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.exit(main())
