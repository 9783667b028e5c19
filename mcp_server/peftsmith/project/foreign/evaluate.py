"""Values of expressions, and the calls that are met on the way.

Knows: how each kind of expression is worked out from the names that a place of the script sees.
Does not know: in which order statements run (trace.py, which enters functions), or what a library's call gives back
(objects.py).
"""

from __future__ import annotations

import ast
import builtins
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from peftsmith.project.foreign import objects
from peftsmith.project.foreign.operators import binary, boolean, compare, joined, unary
from peftsmith.project.foreign.source import Source, Unread
from peftsmith.project.foreign.values import (
    Either,
    Field,
    Function,
    Known,
    Many,
    Record,
    Ref,
    Site,
    Thing,
    Unknown,
    Value,
    either,
    options,
    plain,
)

_DYNAMIC = {"eval", "exec", "compile", "__import__"}
_BUILTINS = frozenset(dir(builtins)) | {"display", "get_ipython"}
Names = dict[str, Value]


@dataclass
class Trace:
    """`sites` in the order of the walk; a line in a loop or a function called twice comes twice.

    `imported` holds (source's name, line, full dotted name) of what libraries are asked for.
    """

    sites: list[Site] = field(default_factory=list)
    imported: set[tuple[str, int, str]] = field(default_factory=set)
    unread: list[tuple[Source, Unread]] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)


@dataclass
class Frame:
    """Where the walk is: the names it sees, whose source this is, what the function has returned so far."""

    names: Names
    source: Source
    returned: list[Value] = field(default_factory=list)


