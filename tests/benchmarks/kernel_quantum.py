"""Prints latency against channel count: which multiples onnxruntime's CPU kernels reward.

    python tests/benchmarks/kernel_quantum.py [ROUNDS]

Each column is one small network of three equal layers between a fixed stem and head, at every channel count around
64..96; one thread, all counts measured in turns, medians. Under each time stands its price per multiply-accumulate
relative to the best count of the column: 1.00 is as good as it gets, 1.30 means 30 % of the work is wasted.
`surgeon.allocate.Limits` takes its default from this table.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from surgeon.stats.latency import compare

COUNTS = (48, 56, 60, 62, 63, 64, 65, 66, 68, 72, 76, 80, 84, 88, 92, 94, 95, 96)
LAYERS, SIDE, ROWS, ENDS = 3, 28, 196, 32


def convolutions(channels: int, kernel: int, *, depthwise: bool = False) -> onnx.ModelProto:
    """A stem to ``channels``, three convolutions with ReLU among them, and back."""
    shapes = [(channels, ENDS, 1, 1)]
    shapes += [(channels, 1 if depthwise else channels, kernel, kernel)] * LAYERS
    shapes += [(ENDS, channels, 1, 1)]
    nodes = []
    for k, shape in enumerate(shapes):
        group = channels if depthwise and 0 < k <= LAYERS else 1
        attributes = {"kernel_shape": shape[2:], "pads": [shape[2] // 2] * 4, "group": group}
        nodes.append(helper.make_node("Conv", [f"x{k}", f"w{k}"], [f"c{k}"], **attributes))
        nodes.append(helper.make_node("Relu", [f"c{k}"], [f"x{k + 1}"]))
    return network(nodes, shapes, [1, ENDS, SIDE, SIDE], f"x{len(shapes)}")


def products(channels: int) -> onnx.ModelProto:
    """The same with MatMul and Add."""
    shapes = [(ENDS, channels), *[(channels, channels)] * LAYERS, (channels, ENDS)]
    nodes = []
    for k in range(len(shapes)):
        nodes.append(helper.make_node("MatMul", [f"x{k}", f"w{k}"], [f"c{k}"]))
        nodes.append(helper.make_node("Relu", [f"c{k}"], [f"x{k + 1}"]))
    return network(nodes, shapes, [1, ROWS, ENDS], f"x{len(shapes)}")


def network(
    nodes: list[onnx.NodeProto], shapes: list[tuple[int, ...]], feed: list[int], last: str
) -> onnx.ModelProto:
    """A model with seeded weights ``w0, w1, …`` of the given shapes."""
    random = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(random.standard_normal(shape).astype(np.float32) * 0.05, f"w{k}")
        for k, shape in enumerate(shapes)
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("x0", TensorProto.FLOAT, feed)], [value(last, TensorProto.FLOAT, None)], weights
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


COLUMNS: dict[str, tuple[Callable[[int], onnx.ModelProto], list[int]]] = {
    "conv 1x1": (lambda c: convolutions(c, 1), [1, ENDS, SIDE, SIDE]),
    "conv 3x3": (lambda c: convolutions(c, 3), [1, ENDS, SIDE, SIDE]),
    "depthwise": (lambda c: convolutions(c, 3, depthwise=True), [1, ENDS, SIDE, SIDE]),
    "matmul": (products, [1, ROWS, ENDS]),
}


def work(column: str, channels: int) -> float:
    """Multiply-accumulates of one position."""
    if column == "depthwise":
        return channels * (2 * ENDS + LAYERS * 9)
    taps = 9 if column == "conv 3x3" else 1
    return channels * 2 * ENDS + LAYERS * channels**2 * taps


def main(rounds: int) -> None:
    """Measures and prints the table."""
    table = {}
    for column, (build, feed) in COLUMNS.items():
        feeds = {"x0": np.random.default_rng(1).standard_normal(feed).astype(np.float32)}
        found = compare([build(c) for c in COUNTS], feeds, threads=1, runs=rounds)
        times = [each.median_ms for each in found]
        best = min(t / work(column, c) for t, c in zip(times, COUNTS, strict=True))
        table[column] = [(t, t / work(column, c) / best) for t, c in zip(times, COUNTS, strict=True)]
    print("channels", *(f"{name:>16}" for name in table))
    for row, channels in enumerate(COUNTS):
        print(f"{channels:8}", *(f"{table[name][row][0]:9.3f} {table[name][row][1]:6.2f}" for name in table))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)
