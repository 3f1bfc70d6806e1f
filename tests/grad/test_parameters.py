"""What can be learned of a graph, wherever its numbers are stored."""

from __future__ import annotations

import numpy as np
import pytest
from ops.oracle import build

from surgeon.grad.parameters import parameters_of, untrained, weighted
from surgeon.graph.load import from_model
from surgeon.graph.schemas import opsets


def learned(inputs, outputs, body, weights):
    graph = from_model(build(inputs, outputs, body, weights))
    return set(parameters_of(graph.nodes, opsets(graph)))


def test_kernels_matrices_biases_and_norms():
    body = """
    c = Conv (x, w, b)
    n = BatchNormalization (c, s, o, m, v)
    r = PRelu (n, p)
    f = Flatten (r)
    g = Gemm (f, w2, b2)
    l = LayerNormalization (g, s2, o2)
    y = MatMul (l, w3)
    """
    weights = {
        "w": (4, 3, 1, 1), "b": (4,), "s": (4,), "o": (4,), "m": (4,), "v": (4,), "p": (4, 1, 1),
        "w2": (16, 5), "b2": (5,), "s2": (5,), "o2": (5,), "w3": (5, 2),
    }  # fmt: skip
    found = learned("float[N,3,2,2] x", "float[N,2] y", body, weights)
    assert found == set(weights) - {"m", "v"}  # statistics are measured, not learned


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        ("t = Transpose (w)", (4, 3)),
        ("t = Reshape (w, s)", (12,)),
        ("d = Cast <to=1> (w)\nt = Identity (d)", (3, 4)),
        ("u = Transpose (w)\ni = Identity (u)\nt = Reshape (i, s)", (4, 3)),
        ("t = Squeeze (w, z)", (1, 3, 4)),
    ],
)
def test_weights_behind_what_only_turns_them(body, shape):
    weights = {"w": shape, "s": np.array([3, 4]), "z": np.array([0])}
    assert learned("float[N,3] x", "float[N,4] y", f"{body}\ny = MatMul (x, t)", weights) == {"w"}


def test_not_behind_what_changes_them():
    assert learned("float[N,3] x", "float[N,4] y", "t = Exp (w)\ny = MatMul (x, t)", {"w": (3, 4)}) == set()


@pytest.mark.parametrize("order", ["m, b", "b, m"])
@pytest.mark.parametrize("shape", [(4,), (1, 4), ()])
def test_a_bias_behind_a_product_on_either_side(order, shape):
    body = f"m = MatMul (x, w)\ny = Add ({order})"
    bias = np.ones(shape, np.float32)
    assert learned("float[N,3] x", "float[N,4] y", body, {"w": (3, 4), "b": bias}) == {"w", "b"}


def test_constants_added_to_anything_else_are_none():
    assert learned("float[N,3] x", "float[N,3] y", "y = Add (x, b)", {"b": (3,)}) == set()
    assert learned("float[N,3] x", "float[N,3] y", "r = Relu (x)\ny = Add (b, r)", {"b": (3,)}) == set()
    body = "m = MatMul (x, x)\ny = Add (m, b)"
    assert learned("float[3,3] x", "float[3,3] y", body, {"b": (3,)}) == set()


def test_tables_of_floats_but_not_of_integers():
    body = "y = Gather (w, i)"
    assert learned("int64[N] i", "float[N,3] y", body, {"w": (5, 3)}) == {"w"}
    assert learned("int64[N] i", "int64[N,3] y", body, {"w": np.ones((5, 3), np.int64)}) == set()


def test_quantized_weights_are_none():
    body = "f = Cast <to=1> (w)\ny = MatMul (x, f)"
    assert learned("float[N,3] x", "float[N,4] y", body, {"w": np.ones((3, 4), np.int8)}) == set()


def test_a_weight_read_twice_is_one():
    body = "a = MatMul (x, w)\ny = MatMul (a, w)"
    assert learned("float[N,3] x", "float[N,3] y", body, {"w": (3, 3)}) == {"w"}


def test_what_has_a_matrix():
    body = "c = MatMul (x, w)\nd = Add (c, b)\nn = LayerNormalization (d, s)\ny = Relu (n)"
    graph = from_model(build("float[N,3] x", "float[N,4] y", body, {"w": (3, 4), "b": (4,), "s": (4,)}))
    assert [weighted(node, opsets(graph)) for node in graph.nodes] == [True, False, False, False]


def test_what_no_training_changes_is_named():
    body = """
    h = Cast <to = 10> (x)
    m = MatMul (h, half)
    f = Cast <to = 1> (m)
    y = If (c) <
        then_branch = g1 () => (float[N,3] y1) { y1 = MatMul (f, inside) },
        else_branch = g2 () => (float[N,3] y2) { y2 = MatMul (f, both) }
    >
    z = MatMul (f, both)
    """
    weights = {"half": np.ones((3, 3), np.float16), "inside": (3, 3), "both": (3, 3)}
    model = build("float[N,3] x, bool c", "float[N,3] y, float[N,3] z", body, weights)
    graph = from_model(model)
    found = untrained(graph)
    assert found == {
        "half": "it is float16, and only float32 is trained",
        "inside": "the body of If 'y' reads it",
    }
    assert untrained(graph, lambda name: name == "half").keys() == {"inside"}
