"""Every kind of weighted operator is refitted: what comes after a cut of its inputs gets nearer to the original."""

from __future__ import annotations

import numpy as np
import pytest
from ops.oracle import build
from refit import networks

from surgeon.engine import analyse
from surgeon.graph.load import from_model
from surgeon.graph.save import to_model
from surgeon.refit.fit import Effort
from surgeon.refit.sweep import refit
from surgeon.surgery import cut, keep_of


def images(middle, channels=5, spatial=(6, 6), **weights):
    """A convolution and a Relu before ``middle``, which makes ``[N, 5, ...]`` of ``r`` ``[N, 16, ...]``."""
    sizes, taps = ",".join(map(str, spatial)), (1,) * len(spatial)
    outs = ",".join(f"o{k}" for k in range(len(spatial)))
    return build(
        f"float[N,3,{sizes}] x", f"float[N,{channels},{outs}] y", f"a = Conv (x, w1, b1) r = Relu (a) {middle}",
        {"w1": (16, 3, *taps), "b1": (16,), **weights},
    )  # fmt: skip


def rows(middle, **weights):
    """A product and a Relu before ``middle``, which makes ``[N, 4, 5]`` of ``r`` ``[N, 4, 12]``."""
    body = f"a = MatMul (x, w1) r = Relu (a) {middle}"
    return build("float[N,4,6] x", "float[N,4,5] y", body, {"w1": (6, 12), **weights})


# the model, and the operators that sum over what was cut
CASES = {
    "1-D convolution": (images("y = Conv <strides=[2]> (r, w2)", spatial=(15,), w2=(5, 16, 3)), ["y"]),
    "3-D convolution": (images("y = Conv (r, w2, b2)", spatial=(4, 3, 3), w2=(5, 16, 2, 1, 2), b2=(5,)), ["y"]),
    "dilated convolution": (images("y = Conv <dilations=[2,2], pads=[2,1,0,2]> (r, w2)", w2=(5, 16, 2, 2)), ["y"]),
    "transposed convolution": (
        images("y = ConvTranspose <strides=[2,2], pads=[1,0,0,1]> (r, w2, b2)", w2=(16, 5, 3, 3), b2=(5,)), ["y"]),
    "grouped transposed convolution": (
        images("t = ConvTranspose <strides=[2,2], group=4> (r, w2) y = Conv (t, w3)", w2=(16, 2, 2, 2), w3=(5, 8, 1, 1)),
        ["t", "y"]),
    "grouped convolution": (
        images("g = Conv <group=4> (r, w2) s = Relu (g) y = Conv (s, w3)", w2=(8, 4, 3, 3), w3=(5, 8, 1, 1)), ["g", "y"]),
    "depthwise convolution": (
        images("d = Conv <group=16, pads=[1,1,1,1]> (r, wd) s = Relu (d) p = Conv (s, w2) q = Relu (p)"
               " e = Conv <group=12> (q, we) y = Conv (e, w3)",
               wd=(16, 1, 3, 3), w2=(12, 16, 1, 1), we=(12, 1, 3, 3), w3=(5, 12, 1, 1)), ["p", "e", "y"]),
    "depthwise with a multiplier": (
        images("d = Conv <group=16> (r, wd) p = Conv (d, w2) q = Tanh (p) e = Conv <group=8> (q, we) y = Conv (e, w3)",
               wd=(32, 1, 2, 2), w2=(8, 32, 1, 1), we=(16, 1, 2, 2), w3=(5, 16, 1, 1)), ["p", "e", "y"]),
    "weight on the right": (rows("m = MatMul (r, w2) y = Add (m, b2)", w2=(12, 5), b2=(5,)), ["m"]),
    "weight on the left": (
        rows("t = Transpose <perm=[0,2,1]> (r) m = MatMul (w2, t) y = Transpose <perm=[0,2,1]> (m)", w2=(5, 12)), ["m"]),
    "batched product": (rows("t = Transpose <perm=[1,0,2]> (r) m = MatMul (t, w2) y = Transpose <perm=[1,0,2]> (m)",
                             w2=(4, 12, 5)), ["m"]),
    "batched product from the left": (
        rows("t = Transpose <perm=[1,2,0]> (r) m = MatMul (w2, t) y = Transpose <perm=[2,0,1]> (m)", w2=(4, 5, 12)), ["m"]),
    "product behind a SiLU": (
        rows("m = MatMul (r, w2) s = Sigmoid (m) p = Mul (m, s) n = MatMul (p, w3) y = Add (n, b3)",
             w2=(12, 8), w3=(8, 5), b3=(5,)), ["m", "n"]),
    "product behind a Gelu": (rows("m = MatMul (r, w2) p = Tanh (m) y = MatMul (p, w3)", w2=(12, 8), w3=(8, 5)), ["m", "y"]),
}  # fmt: skip


