"""Gemm and MatMul as matrix products: weights on either side, turned, batched, behind other nodes, scaled."""

from __future__ import annotations

import numpy as np
import pytest
from ops.oracle import build, ints
from stats.products import analysed, check, nodes_of, operator, values

from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session
from surgeon.stats.bias import Bias, read_bias, write_bias
from surgeon.stats.linear import linear_views
from surgeon.stats.weight import is_shared, weight_chain, weight_values


def shape(dims) -> str:
    return f"[{','.join(map(str, dims))}]"


@pytest.mark.parametrize("scales", ["", "alpha=0.37", "beta=0.6", "alpha=-1.7, beta=2.5"])
@pytest.mark.parametrize(
    ("attributes", "x", "w", "b"),
    [
        ("", (5, 4), (4, 3), (3,)),
        ("transB=1", (5, 4), (3, 4), (3,)),
        ("transA=1", (4, 5), (4, 3), (1, 3)),
        ("transA=1, transB=1", (4, 5), (3, 4), (1,)),
        ("transB=1", (5, 4), (3, 4), ()),
        ("transB=1", (5, 4), (3, 4), None),
    ],
)
def test_gemm(attributes, x, w, b, scales):
    given = "" if b is None else ", b"
    node = f"y = Gemm <{', '.join(filter(None, (attributes, scales)))}> (x, w{given})".replace("<> ", "")
    bias = {} if b is None else {"b": values(*b, seed=2).reshape(b)}
    view = check(build(f"float{shape(x)} x", "float[5,3] y", node, {"w": w, **bias}), "Gemm", x=values(*x))
    assert (view.weight, view.channel_axis) == (1, -1)


@pytest.mark.parametrize(
    ("attributes", "w", "x", "b"),
    [
        ("", (5, 4), (4, 3), (5, 1)),
        ("transA=1, alpha=0.5, beta=3.0", (4, 5), (4, 3), (5, 1)),
        ("transB=1", (5, 4), (3, 4), None),
        ("transA=1, transB=1", (4, 5), (3, 4), (1,)),
    ],
)
def test_gemm_with_the_weight_on_the_left(attributes, w, x, b):
    node = f"y = Gemm <{attributes}> (w, x{', b' if b else ''})".replace("<> ", "")
    weights = {"w": w, **({"b": b} if b else {})}
    view = check(build(f"float{shape(x)} x", "float[5,3] y", node, weights), "Gemm", x=values(*x))
    assert (view.weight, view.channel_axis) == (0, -2)


def test_a_bias_times_zero_is_none():
    model = build("float[5,4] x", "float[5,3] y", "y = Gemm <beta=0.0> (x, w, b)", {"w": (4, 3), "b": (5, 3)})
    assert check(model, "Gemm", x=values(5, 4)).bias is None


RIGHT = [
    ((5, 4), (4, 3)),
    ((2, 5, 4), (4, 3)),
    ((2, 3, 5, 4), (4, 3)),
    ((2, 5, 4), (2, 4, 3)),
    ((5, 4), (2, 4, 3)),
    ((1, 5, 4), (2, 4, 3)),
    ((2, 5, 4), (1, 4, 3)),
    ((6, 2, 5, 4), (2, 4, 3)),
    ((6, 2, 5, 4), (6, 1, 4, 3)),
    ((6, 1, 5, 4), (6, 2, 4, 3)),
    ((2, 5, 4), (6, 1, 4, 3)),
    ((7, 6, 2, 5, 4), (6, 1, 4, 3)),
    ((4,), (4, 3)),
    ((4,), (2, 4, 3)),
    ((5, 4), (4,)),
    ((2, 5, 4), (4,)),
    ((4,), (4,)),
]


def transposed(shape):
    return shape if len(shape) == 1 else (*shape[:-2], shape[-1], shape[-2])


@pytest.mark.parametrize(("x", "w"), RIGHT)
@pytest.mark.parametrize("side", ["right", "left"])
def test_matmul(x, w, side):
    if side == "left":
        x, w = transposed(x), transposed(w)
    data, weight = values(*x), values(*w, seed=2)
    body = "y = MatMul (x, w)" if side == "right" else "y = MatMul (w, x)"
    y = (data @ weight if side == "right" else weight @ data).shape
    view = check(build(f"float{shape(x)} x", f"float{shape(y)} y", body, {"w": weight}), "MatMul", x=data)
    assert view.bias is None
    assert view.weight == (side == "right")


