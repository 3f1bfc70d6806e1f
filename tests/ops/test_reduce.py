"""Reductions: over what stays they change nothing, over a cut axis they are exact where removed values are zero."""

from __future__ import annotations

import pytest
from ops.oracle import check, check_cut, drop, features, images, ints, only, reasons, solved

ALL = (
    *("ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceMean"),
    *("ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSum", "ReduceLogSumExp"),
)
EXACT = ALL[:5]


def axes_of(op: str, opset: int, axis: int, keepdims: int = 1) -> tuple[str, dict]:
    """Attributes and weights that say along which axis is reduced."""
    if opset >= 18 or (op == "ReduceSum" and opset >= 13):
        return f"<keepdims={keepdims}> (p, axes)", {"axes": ints(axis)}
    return f"<axes=[{axis}], keepdims={keepdims}> (p)", {}


@pytest.mark.parametrize("op", ALL)
@pytest.mark.parametrize("opset", [11, 18])
def test_reductions_of_other_axes_let_the_channels_pass(op, opset):
    call, weights = axes_of(op, opset, 1)
    check(features(f"p = Exp (a)\nr = {op} {call}\nb = Add (r, a)", 12, weights, opset=opset), [12])


@pytest.mark.parametrize("op", EXACT)
@pytest.mark.parametrize("opset", [11, 18])
def test_sums_and_means_over_the_channels_are_exact(op, opset):
    call, weights = axes_of(op, opset, -1)
    model = features(f"p = Relu (a)\nr = {op} {call}\nb = Add (r, a)", 12, weights, opset=opset)
    check(model, [12])


@pytest.mark.parametrize("op", EXACT)
def test_sums_over_channels_that_masking_leaves_nonzero_are_structural(op):
    call, weights = axes_of(op, 18, -1)
    model = features(f"p = Sigmoid (a)\nr = {op} {call}\nb = Add (r, a)", 12, weights, opset=18)
    found = check(model, [12], structural=[12])
    assert f"{op} runs over it" in found.groups[0].structural


@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSum", "ReduceLogSumExp"])
def test_other_statistics_over_the_channels_are_structural(op):
    call, weights = axes_of(op, 18, -1)
    model = features(f"p = Exp (a)\nr = {op} {call}\nb = Add (r, a)", 12, weights, opset=18)
    check(model, [12], structural=[12])


def test_a_mean_over_a_cut_axis_is_rescaled():
    found = solved(features("p = Relu (a)\nr = ReduceMean <axes=[2]> (p)\nb = Add (r, a)", 12, opset=17))
    smaller = check_cut(found, {found.groups[0].id: drop(12, 0, 1, 2)})
    assert only(smaller, "Mul").inputs[1].values == pytest.approx(9 / 12)


def test_a_mean_over_channels_and_space():
    """Each channel has a bias, so that masked ones are zero only because the bias is masked too."""
    body = "r = ReduceMean (a, axes)\nb = Add (r, a)"
    check(images(body, 12, {"axes": ints(1, 2, -1)}), [12])


@pytest.mark.parametrize("keepdims", [0, 1])
def test_keepdims(keepdims):
    grow = "" if keepdims else "u = Unsqueeze (r, one)\n"
    last = "r" if keepdims else "u"
    body = f"p = Relu (a)\nr = ReduceSum <keepdims={keepdims}> (p, one)\n{grow}b = Add ({last}, a)"
    check(features(body, 12, {"one": ints(1)}), [12])


def test_a_reduction_of_no_axes():
    check(features("b = ReduceSum <noop_with_empty_axes=1> (a)", 12), [12])


def test_a_reduction_of_all_axes():
    check(features("p = Relu (a)\ns = ReduceSum <keepdims=0> (p)\nb = Add (a, s)", 12), [12])


def test_reduced_axes_that_are_computed_are_a_barrier():
    body = "m = ReduceMax <keepdims=0> (x)\ni = Cast <to=7> (m)\nj = Unsqueeze (i, zero)\ns = ReduceSum (a, j)\nb = Add (s, a)"
    found = solved(features(body, 12, {"zero": ints(0)}))
    assert found.groups == []
    assert "the reduced axes are computed while the model runs" in reasons(found)


def test_global_response_normalisation():
    """ConvNeXt V2: the norm of each channel over space, divided by its mean over channels."""
    body = """
    n = ReduceL2 <keepdims=1> (p, space)
    m = ReduceMean <keepdims=1> (n, last)
    e = Add (m, epsilon)
    r = Div (n, e)
    g = Mul (p, r)
    h = Mul (g, gamma)
    k = Add (h, beta)
    q = Add (k, p)
    b = Transpose <perm=[0,3,1,2]> (q)
    """
    import numpy as np

    weights = {
        "space": ints(1, 2),
        "last": ints(-1),
        "epsilon": np.float32(1e-3),
        "gamma": (12,),
        "beta": (12,),
    }
    start = "t = Transpose <perm=[0,2,3,1]> (a)\np = Gelu (t)\n"
    check(images(start + body, 12, weights), [12])
