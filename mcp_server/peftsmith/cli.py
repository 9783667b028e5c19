"""The shell's way to the same operations: one command each, made from the functions' own signatures.

Knows: turning signatures into arguments, printing results for people or as JSON, exit codes.
Does not know: what any operation does.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import ValidationError, validate_call
from pydantic.fields import FieldInfo

from peftsmith import __version__, files, progress
from peftsmith.data import show_terminal
from peftsmith.errors import PeftsmithError
from peftsmith.finding import EXIT_USAGE, exit_code
from peftsmith.operations import OPERATIONS, Operation
from peftsmith.operations.parameters import Result

SHORT_NAMES = {
    "audit_dataset": "audit",
    "prepare_dataset": "prepare",
    "estimate_memory": "estimate",
    "plan_finetune": "plan",
    "generate_project": "generate",
    "check_project": "check",
    "diagnose_failure": "diagnose",
}
# Words that people type -> the command: `peftsmith data show PATH`
GROUPS = {("data", name): f"{name}-dataset" for name in ("audit", "prepare", "show")}
_BOLD = 1  # SGR codes (ECMA-48), as the colours below
_STYLES = {"error": (1, 31), "warning": (33,), "info": (36,), "unknown": (35,)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. 0 clean, 1 findings, 2 wrong use or refused, 3 something could not be checked."""
    files.set_roots(["/"])  # whoever types a path in a shell may read it anyway
    given = list(sys.argv[1:] if arguments is None else arguments)
    if tuple(given[:2]) in GROUPS:
        given[:2] = [GROUPS[given[0], given[1]]]
    options = vars(_parser(given).parse_args(given))
    name = options.pop("operation")
    operation = OPERATIONS[name]
    del options["command"]
    as_json = options.pop("json")
    coloured = not options.pop("no_colour") and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    if sys.stderr.isatty():
        progress.listen(_bar)
    try:
        result = validate_call(operation.run)(**options)
    except PeftsmithError as error:
        return _refused(str(error), as_json)
    except ValidationError as error:
        faults = "; ".join(f"{item['loc'][-1]}: {item['msg']} (got {item['input']!r})" for item in error.errors())
        return _refused(faults, as_json)
    except KeyboardInterrupt:
        return _refused("Interrupted; runs that were started go on, see `peftsmith list-runs`.", as_json)
    try:
        if as_json:
            print(json.dumps(result, ensure_ascii=False, indent=2))
        else:
            if name == "show_dataset":
                print(show_terminal.text_of(result.pop("rows"), coloured=coloured))
            _show(result, coloured=coloured)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read has seen enough, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return exit_code(result["findings"])


