"""Times one step forward and backward of ResNet-20 (CIFAR-10 shapes) against PyTorch's, interleaved, as a Markdown table.

    pip install torch
    python tests/benchmarks/gradient_step.py [--threads 2] [--batch 64] [--rounds 15]

Both compute the mean squared error of the output and its gradients with respect to all weights and biases, ours as
training does.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn
from torch.nn import functional

from surgeon.grad import Tape, Value
from surgeon.grad.objective import Objective
from surgeon.grad.parameters import parameters_of
from surgeon.graph.load import from_model
from surgeon.graph.schemas import opsets

STAGES = ((16, 1), (32, 2), (64, 2))
BLOCKS, CLASSES = 3, 10
MEMORY = 2**31  # bytes


class Block(nn.Module):
    """Two convolutions and a shortcut that is strided and padded where the width changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.stride, self.more = stride, (outputs - inputs) // 2

    def forward(self, x):
        y = self.second(functional.relu(self.first(x)))
        if self.stride > 1:
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more, self.more))
        return functional.relu(y + x)


class ResNet(nn.Module):
    """ResNet-20 with folded batch normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, blocks, width = nn.Conv2d(3, 16, 3, 1, 1), [], 16
        for outputs, stride in STAGES:
            for k in range(BLOCKS):
                blocks.append(Block(width, outputs, stride if k == 0 else 1))
                width = outputs
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(width, CLASSES)

    def forward(self, x):
        return self.head(self.blocks(functional.relu(self.stem(x))).mean((2, 3)))


def as_onnx(net: ResNet) -> onnx.ModelProto:
    """The same network, with the same weights, as ONNX nodes."""
    nodes, weights = [], []

    def node(op, inputs, output, **attributes):
        nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def constant(name, array):
        weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def conv(name, layer, x, stride=1):
        w, b = (constant(f"{name}.{k}", v.detach().numpy()) for k, v in layer.named_parameters())
        return node("Conv", [x, w, b], name, pads=[1] * 4, strides=[stride] * 2)

    x = node("Relu", [conv("stem", net.stem, "x")], "stem.relu")
    for k, block in enumerate(net.blocks):
        h = node("Relu", [conv(f"{k}.first", block.first, x, block.stride)], f"{k}.relu")
        y = conv(f"{k}.second", block.second, h)
        if block.stride > 1:
            bounds = [
                constant(f"{k}.{n}", np.array(v))
                for n, v in (("s", [0, 0]), ("e", [99, 99]), ("a", [2, 3]), ("t", [2, 2]))
            ]
            x = node("Slice", [x, *bounds], f"{k}.strided")
            pads = constant(f"{k}.pads", np.array([0, block.more, 0, 0, 0, block.more, 0, 0]))
            x = node("Pad", [x, pads], f"{k}.padded")
        x = node("Relu", [node("Add", [y, x], f"{k}.sum")], f"{k}.out")
    x = node("Flatten", [node("GlobalAveragePool", [x], "pooled")], "flat")
    w, b = (constant(f"head.{k}", v.detach().numpy()) for k, v in net.head.named_parameters())
    node("Gemm", [x, w, b], "y", transB=1)
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "resnet20",
        [helper.make_tensor_value_info("x", kind, ["N", 3, 32, 32])],
        [helper.make_tensor_value_info("y", kind, ["N", CLASSES])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def loss(tape: Tape) -> Value:
    """The mean square of the outputs."""
    y = tape.find("y")
    return (y * y).mean()


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    asked = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(asked.threads)
    net, x = ResNet(), torch.randn(asked.batch, 3, 32, 32)
    graph = from_model(as_onnx(net))
    names = list(parameters_of(graph.nodes, opsets(graph)))
    objective = Objective(graph, loss, names, rows=True, threads=asked.threads)
    values = dict(net.named_parameters())
    renamed = {name: name if name in values else f"blocks.{name}" for name in names}
    weights = {name: values[key].detach().numpy() for name, key in renamed.items()}
    piece = objective.divide({"x": x.numpy()}, asked.batch, MEMORY)
    pieces = [(len(part), {"x": part.numpy()}) for part in x.split(piece)]

    def theirs() -> None:
        net.zero_grad()
        (net(x) ** 2).mean().backward()

    theirs()
    for name, found in objective.gradients(weights, pieces)[1].items():
        exact = values[renamed[name]].grad.numpy()
        assert np.abs(found - exact).max() < 1e-3 * max(np.abs(exact).max(), 1e-3), name
    times: dict[str, list[float]] = {"onnxruntime": [], "PyTorch": []}
    for _ in range(asked.rounds):
        for name, step in (
            ("onnxruntime", lambda: objective.gradients(weights, pieces)),
            ("PyTorch", theirs),
        ):
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    ours, other = (1e3 * float(np.median(times[name])) for name in ("onnxruntime", "PyTorch"))
    print("| threads | batch | onnxruntime, ms | PyTorch, ms | ratio of medians |\n|---|---|---|---|---|")
    print(f"| {asked.threads} | {asked.batch} | {ours:.0f} | {other:.0f} | {ours / other:.2f} |")


if __name__ == "__main__":
    main()
