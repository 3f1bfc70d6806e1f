"""Models that are large in bytes or in nodes, written file by file; for the tests of scale and the benchmarks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

FLOAT = onnx.TensorProto.FLOAT


def stack(path: Path, layers: int, width: int = 1024, *, outside: bool = True) -> int:
    """Writes MatMul and Relu in turns, the weights in one file of their own or inside; returns their bytes."""
    random = np.random.default_rng(0)
    block = (random.standard_normal((width, width)) * width**-0.5).astype(np.float32)
    nodes, weights, name = [], [], "x"
    for k in range(layers):
        nodes.append(helper.make_node("MatMul", [name, f"w{k}"], [f"m{k}"], name=f"m{k}"))
        nodes.append(helper.make_node("Relu", [f"m{k}"], [f"r{k}"], name=f"r{k}"))
        name = f"r{k}"
        weight = numpy_helper.from_array(np.roll(block, k, axis=0), f"w{k}")
        if outside:
            with path.with_suffix(".bin").open("ab") as file:
                offset = file.tell()
                file.write(weight.raw_data)
            onnx.external_data_helper.set_external_data(
                weight, path.with_suffix(".bin").name, offset, block.nbytes
            )
            weight.ClearField("raw_data")
        weights.append(weight)
    _write(path, nodes, weights, ["N", width], name)
    return layers * block.nbytes


def filled(name: str, path: Path) -> Path:
    """Writes one of the full-width architectures that come with onnx (``resnet50``, ``densenet121``), seeded weights."""
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    model = onnx.load(folder / f"light_{name}.onnx")
    graph, random = model.graph, np.random.default_rng(0)
    known = {tensor.name: tensor for tensor in graph.initializer}
    for node in list(graph.node):
        if node.op_type == "ConstantOfShape" and node.input[0] in known:
            shape = numpy_helper.to_array(known[node.input[0]])
            values = random.standard_normal(shape) * (2 / max(np.prod(shape[1:]), 1)) ** 0.5
            values = values if len(shape) > 1 else random.random(shape) + 0.5
            graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), node.output[0]))
            graph.node.remove(node)
    names = {tensor.name for tensor in graph.initializer}
    for tensor in [tensor for tensor in graph.input if tensor.name in names]:
        graph.input.remove(tensor)
    model.ir_version = 8
    onnx.save(model, path)
    return path


class _Blocks:
    """Collects the nodes and weights of a repetitive network."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(0)

    def constant(self, values: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(values, f"w{len(self.weights)}"))
        return self.weights[-1].name

    def weight(self, *shape: int) -> str:
        return self.constant((self.random.standard_normal(shape) * 0.3).astype(np.float32))

    def add(self, operator: str, *inputs: str, outputs: int = 1, **attributes: object) -> list[str]:
        number = len(self.nodes)
        names = [f"t{number}_{k}" for k in range(outputs)]
        self.nodes.append(helper.make_node(operator, inputs, names, name=f"n{number}", **attributes))
        return names

    def conv(self, source: str, outputs: int, inputs: int) -> str:
        return self.add("Conv", source, self.weight(outputs, inputs, 1, 1))[0]


def chain(path: Path, blocks: int) -> Path:
    """Conv, Add of a bias, Relu, again and again: one channel group per block."""
    b = _Blocks()
    stream = b.conv("x", 8, 3)
    for _ in range(blocks):
        stream = b.add("Add", b.conv(stream, 8, 8), b.weight(8, 1, 1))[0]
        stream = b.add("Relu", stream)[0]
    return _write(path, b.nodes, b.weights, ["N", 3, 4, 4], b.conv(stream, 3, 8))


def residual(path: Path, blocks: int) -> Path:
    """The same with the stream added back: one channel group in all."""
    b = _Blocks()
    stream = b.conv("x", 8, 3)
    for _ in range(blocks):
        stream = b.add("Relu", b.add("Add", stream, b.conv(stream, 8, 8))[0])[0]
    return _write(path, b.nodes, b.weights, ["N", 3, 4, 4], b.conv(stream, 3, 8))