def _parser(given: Sequence[str]) -> argparse.ArgumentParser:
    """The parser for these arguments: only a command that is among them gets its parameters, which take time to read
    from the signature."""
    parser = argparse.ArgumentParser(
        prog="peftsmith",
        description="From base model and data to a LoRA or QLoRA adapter that is proven and can be served.",
        epilog="Exit codes: 0 clean, 1 findings, 2 wrong use or refused, 3 something could not be checked.",
    )
    parser.add_argument("--version", action="version", version=f"peftsmith {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, operation in OPERATIONS.items():
        aliases = [SHORT_NAMES[name]] if name in SHORT_NAMES else []
        text = " ".join((inspect.getdoc(operation.run) or "").split())
        command = commands.add_parser(name.replace("_", "-"), aliases=aliases, help=operation.title, description=text)
        command.set_defaults(operation=name)
        if {name.replace("_", "-"), *aliases} & set(given):
            command.add_argument("--json", action="store_true", help="print the result as JSON")
            command.add_argument("--no-colour", action="store_true", help="print without colour, as NO_COLOR does")
            _add_parameters(command, operation)
    return parser


def _add_parameters(command: argparse.ArgumentParser, operation: Operation) -> None:
    hints = get_type_hints(operation.run, include_extras=True)
    for name, parameter in inspect.signature(operation.run).parameters.items():
        kind, choices, description = _kind(hints[name])
        required = parameter.default is parameter.empty
        if required:
            choice = f"{', '.join(choices)}. " if choices else ""
            command.add_argument(name, choices=choices, type=kind, metavar=name, help=choice + description)
        elif kind is bool:
            action = argparse.BooleanOptionalAction
            command.add_argument(_option(name), action=action, default=parameter.default, help=description)
        elif kind is dict:
            command.add_argument(_option(name), action=_Pairs, nargs="*", metavar="NAME=VALUE", help=description)
        elif kind is list:
            command.add_argument(_option(name), nargs="*", metavar="VALUE", help=description)
        else:
            command.add_argument(
                _option(name),
                choices=choices,
                type=kind,
                default=parameter.default,
                help=_with_default(description, parameter),
            )


class _Pairs(argparse.Action):
    """NAME=VALUE, as often as wanted, as one object."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        wrong = [value for value in values if "=" not in value]
        if wrong:
            parser.error(f"{self.option_strings[0]}: {wrong[0]!r} is not NAME=VALUE")
        setattr(namespace, self.dest, dict(value.split("=", 1) for value in values))


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _with_default(description: str, parameter: inspect.Parameter) -> str:
    return description if parameter.default is None else f"{description} [{parameter.default}]".strip()


def _kind(hint: Any) -> tuple[Any, list[str] | None, str]:
    """(type of one value, allowed values if there are only some, description) of a parameter's annotation."""
    description = ""
    if get_origin(hint) is Annotated:
        hint, *extras = get_args(hint)
        description = next((extra.description or "" for extra in extras if isinstance(extra, FieldInfo)), "")
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(part for part in get_args(hint) if part is not type(None))
    if get_origin(hint) is Literal:
        return str, list(get_args(hint)), description.replace("%", "%%")
    if hint in (dict[str, str], list[str]):
        return get_origin(hint), None, description.replace("%", "%%")
    if get_origin(hint) in (dict, list):
        return json.loads, None, f"{description} JSON.".replace("%", "%%")
    return hint, None, description.replace("%", "%%")


def _refused(message: str, as_json: bool) -> int:
    if as_json:
        print(json.dumps({"error": message}, ensure_ascii=False))
    else:
        print(f"peftsmith: {message}", file=sys.stderr)
    return EXIT_USAGE


def _bar(done: int, total: int | None) -> None:
    """Progress as one line on stderr, which the last call ends."""
    known = f"{'#' * (30 * done // max(total, 1)):30} {done} of {total}" if total else str(done)
    print(f"\r{known}", end="\n" if done == total else "", file=sys.stderr, flush=True)


def _show(result: Result, *, coloured: bool = False) -> None:
    """One line a value, indented by depth; then the findings. `coloured`: see https://no-color.org."""

    def styled(text: str, *codes: int) -> str:
        return f"\x1b[{';'.join(map(str, codes))}m{text}\x1b[0m" if coloured else text

    for depth, key, text in _lines({key: value for key, value in result.items() if key != "findings"}):
        print(f"{'  ' * depth}{styled(_printable(key), _BOLD)} {_printable(text)}".rstrip())
    for each in result["findings"]:
        severity = styled(f"{each['severity']:7}", *_STYLES[each["severity"]])
        print(f"{severity} {styled(each['id'], _BOLD)} {_printable(each['message'])}")
        if each["severity"] != "info":
            print(f"        fix: {_printable(each['fix'])}")
    if not result["findings"]:
        print("no findings")


def _lines(value: Mapping[str, Any], depth: int = 0) -> Iterator[tuple[int, str, str]]:
    """(depth, key, text) of every value; what holds others has no text of its own."""
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            yield depth, str(key), ""
            yield from _lines(item, depth + 1)
        elif isinstance(item, list) and item and isinstance(item[0], Mapping):
            yield depth, str(key), ""
            for number, each in enumerate(item, 1):
                yield depth + 1, str(number), ""
                yield from _lines(each, depth + 2)
        else:
            yield depth, str(key), _plain(item)


def _printable(text: str) -> str:
    """Names and texts come from files that anybody wrote: nothing of them may steer the terminal."""
    return "".join(letter if letter.isprintable() or letter == "\n" else " " for letter in text)


def _plain(item: Any) -> str:
    if isinstance(item, list):
        return ", ".join(str(each) for each in item) or "none"
    if isinstance(item, float):
        return f"{item:.6g}"
    return "none" if item is None or item == {} else str(item)


if __name__ == "__main__":
    sys.exit(main())
