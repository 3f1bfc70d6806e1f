"""Random networks out of the building blocks of real ones, for tests of the engine as a whole."""

from __future__ import annotations

from random import Random

import onnx
from random_images import IMAGE_BLOCKS, conv
from random_parts import SIDE, Network, Stream
from random_sequences import SEQUENCE_BLOCKS, tokens


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
