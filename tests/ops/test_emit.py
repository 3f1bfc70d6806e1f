"""Re-emitting nodes: attributes, sizes and targets follow from what is left, with dynamic dimensions still dynamic."""

from __future__ import annotations

import numpy as np
import pytest
from ops.oracle import build, check, check_cut, drop, features, ints, of_size, solved

from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session


def dynamic_attention(target: str) -> object:
    """Heads of 3 x 4 with a batch and a length that are open, and a target computed from a shape."""
    return build(
        "float[N,T,5] x",
        "float[N,T,3] y",
        f"""
        a = MatMul (x, w_in)
        s = Shape (a)
        n = Slice (s, zero, one)
        t = Slice (s, one, two)
        {target}
        r = Reshape (a, split)
        p = Transpose <perm=[0,2,1,3]> (r)
        e = Relu (p)
        q = Transpose <perm=[0,2,1,3]> (e)
        b = Reshape (q, s)
        y = MatMul (b, w_out)
        """,
        {
            "w_in": (5, 12),
            "zero": ints(0),
            "one": ints(1),
            "two": ints(2),
            "h": ints(3),
            "d": ints(4),
            "minus": ints(-1),
            "w_out": (12, 3),
        },
    )


@pytest.mark.parametrize(
    "target",
    [
        "split = Concat <axis=0> (n, t, h, d)",
        "split = Concat <axis=0> (n, t, h, minus)",
        "split = Concat <axis=0> (n, minus, h, d)",
    ],
)
def test_targets_of_reshapes_work_at_any_size(target):
    found = check(dynamic_attention(target), [3, 4])
    smaller = check_cut(found, {of_size(found, 3).id: drop(3, 0), of_size(found, 4).id: drop(4, 1, 2)})
    runner = session(to_model(smaller))
    for batch, length in ((1, 1), (1, 9), (5, 2)):
        (out,) = run(runner, {"x": np.ones((batch, length, 5), np.float32)})
        assert out.shape == (batch, length, 3)


def test_the_original_graph_is_not_changed_by_a_cut():
    found = solved(
        features("r = Reshape (a, s)\nb = Reshape (r, j)", 12, {"s": ints(0, 0, 3, 4), "j": ints(0, 0, -1)})
    )
    before = to_model(found.analysis.graph).SerializeToString(deterministic=True)
    check_cut(found, {group.id: drop(group.size, 0) for group in found.groups})
    assert to_model(found.analysis.graph).SerializeToString(deterministic=True) == before


def test_a_cut_is_the_same_every_time():
    found = solved(
        features("r = Reshape (a, s)\nb = Reshape (r, j)", 12, {"s": ints(0, 0, 3, 4), "j": ints(0, 0, -1)})
    )
    kept = {group.id: drop(group.size, 0) for group in found.groups}
    first, second = (to_model(found.cut(kept)[0]).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_constants_shared_by_a_cut_and_a_whole_use_come_apart():
    """One target for two Reshapes of which only one shrinks."""
    body = """
    r = Reshape (a, s)
    p = Relu (r)
    b = Reshape (p, j)
    c = Reshape (x2, s)
    """
    model = build(
        "float[N,7,5] x, float[N,7,12] x2",
        "float[N,7,3] y, float[N,7,3,4] c",
        f"a = MatMul (x, w_in)\n{body}\ny = MatMul (b, w_out)",
        {"w_in": (5, 12), "s": ints(-1, 7, 3, 4), "j": ints(-1, 7, 12), "w_out": (12, 3)},
    )
    check(model, [3, 4])


def test_a_weight_shared_by_rescaled_and_other_uses_comes_apart():
    """RMS norm multiplies its scale; the sum that reads the same vector must not see that."""
    body = "n = RMSNormalization (a, s)\nb = Add (n, s)"
    check(features(body, 12, {"s": (12,)}, opset=23), [12])


def test_slices_and_sizes_with_dynamic_bounds_keep_what_is_dynamic():
    body = """
    s = Shape (x)
    t = Gather (s, one)
    l = Sub (t, one)
    ends = Concat <axis=0> (l, six)
    b = Slice (a, zeros, ends, axes)
    """
    model = build(
        "float[N,T,5] x",
        "float[N,U,3] y",
        f"a = MatMul (x, w_in)\n{body}\ny = MatMul (b, w_out)",
        {
            "w_in": (5, 12),
            "one": ints(1),
            "six": ints(6),
            "zeros": ints(0, 0),
            "axes": ints(1, 2),
            "w_out": (6, 3),
        },
    )
    check(model, [6, 6])