# the bias of a right-hand weight: the weight, the data, what is added, whether it is the same at all places
BIASES = [
    ((5, 4), (4, 3), (3,), True),
    ((5, 4), (4, 3), (1, 3), True),
    ((5, 4), (4, 3), (1,), True),
    ((5, 4), (4, 3), (), True),
    ((2, 5, 4), (4, 3), (1, 1, 3), True),
    ((2, 5, 4), (2, 4, 3), (3,), True),
    ((2, 5, 4), (2, 4, 3), (2, 1, 3), True),
    ((2, 5, 4), (2, 4, 3), (2, 1, 1), True),
    ((4,), (2, 4, 3), (2, 3), True),
    ((4,), (4, 3), (3,), True),
    ((5, 4), (4,), (1,), True),
    ((5, 4), (4, 3), (5, 1), False),
    ((5, 4), (4, 3), (5, 3), False),
    ((5, 4), (4, 3), (1, 1, 3), False),
    ((5, 4), (4, 3), (2, 1, 3), False),
    ((2, 5, 4), (4, 3), (2, 1, 3), False),
    ((2, 5, 4), (2, 4, 3), (2, 5, 3), False),
    ((4,), (4,), (1,), False),
]


@pytest.mark.parametrize(("x", "w", "b", "is_bias"), BIASES)
@pytest.mark.parametrize("order", ["m, b", "b, m"])
def test_the_bias_behind_a_weight_on_the_right(x, w, b, is_bias, order):
    data, weight, bias = values(*x), values(*w, seed=2), values(*b, seed=3).reshape(b)
    y = (data @ weight + bias).shape
    body = f"m = MatMul (x, w) y = Add ({order})"
    model = build(f"float{shape(x)} x", f"float{shape(y)} y", body, {"w": weight, "b": bias})
    view = check(model, "MatMul", output="y" if is_bias else "m", x=data)
    assert view.bias == (Bias("y", order.split(", ").index("b")) if is_bias else None)


@pytest.mark.parametrize(
    ("w", "x", "b", "is_bias"),
    [
        ((3, 4), (4, 5), (3, 1), True),
        ((3, 4), (2, 4, 5), (3, 1), True),
        ((2, 3, 4), (2, 4, 5), (2, 3, 1), True),
        ((2, 3, 4), (4,), (2, 3), True),
        ((3, 4), (4,), (3,), True),
        ((3, 4), (4, 5), (5,), False),
        ((3, 4), (4, 5), (3, 5), False),
    ],
)
def test_the_bias_behind_a_weight_on_the_left(w, x, b, is_bias):
    data, weight, bias = values(*x), values(*w, seed=2), values(*b, seed=3)
    y = (weight @ data + bias).shape
    body = "m = MatMul (w, x) y = Add (m, b)"
    model = build(f"float{shape(x)} x", f"float{shape(y)} y", body, {"w": weight, "b": bias})
    view = check(model, "MatMul", output="y" if is_bias else "m", x=data)
    assert (view.bias is not None) == is_bias


def test_an_addition_that_is_no_bias_is_not_taken_for_one():
    body = "m = MatMul (x, w) y = Add (m, v)"
    model = build("float[5,4] x, float[3] v", "float[5,3] y", body, {"w": (4, 3)})
    assert check(model, "MatMul", output="m", x=values(5, 4), v=values(3)).bias is None
    body = "m = MatMul (x, w) y = Add (m, b) z = Relu (m)"
    model = build("float[5,4] x", "float[5,3] y, float[5,3] z", body, {"w": (4, 3), "b": (3,)})
    assert check(model, "MatMul", output="m", x=values(5, 4)).bias is None


@pytest.mark.parametrize("body", ["y = Gemm (x, w, b)", "m = MatMul (x, w) y = Add (m, b)"])
@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_other_precisions(body, kind):
    name = {np.float16: "float16", np.float64: "double"}[kind]
    weights = {"w": values(4, 3).astype(kind), "b": values(3).astype(kind)}
    model = build(f"{name}[5,4] x", f"{name}[5,3] y", body, weights)
    tolerance = 2e-2 if kind == np.float16 else 1e-9
    check(model, body.split()[2], tolerance=tolerance, x=values(5, 4).astype(kind))


@pytest.mark.parametrize(
    ("turn", "w"),
    [
        ("v = Transpose (w)", (3, 4)),
        ("v = Transpose <perm=[0,1]> (w)", (4, 3)),
        ("v = Identity (w)", (4, 3)),
        ("v = Cast <to=1> (w)", (4, 3)),
        ("v = Reshape (w, s)", (2, 6)),
        ("u = Identity (w) c = Cast <to=1> (u) v = Transpose (c)", (3, 4)),
        ("v = Constant <value_floats=[1.0,2.0,3.0,4.0]> ()", None),
    ],
)
def test_weights_behind_other_nodes(turn, w):
    kind = np.float64 if "Cast" in turn else np.float32
    weights = {} if w is None else {"w": values(*w).astype(kind), "s": ints(4, -1)}
    result = "float[5] y" if w is None else "float[5,3] y"
    model = build("float[5,4] x", result, f"{turn} y = MatMul (x, v)", weights)
    view = check(model, "MatMul", x=values(5, 4))
    tensor = view.op.node.inputs[1]
    assert weight_chain(tensor)[-1] is tensor
    assert not is_shared(tensor)


