"""A script or notebook as one text of Python, with the way back from a line of it to file, cell and line.

Knows: the notebook format (4), which lines of a cell are not Python (magics, shell), what cells write into files.
Does not know: what the Python says (trace.py).
"""

from __future__ import annotations

import ast
import bisect
import re
import tokenize
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftsmith import files
from peftsmith.errors import PeftsmithError

LARGEST = 32 << 20  # bytes; notebooks carry their images along
_SHELL = re.compile(r"(?P<indent>\s*)(?P<bind>[A-Za-z_][\w, ]*=\s*)?(?P<mark>!!?|%{1,2}(?=[A-Za-z])|\?)(?P<rest>.*)")
_HELP = re.compile(r"\s*[\w.]+\?{1,2}\s*$")
_WRITE = re.compile(r"(?:-a\s+)?(?P<path>[^\s'\"]+|\"[^\"]+\"|'[^']+')\s*$")
# Cell magics whose body is ordinary Python.
_PYTHON_CELLS = {"time", "timeit", "capture", "prun", "python3", "python"}
_SHELL_CELLS = {"bash", "sh", "shell", "script", "cmd", "system"}
_SHELL_LINES = {"pip", "conda", "mamba", "uv", "system", "sx"}


@dataclass(frozen=True)
class Shell:
    """One command line that a notebook gives to a shell, pip or conda; `line` counts in Source.text."""

    line: int
    command: str


@dataclass(frozen=True)
class Unread:
    """Something that was not read, and why nothing is known about it."""

    line: int
    what: str


@dataclass(frozen=True)
class Fault:
    line: int
    message: str


@dataclass(frozen=True)
class Source:
    """`text` is Python only: every other line is blank, so that lines keep their numbers. `starts` holds (cell number,
    first line of the cell in `text`) of a notebook, cells counted from 1 over all of them; a script has none.
    `raw` is everything that may hold a secret: (cell or None, what it is, text). `written` maps files that cells
    write (%%writefile) to (line, text)."""

    name: str
    text: str
    tree: ast.Module
    lines: tuple[str, ...]
    starts: tuple[tuple[int, int], ...] = ()
    shell: tuple[Shell, ...] = ()
    unread: tuple[Unread, ...] = ()
    faults: tuple[Fault, ...] = ()
    raw: tuple[tuple[int | None, str, str], ...] = ()
    written: tuple[tuple[str, int, str], ...] = ()

    @property
    def notebook(self) -> bool:
        return bool(self.starts)

    def place(self, line: int) -> dict[str, Any]:
        """{"file", "line"}, for a notebook also "cell", with the line counted in its cell."""
        if not self.starts:
            return {"file": self.name, "line": line}
        at = max(0, bisect.bisect_right([first for _, first in self.starts], line) - 1)
        cell, first = self.starts[at]
        return {"file": self.name, "cell": cell, "line": line - first + 1}

    def where(self, line: int) -> str:
        place = self.place(line)
        cell = f" cell {place['cell']}" if "cell" in place else ""
        return f"{self.name}{cell} line {place['line']}"


def read(path: Path) -> Source:
    """The script or notebook in a file; PeftsmithError for any other kind of file, or one that cannot be read."""
    if path.suffix.lower() == ".ipynb":
        return notebook(path.name, files.read_json(path, largest=LARGEST))
    if path.suffix.lower() == ".py":
        return script(path.name, files.read_text(path, largest=LARGEST))
    raise PeftsmithError(
        "This is neither a project's folder nor a script or notebook",
        value=str(path),
        next_step="Give a folder, a .py file or an .ipynb file.",
    )


def script(name: str, text: str) -> Source:
    """A .py file. Shell lines are no Python there: they are a fault, and the rest is read all the same."""
    tree, fault = _parse(text)
    shell: list[Shell] = []
    if fault is not None:
        lines, shell, _ = _without_magics(text.splitlines(), 1)
        tree, _ = _parse("\n".join(lines))
    return Source(
        name=name,
        text=text,
        tree=tree or ast.Module([], []),
        lines=tuple(text.splitlines()),
        shell=tuple(shell),
        faults=(fault,) if fault else (),
        unread=(Unread(fault.line, "nothing of the file was read, since it does not parse"),)
        if tree is None and fault
        else (),
        raw=((None, "text", text),),
    )


def notebook(name: str, document: Any) -> Source:
    """A notebook of format 4; PeftsmithError for anything else."""
    cells = document.get("cells") if isinstance(document, dict) else None
    if not isinstance(cells, list) or document.get("nbformat") != 4:
        raise PeftsmithError(
            "This is no notebook of format 4", value=name, next_step="Open it in Jupyter and save it again."
        )
    lines: list[str] = []
    starts: list[tuple[int, int]] = []
    shell: list[Shell] = []
    unread: list[Unread] = []
    faults: list[Fault] = []
    raw: list[tuple[int | None, str, str]] = []
    written: list[tuple[str, int, str]] = []
    for number, cell in enumerate(cells, start=1):
        text = _text(cell.get("source") if isinstance(cell, dict) else None)
        raw.append((number, "source", text))
        raw += [(number, "output", output) for output in _outputs(cell)]
        if not isinstance(cell, dict) or cell.get("cell_type") != "code":
            continue
        first = len(lines) + 1
        starts.append((number, first))
        read = _code_cell(text, first)
        lines += read.lines or [""]
        shell += read.shell
        unread += read.unread
        faults += read.faults
        written += read.written
    tree, fault = _parse("\n".join(lines))
    if fault is not None:  # each cell parses alone, all together do not (a future import in a later cell)
        unread.append(Unread(fault.line, f"the cells do not parse as one script: {fault.message}"))
    return Source(
        name=name,
        text="\n".join(lines),
        tree=tree or ast.Module([], []),
        lines=tuple(lines),
        starts=tuple(starts) or ((1, 1),),
        shell=tuple(shell),
        unread=tuple(unread),
        faults=tuple(faults),
        raw=tuple(raw),
        written=tuple(written),
    )


