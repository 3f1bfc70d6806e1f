"""Sums of products over named axes."""

from __future__ import annotations

from string import ascii_letters
from typing import TYPE_CHECKING, TypeAlias

from surgeon.grad.registry import derivative

if TYPE_CHECKING:
    from collections.abc import Sequence

    from surgeon.grad.step import Step
    from surgeon.grad.tape import Value

    Gradients: TypeAlias = Sequence[Value | None]


@derivative("Einsum", parameters=(0, 1))
def einsum(op: Step, *operands: Value) -> Gradients:
    """With respect to one operand: the product of dY and the others, summed over what that operand lacks."""
    terms, result = _letters(op)
    if any(len(set(term)) < len(term) for term in terms):
        op.stop("an operand's diagonal is taken")
    return [_towards(op, index, terms, result) for index in range(len(operands))]


def _letters(op: Step) -> tuple[list[str], str]:
    """One letter for each axis of the operands and of the result; axes of an ellipsis get letters of their own."""
    left, arrow, right = str(op.attribute("equation")).replace(" ", "").partition("->")
    terms = left.split(",")
    ranks = [len(op.dims(index)) - len(term.replace("...", "")) for index, term in enumerate(terms)]
    free = [letter for letter in ascii_letters if letter not in left]
    most = max((rank for term, rank in zip(terms, ranks, strict=True) if "..." in term), default=0)
    shared = "".join(free[:most])
    if not arrow:  # then what occurs once is kept, in the order of the alphabet
        names = left.replace("...", "").replace(",", "")
        right = "..." + "".join(sorted(letter for letter in names if names.count(letter) == 1))
    filled = [term.replace("...", shared[most - rank :]) for term, rank in zip(terms, ranks, strict=True)]
    return filled, right.replace("...", shared)


def _towards(op: Step, index: int, terms: Sequence[str], result: str) -> Value:
    own, x = terms[index], op.x(index)
    others = [k for k in range(len(terms)) if k != index]
    sizes = [
        dict(zip(result, op.out_dims(), strict=True)),
        *(dict(zip(terms[k], op.dims(k), strict=True)) for k in others),
    ]
    found = {name: max(each.get(name, 0) for each in sizes) for name in own}
    present = "".join(name for name in own if found[name])
    equation = ",".join([result, *(terms[k] for k in others)]) + "->" + present
    gradient = op.tape.op("Einsum", op.dy(), *(op.x(k) for k in others), equation=equation)
    have = dict(zip(own, op.dims(index), strict=True))
    repeated = [k for k, name in enumerate(present) if have[name] == 1 and found[name] > 1]
    gradient = gradient.sum(repeated, keepdims=True)
    missing = [k for k, name in enumerate(own) if not found[name]]
    if missing:
        gradient = gradient.unsqueeze(*missing)
    if any(found[name] < have[name] for name in own):
        gradient = gradient.expand_as(x)
    return gradient
