"""What onnxruntime really runs of a quantized model: the graph after all of its own rewrites, counted."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime as ort

# operators that multiply by weights, or activations with each other, after fusion
INTEGER = {
    "QLinearConv",
    "QLinearConvTranspose",
    "QLinearMatMul",
    "QGemm",
    "ConvInteger",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "DynamicQuantizeLSTM",
    "MatMulNBits",
    "QAttention",
}
FLOAT = {
    "Conv",
    "FusedConv",
    "ConvTranspose",
    "Gemm",
    "FusedGemm",
    "MatMul",
    "FusedMatMul",
    "Einsum",
    "LSTM",
    "GRU",
    "RNN",
    "Attention",
    "MultiHeadAttention",
}
PAIRS = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}


@dataclass(frozen=True)
class Kernels:
    """Operators of the optimized graph, bodies of control flow included.

    Attributes:
        operators: How many there are of each.
    """

    operators: dict[str, int]

    def _count(self, names: set[str]) -> int:
        return sum(count for name, count in self.operators.items() if name in names)

    @property
    def integer(self) -> int:
        """Products computed with integers."""
        return self._count(INTEGER)

    @property
    def products(self) -> int:
        """All products."""
        return self.integer + self._count(FLOAT)

    @property
    def conversions(self) -> int:
        """Operators that only turn numbers into 8 bits or back."""
        return self._count(PAIRS)


def kernels(model: Path) -> Kernels:
    """Counts the operators of a model after onnxruntime's rewrites for the CPU."""
    with tempfile.TemporaryDirectory(prefix="kernels-") as folder:
        optimized = Path(folder) / "optimized.onnx"
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        options.optimized_model_filepath = str(optimized)
        ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        return Kernels(dict(Counter(_operators(onnx.load(optimized).graph)).most_common()))


def _operators(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield node.op_type
        for attribute in node.attribute:
            for body in [attribute.g, *attribute.graphs]:
                yield from _operators(body)