@dataclass
class _Cell:
    lines: list[str]
    shell: list[Shell]
    unread: list[Unread]
    faults: list[Fault]
    written: list[tuple[str, int, str]]


def _code_cell(text: str, first: int) -> _Cell:
    lines = text.splitlines()
    cell = _Cell(lines, [], [], [], [])
    head = lines[0].strip() if lines else ""
    if head.startswith("%%"):
        magic, _, rest = head[2:].partition(" ")
        if magic == "writefile":
            match = _WRITE.fullmatch(rest.strip())
            body = text.partition("\n")[2]
            if match:
                cell.written.append((match["path"].strip("'\""), first, body))
            cell.lines = [""] * len(lines)
            return cell
        if magic in _SHELL_CELLS:
            cell.shell += [Shell(first + at, line.strip()) for at, line in enumerate(lines[1:], 1) if line.strip()]
        elif magic not in _PYTHON_CELLS:
            cell.unread.append(Unread(first, f"a cell of %%{files.clean(magic, 40)} was not read"))
        if magic not in _PYTHON_CELLS:
            cell.lines = [""] * len(lines)
            return cell
        cell.lines = ["", *lines[1:]]
    if _parse("\n".join(cell.lines))[1] is None:
        return cell
    cell.lines, cell.shell, cell.unread = _without_magics(cell.lines, first)
    fault = _parse("\n".join(cell.lines))[1]
    if fault is not None:
        cell.faults.append(Fault(first + fault.line - 1, fault.message))
        cell.unread.append(Unread(first, "the cell was not read, since it does not parse"))
        cell.lines = [""] * len(lines)
    return cell


def _without_magics(lines: list[str], first: int) -> tuple[list[str], list[Shell], list[Unread]]:
    """The lines with `pass` (or a name bound to None) in place of each magic, and what the magics were."""
    kept: list[str] = []
    shell: list[Shell] = []
    unread: list[Unread] = []
    number = 0
    while number < len(lines):
        line = lines[number]
        match = _SHELL.fullmatch(line)
        if (match is None and not _HELP.fullmatch(line)) or _inside(kept):
            kept.append(line)
            number += 1
            continue
        at, command = number, match["rest"] if match else ""
        while command.endswith("\\") and number + 1 < len(lines):
            number += 1
            command = command[:-1] + " " + lines[number].strip()
        bind = (match["bind"] or "") if match else ""
        kept.append((match["indent"] if match else "") + (f"{bind}None" if bind else "pass"))
        kept += [""] * (number - at)
        number += 1
        if match is None or match["mark"] == "?":
            continue
        word = command.split(None, 1)[0] if command.split() else ""
        if match["mark"].startswith("!") or word in _SHELL_LINES:
            shell.append(Shell(first + at, command.strip()))
        elif word in ("run", "load", "loadpy", "recall", "rerun"):
            unread.append(Unread(first + at, f"%{word} brings in code that was not read"))
        elif word in ("env", "set_env"):
            shell.append(Shell(first + at, f"export {command.strip().partition(' ')[2]}"))
    return kept, shell, unread


def _inside(lines: list[str]) -> bool:
    """Do these lines end within a string or a bracket?"""
    try:
        for _ in tokenize.generate_tokens(iter([*(line + "\n" for line in lines), ""]).__next__):
            pass
    except tokenize.TokenError as error:
        return "EOF in multi-line" in str(error)
    except (SyntaxError, StopIteration):
        return False
    return False


def _parse(text: str) -> tuple[ast.Module | None, Fault | None]:
    flags = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT  # notebooks may await anywhere
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a stranger's odd escapes are no matter of this program's
            tree = compile(text, "<script>", "exec", flags, dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return None, Fault(getattr(error, "lineno", None) or 1, str(getattr(error, "msg", None) or error))
    return (tree if isinstance(tree, ast.Module) else None), None


def _text(source: Any) -> str:
    if isinstance(source, list):
        return "".join(each for each in source if isinstance(each, str))
    return source if isinstance(source, str) else ""


def _outputs(cell: Any) -> list[str]:
    """The texts that a cell printed."""
    found = []
    outputs = cell.get("outputs") if isinstance(cell, dict) else None
    for output in outputs if isinstance(outputs, list) else []:
        if not isinstance(output, dict):
            continue
        data = output.get("data")
        shown = data.items() if isinstance(data, dict) else ()
        texts = [output.get("text"), *(value for kind, value in shown if kind.startswith("text/"))]
        texts.append(output.get("traceback"))
        found += [text for text in map(_text, texts) if text]
    return found
