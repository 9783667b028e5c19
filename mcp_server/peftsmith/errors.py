"""The one exception that users see.

Knows: how to say what went wrong, with which value, and what to do next.
Does not know: who shows it (the MCP server turns it into a ToolError, the CLI into exit code 2).
"""

from __future__ import annotations

_LONGEST_VALUE = 200


class PeftsmithError(Exception):
    """A refusal or failure that the user can act on.

    `cause` says what is wrong, `value` is the offending value (shortened, never a secret), and
    `next_step` says what to do about it. All three end up in the message.
    """

    def __init__(self, cause: str, *, value: object = None, next_step: str) -> None:
        self.cause = cause
        self.value = value
        self.next_step = next_step
        shown = "" if value is None else f" (got {_shorten(repr(value))})"
        super().__init__(f"{cause.rstrip('.')}{shown}. {next_step}")


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + "...'"
