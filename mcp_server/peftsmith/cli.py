"""The shell's way to the same operations: one command each, made from the functions' own signatures.

Knows: turning signatures into arguments, printing as JSON, exit codes.
Does not know: what any operation does, how a result is laid out for people (terminal.py).
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import sys
import types
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import ValidationError, validate_call
from pydantic.fields import FieldInfo

from peftsmith import __version__, files, progress, terminal
from peftsmith.data import show_terminal
from peftsmith.errors import PeftsmithError
from peftsmith.finding import EXIT_USAGE, exit_code
from peftsmith.operations import OPERATIONS, Operation

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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. 0 clean, 1 findings, 2 wrong use or refused, 3 something could not be checked."""
    files.set_roots(["/"])  # whoever types a path in a shell may read it anyway
    given = list(sys.argv[1:] if arguments is None else arguments)
    if tuple(given[:2]) in GROUPS:
        given[:2] = [GROUPS[given[0], given[1]]]
    parser = _parser(given)
    if not given or given == ["data"]:
        parser.print_help()
        return EXIT_USAGE
    known, unknown = parser.parse_known_args(given)
    options = vars(known)
    if unknown:
        options["parser"].error(f"unrecognized arguments: {' '.join(unknown)}")
    name = options.pop("operation")
    del options["parser"]
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
            print(_as_commands(terminal.text_of(result, coloured=coloured)))
            if following := terminal.next_command(name, options, result):
                print(f"next: {following}")
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read has seen enough, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return exit_code(result["findings"])


def _parser(given: Sequence[str]) -> argparse.ArgumentParser:
    """The parser for these arguments: only a command that is among them gets its parameters, which take time to read
    from the signature."""
    parser = argparse.ArgumentParser(
        prog="peftsmith",
        description="From a base model and data to a PEFT adapter that is proven and can be served.",
        epilog="The usual order: inspect-machine, inspect-model, audit, prepare, plan, generate, check, start-run, "
        "get-run. `data audit`, `data prepare` and `data show` are the same as the three commands for data sets. "
        "Exit codes: 0 clean, 1 findings, 2 wrong use or refused, 3 something could not be checked.",
    )
    parser.add_argument("--version", action="version", version=f"peftsmith {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, operation in OPERATIONS.items():
        aliases = [SHORT_NAMES[name]] if name in SHORT_NAMES else []
        text = " ".join((inspect.getdoc(operation.run) or "").split())
        command = commands.add_parser(name.replace("_", "-"), aliases=aliases, help=operation.title, description=text)
        command.set_defaults(operation=name, parser=command)
        if {name.replace("_", "-"), *aliases} & set(given):
            command.add_argument("--json", action="store_true", help="print the result as JSON")
            command.add_argument("--no-colour", action="store_true", help="print without colour, as NO_COLOR does")
            _add_parameters(command, operation)
    return parser


def _add_parameters(command: argparse.ArgumentParser, operation: Operation) -> None:
    hints = get_type_hints(operation.run, include_extras=True)
    for number, (name, parameter) in enumerate(inspect.signature(operation.run).parameters.items()):
        kind, choices, description = _kind(hints[name])
        if parameter.default is not parameter.empty and number == 0:  # what a command is about needs no option's name
            text = _with_default(description, parameter)
            command.add_argument(name, nargs="?", type=kind, default=parameter.default, help=text)
        elif parameter.default is parameter.empty:
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
        print(f"peftsmith: {_as_commands(message)}", file=sys.stderr)
    return EXIT_USAGE


def _as_commands(text: str) -> str:
    """Operations by the names that the shell has for them, in messages and fixes that name one."""
    names = "|".join(OPERATIONS)
    return re.sub(rf"\b({names})\b", lambda found: f"`peftsmith {_command(found[0])}`", text)


def _command(operation: str) -> str:
    return SHORT_NAMES.get(operation, operation.replace("_", "-"))


def _bar(done: int, total: int | None) -> None:
    """Progress as one line on stderr, which the last call ends."""
    known = f"{'#' * (30 * done // max(total, 1)):30} {done} of {total}" if total else str(done)
    print(f"\r{known}", end="\n" if done == total else "", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
