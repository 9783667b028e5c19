"""A log as it may be shown: without secrets, terminal codes and the earlier states of progress bars.

Knows: carriage returns, ANSI sequences, which end of a long text matters.
Does not know: what a log says.
"""

from __future__ import annotations

import re

from peftsmith import files, secrets

_ANSI = re.compile(r"\x1b(?:\[[0-9;?]{0,40}[ -/]{0,4}[@-~]|[@-Z\\-_])")


def readable(text: str) -> list[str]:
    """What a terminal would show of an untrusted text, without empty lines; secrets are redacted before any cutting."""
    plain = secrets.redact(_ANSI.sub("", text))
    lines = (line.rstrip("\r").rpartition("\r")[2].rstrip() for line in plain.split("\n"))
    return [line for line in lines if line]


def ending(lines: list[str], *, count: int, characters: int) -> str:
    """The last `count` lines, at most the last `characters` of them, cleaned for showing."""
    return show("\n".join(lines[-count:])[-characters:], characters)


def show(text: str, limit: int) -> str:
    """A piece of a log for showing; redacted again, since cleaning may join what invisible characters kept apart."""
    return secrets.redact(files.clean(text, limit))
