"""Derivatives of resizing."""

from __future__ import annotations

import numpy as np
import pytest
from grad.oracle import check
from ops.oracle import build, ints

from surgeon.grad.differentiate import gradient
from surgeon.graph.load import from_model

MODES = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric")


def resize(attributes, given, x=(2, 3, 4, 5), *, inputs=None, opset=19, body=None, **options):
    """By scales (floats) or sizes (integers)."""
    names = ",".join(map(str, inputs or x))
    out = ",".join("PQRST"[: len(x)])
    weights = {"s": np.asarray(given, np.float32) if isinstance(given[0], float) else ints(*given)}
    body = body or f"y = Resize <{attributes}> (x, , {'s' if isinstance(given[0], float) else ', s'})"
    weights["f"] = np.zeros(0, np.float32)
    options = {"reference": False, "wrt": ["x"], **options}
    check(f"T[{names}] x", f"T[{out}] y", body, {"x": x}, weights, opset=opset, **options)


@pytest.mark.parametrize("given", [(1.0, 1.0, 2.0, 2.0), (1.0, 1.0, 1.6, 0.6), (2, 3, 7, 5), (2, 3, 3, 9)])
@pytest.mark.parametrize("inputs", [None, ("N", 3, "H", "W")])
@pytest.mark.parametrize("how", MODES)
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_resize(mode, how, inputs, given):
    resize(f'mode="{mode}", coordinate_transformation_mode="{how}"', given, inputs=inputs)


@pytest.mark.parametrize("rounding", ["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"])
@pytest.mark.parametrize("how", ["asymmetric", "half_pixel"])
@pytest.mark.parametrize("given", [(1.0, 1.0, 3.0, 2.0), (1.0, 1.0, 0.5, 1.5)])
def test_nearest(rounding, how, given):
    resize(f'mode="nearest", nearest_mode="{rounding}", coordinate_transformation_mode="{how}"', given)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_resize_of_other_ranks(mode):
    resize(f'mode="{mode}"', (1.0, 1.0, 2.5), x=(2, 3, 5))
    resize(f'mode="{mode}"', (1.0, 1.0, 2.0, 1.5, 0.5), x=(2, 3, 4, 4, 4))


@pytest.mark.parametrize("opset", [10, 11, 13, 18, 21])
@pytest.mark.parametrize("inputs", [None, ("N", 3, "H", "W")])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("given", [(1.0, 1.0, 2.0, 2.0), (1.0, 1.0, 1.5, 0.6)])
def test_resize_of_all_opsets(mode, inputs, given, opset):
    body = 'y = Resize <mode="{}"> (x, {})'.format(
        mode, "s" if opset == 10 else "f, s" if opset < 13 else ", s"
    )
    resize("", given, inputs=inputs, opset=opset, body=body)


def test_sizes_before_empty_inputs():
    resize("", (2, 3, 7, 9), opset=11, body='y = Resize <mode="linear"> (x, f, f, s)')


@pytest.mark.parametrize("inputs", [None, ("N", 3, "H", "W")])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_resize_to_the_size_of_another(mode, inputs):
    names = ",".join(map(str, inputs or (2, 3, 4, 5)))
    body = f'h = Shape (z)\ny = Resize <mode="{mode}"> (x, , , h)'
    feeds = {"x": (2, 3, 4, 5), "z": (2, 3, 7, 8)}
    check(f"T[{names}] x, T[N,3,P,Q] z", "T[N,3,P,Q] y", body, feeds, wrt=["x"], reference=False)


def test_axes():
    resize('mode="linear", axes=[3,2]', (2.0, 1.5))
    resize('mode="nearest", axes=[2,3]', (8, 9))


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
def test_proportions(policy):
    attributes = f'mode="linear", axes=[2,3], keep_aspect_ratio_policy="{policy}"'
    resize(attributes, (9, 8))


def test_proportions_that_are_rounded_up():
    """No scale makes six places of five: the operator rounds 5.6."""
    body = 'y = Resize <mode="linear", axes=[2,3], keep_aspect_ratio_policy="not_larger"> (x, , , s)'
    graph = from_model(
        build(
            "float[2,3,5,4] x",
            "float z",
            f"{body}\nz = ReduceSum <keepdims=0> (y)",
            {"s": ints(7, 9)},
            opset=18,
        )
    )
    assert "whole number of places" in gradient(graph, "z", ["x"]).stopped["x"]


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_antialiasing(mode):
    resize(f'mode="{mode}", antialias=1', (1.0, 1.0, 0.5, 0.7))


def test_crop_and_resize():
    roi = np.array([0, 0, 0.2, 0.1, 1, 1, 0.8, 1.2], np.float32)
    attributes = 'mode="linear", coordinate_transformation_mode="tf_crop_and_resize", extrapolation_value=3.0'
    body = f"y = Resize <{attributes}> (x, r, , s)"
    weights = {"r": roi, "s": ints(2, 3, 6, 7)}
    check("T[2,3,4,5] x", "T[2,3,6,7] y", body, {"x": (2, 3, 4, 5)}, weights, wrt=["x"], reference=False)


@pytest.mark.parametrize("inputs", [None, ("N", 3, "H", "W")])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scale", [2, 1.5])
def test_upsample(mode, scale, inputs):
    body = f'y = Upsample <mode="{mode}"> (x, s)'
    resize("", (1.0, 1.0, 2.0, float(scale)), inputs=inputs, opset=9, body=body)
    body = f'y = Upsample <mode="{mode}", scales=[1.0, 1.0, 2.0, {scale:.1f}]> (x)'
    resize("", (1.0,), opset=8, body=body)