def test_shared_weights_are_known():
    body = "v = Transpose (w) a = MatMul (x, v) y = MatMul (a, w)"
    found = analysed(build("float[5,4] x", "float[5,4] y", body, {"w": (3, 4)}))
    assert [is_shared(view.op.node.inputs[1]) for op in found.ops for view in linear_views(op)] == [
        True,
        True,
    ]


@pytest.mark.parametrize("turn", ["v = Neg (w)", "v = Cast <to=1> (w)", "v = Transpose (u)"])
def test_what_is_computed_is_no_weight(turn):
    weight = np.ones((4, 3), np.int32 if "Cast" in turn else np.float32)
    inputs = "float[5,4] x, float[3,4] u"
    found = analysed(build(inputs, "float[5,3] y", f"{turn} y = MatMul (x, v)", {"w": weight}))
    assert linear_views(operator(found, "MatMul")) == []
    assert weight_chain(operator(found, "MatMul").node.inputs[1]) is None
    with pytest.raises(ValueError, match="v is no weight"):
        weight_values(operator(found, "MatMul").node.inputs[1])


@pytest.mark.parametrize(
    ("inputs", "node", "weights"),
    [
        ("float[5,4] x, float[4,3] v", "y = MatMul (x, v)", {}),
        ("float[5,4] x, float[4,3] v", "y = Gemm (x, v)", {}),
        ("float[5,4] x", "y = Gemm <alpha=0.0> (x, w)", {"w": (4, 3)}),
        ("float[5,4] x", "y = Gemm (x, w, b)", {"w": (4, 3), "b": (5, 1)}),
        ("float[5,4] x", "y = Gemm (x, w, b)", {"w": (4, 3), "b": (5, 3)}),
        ("float[5,4] x, float[5,3] v", "y = Gemm (x, w, v)", {"w": (4, 3)}),
        ("float[5,4] x", "y = Add (x, w)", {"w": (4,)}),
        ("int32[5,4] x", "y = MatMul (x, w)", {"w": np.ones((4, 3), np.int32)}),
    ],
)
def test_what_is_not_a_product_with_a_matrix_and_a_vector(inputs, node, weights):
    kind = "int32" if "int32" in inputs else "float"
    assert linear_views(analysed(build(inputs, f"{kind} y", node, weights)).ops[0]) == []


@pytest.mark.parametrize(
    ("x", "weights", "body"),
    [
        ((5, 4), {"w": (4, 3)}, "y = Gemm <beta=0.5> (x, w)"),
        ((5, 4), {"w": (4, 3), "b": (1,)}, "y = Gemm <beta=2.0> (x, w, b)"),
        ((2, 5, 4), {"w": (2, 4, 3), "b": (3,)}, "m = MatMul (x, w) y = Add (m, b)"),
        ((2, 5, 4), {"w": (3, 5), "b": (1,)}, "m = MatMul (w, x) y = Add (b, m)"),
        ((2, 6, 5), {"w": (4, 3, 2)}, "y = Conv <group=2> (x, w)"),
        ((2, 6, 5), {"w": (6, 2, 2), "b": (4,)}, "y = ConvTranspose <group=2> (x, w, b)"),
    ],
)
def test_the_graph_adds_the_bias_that_was_written(x, weights, body):
    rank = "".join(",d" + str(k) for k in range(len(x) - 1))
    found = analysed(build(f"float{shape(x)} x", f"float[e{rank}] y", body, weights))
    op = next(op for op in found.ops if linear_views(op))
    (view,) = linear_views(op)
    node, nodes, data = op.node, nodes_of(found), values(*x)
    bias = read_bias(view, nodes)
    new = np.random.default_rng(3).standard_normal(bias.shape)
    write_bias(view, nodes, new)
    (y,) = run(session(to_model(found.graph)), {"x": data})
    places = np.arange(view.count(lambda _: data))
    matrices = view.matrices(node, weight_values(node.inputs[view.weight]))
    expected = view.rows(node, lambda _: data, places) @ matrices + new
    np.testing.assert_allclose(view.results(y, places, len(matrices)), expected, rtol=1e-4, atol=1e-4)


def test_a_bias_that_is_not_there_cannot_be_written():
    found = analysed(build("float[5,4] x", "float[5,3] y", "y = MatMul (x, w)", {"w": (4, 3)}))
    (view,) = linear_views(found.ops[0])
    with pytest.raises(ValueError, match="nothing is added to MatMul y"):
        write_bias(view, nodes_of(found), np.zeros((1, 1, 3)))
