"""Blocks of convolutional networks, for random ones: each maps a stream of images to another of the same size."""

from __future__ import annotations

import numpy as np
from random_parts import Block, Network, Stream, width


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


def group_norm(net: Network, x: Stream) -> Stream:
    """As exporters wrote it before it was an operator."""
    groups = 2 if x.channels % 2 == 0 else 1
    split = net.add("Reshape", x.name, net.ints(0, groups, -1))
    ones, zeros = (net.constant(np.full(groups, value, np.float32)) for value in (1, 0))
    normed = net.add("InstanceNormalization", split, ones, zeros)
    back = net.add("Reshape", normed, net.add("Shape", x.name))
    scale = net.constant(net.values.uniform(0.5, 1.5, (x.channels, 1, 1)).astype(np.float32))
    return Stream(net.add("Mul", back, scale), x.channels, x.side)


def windows(net: Network, x: Stream) -> Stream:
    """Windows of the image become samples of their own and come back."""
    half = x.side // 2
    split = net.add("Reshape", x.name, net.ints(0, x.channels, 2, half, 2, half))
    turned = net.add("Transpose", split, perm=[0, 2, 4, 1, 3, 5])
    apart = Stream(net.add("Reshape", turned, net.ints(-1, x.channels, half, half)), x.channels, half)
    inner = conv(net, apart)
    split = net.add("Reshape", inner.name, net.ints(-1, 2, 2, inner.channels, half, half))
    turned = net.add("Transpose", split, perm=[0, 3, 1, 4, 2, 5])
    back = net.add("Reshape", turned, net.ints(-1, inner.channels, x.side, x.side))
    return Stream(back, inner.channels, x.side)


def quantized_conv(net: Network, x: Stream) -> Stream:
    """Weights as integers with a scale for every filter, activations through eight bits."""
    out = width(net)
    integers = net.constant(net.values.integers(-127, 128, (out, x.channels, 3, 3)).astype(np.int8))
    scales = net.constant(net.values.uniform(0.001, 0.003, out).astype(np.float32))
    w = net.add("DequantizeLinear", integers, scales, net.constant(np.zeros(out, np.int8)), axis=0)
    return Stream(net.add("Conv", x.name, w, net.vector(out), pads=[1] * 4), out, x.side)


def one_dimensional(net: Network, x: Stream) -> Stream:
    flat = net.add("Reshape", x.name, net.ints(0, 0, -1))
    out = width(net)
    filtered = net.add("Conv", flat, net.weight(out, x.channels, 3), net.vector(out), pads=[1, 1])
    return Stream(net.add("Reshape", filtered, net.ints(0, 0, x.side, x.side)), out, x.side)


def choice(net: Network, x: Stream) -> Stream:
    other = conv(net, x, x.channels)
    flags = net.add("Greater", x.name, net.constant(np.float32(0)))
    return Stream(net.add("Where", flags, x.name, other.name), x.channels, x.side)


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
    *(channels_last_norm, response_norm, group_norm, windows, quantized_conv, one_dimensional, choice),
]