def halves(path: Path, blocks: int) -> Path:
    """A stream that is split, half of it transformed, and joined the other way round."""
    b = _Blocks()
    stream, sizes = b.conv("x", 8, 3), b.constant(np.array([4, 4]))
    for _ in range(blocks):
        left, right = b.add("Split", stream, sizes, outputs=2, axis=1)
        stream = b.add("Concat", right, b.add("Add", left, b.conv(right, 4, 4))[0], axis=1)[0]
    return _write(path, b.nodes, b.weights, ["N", 3, 4, 4], b.conv(stream, 3, 8))


def attention(path: Path, blocks: int) -> Path:
    """Transformer blocks that share the constants of their reshapes and the scale."""
    b = _Blocks()
    heads, width = 2, 8
    split, joined = b.constant(np.array([0, -1, heads, width // heads])), b.constant(np.array([0, -1, width]))
    scale = b.constant(np.float32(0.5))
    stream = b.add("MatMul", "x", b.weight(4, width))[0]
    for _ in range(blocks):
        normed = b.add("LayerNormalization", stream, b.weight(width), b.weight(width))[0]
        parts = []
        for order in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]):
            product = b.add("MatMul", normed, b.weight(width, width))[0]
            parts.append(b.add("Transpose", b.add("Reshape", product, split)[0], perm=order)[0])
        found = b.add("Softmax", b.add("Mul", b.add("MatMul", parts[0], parts[1])[0], scale)[0])[0]
        found = b.add("Transpose", b.add("MatMul", found, parts[2])[0], perm=[0, 2, 1, 3])[0]
        found = b.add("MatMul", b.add("Reshape", found, joined)[0], b.weight(width, width))[0]
        stream = b.add("Add", stream, found)[0]
    return _write(path, b.nodes, b.weights, ["N", "T", 4], b.add("MatMul", stream, b.weight(width, 3))[0])


def shuffled(path: Path, blocks: int) -> Path:
    """Grouped convolutions with channel shuffles written as Reshape, Transpose, Reshape."""
    b = _Blocks()
    split, joined = b.constant(np.array([0, 2, 4, 4, 4])), b.constant(np.array([0, 8, 4, 4]))
    stream = b.conv("x", 8, 3)
    for _ in range(blocks):
        stream = b.add("Conv", stream, b.weight(8, 4, 1, 1), group=2)[0]
        stream = b.add("Transpose", b.add("Reshape", stream, split)[0], perm=[0, 2, 1, 3, 4])[0]
        stream = b.add("Relu", b.add("Reshape", stream, joined)[0])[0]
    return _write(path, b.nodes, b.weights, ["N", 3, 4, 4], b.conv(stream, 3, 8))


def tower(path: Path, blocks: int) -> Path:
    """Many branches side by side, joined by one Concat."""
    b = _Blocks()
    stem = b.conv("x", 8, 3)
    branches = [b.add("Relu", b.conv(stem, 8, 8))[0] for _ in range(blocks)]
    joined = b.add("Concat", *branches, axis=1)[0]
    return _write(path, b.nodes, b.weights, ["N", 3, 4, 4], b.conv(joined, 3, 8 * blocks))


#: Families of graphs, and about how many nodes a block of each has.
FAMILIES: dict[str, tuple[Callable[[Path, int], Path], int]] = {
    "chain": (chain, 3),
    "residual": (residual, 3),
    "halves": (halves, 4),
    "attention": (attention, 14),
    "shuffled": (shuffled, 5),
    "tower": (tower, 2),
}


def _write(
    path: Path,
    nodes: list[onnx.NodeProto],
    weights: list[onnx.TensorProto],
    shape: list[str | int],
    output: str,
) -> Path:
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("x", FLOAT, shape)],
        [helper.make_tensor_value_info(output, FLOAT, None)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path
