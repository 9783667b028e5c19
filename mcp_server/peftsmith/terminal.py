"""A result as a person reads it in a terminal: tables, short text, the findings, the command that comes next.

Knows: how values of any result are laid out, what only programs read, which command follows which.
Does not know: what operations do, their arguments, what a terminal can do (cli.py). `--json` prints the whole result.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Result = Mapping[str, Any]

WIDEST = 110  # columns of a line or table; what is wider is written below each other
_SHORT = 40  # a mapping within a line
_LONGEST = 200  # characters of a text that is shown whole
_GROUPED = 10_000  # from here on digits are set in groups
_BOLD = 1  # SGR codes (ECMA-48), as the colours below
_STYLES = {"error": (1, 31), "warning": (33,), "info": (36,), "unknown": (35,)}
# What only programs read. `--json` has it.
_HIDDEN = {"sha256", "source_sha256", "inputs", "argv", "cwd", "moments_gib", "flops_per_token", "key"}
_ELSEWHERE = {"plan": "in plan.yaml; sources and what would change a value in plan.lock.json"}
# Of tables that would be too wide, the columns that are shown, long text last.
_COLUMNS = {
    "why": ("value", "reason"),
    "alternatives": ("name", "plan_with_gib", "fits", "trainable", "serving", "price"),
}
_WHOLE = {"log_tail", "patch"}  # texts that are never cut


def text_of(result: Result, *, coloured: bool = False) -> str:
    """The result's values, then its findings, worst first. `coloured`: see https://no-color.org."""

    def styled(text: str, *codes: int) -> str:
        return f"\x1b[{';'.join(map(str, codes))}m{text}\x1b[0m" if coloured else text

    lines = []
    for depth, key, text in _lines({key: value for key, value in result.items() if key != "findings"}):
        lines.append(
            f"{'  ' * depth}{styled(_printable(key).replace(chr(10), ' '), _BOLD)} {_printable(text)}".rstrip()
        )
    for each in result["findings"]:
        severity = styled(f"{each['severity']:7}", *_STYLES[each["severity"]])
        lines.append(f"{severity} {styled(each['id'], _BOLD)} {_printable(each['message'])}")
        if each["severity"] != "info":
            lines.append(f"        fix: {_printable(each['fix'])}")
    if not result["findings"]:
        lines.append("no findings")
    return "\n".join(lines)


def _lines(value: Mapping[str, Any], depth: int = 0) -> Iterator[tuple[int, str, str]]:
    """(depth, key, text) of every value; what holds others has no text of its own. Keys without a value come last."""
    empty = []
    for key, item in _shown(value).items():
        if _is_empty(item):
            empty.append(key)
        elif key in _ELSEWHERE:
            yield depth, key, _ELSEWHERE[key]
        elif isinstance(item, str):
            yield depth, key, _text(key, item, depth)
        elif len(line := _line(item)) <= WIDEST and not any(map(_is_nested, _parts(item))):
            yield depth, key, line
        else:
            yield depth, key, ""
            yield from _below(key, item, depth + 1)
    if empty:
        yield depth, "none:", ", ".join(empty)


def _shown(value: Mapping[str, Any]) -> dict[str, Any]:
    """Without what only programs read: bytes stand beside the same in GiB."""
    return {key: item for key, item in value.items() if key not in _HIDDEN and f"{key}_gib" not in value}


def _below(key: str, item: Any, depth: int) -> Iterator[tuple[int, str, str]]:
    """A value that does not fit into a line: a table if it can be one, else all that it holds."""
    if table := _table(_records(key, item)):
        yield from ((depth, head, rest) for head, rest in table)
    elif isinstance(item, Mapping):
        yield from _lines(item, depth)
    else:
        for number, each in enumerate(item, 1):
            if isinstance(each, Mapping):
                yield depth, str(number), ""
                yield from _lines(each, depth + 1)
            else:
                yield depth, _line(each), ""


def _records(key: str, item: Any) -> list[dict[str, Any]]:
    """What might stand as a table: mappings, in a list or under names. Else nothing."""
    if isinstance(item, Mapping):
        rows = [{"": name, **_shown(each)} if isinstance(each, Mapping) else {} for name, each in item.items()]
    else:
        rows = [_shown(each) if isinstance(each, Mapping) else {} for each in item]
    if len(rows) < 2 or not all(rows):
        return []
    chosen = ("", *_COLUMNS.get(key, ()))
    if key in _COLUMNS and set(chosen[1:]) <= rows[-1].keys():
        return [{name: row.get(name) for name in chosen if name or name in row} for row in rows]
    return rows