class Evaluator(ABC):
    """Works out expressions; what the calls are is noted in `found`."""

    def __init__(self) -> None:
        self.found = Trace()
        self.entered: set[int] = set()

    @abstractmethod
    def enter(self, function: Function, args: list[Value], keywords: Names, *, unknown: bool) -> Value:
        """The result of a function of the script; `unknown`: other arguments than these are possible too."""

    @abstractmethod
    def bind(self, target: ast.expr, value: Value, frame: Frame) -> None:
        """Set names."""

    def unread(self, frame: Frame, node: ast.AST, what: str) -> None:
        self.found.unread.append((frame.source, Unread(getattr(node, "lineno", 1), what)))

    def value(self, node: ast.expr | None, frame: Frame) -> Value:
        match node:
            case None:
                return Known(None)
            case ast.Constant(value=constant):
                return Known(constant)
            case ast.Name(id=name):
                found = frame.names.get(name)
                if found is not None:
                    return found
                return objects.implied(name) or Unknown(f"{name} is not set in what was read")
            case ast.Attribute(value=owner, attr=attr):
                if isinstance(owner, ast.Name) and f"{owner.id}.{attr}" in frame.names:
                    return frame.names[f"{owner.id}.{attr}"]
                return self.attribute(self.value(owner, frame), attr)
            case ast.Call():
                return self.call(node, frame)
            case ast.List(elts=elts) | ast.Tuple(elts=elts) | ast.Set(elts=elts):
                if any(isinstance(each, ast.Starred) for each in elts):
                    return Unknown("an unpacked list")
                return Many(tuple(self.value(each, frame) for each in elts))
            case ast.Dict(keys=keys, values=values):
                return self.dictionary(keys, values, frame)
            case ast.Subscript(value=owner, slice=index):
                return self.item(self.value(owner, frame), plain(self.value(index, frame)))
            case ast.JoinedStr(values=values):
                parts = [
                    plain(self.value(each.value if isinstance(each, ast.FormattedValue) else each, frame))
                    for each in values
                ]
                known = all(isinstance(part, (str, int, float)) for part in parts)
                return Known("".join(map(str, parts))) if known else Unknown("a computed text")
            case ast.UnaryOp(op=op, operand=operand):
                return unary(op, self.value(operand, frame))
            case ast.BinOp(left=left, op=op, right=right):
                return binary(op, self.value(left, frame), self.value(right, frame))
            case ast.BoolOp(op=op, values=values):
                return boolean(op, [self.value(each, frame) for each in values])
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                return compare(op, self.value(left, frame), self.value(right, frame))
            case ast.IfExp(test=test, body=body, orelse=orelse):
                known_test = self.value(test, frame)
                one, other = self.value(body, frame), self.value(orelse, frame)
                if isinstance(known_test, Known):
                    return one if known_test.value else other
                return either(one, other)
            case ast.Lambda():
                return Function(node, frame.names, frame.source)
            case ast.NamedExpr(target=target, value=value):
                made = self.value(value, frame)
                self.bind(target, made, frame)
                return made
            case ast.Await(value=value) | ast.Starred(value=value):
                return self.value(value, frame)
            case _:
                for each in ast.iter_child_nodes(node):
                    if isinstance(each, ast.expr):
                        self.value(each, frame)
                return Unknown()

    def attribute(self, owner: Value, attr: str) -> Value:
        if isinstance(owner, Either):
            found = [self.attribute(each, attr) for each in owner.options]
            return found[0] if len(found) == 1 else joined(found)
        if isinstance(owner, Ref):
            return Ref(f"{owner.name}.{attr}")
        if isinstance(owner, Record):
            found_here = owner.values.get(attr, Unknown(f".{attr} is not set in what was read"))
            if isinstance(found_here, Function) and owner.kind == "instance" and _takes_owner(found_here):
                return Function(found_here.node, found_here.names, found_here.source, owner)
            return found_here
        if isinstance(owner, Thing):
            return owner.state.get(attr) or Field(owner, attr)
        return Unknown(f".{attr} of {owner.why}" if isinstance(owner, Unknown) else f".{attr}")

    def item(self, owner: Value, key: object) -> Value:
        if isinstance(owner, Record) and isinstance(key, (str, int)):
            return owner.values.get(key, Unknown(f"[{key!r}] is not set in what was read"))
        if isinstance(owner, Many) and isinstance(key, int) and -len(owner.items) <= key < len(owner.items):
            return owner.items[key]
        return owner if isinstance(owner, Thing) else Unknown("a part of a value")

    def dictionary(self, keys: list[ast.expr | None], values: list[ast.expr], frame: Frame) -> Value:
        record = Record({})
        for key, value in zip(keys, values, strict=True):
            made = self.value(value, frame)
            if key is None:
                if isinstance(made, Record):
                    record.values.update(made.values)
                    record.open = record.open or made.open
                else:
                    record.open = True
                continue
            name = plain(self.value(key, frame))
            if isinstance(name, (str, int, float, bool)) or name is None:
                record.values[name] = made
            else:
                record.open = True
        return record

    def call(self, node: ast.Call, frame: Frame) -> Value:
        opened = False
        args: list[Value] = []
        for each in node.args:
            made = self.value(each, frame)
            if isinstance(each, ast.Starred):
                opened = opened or not isinstance(made, Many)
                args += made.items if isinstance(made, Many) else []
            else:
                args.append(made)
        keywords: Names = {}
        for keyword in node.keywords:
            made = self.value(keyword.value, frame)
            if keyword.arg is not None:
                keywords[keyword.arg] = made
            elif isinstance(made, Record):
                keywords.update({key: value for key, value in made.values.items() if isinstance(key, str)})
                opened = opened or made.open
            else:
                opened = True
        if isinstance(node.func, ast.Name) and node.func.id in _BUILTINS and node.func.id not in frame.names:
            return self.builtin(node, args, keywords, opened, frame)
        results = [
            self.call_of(each, node, args, keywords, opened, frame) for each in options(self.value(node.func, frame))
        ]
        return joined(results)

    def call_of(
        self, target: Value, node: ast.Call, args: list[Value], keywords: Names, opened: bool, frame: Frame
    ) -> Value:
        if isinstance(target, Function):
            return self.enter(target, args, keywords, unknown=opened)
        if isinstance(target, Record):
            return self.instance(target, node, args, keywords, opened, frame)
        receiver: Thing | None = None
        if isinstance(target, Ref):
            name = target.name
        elif isinstance(target, Field):
            receiver, name = target.of, f"{target.of.kind}.{target.name}"
        elif isinstance(target, Thing):
            receiver, name = target, f"{target.kind}.__call__"
        else:
            return Unknown(f"the result of {ast.unparse(node.func)[:60]}(), which was not read")
        site = Site(name, frame.source, node, tuple(args), keywords, opened, receiver)
        self.found.sites.append(site)
        if receiver is not None:
            receiver.later.append(site)
        for each in (*args, *keywords.values()):  # what is given to a library may be called by it
            for function in options(each):
                if isinstance(function, Function) and id(function.node) not in self.entered:
                    self.enter(function, [], {}, unknown=True)
        if name == "importlib.import_module" or name.startswith("runpy."):
            self.unread(frame, node, f"{name} brings in code that was not read")
        return objects.result(site)

    def instance(
        self, kind: Record, node: ast.Call, args: list[Value], keywords: Names, opened: bool, frame: Frame
    ) -> Value:
        """An object of a class of the script: its settings, or an object of the library's class that it extends."""
        start = kind.values.get("__init__")
        if kind.base is not None and kind.base.name.endswith("Trainer") and start is not None:
            self.unread(
                frame, node, f"a class that extends {kind.base.name} with an __init__ of its own was not judged"
            )
        if kind.base is not None and start is None:
            return self.call_of(kind.base, node, args, keywords, opened, frame)
        made = Record({**kind.values, **({} if isinstance(start, Function) else keywords)}, open=True, kind="instance")
        if isinstance(start, Function):
            self.enter(Function(start.node, start.names, start.source, made), args, keywords, unknown=opened)
        return made

    def builtin(self, node: ast.Call, args: list[Value], keywords: Names, opened: bool, frame: Frame) -> Value:
        assert isinstance(node.func, ast.Name)
        name = node.func.id
        if name in _DYNAMIC:
            self.unread(frame, node, f"{name}() runs text as code, which was not read")
            return Unknown(f"the result of {name}()")
        if name == "getattr" and len(args) >= 2:
            attr = plain(args[1])
            if isinstance(attr, str):
                return self.attribute(args[0], attr)
            if isinstance(args[0], (Ref, Thing)):
                self.unread(frame, node, "getattr() with a computed name was not followed")
            return Unknown("the result of getattr()")
        if name == "dict" and not args:
            return Record(dict(keywords), open=opened)
        if name in ("list", "tuple", "set", "sorted") and len(args) == 1 and isinstance(args[0], Many):
            return args[0]
        if name in ("str", "int", "float", "bool") and len(args) == 1:
            try:
                return Known(getattr(builtins, name)(plain(args[0]))) if isinstance(args[0], Known) else Unknown()
            except (ValueError, TypeError):
                return Unknown()
        return Unknown(f"the result of {name}()")


def _takes_owner(function: Function) -> bool:
    decorators = [] if isinstance(function.node, ast.Lambda) else function.node.decorator_list
    return not any(isinstance(each, ast.Name) and each.id == "staticmethod" for each in decorators)
