"""Blocks of transformers and recurrent networks, for random ones: each maps a sequence of features to another."""

from __future__ import annotations

import numpy as np
from random_images import activation
from random_parts import Block, Network, Stream, width


def tokens(net: Network, x: Stream) -> Stream:
    """Patches of an image become a sequence."""
    flat = net.add("Reshape", x.name, net.ints(0, 0, -1))
    return Stream(net.add("Transpose", flat, perm=[0, 2, 1]), x.channels, x.side * x.side)


def linear(net: Network, x: Stream, channels: int | None = None) -> Stream:
    out = channels or width(net)
    name = net.add("MatMul", x.name, net.weight(x.channels, out))
    if net.random.random() < 0.7:
        bias = net.vector(out)
        name = net.add("Add", *net.random.sample([name, bias], 2))
    return Stream(name, out, x.side)


def mlp(net: Network, x: Stream) -> Stream:
    inner = activation(net, linear(net, x, 8))
    return Stream(net.add("Add", x.name, linear(net, inner, x.channels).name), x.channels, x.side)


def gated_mlp(net: Network, x: Stream) -> Stream:
    both = linear(net, x, 12)
    p, q = net.add("Split", both.name, net.ints(6, 6), outputs=2, axis=-1)
    return linear(net, Stream(net.add("Mul", p, net.add("Sigmoid", q)), 6, x.side), x.channels)


def layer_norm(net: Network, x: Stream) -> Stream:
    normed = net.add("LayerNormalization", x.name, net.vector(x.channels, 0.5, 1.5), net.vector(x.channels))
    return Stream(normed, x.channels, x.side)


def root_mean_square(net: Network, x: Stream) -> Stream:
    mean = net.reduce("ReduceMean", net.add("Mul", x.name, x.name), [-1])
    root = net.add("Sqrt", net.add("Add", mean, net.constant(np.float32(0.1))))
    normed = net.add("Div", x.name, root)
    return Stream(net.add("Mul", normed, net.vector(x.channels, 0.5, 1.5)), x.channels, x.side)


def attention(net: Network, x: Stream) -> Stream:
    """Heads of queries, keys and values; sometimes fewer keys and values that are repeated; sometimes rotated."""
    heads, each, value = 4, net.random.choice([2, 6]), 3
    repeats = net.random.choice([1, 2])

    def split(channels: int, count: int) -> str:
        flat = linear(net, x, count * channels)
        turned = net.add("Reshape", flat.name, net.ints(0, 0, count, channels))
        return net.add("Transpose", turned, perm=[0, 2, 1, 3])

    def repeat(name: str, channels: int) -> str:
        if repeats == 1:
            return name
        wide = net.add("Unsqueeze", name, net.ints(2))
        shape = net.ints(1, heads // repeats, repeats, x.side, channels)
        return net.add("Reshape", net.add("Expand", wide, shape), net.ints(0, heads, x.side, channels))

    def rotate(name: str) -> str:
        p, q = net.add("Split", name, net.ints(each // 2, each // 2), outputs=2, axis=3)
        turned = net.add("Concat", net.add("Neg", q), p, axis=-1)
        tables = [
            net.constant(net.values.standard_normal((x.side, each)).astype(np.float32)) for _ in range(2)
        ]
        return net.add("Add", net.add("Mul", name, tables[0]), net.add("Mul", turned, tables[1]))

    queries, keys = split(each, heads), split(each, heads // repeats)
    if net.random.random() < 0.3:
        queries, keys = rotate(queries), rotate(keys)
    keys, values = repeat(keys, each), repeat(split(value, heads // repeats), value)
    scores = net.add("MatMul", queries, net.add("Transpose", keys, perm=[0, 1, 3, 2]))
    mixed = net.add("MatMul", net.add("Softmax", scores, axis=-1), values)
    joined = net.add("Reshape", net.add("Transpose", mixed, perm=[0, 2, 1, 3]), net.ints(0, 0, heads * value))
    out = linear(net, Stream(joined, heads * value, x.side), x.channels)
    return Stream(net.add("Add", x.name, out.name), x.channels, x.side)


def folded_attention(net: Network, x: Stream) -> Stream:
    """Heads folded into the batch, with targets computed from shapes; queries, keys and values in one product."""
    heads, each = 2, 4
    fused = linear(net, x, 3 * heads * each)
    shape = net.add("Shape", fused.name)
    batch, length = (net.add("Slice", shape, net.ints(k), net.ints(k + 1)) for k in (0, 1))
    count, dim = net.ints(heads), net.ints(each)
    target = net.add("Concat", net.add("Mul", batch, count), length, dim, axis=0)

    def fold(name: str) -> str:
        split = net.add("Reshape", name, net.add("Concat", batch, length, count, dim, axis=0))
        return net.add("Reshape", net.add("Transpose", split, perm=[0, 2, 1, 3]), target)

    parts = net.add("Split", fused.name, net.ints(*[heads * each] * 3), outputs=3, axis=2)
    queries, keys, values = map(fold, parts)
    scores = net.add("Softmax", net.add("Einsum", queries, keys, equation="btd,bsd->bts"), axis=-1)
    mixed = net.add("MatMul", scores, values)
    split = net.add("Reshape", mixed, net.add("Concat", batch, count, length, dim, axis=0))
    turned = net.add("Transpose", split, perm=[0, 2, 1, 3])
    joined = net.add("Reshape", turned, net.add("Concat", batch, length, net.add("Mul", count, dim), axis=0))
    return linear(net, Stream(joined, heads * each, x.side), x.channels)


def einsum(net: Network, x: Stream) -> Stream:
    out = width(net)
    name = net.add("Einsum", x.name, net.weight(out, x.channels), equation="btc,dc->btd")
    return Stream(name, out, x.side)


def recurrent(net: Network, x: Stream) -> Stream:
    op, gates = net.random.choice([("GRU", 3), ("LSTM", 4), ("RNN", 1)])
    hidden = 4
    first = net.add("Transpose", x.name, perm=[1, 0, 2])
    w, r = net.weight(2, gates * hidden, x.channels), net.weight(2, gates * hidden, hidden)
    h = net.add(op, first, w, r, hidden_size=hidden, direction="bidirectional")
    turned = net.add("Transpose", h, perm=[2, 0, 1, 3])
    return Stream(net.add("Reshape", turned, net.ints(0, 0, -1)), 2 * hidden, x.side)


def token(net: Network, x: Stream) -> Stream:
    """A learned token, expanded over the batch by a shape program and put in front."""
    shape = net.add("Slice", net.add("Shape", x.name), net.ints(0), net.ints(1))
    target = net.add("Concat", shape, net.ints(1, x.channels), axis=0)
    learned = net.constant(net.values.standard_normal((1, 1, x.channels)).astype(np.float32))
    name = net.add("Concat", net.add("Expand", learned, target), x.name, axis=1)
    return Stream(name, x.channels, x.side + 1)


SEQUENCE_BLOCKS: list[Block] = [
    *(
        linear,
        mlp,
        mlp,
        gated_mlp,
        layer_norm,
        root_mean_square,
        attention,
        attention,
        einsum,
        recurrent,
        token,
    ),
    *(activation, folded_attention),
]