def first_part(found, share=0.25):
    """The last indices of every group go."""
    return {group.id: np.arange(group.size) < round(group.size * (1 - share)) for group in found.groups}


def refitted(model, x, axis=0, **options):
    found = analyse(from_model(model))
    keep = keep_of(first_part(found), {group.id: group.atom for group in found.groups})
    assert keep
    smaller = cut(found.analysis, keep)
    before = to_model(smaller)
    feeds = [{"x": part} for part in np.array_split(x, 8, axis=axis)]
    result = refit(found.analysis, smaller, keep, feeds, **options)
    return before, to_model(smaller), result


def data(model, count, seed):
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    return np.random.default_rng(seed).standard_normal((count, *shape[1:])).astype(np.float32)


def check_errors(model, result, before, after, unseen):
    """No operator gets worse on what is held out, some get better, and so does the model on what it never saw."""
    assert all(later <= earlier for earlier, later in result.errors.values()), result.errors
    assert any(later < earlier for earlier, later in result.errors.values()), result.errors
    wanted, *found = (networks.outputs(each, unseen) for each in (model, before, after))
    errors = [np.square(each - wanted).sum() for each in found]
    assert 0 < errors[1] < errors[0], errors


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("case", CASES)
def test_each_kind_of_product_is_refitted(case, seed):
    model, names = CASES[case]
    before, after, result = refitted(model, data(model, 160, seed), seed=seed)
    assert list(result.errors) == names
    check_errors(model, result, before, after, data(model, 80, 9))


@pytest.mark.parametrize("outputs", ["s, ", ", l"], ids=["states", "last"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_both_products_of_recurrent_layers_are_refitted(kind, direction, outputs):
    model = networks.layers(kind, direction, outputs=outputs)
    before, after, result = refitted(model, networks.sequences(120), axis=1)
    last = "s" if outputs == "s, " else "l"
    assert len(result.errors) == 5
    assert [each for each in result.errors if each.startswith("r")] == ["r[1]", "r[2]"]
    assert last in "".join(result.errors)
    check_errors(model, result, before, after, networks.sequences(40, seed=9))


@pytest.mark.parametrize("case", CASES)
def test_what_is_set_is_what_was_judged(case):
    """Refitted once more from where it is, each operator starts at the error it ended with."""
    model, _ = CASES[case]
    found = analyse(from_model(model))
    keep = keep_of(first_part(found), {group.id: group.atom for group in found.groups})
    smaller = cut(found.analysis, keep)
    feeds = [{"x": part} for part in np.array_split(data(model, 80, 0), 8)]
    alone = Effort(joint=0)  # pairs are judged on places of their own
    once, again = (refit(found.analysis, smaller, keep, feeds, effort=alone) for _ in range(2))
    name = next(iter(once.errors))  # the first one has the same inputs both times
    assert again.errors[name][0] == pytest.approx(once.errors[name][1], rel=1e-3, abs=1e-9)


READERS = {
    "a relu": "s = Relu (m) y = Gemm (s, w4)",
    "a gate": "s = Sigmoid (m) p = Mul (s, m) y = Gemm (p, w4)",
    "a sum": "k = Gemm (x, w3) t = Add (m, k) y = Gemm (t, w4)",
    "a relu behind a sum": "k = Gemm (x, w3) t = Add (m, k) s = Relu (t) y = Gemm (s, w4)",
}


def refitted_result(reader):
    """The weight of ``m``, an output of the model, after a cut of what it is computed from."""
    weights = {"w1": (6, 12), "w2": (12, 8), "w3": (6, 8), "w4": (8, 5)}
    body = f"a = Gemm (x, w1) r = Relu (a) m = Gemm (r, w2) {reader}"
    used = {name: size for name, size in weights.items() if name in body}
    model = build("float[N,6] x", "float[N,5] y, float[N,8] m", body, used)
    found = analyse(from_model(model))
    (group,) = found.groups
    keep = {group.atom: np.arange(12) < 8}
    smaller = cut(found.analysis, keep)
    refit(found.analysis, smaller, keep, [{"x": part} for part in np.split(data(model, 400, 0), 8)])
    return networks.weights(to_model(smaller))["w2"]


@pytest.mark.parametrize("reader", READERS)
def test_a_result_that_is_an_output_too_is_fitted_as_such(reader):
    """Not as far as what reads it lets it through: the same weights as where only a linear operator reads it."""
    np.testing.assert_array_equal(refitted_result(READERS[reader]), refitted_result("y = Gemm (m, w4)"))
