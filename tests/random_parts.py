"""What random networks are built with: nodes and weights with names, and the streams that run through them."""

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
