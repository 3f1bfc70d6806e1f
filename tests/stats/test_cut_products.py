"""Views of the original's operators see the same node in a cut graph as views of the cut graph itself do."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from ops.oracle import build, choices, features, images, ints, solved
from stats.products import nodes_of, tensors, values

from surgeon.analysis import solve
from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session
from surgeon.stats.bias import read_bias, write_bias
from surgeon.stats.linear import linear_views
from surgeon.stats.weight import weight_values

RECURRENT = "t = Transpose <perm=[0,2,1,3]> (h)\nf = Reshape (t, join)\ny = MatMul (f, w_out)"


def recurrent(kind: str, gates: int) -> onnx.ModelProto:
    body = f'a = MatMul (x, w_in)\nh = {kind} <hidden_size=6, direction="bidirectional"> (a, w, r, b)\n{RECURRENT}'
    weights = {
        "w_in": (5, 7),
        "w": (2, gates * 6, 7),
        "r": (2, gates * 6, 6),
        "b": (2, 2 * gates * 6),
        "join": ints(0, 0, -1),
        "w_out": (12, 3),
    }
    return build("float[T,N,5] x", "float[T,N,3] y", body, weights)


TURN = "t = Transpose <perm=[0,2,1]> (a)"
MODELS = {
    "conv": images("b = Conv <pads=[1,1,1,1], strides=[2,1]> (a, w, v)", 10, {"w": (10, 12, 3, 3), "v": (10,)}),
    "grouped": images("b = Conv <group=3> (a, w)", 15, {"w": (15, 4, 3, 3)}),
    "depthwise": images("b = Conv <group=12> (a, w, v)", 24, {"w": (24, 1, 3, 3), "v": (24,)}),
    "transposed": images("b = ConvTranspose <strides=[2,2]> (a, w)", 10, {"w": (12, 10, 3, 3)}),
    "grouped transposed": images("b = ConvTranspose <group=3> (a, w, v)", 6, {"w": (12, 2, 2, 3), "v": (6,)}),
    "matmul": features("m = MatMul (a, w) b = Add (v, m)", 10, {"w": (12, 10), "v": (10,)}),
    "turned": features("u = Transpose (w) m = MatMul (a, u) b = Add (v, m)", 10, {"w": (10, 12), "v": (10,)}),
    "left": features(
        f"{TURN} m = MatMul (w, t) n = Add (m, v) b = Transpose <perm=[0,2,1]> (n)",
        10,
        {"w": (10, 12), "v": (10, 1)},
    ),
    "batched": features(
        "u = Unsqueeze (a, one) m = MatMul (u, w) n = Add (m, v) b = ReduceSum <keepdims=0> (n, one)",
        10,
        {"w": (4, 12, 10), "v": (4, 1, 10), "one": ints(1)},
    ),
    "gemm": build(
        "float[N,5] x",
        "float[N,3] y",
        "a = MatMul (x, w_in) b = Gemm <alpha=0.5, beta=2.0, transB=1> (a, w, v) y = MatMul (b, w_out)",
        {"w_in": (5, 12), "w": (10, 12), "v": (10,), "w_out": (10, 3)},
    ),
    "lstm": recurrent("LSTM", 4),
    "gru": recurrent("GRU", 3),
    "rnn": recurrent("RNN", 1),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_views_of_cut_nodes(name):
    found = solved(MODELS[name])
    x = values(*{2: (7, 5), 3: (4, 7, 5), 4: (2, 5, 8, 6)}[len(found.analysis.axes["x"])])
    cuts = 0
    for kept in choices(found.groups):
        smaller, _ = found.cut(kept)
        again, nodes = solve(smaller), {node.outputs[0].name: node for node in smaller.nodes}
        known = tensors(to_model(smaller), x=x)
        own = {op.node.outputs[0].name: linear_views(op) for op in again.ops}
        for op in found.analysis.ops:
            node = nodes[op.node.outputs[0].name]
            for view, other in zip(linear_views(op), own[node.outputs[0].name], strict=True):
                same_view(view, other, node, known, nodes)
                cuts += 1
    assert cuts > 3 * len(found.groups)


def same_view(view, other, node, known, nodes):
    read = known.__getitem__
    assert view.output == other.output
    assert view.count(read) == other.count(read)
    places = np.arange(view.count(read))[::2]
    weight = weight_values(node.inputs[view.weight])
    matrices = view.matrices(node, weight)
    np.testing.assert_array_equal(view.weights(matrices, weight.shape), weight)
    bias = read_bias(view, nodes)
    np.testing.assert_array_equal(bias, read_bias(other, nodes))
    rows, target = (each(node, read, places) for each in (view.rows, view.target))
    np.testing.assert_array_equal(rows, other.rows(node, read, places))
    np.testing.assert_array_equal(target, other.target(node, read, places))
    np.testing.assert_allclose(rows @ matrices + bias, target, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_a_recurrent_layer_adds_the_biases_that_were_written(kind, gates):
    shapes = {"w": (2, gates * 6, 4), "r": (2, gates * 6, 6), "b": (2, 2 * gates * 6)}
    body = f'y = {kind} <hidden_size=6, direction="bidirectional"> (x, w, r, b)'
    model = build("float[5,3,4] x", "float y", body, shapes)
    bare = build("float[5,3,4] x", "float y", body.replace(", b)", ")"), {k: shapes[k] for k in ("w", "r")})
    given, found = solved(model).analysis, solved(bare).analysis
    for view, source in zip(linear_views(found.ops[0]), linear_views(given.ops[0]), strict=True):
        write_bias(view, nodes_of(found), read_bias(source, nodes_of(given)))
    assert found.ops[0].node.inputs[3].name == "y/surgeon/bias"
    x = values(5, 3, 4)
    results = [run(session(to_model(each.graph)), {"x": x})[0] for each in (given, found)]
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-6)
