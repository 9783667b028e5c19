"""What operators and several returns make of values that are known.

Knows: the few operators that settings are written with; everything else is unknown.
Does not know: where the values come from (evaluate.py).
"""

from __future__ import annotations

import ast

from peftsmith.project.foreign.values import Known, Many, Thing, Unknown, Value, either, plain, possibly, surely


def joined(values: list[Value]) -> Value:
    if not values:
        return Unknown("a result that was not found")
    made = values[0]
    for each in values[1:]:
        made = either(made, each)
    return made


def unary(op: ast.unaryop, operand: Value) -> Value:
    if isinstance(operand, Known):
        if isinstance(op, ast.Not):
            return Known(not operand.value)
        if isinstance(op, ast.USub) and isinstance(operand.value, (int, float)):
            return Known(-operand.value)
    return Unknown()


def binary(op: ast.operator, left: Value, right: Value) -> Value:
    one, other = plain(left), plain(right)
    if isinstance(op, ast.Add) and isinstance(left, Many) and isinstance(right, Many):
        return Many((*left.items, *right.items))
    if isinstance(op, ast.Add) and isinstance(one, str) and isinstance(other, str):
        return Known(one + other)
    numbers = isinstance(one, (int, float)) and isinstance(other, (int, float))
    if numbers and isinstance(op, (ast.Add, ast.Sub, ast.Mult)):
        return Known(
            one + other if isinstance(op, ast.Add) else one - other if isinstance(op, ast.Sub) else one * other
        )
    if numbers and other and isinstance(op, ast.Div):
        return Known(one / other)
    if isinstance(op, ast.Div) and isinstance(left, (Thing, Known)) and isinstance(other, str):
        folder = plain(left.site.args[0]) if isinstance(left, Thing) and left.site.args else one
        return Known(f"{folder}/{other}") if isinstance(folder, str) else Unknown("a computed path")
    return Unknown()


def boolean(op: ast.boolop, values: list[Value]) -> Value:
    decisive = isinstance(op, ast.Or)
    for each in values[:-1]:
        if isinstance(each, Known) and bool(each.value) == decisive:
            return each
        if not isinstance(each, Known):
            return Unknown()
    return values[-1]


def compare(op: ast.cmpop, left: Value, right: Value) -> Value:
    if isinstance(left, Known) and isinstance(right, Known):
        if isinstance(op, (ast.Eq, ast.Is)):
            return Known(surely(left, right.value))
        if isinstance(op, (ast.NotEq, ast.IsNot)):
            return Known(not possibly(left, right.value))
    return Unknown()
