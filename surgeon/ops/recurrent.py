"""Recurrent layers: ``gates x hidden`` rows, one hidden size for every direction."""

from __future__ import annotations

from surgeon.axes import Atom, Axis, product
from surgeon.ops.op import Axes, Op
from surgeon.ops.registry import rule


@rule("LSTM")
def lstm(op: Op, x: Axes, w: Axes, r: Axes, *rest: Axes | None) -> list[Axes]:
    """Four gates; peepholes three; two states."""
    peephole = rest[4] if len(rest) > 4 else None
    return _recurrent(op, 4, x, w, r, *rest, states=(5, 6), peephole=peephole)


@rule("GRU")
def gru(op: Op, x: Axes, w: Axes, r: Axes, *rest: Axes | None) -> list[Axes]:
    """Three gates."""
    return _recurrent(op, 3, x, w, r, *rest, states=(5,))


@rule("RNN")
def rnn(op: Op, x: Axes, w: Axes, r: Axes, *rest: Axes | None) -> list[Axes]:
    """One gate."""
    return _recurrent(op, 1, x, w, r, *rest, states=(5,))


def _recurrent(
    op: Op,
    gates: int,
    x: Axes,
    w: Axes,
    r: Axes,
    *rest: Axes | None,
    states: tuple[int, ...],
    peephole: Axes | None = None,
) -> list[Axes]:
    hidden = Atom(r[2].size)
    batch_first = op.attribute("layout", 0) == 1
    sequence, batch = (x[1], x[0]) if batch_first else (x[0], x[1])
    op.pin((sequence, w[0], r[0]), "sequence and directions")
    op.unify(w[1], _gated(op, gates, hidden))
    op.unify(r[1], _gated(op, gates, hidden))
    op.unify(r[2], hidden)
    op.unify(w[2], x[2])
    bias = rest[0] if rest else None
    if bias is not None:
        op.unify(bias[1], _gated(op, 2 * gates, hidden))
    if peephole is not None:
        op.unify(peephole[1], _gated(op, 3, hidden))
    directions = op.fixed(w[0].size, "directions")
    last = [batch, directions, hidden] if batch_first else [directions, batch, hidden]
    initial = [rest[k - 3] for k in states if op.has(k)]
    for state in initial:
        if state is not None:
            for axis, known in zip(state, last, strict=True):
                op.unify(axis, known)
    op.contract(1, w[2])
    op.contract(2, r[2])
    steps = op.refs(0, [0, 1])
    op.multiply(steps, op.refs(1))
    op.multiply(steps, op.refs(2))
    op.resize_attribute("hidden_size", hidden)
    op.zeros(factors=[1], terms=states)
    for k, index in enumerate(states):
        op.carry(index, 1 + k)
    full = [batch, sequence, directions, hidden] if batch_first else [sequence, directions, batch, hidden]
    return [full, last, list(last)][: max(len(op.node.outputs), 1)]


def _gated(op: Op, gates: int, hidden: Axis) -> Axis:
    return hidden if gates == 1 else product(op.fixed(gates, "gates"), hidden)