def _table(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(first column, the others) of a head line and of every row; nothing when that would be too wide to read."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if any(_is_nested(row.get(name)) for row in rows for name in columns[:-1]):
        return []
    cells = [{name: name for name in columns}, *({name: _line(row.get(name)) for name in columns} for row in rows)]
    widths = [max(len(row[name]) for row in cells) for name in columns[:-1]]
    if not rows or sum(widths) + 2 * len(widths) > WIDEST:
        return []
    lines = []
    for row in cells:
        first, *rest = (row[name].ljust(width) for name, width in zip(columns, (*widths, 0), strict=True))
        lines.append((first, " ".join(f" {cell}" for cell in rest)))
    return lines


def _is_nested(value: Any) -> bool:
    """Whether a value is or holds a mapping, but for a very short one: in the middle of a line nobody could tell where
    it ends."""
    if isinstance(value, Mapping):
        return any(map(_is_nested, value.values())) or len(_line(value)) > _SHORT
    return isinstance(value, list) and any(isinstance(each, (Mapping, list)) for each in value)


def _text(key: str, text: str, depth: int) -> str:
    """A text; a long one by its beginning, unless it is what was asked for, which stands below its key."""
    if key in _WHOLE and "\n" in text:
        return "".join(f"\n{'  ' * (depth + 1)}{line}" for line in text.splitlines())
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST or key in _WHOLE else f"{text[:_LONGEST]}... ({len(text)} characters)"


def _parts(item: Any) -> list[Any]:
    return list(item.values()) if isinstance(item, Mapping) else []


def _is_empty(item: Any) -> bool:
    return item is None or (isinstance(item, (str, list, Mapping)) and not item)


def _line(item: Any) -> str:
    """Any value in one line."""
    if _is_empty(item):
        return "none"
    if isinstance(item, Mapping):
        return ", ".join(f"{_line(key)} {_line(each)}" for key, each in _shown(item).items())
    if isinstance(item, list):
        return ", ".join(map(_line, item))
    if isinstance(item, bool):
        return "yes" if item else "no"
    if isinstance(item, int):
        return f"{item:,}" if abs(item) >= _GROUPED else str(item)
    return f"{item:.6g}" if isinstance(item, float) else " ".join(str(item).split())


def _printable(text: str) -> str:
    """Names and texts come from files that anybody wrote: nothing of them may steer the terminal."""
    return "".join(letter if letter.isprintable() or letter == "\n" else " " for letter in text)


def next_command(operation: str, arguments: Mapping[str, Any], result: Result) -> str | None:
    """The command that usually comes next, ready to be pasted but for words in capitals; None where that is up to the
    person."""
    words = _NEXT[operation](arguments, result) if operation in _NEXT else None
    return shlex.join(["peftsmith", *words]) if words else None


def _after_check(arguments: Mapping[str, Any], result: Result) -> list[str] | None:
    return ["start-run", arguments["project"], "smoke", result["digest"]] if result["digest"] else None


def _after_start(arguments: Mapping[str, Any], result: Result) -> list[str]:
    return ["get-run", arguments.get("project", "."), result["run"]["id"], "--wait-seconds", "50"]


def _after_run(arguments: Mapping[str, Any], result: Result) -> list[str] | None:
    run, project = result["run"], arguments["project"]
    if run["state"] in ("starting", "running"):
        return _after_start(arguments, result)
    if run["state"] == "failed":
        return ["diagnose", project, "--run-id", run["id"]]
    if run["state"] == "done" and run["kind"] == "smoke":
        return ["start-run", project, "train", run["digest"]]
    if run["state"] == "done" and run["kind"] == "train":
        return ["start-run", project, "evaluate", run["digest"], "--adapter-run", run["id"]]
    return None


def _after_prepare(arguments: Mapping[str, Any], result: Result) -> list[str]:
    splits = {name: split["path"] for name, split in result["prepared"]["splits"].items()}
    held_out = [word for name in ("test", "eval") if name in splits for word in (f"--{name}", splits[name])]
    return ["audit", splits["train"], *held_out, "--model", "MODEL"]


def _after_model(arguments: Mapping[str, Any], result: Result) -> list[str]:
    return ["audit", "ROWS", "--model", arguments["model"]]


def _after_audit(arguments: Mapping[str, Any], result: Result) -> list[str] | None:
    """Only rows that can be trained on are planned with."""
    model = arguments.get("model")
    if not model or any(each["severity"] == "error" for each in result["findings"]):
        return None
    held_out = [word for name in ("test", "eval") if arguments.get(name) for word in (f"--{name}", arguments[name])]
    return ["plan", "PROJECT", model, arguments["data"], *held_out]


_NEXT: dict[str, Callable[[Mapping[str, Any], Result], list[str] | None]] = {
    "make_environment": _after_start,
    "inspect_model": _after_model,
    "audit_dataset": _after_audit,
    "prepare_dataset": _after_prepare,
    "plan_finetune": lambda arguments, _: ["generate", arguments["project"]],
    "generate_project": lambda arguments, _: ["check", arguments["project"]],
    "check_project": _after_check,
    "apply_fix": lambda arguments, _: ["generate", arguments["project"]] if arguments.get("confirm") else None,
    "start_run": _after_start,
    "get_run": _after_run,
}
