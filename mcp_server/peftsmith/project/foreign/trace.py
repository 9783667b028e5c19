"""A walk through a script in the order in which it would run, without running it: the calls it makes, and with what.

Knows: imports, assignments, branches, functions of the script and of modules beside it, classes that hold settings,
argparse defaults.
Does not know: what loops and conditions depend on; both ways of a branch are followed, and a value may then be either.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping

from peftsmith.project.foreign.evaluate import Evaluator, Frame, Names, Trace
from peftsmith.project.foreign.operators import joined
from peftsmith.project.foreign.source import Source
from peftsmith.project.foreign.values import (
    Function,
    Known,
    Many,
    Record,
    Ref,
    Thing,
    Unknown,
    Value,
    either,
    merge,
    options,
    plain,
)

_DEEPEST = 12  # calls of the script's own functions inside one another
_MOST_TIMES = 25  # that one function is entered
_LONGEST = 30_000  # statements


def trace(source: Source, beside: Callable[[str], Source | None]) -> Trace:
    """Walk through a script; `beside(module)` gives the source of a module that lies beside it, None for others."""
    walker = _Walker(beside)
    walker.module(source)
    walker.leftovers()
    return walker.found


class _Ended(Exception):
    """The rest of a block is not reached."""


class _Walker(Evaluator):
    def __init__(self, beside: Callable[[str], Source | None]) -> None:
        super().__init__()
        self.beside = beside
        self.modules: dict[str, Record] = {}
        self.functions: list[Function] = []
        self.depth = self.steps = 0
        self.times: dict[int, int] = {}

    def module(self, source: Source) -> Record:
        self.found.sources.append(source)
        self.found.unread += [(source, each) for each in source.unread]
        names: Names = {"__name__": Known("__main__" if len(self.found.sources) == 1 else "module")}
        frame = Frame(names, source)
        self.block(source.tree.body, frame)
        return Record(names, open=True)

    def leftovers(self) -> None:
        """Functions that nothing called, with unknown arguments: a framework may call them."""
        for function in self.functions:
            if id(function.node) not in self.entered:
                self.enter(function, [], {}, unknown=True)

    def block(self, body: Iterable[ast.stmt], frame: Frame) -> bool:
        """Walk through statements; False when the end is not reached."""
        try:
            for statement in body:
                self.steps += 1
                if self.steps > _LONGEST:
                    if self.steps == _LONGEST + 1:
                        self.unread(frame, statement, "the script is too long to be followed to its end")
                    return False
                self.statement(statement, frame)
        except _Ended:
            return False
        return True

    def statement(self, node: ast.stmt, frame: Frame) -> None:
        match node:
            case ast.Import() | ast.ImportFrom():
                self.imports(node, frame)
            case ast.Assign(targets=targets, value=value):
                made = self.value(value, frame)
                for target in targets:
                    self.bind(target, made, frame)
            case ast.AnnAssign(target=target, value=value):
                if value is not None:
                    self.bind(target, self.value(value, frame), frame)
            case ast.AugAssign(target=target, value=value):
                self.value(value, frame)
                self.bind(target, Unknown("a value that is changed in place"), frame)
            case ast.Expr(value=value):
                count = len(self.found.sites)
                self.value(value, frame)
                called = value.value if isinstance(value, ast.Await) else value
                for site in self.found.sites[count:]:
                    site.dropped = site.dropped or site.node is called
            case ast.If(test=test, body=body, orelse=orelse):
                self.branches(self.value(test, frame), body, orelse, frame)
            case ast.For() | ast.AsyncFor():
                self.value(node.iter, frame)
                for _ in range(2):  # twice, since a second round may meet what the first has left
                    self.bind(node.target, Unknown("a value of a loop"), frame)
                    self.block(node.body, frame)
                self.block(node.orelse, frame)
            case ast.While(test=test, body=body):
                self.value(test, frame)
                self.block(body, frame)
            case ast.With() | ast.AsyncWith():
                for item in node.items:
                    made = self.value(item.context_expr, frame)
                    if item.optional_vars is not None:
                        self.bind(item.optional_vars, made, frame)
                if not self.block(node.body, frame):
                    raise _Ended
            case ast.Try() | ast.TryStar():
                before = dict(frame.names)
                self.block(node.body, frame)
                for handler in node.handlers:
                    inner = Frame(dict(before), frame.source, frame.returned)
                    if self.block(handler.body, inner):
                        self.rebind(frame, merge(frame.names, inner.names))
                self.block([*node.orelse, *node.finalbody], frame)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                function = Function(node, frame.names, frame.source)
                self.functions.append(function)
                for decorator in [*node.decorator_list, *node.args.defaults]:
                    self.value(decorator, frame)
                frame.names[node.name] = function
            case ast.ClassDef():
                frame.names[node.name] = self.class_(node, frame)
            case ast.Return(value=value):
                frame.returned.append(self.value(value, frame) if value is not None else Known(None))
                raise _Ended
            case ast.Raise() | ast.Continue() | ast.Break():
                raise _Ended
            case ast.Assert(test=test):
                self.value(test, frame)
            case ast.Delete(targets=targets):
                for target in targets:
                    if isinstance(target, ast.Name):
                        frame.names.pop(target.id, None)
            case ast.Match(subject=subject, cases=cases):
                self.value(subject, frame)
                for one in cases:
                    self.branches(Unknown(), one.body, [], frame)
            case _:
                return

    def branches(self, test: Value, body: list[ast.stmt], orelse: list[ast.stmt], frame: Frame) -> None:
        if isinstance(test, Known):
            if not self.block(body if test.value else orelse, frame):
                raise _Ended
            return
        one, other = (Frame(dict(frame.names), frame.source, frame.returned) for _ in range(2))
        ends = self.block(body, one), self.block(orelse, other)
        if not any(ends):
            raise _Ended
        if all(ends):
            self.rebind(frame, merge(one.names, other.names))
        else:
            self.rebind(frame, (one if ends[0] else other).names)

    def rebind(self, frame: Frame, names: Mapping[str, Value]) -> None:
        frame.names.update(names)  # in place: functions of this scope see it

    def imports(self, node: ast.Import | ast.ImportFrom, frame: Frame) -> None:
        if isinstance(node, ast.Import):
            for each in node.names:
                head = each.name.split(".")[0]
                local = self.local(head)
                self.note(each.name, node, frame, local)
                frame.names[each.asname or head] = local or Ref(each.name if each.asname else head)
            return
        module = node.module or ""
        local = self.local(module.split(".")[0] if node.level == 0 else module)
        for each in node.names:
            if local is None and node.level == 1 and not module:
                local_member: Value | None = self.local(each.name)
            else:
                local_member = None
            full = f"{module}.{each.name}" if module else each.name
            if each.name == "*":
                if local is not None:
                    frame.names.update(local.values)
                else:
                    self.unread(frame, node, f"from {module} import *: which names it brings was not followed")
            elif local is not None:
                frame.names[each.asname or each.name] = local.values.get(each.name, Unknown(f"{full} was not found"))
            elif node.level:
                missing = Unknown(f"{full} was not read")
                frame.names[each.asname or each.name] = local_member or missing
            else:
                self.note(full, node, frame, None)
                frame.names[each.asname or each.name] = Ref(full)

    def note(self, name: str, node: ast.stmt, frame: Frame, local: Record | None) -> None:
        if local is None:
            self.found.imported.add((frame.source.name, node.lineno, name))

    def local(self, module: str) -> Record | None:
        """The names of a module that lies beside the script, read once."""
        if module not in self.modules:
            if len(self.modules) > 50:
                return None
            source = self.beside(module) if module else None
            if source is None:
                return None
            self.modules[module] = Record({}, open=True)  # a module that imports itself sees nothing yet
            self.modules[module] = self.module(source)
        return self.modules[module]

    def class_(self, node: ast.ClassDef, frame: Frame) -> Value:
        """A class as the record of what its body sets: a place for settings. Its methods are walked as leftovers."""
        inner = Frame(dict(frame.names), frame.source)
        before = dict(inner.names)
        self.block(node.body, inner)
        own = {name: value for name, value in inner.names.items() if before.get(name) is not value}
        bases = [self.value(base, frame) for base in node.bases]
        base = next((each for each in bases if isinstance(each, Ref)), None)
        for each in bases:
            if isinstance(each, Record):  # what a class of the script hands down
                own = {**each.values, **own}
                base = base or each.base
        return Record(own, open=bool(bases), kind="class", base=base)

    def bind(self, target: ast.expr, value: Value, frame: Frame) -> None:
        match target:
            case ast.Name(id=name):
                frame.names[name] = value
            case ast.Tuple(elts=elts) | ast.List(elts=elts):
                items = value.items if isinstance(value, Many) and len(value.items) == len(elts) else None
                for at, each in enumerate(elts):
                    self.bind(each, items[at] if items else Unknown("a part of a value"), frame)
            case ast.Attribute(value=owner, attr=attr):
                holder = self.value(owner, frame)
                for held in options(holder):
                    if isinstance(held, Thing):
                        held.state[attr] = value
                    elif isinstance(held, Record):
                        held.values[attr] = value
                if isinstance(owner, ast.Name) and isinstance(holder, Unknown):
                    frame.names[f"{owner.id}.{attr}"] = value
            case ast.Subscript(value=owner, slice=index):
                holder, key = self.value(owner, frame), plain(self.value(index, frame))
                for held in options(holder):
                    if isinstance(held, Record) and isinstance(key, (str, int)):
                        held.values[key] = value
                    elif isinstance(held, Record):
                        held.open = True
            case ast.Starred(value=inner):
                self.bind(inner, Unknown("a part of a value"), frame)
            case _:
                return

    def enter(self, function: Function, args: list[Value], keywords: Names, *, unknown: bool) -> Value:
        """The result of a function of the script."""
        times = self.times[id(function.node)] = self.times.get(id(function.node), 0) + 1
        if self.depth >= _DEEPEST or times > _MOST_TIMES:
            return Unknown(f"a function that was followed {times - 1} times, {self.depth} deep")
        self.entered.add(id(function.node))
        args = [function.owner, *args] if function.owner is not None else args
        names = dict(function.names)
        parameters = function.node.args
        named = [*parameters.posonlyargs, *parameters.args]
        frame = Frame(names, function.source)
        defaults: Names = {}
        for last, default in zip(reversed(named), reversed(parameters.defaults), strict=False):
            defaults[last.arg] = self.value(default, frame)
        for parameter, kw_default in zip(parameters.kwonlyargs, parameters.kw_defaults, strict=True):
            if kw_default is not None:
                defaults[parameter.arg] = self.value(kw_default, frame)
        for at, parameter in enumerate([*named, *parameters.kwonlyargs]):
            given = args[at] if at < min(len(args), len(named)) else keywords.get(parameter.arg)
            if given is None:
                given = defaults.get(parameter.arg, Unknown(f"the argument {parameter.arg}"))
                given = either(given, Unknown(f"the argument {parameter.arg}")) if unknown else given
            names[parameter.arg] = given
        if parameters.vararg:
            names[parameters.vararg.arg] = Many(tuple(args[len(named) :]))
        if parameters.kwarg:
            known = {each.arg for each in [*named, *parameters.kwonlyargs]}
            rest = {key: value for key, value in keywords.items() if key not in known}
            names[parameters.kwarg.arg] = Record(rest, open=unknown)
        self.depth += 1
        try:
            if isinstance(function.node, ast.Lambda):
                return self.value(function.node.body, frame)
            ended = self.block(function.node.body, frame)
        finally:
            self.depth -= 1
        self.globals(function, names)
        return joined([*frame.returned, *([Known(None)] if ended and not frame.returned else [])])

    def globals(self, function: Function, names: Names) -> None:
        """What a function sets with `global`."""
        for node in ast.walk(function.node):
            if isinstance(node, (ast.Global, ast.Nonlocal)):
                function.names.update({name: names[name] for name in node.names if name in names})
