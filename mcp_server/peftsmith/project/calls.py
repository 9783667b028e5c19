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
    """One call of something imported: `name` is the full dotted name, e.g. trl.SFTConfig or trl.SFTTrainer.train.

    `of_instance` marks the latter kind: what an object carries may also be set at run time, so that a name which its
    class lacks need not be wrong.
    """

    name: str
    line: int
    keywords: Mapping[str, ast.expr] = field(default_factory=dict)
    of_instance: bool = False


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
    calls: list[Call] = []
    for scope in _scopes(tree):
        known, instances = _unshadowed(scope, names), _instances(scope, names)
        for node in _inside(scope):
            if not isinstance(node, ast.Call):
                continue
            keywords = {each.arg: each.value for each in node.keywords if each.arg is not None}
            name = _dotted(node.func, known)
            if name is not None:
                calls.append(Call(name, node.lineno, keywords))
            elif isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
                kind = instances.get(node.func.value.id)
                if kind:
                    calls.append(Call(f"{kind}.{node.func.attr}", node.lineno, keywords, of_instance=True))
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


_Scope = ast.Module | ast.FunctionDef | ast.AsyncFunctionDef


def _scopes(tree: ast.Module) -> Iterator[_Scope]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def _inside(scope: _Scope) -> Iterator[ast.AST]:
    """The nodes of a scope without those of functions defined in it (their decorators and defaults belong to it)."""
    pending: list[ast.AST] = list(scope.body)
    while pending:
        node = pending.pop()
        yield node
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            pending += [*node.decorator_list, *node.args.defaults, *(each for each in node.args.kw_defaults if each)]
        else:
            pending += ast.iter_child_nodes(node)


def _bound(scope: _Scope) -> dict[str, int]:
    """How often each name is bound in a scope, by assignment or as a parameter; imports do not count."""
    bound: dict[str, int] = {}
    if not isinstance(scope, ast.Module):
        parameters = scope.args
        named = [*parameters.posonlyargs, *parameters.args, *parameters.kwonlyargs, parameters.vararg, parameters.kwarg]
        bound = {each.arg: 1 for each in named if each is not None}
    for node in _inside(scope):
        if isinstance(node, ast.Name) and isinstance(node.ctx, (ast.Store, ast.Del)):
            bound[node.id] = bound.get(node.id, 0) + 1
    return bound


def _unshadowed(scope: _Scope, names: Mapping[str, str]) -> dict[str, str]:
    bound = _bound(scope)
    return {name: full for name, full in names.items() if name not in bound}


def _instances(scope: _Scope, names: Mapping[str, str]) -> dict[str, str]:
    """Variables of a scope that are bound exactly once in it, to an instance of an imported class."""
    bound = _bound(scope)
    found = {}
    for node in _inside(scope):
        if not (isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.value, ast.Call)):
            continue
        target, name = node.targets[0], _dotted(node.value.func, names)
        if isinstance(target, ast.Name) and bound.get(target.id) == 1 and name is not None:
            kind = _class_of(name)
            if kind:
                found[target.id] = kind
    return found


def _class_of(name: str) -> str | None:
    """The class that a call of `name` gives an instance of: itself, or the owner of its from_pretrained."""
    owner, _, last = name.rpartition(".")
    if last == "from_pretrained":
        kind = owner.rpartition(".")[2]
        return None if kind.startswith("Auto") or not kind[:1].isupper() else owner
    return name if last[:1].isupper() else None
