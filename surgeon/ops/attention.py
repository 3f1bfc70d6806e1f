"""Attention over heads, and rotary positions: ``hidden = heads x head_dim``, each of which can shrink."""

from __future__ import annotations

from dataclasses import dataclass

from surgeon.axes import Atom, Axis, Concat, product
from surgeon.ops.emit import Emitter
from surgeon.ops.op import Axes, Op, Ref
from surgeon.ops.registry import rule


@dataclass(frozen=True)
class Heads:
    """What the axes of one attention are made of.

    Attributes:
        shared: Heads of keys and values.
        repeated: Queries' heads for each of them; ``query heads = shared x repeated``.
        dim: What queries and keys are contracted over.
        value_dim: What is left of each head.
    """

    shared: Axis
    repeated: Axis
    dim: Axis
    value_dim: Axis

    @property
    def query(self) -> Axis:
        """Heads of the queries and of the output."""
        return product(self.shared, self.repeated)

    def hidden(self, part: str) -> Axis:
        """The axis of all heads of the ``query``, the ``key``, the ``value`` or the ``output`` laid side by side."""
        heads = self.query if part in ("query", "output") else self.shared
        return product(heads, self.dim if part in ("query", "key") else self.value_dim)


def heads_of(op: Op, queries: int, shared: int, dim: Axis, value_dim: Axis) -> Heads:
    """New heads; sizes that count them or depend on them are re-evaluated."""
    heads = Heads(Atom(shared), Atom(queries // shared), dim, value_dim)
    op.kind("head", heads.shared, heads.repeated)
    op.kind("head_dim", dim, value_dim)
    op.emit(lambda emitter: _keep_scale(emitter, dim))
    return heads


def _keep_scale(emitter: Emitter, dim: Axis) -> None:
    """Products of queries and keys stay scaled by the root of the original ``head_dim``."""
    if emitter.changed(dim) and not emitter.node.attrs.get("scale"):
        emitter.node.attrs["scale"] = float(dim.size**-0.5)


def scored(op: Op, heads: Heads, queries: list[Ref], keys: list[list[Ref]]) -> None:
    """Multiply-accumulates of all queries (batch and positions) with all keys, and of the weights with the values."""
    for each in keys:
        op.multiply(queries, each, [heads.query, heads.dim])
        op.multiply(queries, each, [heads.query, heads.value_dim])


def biased(op: Op, mask: Axes | None, heads: Axis, queries: Axis | None = None) -> None:
    """A mask or bias that broadcasts to ``[batch, heads, queries, keys]``."""
    if mask is None:
        return
    op.pin((*mask[:-3], *mask[-1:]), "positions")
    for axis, wanted in zip(reversed(mask[-3:-1]), (queries, heads), strict=False):
        if axis.size == 1 or wanted is None:
            op.pin(axis, "positions")
        else:
            op.unify(axis, wanted)


@rule("Attention", since=23)
def attention(
    op: Op,
    q: Axes,
    k: Axes,
    v: Axes,
    attn_mask: Axes | None = None,
    past_key: Axes | None = None,
    past_value: Axes | None = None,
    nonpad_kv_seqlen: Axes | None = None,
) -> list[Axes]:
    """Rank 4 has heads of their own; in rank 3 they are laid side by side and counted by attributes."""
    del nonpad_kv_seqlen
    apart = len(q) == 4
    place = 2 if apart else 1
    queries, shared = (op.attribute(name, q[1].size) for name in ("q_num_heads", "kv_num_heads"))
    if apart:
        queries, shared = q[1].size, k[1].size
    heads = heads_of(op, queries, shared, *_dims(q, v, queries, shared))
    for part, axes in (("query", q), ("key", k), ("value", v)):
        if apart:
            op.unify(axes[1], heads.query if part == "query" else heads.shared)
            op.unify(axes[3], heads.value_dim if part == "value" else heads.dim)
        else:
            op.unify(axes[2], heads.hidden(part))
    op.pin((k[place], v[place]), "softmax axis")
    if any(op.attribute(name, -1) >= 0 for name in ("left_window_size", "right_window_size")) or op.attribute(
        "is_causal", 0
    ):
        op.pin(q[place], "positions")
    biased(op, attn_mask, heads.query, q[place])
    states = [[q[0], heads.shared, op.fixed(1, ""), dim] for dim in (heads.dim, heads.value_dim)]
    for past, state in ((past_key, states[0]), (past_value, states[1])):
        if past is not None:
            for axis, known in zip((past[0], past[1], past[3]), (state[0], state[1], state[3]), strict=True):
                op.unify(axis, known)
    if not apart:
        op.resize_attribute("q_num_heads", heads.query)
        op.resize_attribute("kv_num_heads", heads.shared)
    op.contract(0, heads.dim)
    op.contract(1, heads.dim)
    lengths = [op.refs(1, [place]), *([op.refs(4, [2])] if past_key is not None else [])]
    scored(op, heads, op.refs(0, [0, place]), lengths)
    output = [q[0], heads.query, q[2], heads.value_dim] if apart else [q[0], q[1], heads.hidden("output")]
    op.zeros(terms=[2, 5], output=0)
    op.carry(4, 1)
    op.carry(5, 2)
    return [output, *_states(op, heads, q[0]), *_scores(op, [q[0], heads.query, q[place]])]


def _dims(q: Axes, v: Axes, queries: int, shared: int) -> tuple[Axis, Axis]:
    if len(q) == 4:
        return Atom(q[3].size), Atom(v[3].size)
    return Atom(q[2].size // queries), Atom(v[2].size // shared)


def _states(op: Op, heads: Heads, batch: Axis) -> list[Axes]:
    """Keys and values so far, where they are wanted."""
    return [
        [batch, heads.shared, op.fixed_output("positions", index)[2], dim]
        if op.node.outputs[index].name
        else []
        for index, dim in ((1, heads.dim), (2, heads.value_dim))
        if index < len(op.node.outputs)
    ]


def _scores(op: Op, leading: Axes) -> list[Axes]:
    """Products of queries and keys, where they are wanted."""
    if len(op.node.outputs) < 4:
        return []
    return [[*leading, op.fixed_output("positions", 3)[3]]]


@rule("RotaryEmbedding", since=23)
def rotary_embedding(
    op: Op, x: Axes, cos_cache: Axes, sin_cache: Axes, position_ids: Axes | None = None
) -> list[Axes]:
    """Pairs of positions of each head turn by an angle, which the caches give."""
    return rotate(op, x, cos_cache, sin_cache, position_ids, op.attribute("num_heads", 0))


def rotate(
    op: Op, x: Axes, cos_cache: Axes, sin_cache: Axes, position_ids: Axes | None, heads: int
) -> list[Axes]:
    """``head_dim`` starts with pairs: two halves side by side, or (interleaved) next to each other."""
    half = Atom(cos_cache[-1].size)
    interleaved = op.attribute("interleaved", 0)
    pairs = product(half, op.fixed(2, "pairs")) if interleaved else Concat((half, half))
    counted = x[1].size if len(x) == 4 else (heads or x[-1].size // pairs.size)
    size = x[-1].size if len(x) == 4 else x[-1].size // counted
    dim = pairs if size == pairs.size else Concat((pairs, Atom(size - pairs.size)))
    count = x[1] if len(x) == 4 else Atom(counted)
    op.unify(x[-1], dim if len(x) == 4 else product(count, dim))
    for cache in (cos_cache, sin_cache):
        op.unify(cache[-1], half)
        op.pin(cache[:-1], "positions")
    if position_ids is not None:
        op.pin(position_ids, "positions")
    op.kind("head", count)
    op.kind("head_dim", dim)
    if len(x) == 3 and op.attribute("num_heads", 0):
        op.resize_attribute("num_heads", count)
    if op.attribute("rotary_embedding_dim", 0):
        op.resize_attribute("rotary_embedding_dim", pairs)
    op.pin(x[-2 if len(x) == 4 else 1], "positions")
    op.zeros(factors=[0])
    return [x]
