"""What a script calls in the libraries it imports: dotted names, keywords and lines, read from its syntax tree.

Knows: imports and their aliases, and the class of a variable that is bound once to an instance of an imported class.
Does not know: the libraries themselves; it never imports anything.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Call:
    """One call of something imported: `name` is the full dotted name, e.g. trl.SFTConfig or trl.SFTTrainer.train."""

    name: str
    line: int
    keywords: Mapping[str, ast.expr] = field(default_factory=dict)
    positional: int = 0


@dataclass(frozen=True)
class Script:
    calls: list[Call]
    imported: dict[str, int]  # full dotted name of every imported module or member -> line


def read(tree: ast.Module, local: Collection[str] = ()) -> Script:
    """Calls and imports of a parsed script; modules in `local` (the project's own) are left out."""
    names: dict[str, str] = {}
    imported: dict[str, int] = {}
    for node in ast.walk(tree):
        for alias, full in _imports(node):
            if full.split(".")[0] not in local:
                names[alias] = full
                imported.setdefault(full, getattr(node, "lineno", 1))
    # `import a.b` binds a, but it is a.b that must exist
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for each in node.names:
                if each.name.split(".")[0] not in local:
                    imported.setdefault(each.name, node.lineno)
    instances = _instances(tree, names)
    calls = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = _dotted(node.func, {**names, **instances})
            if name is not None:
                keywords = {each.arg: each.value for each in node.keywords if each.arg is not None}
                calls.append(Call(name, node.lineno, keywords, len(node.args)))
    return Script(sorted(calls, key=lambda call: (call.line, call.name)), imported)


def constants(tree: ast.Module) -> dict[str, object]:
    """Top-level names that are bound to a plain literal."""
    found: dict[str, object] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            try:
                found[node.targets[0].id] = ast.literal_eval(node.value)
            except (ValueError, TypeError, MemoryError, RecursionError):
                continue
    return found


def _imports(node: ast.AST) -> Iterator[tuple[str, str]]:
    """(local name, full dotted name) for what an import statement binds; relative imports are the project's own."""
    if isinstance(node, ast.Import):
        for each in node.names:
            yield (each.asname, each.name) if each.asname else (each.name.split(".")[0],) * 2
    elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
        for each in node.names:
            if each.name != "*":
                yield each.asname or each.name, f"{node.module}.{each.name}"


def _dotted(node: ast.expr, names: Mapping[str, str]) -> str | None:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if isinstance(node, ast.Name) and node.id in names:
        return ".".join([names[node.id], *reversed(parts)])
    return None


def _instances(tree: ast.Module, names: Mapping[str, str]) -> dict[str, str]:
    """Variables that are bound exactly once, to an instance of an imported class."""
    bound: dict[str, int] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, (ast.Store, ast.Del)):
            bound[node.id] = bound.get(node.id, 0) + 1
        elif isinstance(node, ast.arg):
            bound[node.arg] = bound.get(node.arg, 0) + 1
    found = {}
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.value, ast.Call)):
            continue
        target, name = node.targets[0], _dotted(node.value.func, names)
        if isinstance(target, ast.Name) and bound.get(target.id) == 1 and name is not None:
            kind = _class_of(name)
            if kind:
                found[target.id] = kind
    return found


def _class_of(name: str) -> str | None:
    """The class that a call of `name` gives an instance of: itself, or that of a from_pretrained which returns its own."""
    owner, _, last = name.rpartition(".")
    if last == "from_pretrained":
        kind = owner.rpartition(".")[2]
        return None if kind.startswith("Auto") or not kind[:1].isupper() else owner
    return name if last[:1].isupper() else None
