"""Matrix products: Gemm, MatMul and Einsum."""

from __future__ import annotations

from surgeon.axes import ONE, Axis
from surgeon.ops.op import Axes, Op
from surgeon.ops.operator import Barrier
from surgeon.ops.registry import rule


@rule("Gemm")
def gemm(op: Op, a: Axes, b: Axes, c: Axes | None = None) -> list[Axes]:
    """``alpha A' B' + beta C``."""
    return multiply_and_add(op, a, b, c)


def multiply_and_add(
    op: Op, a: Axes, b: Axes, c: Axes | None, places: tuple[int, int, int] = (0, 1, 2)
) -> list[Axes]:
    """The inner axis of A' and B' is contracted; ``places`` are the inputs A, B and C."""
    rows, inner = a[::-1] if op.attribute("transA", 0) else a
    other, columns = b[::-1] if op.attribute("transB", 0) else b
    op.unify(inner, other)
    if c is not None:
        op.broadcast([rows, columns], c)
    for place in places[:2]:
        op.contract(place, inner)
    op.multiply(op.out_refs(), op.refs(places[0], [0 if op.attribute("transA", 0) else 1]))
    op.zeros(factors=places[:2], terms=places[2:])
    return [[rows, columns]]


@rule("MatMul")
def matmul(op: Op, a: Axes, b: Axes) -> list[Axes]:
    """As numpy.matmul."""
    return multiply_matrices(op, a, b)


def multiply_matrices(op: Op, a: Axes, b: Axes, places: tuple[int, int] = (0, 1)) -> list[Axes]:
    """The last axis of A and the last but one of B are contracted, leading axes broadcast; ``places`` are their inputs."""
    inner, other = a[-1], b[-2] if len(b) > 1 else b[-1]
    op.unify(inner, other)
    for place in places:
        op.contract(place, inner)
    op.multiply(op.out_refs(), op.refs(places[0], [len(a) - 1]))
    op.zeros(factors=places)
    leading = op.broadcast(a[:-2], b[:-2]) if len(a) > 2 or len(b) > 2 else []
    return [leading + (a[-2:-1] if len(a) > 1 else []) + (b[-1:] if len(b) > 1 else [])]


@rule("Einsum")
def einsum(op: Op, *inputs: Axes) -> list[Axes]:
    """Axes with the same letter are one; letters missing from the output are contracted."""
    terms, result = _parse(op, [len(axes) for axes in inputs])
    found: dict[str, Axis] = {}
    where = {}
    for index, (letters, axes) in enumerate(zip(terms, inputs, strict=True)):
        if len(set(letters)) != len(letters):
            raise Barrier("a letter occurs twice in one operand")
        for position, (letter, axis) in enumerate(zip(letters, axes, strict=True)):
            if letter not in found or found[letter].size == 1:
                found[letter] = axis
                where[letter] = op.refs(index, [position])
            elif axis.size != 1:
                op.unify(found[letter], axis)
        op.contract(
            index, *(axis for letter, axis in zip(letters, axes, strict=True) if letter not in result)
        )
    if len(inputs) > 1:
        op.multiply(*where.values())
    op.zeros(factors=range(len(inputs)))
    return [[found.get(letter, ONE) for letter in result]]


def _parse(op: Op, ranks: list[int]) -> tuple[list[str], str]:
    """The letters of each operand and of the result; an ellipsis becomes digits counted from the right."""
    equation = op.attribute("equation").replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        raise Barrier(f"equation {equation!r} does not fit {len(ranks)} operands")
    widest = 0
    for k, (term, rank) in enumerate(zip(terms, ranks, strict=True)):
        if "..." in term:
            hidden = rank - len(term) + 3
            widest = max(widest, hidden)
            terms[k] = term.replace("...", "".join(map(str, range(hidden)[::-1])))
    ellipsis = "".join(map(str, range(widest)[::-1]))
    if not arrow:
        letters = "".join(terms)
        right = "..." + "".join(sorted(x for x in set(letters) if letters.count(x) == 1 and x.isalpha()))
    return terms, right.replace("...", ellipsis)
