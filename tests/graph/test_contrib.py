"""Shapes and types of onnxruntime's own operators are those that it computes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from ops.oracle import build

from surgeon.graph.load import from_model
from surgeon.graph.sessions import run, session, with_outputs
from surgeon.graph.shapes import infer

X = np.random.default_rng(0).standard_normal


def floats(*shape):
    return X(shape).astype(np.float32)


def bytes_(*shape, kind=np.uint8):
    return np.random.default_rng(1).integers(0, 100, shape).astype(kind)


S, Z = np.float32(0.1), np.uint8(3)
STEP = {"s": S, "z": Z}
# each: the node, its inputs
CASES = {
    "FusedConv": (
        'y = FusedConv <activation="Relu", strides=[2,1], pads=[1,0,1,0]> (x, w)',
        {"x": (2, 3, 8, 6), "w": (4, 3, 3, 3)},
    ),
    "FusedGemm": ('y = FusedGemm <activation="Relu", transA=1, transB=1> (x, w)', {"x": (5, 3), "w": (4, 5)}),
    "FusedMatMul": ("y = FusedMatMul <transA=1> (x, w)", {"x": (2, 5, 3), "w": (2, 5, 4)}),
    "FusedMatMul of a vector": ("y = FusedMatMul <transB=1> (x, w)", {"x": (5,), "w": (2, 4, 5)}),
    "FusedMatMul rows first": ("y = FusedMatMul <transBatchA=1> (x, w)", {"x": (3, 2, 5), "w": (2, 5, 4)}),
    "SkipLayerNormalization": ("y, , , t = SkipLayerNormalization (x, x, w)", {"x": (2, 7, 6), "w": (6,)}),
    "EmbedLayerNormalization": (
        "y, m, t = EmbedLayerNormalization (i, , w, p, , g, g, k)",
        {"i": np.int32([[1, 2]]), "k": np.int32([[1, 1]]), "w": (9, 6), "p": (4, 6), "g": (6,)},
    ),
    "BiasGelu": ("y = BiasGelu (x, w)", {"x": (2, 6), "w": (6,)}),
    "Attention": (
        "y, p = Attention <num_heads=2> (x, w, b)",
        {"x": (2, 7, 5), "w": (5, 24), "b": (24,)},
    ),
    "Attention with values of another size": (
        "y = Attention <num_heads=2, qkv_hidden_sizes=[8,8,4]> (x, w, b)",
        {"x": (2, 7, 5), "w": (5, 20), "b": (20,)},
    ),
    "MultiHeadAttention": (
        "y, k1, v1 = MultiHeadAttention <num_heads=2> (q, k, v, , , , k0, v0)",
        {"q": (2, 3, 8), "k": (2, 3, 8), "v": (2, 3, 8), "k0": (2, 2, 4, 4), "v0": (2, 2, 4, 4)},
    ),
    "MultiHeadAttention across": (
        "y = MultiHeadAttention <num_heads=2> (q, k, v)",
        {"q": (2, 3, 8), "k": (2, 5, 8), "v": (2, 5, 6)},
    ),
    "GroupQueryAttention": (
        "y, k1, v1 = GroupQueryAttention <num_heads=4, kv_num_heads=2> (q, , , k0, v0, l, t)",
        {"q": (1, 3, 64), "k0": (1, 2, 0, 8), "v0": (1, 2, 0, 8), "l": np.int32([2]), "t": np.int32(3)},
    ),
    "LinearAttention": (
        'y, t = LinearAttention <update_rule="linear", q_num_heads=4, kv_num_heads=2> (q, k, v)',
        {"q": (1, 3, 16), "k": (1, 3, 8), "v": (1, 3, 6)},
    ),
    "CausalConvWithState": ("y, t = CausalConvWithState (x, w)", {"x": (2, 4, 6), "w": (4, 1, 3)}),
    "UnfoldTensor": ("y = UnfoldTensor <dim=1, size=3, step=2> (x)", {"x": (2, 7, 6)}),
    "MatMulNBits": (
        "y = MatMulNBits <N=5, K=32, block_size=16> (x, q, w)",
        {"x": (2, 3, 32), "q": bytes_(5, 2, 8), "w": (5, 2)},
    ),
    "GatherBlockQuantized": (
        "y = GatherBlockQuantized <block_size=16> (q, i, w)",
        {"q": bytes_(9, 16), "i": np.int64([[1, 2, 3]]), "w": (9, 2)},
    ),
    "DequantizeLinear": ("y = DequantizeLinear (q, s, z)", {"q": bytes_(2, 3), **STEP}),
    "QuantizeLinear": ("y = QuantizeLinear (x, s, z)", {"x": (2, 3), "s": S, "z": np.int8(3)}),
    "QLinearAdd": ("y = QLinearAdd (q, s, z, r, s, z, s, z)", {"q": bytes_(2, 3, 4), "r": bytes_(4), **STEP}),
    "QLinearConcat": (
        "y = QLinearConcat <axis=1> (s, z, q, s, z, r, s, z)",
        {"q": bytes_(2, 3), "r": bytes_(2, 5), **STEP},
    ),
    "QLinearWhere": (
        "y = QLinearWhere (c, q, s, z, r, s, z, s, z)",
        {"c": np.ones((2, 1), bool), "q": bytes_(2, 3), "r": bytes_(3), **STEP},
    ),
    "QLinearConv, channels last": (
        "y = QLinearConv <channels_last=1, kernel_shape=[3,3]> (q, s, z, w, s, v, s, z)",
        {"q": bytes_(1, 8, 6, 3), "w": bytes_(4, 3, 3, 3, kind=np.int8), "v": np.int8(0), **STEP},
    ),
    "QLinearAveragePool, channels last": (
        "y = QLinearAveragePool <channels_last=1, kernel_shape=[3,2]> (q, s, z, s, z)",
        {"q": bytes_(1, 8, 6, 3), **STEP},
    ),
    "NhwcMaxPool": ("y = NhwcMaxPool <kernel_shape=[3,2]> (q)", {"q": bytes_(1, 8, 6, 3)}),
    "QGemm": (
        "y = QGemm <transB=1> (q, s, z, w, s, v)",
        {"q": bytes_(2, 3), "w": bytes_(4, 3, kind=np.int8), "v": np.int8(0), **STEP},
    ),
    "MatMulIntegerToFloat": (
        "y = MatMulIntegerToFloat (q, r, s, s)",
        {"q": bytes_(2, 5, 3), "r": bytes_(3, 4, kind=np.int8), "s": S},
    ),
    "MatMulInteger16": (
        "y = MatMulInteger16 (q, r)",
        {"q": bytes_(2, 3, kind=np.int16), "r": bytes_(3, 4, kind=np.int16)},
    ),
    "DynamicQuantizeLSTM": (
        "y, h, c = DynamicQuantizeLSTM <hidden_size=4> (x, w, r, , , , , , s, z, s, z)",
        {
            "x": (5, 2, 3),
            "w": bytes_(1, 3, 16, kind=np.int8),
            "r": bytes_(1, 4, 16, kind=np.int8),
            "s": np.float32([0.1]),
            "z": np.int8([0]),
        },
    ),
    "QAttention": (
        "y = QAttention <num_heads=2> (q, w, b, s, s, , z, v)",
        {"q": bytes_(2, 7, 5), "w": bytes_(5, 24, kind=np.int8), "b": (24,), "v": np.int8(0), **STEP},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_shapes_and_types(case):
    text, inputs = CASES[case]
    outputs, call = text.split(" = ", 1)
    weights = {name: floats(*value) if isinstance(value, tuple) else value for name, value in inputs.items()}
    names = [name.strip() for name in outputs.split(",") if name.strip()]
    model = build(
        "float[1] unused",
        "float[1] same",
        f"same = Identity (unused)\n{outputs} = com.microsoft.{call}",
        weights,
        domains={"com.microsoft": 1},
    )
    found = infer(from_model(model))
    tapped = session(with_outputs(model, names), optimize=False)
    for name, value in zip(names, run(tapped, {"unused": floats(1)})[1:], strict=True):
        assert found.dims[name] == value.shape
        assert found.dtypes[name] == onnx.helper.np_dtype_to_tensor_dtype(value.dtype)


@pytest.mark.parametrize("body", ["y = com.microsoft.Tokenizer (x)", "y = com.microsoft.FusedConv (x, x)"])
def test_what_is_not_known_stays_unknown(body):
    """An operator without a function, and inputs that the operator's page does not allow."""
    model = build("float[2,3] x", "float[A] y", body, domains={"com.microsoft": 1})
    assert infer(from_model(model)).dims["y"] is None
