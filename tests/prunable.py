"""Small models to prune, written as ONNX text with seeded weights, and the way from one to what the pass made of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper, parser

from surgeon.engine import Model, analyse
from surgeon.graph.copy import copy_of
from surgeon.graph.load import load
from surgeon.measure import inputs_of
from surgeon.passes import Context
from surgeon_passes.prune import Prune

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'

CHAIN = """chain (float["N",3,8,8] x) => (float["N",10] y) {
  c1 = Conv <pads = [1,1,1,1]> (x, w1, b1)
  r1 = Relu (c1)
  c2 = Conv <pads = [1,1,1,1]> (r1, w2, b2)
  r2 = Relu (c2)
  p = GlobalAveragePool (r2)
  f = Flatten (p)
  y = Gemm <transB = 1> (f, w3, b3)
}"""
CHAIN_SHAPES = {
    "w1": (16, 3, 3, 3),
    "b1": (16,),
    "w2": (24, 16, 3, 3),
    "b2": (24,),
    "w3": (10, 24),
    "b3": (10,),
}

GROUPED = """grouped (float["N",3,8,8] x) => (float["N",5] y) {
  c1 = Conv (x, w1)
  r1 = Relu (c1)
  c2 = Conv <group = 4, pads = [1,1,1,1]> (r1, w2)
  r2 = Relu (c2)
  p = GlobalAveragePool (r2)
  f = Flatten (p)
  y = Gemm <transB = 1> (f, w3)
}"""
GROUPED_SHAPES = {"w1": (24, 3, 1, 1), "w2": (32, 6, 3, 3), "w3": (5, 32)}

CONCAT = """concat (float["N",3,8,8] x) => (float["N",5] y) {
  a = Conv (x, wa)
  b = Conv (x, wb)
  ra = Relu (a)
  rb = Relu (b)
  j = Concat <axis = 1> (ra, rb)
  d = Conv <group = 20> (j, wd)
  c = Conv (d, wc)
  s = Add (c, a)
  p = GlobalAveragePool (s)
  f = Flatten (p)
  y = Gemm <transB = 1> (f, w3)
}"""
CONCAT_SHAPES = {
    "wa": (12, 3, 1, 1),
    "wb": (8, 3, 1, 1),
    "wd": (20, 1, 1, 1),
    "wc": (12, 20, 1, 1),
    "w3": (5, 12),
}

ATTENTION = """attention (float["N",6,16] x) => (float["N",6,16] y) {
  q = MatMul (x, wq)
  k = MatMul (x, wk)
  v = MatMul (x, wv)
  qs = Reshape (q, shape)
  ks = Reshape (k, shape)
  vs = Reshape (v, shape)
  qh = Transpose <perm = [0,2,1,3]> (qs)
  kh = Transpose <perm = [0,2,3,1]> (ks)
  vh = Transpose <perm = [0,2,1,3]> (vs)
  logits = MatMul (qh, kh)
  weights = Softmax <axis = -1> (logits)
  mixed = MatMul (weights, vh)
  back = Transpose <perm = [0,2,1,3]> (mixed)
  flat = Reshape (back, joined)
  y = MatMul (flat, wo)
}"""
ATTENTION_SHAPES = {"wq": (16, 32), "wk": (16, 32), "wv": (16, 32), "wo": (32, 16)}
ATTENTION_CONSTANTS = {
    "shape": np.array([0, 6, 4, 8], np.int64),
    "joined": np.array([0, 6, 32], np.int64),
}


def build(
    text: str,
    shapes: dict[str, tuple[int, ...]],
    constants: dict[str, np.ndarray] | None = None,
    seed: int = 0,
) -> onnx.ModelProto:
    """The model of ``text`` with normal weights of the given shapes and the given constants."""
    random = np.random.default_rng(seed)
    model = parser.parse_model(HEAD + text)
    for index, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{index}"
    weights = {
        name: (random.standard_normal(shape) * np.prod(shape[1:], initial=1.0) ** -0.5).astype(np.float32)
        for name, shape in shapes.items()
    }
    weights |= constants or {}
    model.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in weights.items())
    onnx.checker.check_model(model)
    return model


def chain(**constants: np.ndarray) -> onnx.ModelProto:
    """Two convolutions and a classifier; constants replace weights."""
    return build(CHAIN, {name: s for name, s in CHAIN_SHAPES.items() if name not in constants}, constants)


def grouped(**constants: np.ndarray) -> onnx.ModelProto:
    """A convolution in four groups of six channels."""
    return build(GROUPED, {name: s for name, s in GROUPED_SHAPES.items() if name not in constants}, constants)


def concat() -> onnx.ModelProto:
    """Two branches joined, a depthwise convolution over both, and a residual connection."""
    return build(CONCAT, CONCAT_SHAPES)


def attention() -> onnx.ModelProto:
    """Four heads of eight."""
    return build(ATTENTION, ATTENTION_SHAPES, ATTENTION_CONSTANTS)


def analysed(model: onnx.ModelProto, folder: Path) -> Model:
    """The model as the engine sees it."""
    path = folder / "model.onnx"
    onnx.save(model, str(path))
    return analyse(load(path))


def prune(model: onnx.ModelProto, folder: Path, data=None, seed: int = 0, targets=None, **options):
    """Runs the pass alone.

    Returns:
        The weights and constants that are left by name, and the context with the record and plan.
    """
    path = folder / "model.onnx"
    onnx.save(model, str(path))
    graph = load(path)
    context = Context(path, inputs=inputs_of(graph), data=data, seed=seed, targets=targets or {})
    smaller = Prune(reconstruct=False, **options).run(copy_of(graph), context)
    return {name: t.values for name, t in smaller.tensors().items() if hasattr(t, "values")}, context


def kept(context: Context, group: str) -> tuple[int, ...]:
    """The indices of a group that the plan keeps."""
    return next(each.kept for each in context.plan.groups if each.id == group)
