"""Symbolic dimensions that are written as arithmetic on other symbols, such as ``past_length + 1``."""

from __future__ import annotations

import ast
import operator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_OPERATIONS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.floordiv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_CALLS: dict[str, Callable[..., int]] = {"floor": int, "Max": max, "max": max, "Min": min, "min": min}


def is_expression(symbol: str) -> bool:
    """Whether a symbol is arithmetic on others rather than a plain name."""
    tree = _parse(symbol)
    return tree is not None and not isinstance(tree, ast.Name)


def evaluate_symbol(symbol: str, sizes: Mapping[str, int]) -> int | None:
    """The size an expression has, or None when it is not one or mentions a symbol without a size."""
    tree = _parse(symbol)
    if tree is None:
        return None
    try:
        return _evaluate(tree, sizes)
    except (KeyError, ZeroDivisionError):
        return None


def _parse(symbol: str) -> ast.expr | None:
    if len(symbol) > 200:
        return None
    try:
        return ast.parse(symbol.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        return None


def _evaluate(tree: ast.expr, sizes: Mapping[str, int]) -> int:
    match tree:
        case ast.Name(id=name):
            return sizes[name]
        case ast.Constant(value=int() as value):
            return value
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATIONS:
            return _OPERATIONS[type(op)](_evaluate(left, sizes), _evaluate(right, sizes))
        case ast.Call(func=ast.Name(id=name), args=arguments) if name in _CALLS and arguments:
            return _CALLS[name](*(_evaluate(argument, sizes) for argument in arguments))
        case _:
            raise KeyError(ast.dump(tree))
