"""Operators are differentiated by way of their definitions."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from grad.oracle import check
from ops.oracle import build, ints

from surgeon.grad import gradient
from surgeon.grad.expand import expanded
from surgeon.graph.copy import copy_of
from surgeon.graph.load import from_model
from surgeon.graph.save import to_model


def test_swish():
    for alpha in ("", "<alpha=0.5>"):
        check("T[N,3] x", "T[N,3] y", f"y = Swish {alpha} (x)", {"x": (4, 3)}, opset=24, runtime=False)


def test_rotary_embedding():
    weights = {"c": (6, 2), "s": (6, 2), "p": np.array([[0, 3, 1], [5, 2, 2]])}
    body = "y = RotaryEmbedding (x, c, s, p)"
    check(
        "T[2,4,3,4] x",
        "T[2,4,3,4] y",
        body,
        {"x": (2, 4, 3, 4)},
        weights,
        opset=23,
        wrt=["x"],
        reference=False,
    )
    body = "y = RotaryEmbedding <num_heads=2, interleaved=1> (x, c, s, p)"
    check("T[2,3,8] x", "T[2,3,8] y", body, {"x": (2, 3, 8)}, weights, opset=23, wrt=["x"], reference=False)


@pytest.mark.parametrize("opset", [23, 24])
@pytest.mark.parametrize("attributes", ["", "is_causal=1", "scale=0.3, softcap=2.0"])
def test_attention(attributes, opset):
    given = f"<{attributes}>" if attributes else ""
    feeds = {"q": (2, 4, 3, 5), "k": (2, 2, 6, 5), "v": (2, 2, 6, 7)}
    inputs = "T[N,4,L,5] q, T[N,2,M,5] k, T[N,2,M,7] v"
    check(inputs, "T[N,4,L,7] y", f"y = Attention {given} (q, k, v)", feeds, opset=opset)


def test_attention_of_packed_heads_with_a_mask():
    feeds = {"q": (2, 3, 12), "k": (2, 6, 6), "v": (2, 6, 6)}
    inputs = "T[N,L,12] q, T[N,M,6] k, T[N,M,6] v, T[L,M] m"
    body = "y = Attention <q_num_heads=4, kv_num_heads=2> (q, k, v, m)"
    check(inputs, "T[N,L,12] y", body, {**feeds, "m": (3, 6)}, opset=23)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("opset", [13, 21])
def test_losses(reduction, opset):
    labels = {"l": ints(2, 0, 1, 1), "w": np.array([0.5, 1.0, 2.0])}
    y = "N" if reduction == "none" else ""
    options = {"opset": opset, "wrt": ["x"]}
    for op in ("SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss"):
        body = f'y = {op} <reduction="{reduction}"> (x, l)'
        check("T[N,3] x, int64[N] l", f"T[{y}] y", body, {"x": (4, 3), "l": labels["l"]}, **options)
        body = f'y = {op} <reduction="{reduction}", ignore_index=1> (x, l, w)'
        check("T[4,3] x", f"T[{y}] y", body, {"x": (4, 3)}, labels, **options)


@pytest.mark.parametrize("sizes", [(3, 7), (6, 2)])
def test_center_crop_pad(sizes):
    body = "y = CenterCropPad <axes=[0,1]> (x, s)"
    check("T[4,5] x", f"T[{sizes[0]},{sizes[1]}] y", body, {"x": (4, 5)}, {"s": ints(*sizes)}, opset=18)


def test_names_stay_unique_and_interfaces_as_they_were():
    body = "a = Swish (x)\nb = Swish (a)\ny = Swish (b)"
    graph = from_model(build("float[N,3] x", "float[N,3] y", body, opset=24))
    model = to_model(expanded(copy_of(graph)))
    onnx.checker.check_model(model, full_check=True)
    names = [name for node in model.graph.node for name in node.output]
    assert len(names) == len(set(names))
    assert {"a", "b", "y"} <= set(names)
    assert [node.op for node in graph.nodes] == ["Swish"] * 3


def test_tests_are_not_expanded():
    body = "c = GreaterOrEqual (x, x)\ny = Where (c, x, x)"
    graph = from_model(build("float[N,3] x", "float[N,3] y", body))
    assert [node.op for node in expanded(copy_of(graph)).nodes] == ["GreaterOrEqual", "Where"]


def test_what_has_a_rule_stays():
    graph = from_model(build("float[N,3] x", "float[N,3] y", "y = HardSwish (x)", opset=22))
    assert [node.op for node in expanded(copy_of(graph)).nodes] == ["HardSwish"]
    assert gradient(graph, lambda tape: tape.value(tape.graph.outputs[0]).sum(), ["x"]).of
