"""Random networks out of the building blocks of real ones, for tests of the engine as a whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

FLOAT = onnx.TensorProto.FLOAT
SIDE = 6


@dataclass(frozen=True)
class Stream:
    """A tensor: ``[N, channels, side, side]``, or ``[N, side, channels]`` for sequences."""

    name: str
    channels: int
    side: int


class Network:
    """A model under construction; every choice comes from ``random``."""

    def __init__(self, random: Random, opset: int, batch: int | str = "N") -> None:
        self.random, self.opset, self.batch = random, opset, batch
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.values = np.random.default_rng(random.randrange(2**32))
        self.shared: dict[tuple[int, ...], str] = {}

    def add(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """A node; returns the name of its output, or the list of names."""
        names = [f"{op.lower()}_{len(self.nodes)}_{k}" for k in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, name=f"{op}_{len(self.nodes)}", **attributes))
        return names[0] if outputs == 1 else names

    def weight(self, *shape: int) -> str:
        """A matrix or filter; sometimes one that another layer has already."""
        if len(shape) > 1 and shape in self.shared and self.random.random() < 0.15:
            return self.shared[shape]
        fan_in = int(np.prod(shape[1:])) if len(shape) > 2 else shape[0]
        name = self.constant((self.values.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32))
        self.shared[shape] = name
        return name

    def vector(self, size: int, low: float = -0.5, high: float = 0.5) -> str:
        """A vector; sometimes one that another layer uses too, as exporters that merge equal biases do."""
        if (size,) in self.shared and low < 0 and self.random.random() < 0.3:
            return self.shared[(size,)]
        name = self.constant(self.values.uniform(low, high, size).astype(np.float32))
        if low < 0:
            self.shared[(size,)] = name
        return name

    def constant(self, values: Any) -> str:
        """An initializer."""
        name = f"c{len(self.weights)}"
        self.weights[name] = np.asarray(values)
        return name

    def ints(self, *values: int) -> str:
        """A vector of int64."""
        return self.constant(np.array(values, dtype=np.int64))

    def reduce(self, op: str, x: str, axes: list[int], keepdims: int = 1) -> str:
        """A reduction, its axes given as the opset wants them."""
        if self.opset >= 18 or op == "ReduceSum":
            return self.add(op, x, self.ints(*axes), keepdims=keepdims)
        return self.add(op, x, axes=axes, keepdims=keepdims)

    def model(self, output: str, shape: list[int | str]) -> onnx.ModelProto:
        """The finished model with one image as input."""
        graph = helper.make_graph(
            self.nodes,
            "random",
            [helper.make_tensor_value_info("x", FLOAT, [self.batch, 3, SIDE, SIDE])],
            [helper.make_tensor_value_info(output, FLOAT, shape)],
            [numpy_helper.from_array(values, name) for name, values in self.weights.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=9)


Block = Callable[[Network, Stream], Stream]


def width(net: Network) -> int:
    """A number of channels with many divisors."""
    return net.random.choice([4, 6, 8, 12])


def conv(
    net: Network, x: Stream, channels: int | None = None, group: int = 1, taps: int | None = None
) -> Stream:
    taps = taps or net.random.choice([1, 3])
    out = channels or width(net)
    inputs = [x.name, net.weight(out, x.channels // group, taps, taps)]
    if net.random.random() < 0.7:
        inputs.append(net.vector(out))
    return Stream(net.add("Conv", *inputs, pads=[taps // 2] * 4, group=group), out, x.side)


def depthwise(net: Network, x: Stream) -> Stream:
    return conv(net, x, x.channels * net.random.choice([1, 1, 2]), group=x.channels, taps=3)


def grouped(net: Network, x: Stream) -> Stream:
    return conv(
        net, x, net.random.choice([4, 8]) if x.channels % 2 == 0 else None, group=1 + (x.channels % 2 == 0)
    )


def shuffle(net: Network, x: Stream) -> Stream:
    """Channel shuffle between grouped convolutions."""
    if x.channels % 2:
        return x
    split = net.add("Reshape", x.name, net.ints(0, 2, x.channels // 2, x.side, x.side))
    turned = net.add("Transpose", split, perm=[0, 2, 1, 3, 4])
    return Stream(net.add("Reshape", turned, net.ints(0, -1, x.side, x.side)), x.channels, x.side)


def batch_norm(net: Network, x: Stream) -> Stream:
    parameters = [net.vector(x.channels) for _ in range(3)] + [net.vector(x.channels, 0.5, 2)]
    return Stream(net.add("BatchNormalization", x.name, *parameters), x.channels, x.side)


def instance_norm(net: Network, x: Stream) -> Stream:
    return Stream(
        net.add("InstanceNormalization", x.name, net.vector(x.channels), net.vector(x.channels)),
        x.channels,
        x.side,
    )


def activation(net: Network, x: Stream) -> Stream:
    kind = net.random.choice(
        ["Relu", "Sigmoid", "Tanh", "HardSwish", "Softplus", "LeakyRelu", "silu", "clip"]
    )
    if kind == "silu":
        name = net.add("Mul", x.name, net.add("Sigmoid", x.name))
    elif kind == "clip":
        name = net.add("Clip", x.name, net.constant(np.float32(0)), net.constant(np.float32(6)))
    else:
        name = net.add(kind, x.name)
    return Stream(name, x.channels, x.side)


def prelu(net: Network, x: Stream) -> Stream:
    slope = net.constant(net.values.uniform(0, 0.5, (x.channels, 1, 1)).astype(np.float32))
    return Stream(net.add("PRelu", x.name, slope), x.channels, x.side)


def residual(net: Network, x: Stream) -> Stream:
    inner = conv(net, activation(net, conv(net, x)), x.channels)
    return Stream(net.add(net.random.choice(["Add", "Sub", "Max"]), x.name, inner.name), x.channels, x.side)


def gate(net: Network, x: Stream) -> Stream:
    other = conv(net, x, x.channels, taps=1)
    return Stream(net.add("Mul", x.name, net.add("Sigmoid", other.name)), x.channels, x.side)


def squeeze_excite(net: Network, x: Stream) -> Stream:
    pooled = Stream(net.reduce("ReduceMean", x.name, [2, 3]), x.channels, 1)
    inner = activation(net, conv(net, pooled, 4, taps=1))
    scale = net.add("Sigmoid", conv(net, inner, x.channels, taps=1).name)
    return Stream(net.add("Mul", x.name, scale), x.channels, x.side)


def dense(net: Network, x: Stream) -> Stream:
    new = conv(net, activation(net, x), 4)
    parts = [x, new] if net.random.random() < 0.5 else [new, x]
    name = net.add("Concat", *(part.name for part in parts), axis=1)
    return Stream(name, x.channels + 4, x.side)


def partial(net: Network, x: Stream) -> Stream:
    """Cross-stage partial: one part runs on, and everything is joined."""
    first = net.random.randrange(1, x.channels)
    sizes = net.ints(first, x.channels - first)
    p, q = net.add("Split", x.name, sizes, outputs=2, axis=1)
    inner = conv(net, Stream(q, x.channels - first, x.side))
    name = net.add("Concat", p, inner.name, q, axis=net.random.choice([1, -3]))
    return Stream(name, x.channels + inner.channels, x.side)


def swap(net: Network, x: Stream) -> Stream:
    """The halves change places, by slices."""
    half, axis = net.ints(x.channels // 2), net.ints(1)
    p = net.add("Slice", x.name, net.ints(0), half, axis)
    q = net.add("Slice", x.name, half, net.ints(2**31), axis)
    return Stream(net.add("Concat", q, p, axis=1), x.channels, x.side)


def stride(net: Network, x: Stream) -> Stream:
    bounds = [net.ints(value) for value in (0, 2**31, 1, 2)]
    return Stream(net.add("Slice", x.name, *bounds), (x.channels + 1) // 2, x.side)


def gather(net: Network, x: Stream) -> Stream:
    size = net.random.randrange(2, x.channels + 1)
    indices = [net.random.randrange(-x.channels, x.channels) for _ in range(size)]
    if net.random.random() < 0.5:
        indices = net.random.sample(range(x.channels), size)
    return Stream(net.add("Gather", x.name, net.ints(*indices), axis=1), size, x.side)


def pad(net: Network, x: Stream) -> Stream:
    before, after = net.random.choice([(0, 0), (2, 2), (0, 3)])
    padded = net.add("Pad", x.name, net.ints(0, before, 1, 0, 0, after, 0, 1), net.constant(np.float32(0.3)))
    pooled = net.add("AveragePool", padded, kernel_shape=[2, 2])
    return Stream(pooled, x.channels + before + after, x.side)


def pool(net: Network, x: Stream) -> Stream:
    kind = net.random.choice(["MaxPool", "AveragePool"])
    return Stream(net.add(kind, x.name, kernel_shape=[3, 3], pads=[1] * 4), x.channels, x.side)


def up_and_down(net: Network, x: Stream) -> Stream:
    if net.random.random() < 0.5:
        scales = net.constant(np.array([1, 1, 2, 2], np.float32))
        up = Stream(net.add("Resize", x.name, "", scales, mode="nearest"), x.channels, 2 * x.side)
    else:
        out = width(net)
        name = net.add("ConvTranspose", x.name, net.weight(x.channels, out, 2, 2), strides=[2, 2])
        up = Stream(name, out, 2 * x.side)
    return Stream(net.add("MaxPool", up.name, kernel_shape=[2, 2], strides=[2, 2]), up.channels, x.side)


def pixel_shuffle(net: Network, x: Stream) -> Stream:
    wide = conv(net, x, 16)
    up = net.add("DepthToSpace", wide.name, blocksize=2, mode=net.random.choice(["DCR", "CRD"]))
    return Stream(net.add("SpaceToDepth", up, blocksize=2), 16, x.side)


def channels_last_norm(net: Network, x: Stream) -> Stream:
    last = net.add("Transpose", x.name, perm=[0, 2, 3, 1])
    normed = net.add("LayerNormalization", last, net.vector(x.channels, 0.5, 1.5), net.vector(x.channels))
    return Stream(net.add("Transpose", normed, perm=[0, 3, 1, 2]), x.channels, x.side)


def response_norm(net: Network, x: Stream) -> Stream:
    """Global response normalisation, exact since a masked channel is zero after a bias-free convolution."""
    norm = net.reduce("ReduceL2", x.name, [2, 3])
    mean = net.add("Add", net.reduce("ReduceMean", norm, [1]), net.constant(np.float32(0.1)))
    return Stream(net.add("Mul", x.name, net.add("Div", norm, mean)), x.channels, x.side)


IMAGE_BLOCKS: list[Block] = [
    *(
        conv,
        conv,
        depthwise,
        grouped,
        shuffle,
        batch_norm,
        instance_norm,
        activation,
        activation,
        prelu,
        residual,
    ),
    *(gate, squeeze_excite, dense, partial, swap, stride, gather, pad, pool, up_and_down, pixel_shuffle),
    *(channels_last_norm, response_norm),
]


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
    activation,
]


def head(net: Network, x: Stream, image: bool) -> onnx.ModelProto:
    """A classifier with five classes."""
    if not image:
        pooled = net.reduce("ReduceMean", x.name, [1], keepdims=0)
    elif net.random.random() < 0.5:
        pooled = net.add("Flatten", net.add("GlobalAveragePool", x.name))
    else:
        pooled, x = net.add("Flatten", x.name), Stream(x.name, x.channels * x.side**2, 1)
    y = net.add("Gemm", pooled, net.weight(5, x.channels), net.vector(5), transB=1)
    return net.model(y, [net.batch, 5])


def network(random: Random, blocks: int | None = None) -> onnx.ModelProto:
    """A random network of a few blocks: a convolutional part, and sometimes a sequence part behind it."""
    net = Network(random, random.choice([17, 21]), random.choice(["N", "N", 2]))
    x = conv(net, Stream("x", 3, SIDE))
    for _ in range(blocks or random.randrange(2, 8)):
        x = random.choice(IMAGE_BLOCKS)(net, x)
        if x.channels > 24:
            x = conv(net, x)
    image = random.random() < 0.5
    if not image:
        x = tokens(net, x)
        for _ in range(blocks or random.randrange(1, 6)):
            x = random.choice(SEQUENCE_BLOCKS)(net, x)
    return head(net, x, image)
