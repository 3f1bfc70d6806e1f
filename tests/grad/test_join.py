"""Derivatives of operators that join, split, cut and pad."""

from __future__ import annotations

import numpy as np
import pytest
from grad.oracle import check
from hypothesis import given, settings
from hypothesis import strategies as some
from ops.oracle import ints


def cut(x, bounds, *, inputs=None, opset=21, **options):
    names = ",".join(map(str, inputs or x))
    weights = {name: ints(*each) for name, each in zip("beas", bounds, strict=False)}
    body = f"y = Slice (x, {', '.join(weights)})"
    out = ",".join("PQRS"[: len(x)])
    return check(f"T[{names}] x", f"T[{out}] y", body, {"x": x}, weights, opset=opset, **options)


def pad(x, pads, mode="constant", *, inputs=None, opset=21, axes=None, **options):
    names = ",".join(map(str, inputs or x))
    out = ",".join("PQRS"[: len(x)])
    weights = {"p": ints(*pads), **({} if axes is None else {"a": ints(*axes)})}
    body = f'y = Pad <mode="{mode}"> (x, p{"" if axes is None else ", , a"})'
    return check(f"T[{names}] x", f"T[{out}] y", body, {"x": x}, weights, opset=opset, **options)


@pytest.mark.parametrize(("opset", "axis"), [(8, 1), (10, 1), (11, -2), (13, 1), (21, -2)])
def test_concat(opset, axis):
    feeds = {"a": (2, 3, 4), "b": (2, 1, 4), "c": (2, 2, 4)}
    body = f"y = Concat <axis={axis}> (a, b, c)"
    check("T[N,3,4] a, T[N,1,4] b, T[N,2,4] c", "T[N,6,4] y", body, feeds, opset=opset)


def test_concat_of_open_sizes():
    feeds = {"a": (2, 3), "b": (5, 3), "c": (4, 3)}
    check("T[L,3] a, T[5,3] b, T[M,3] c", "T[P,3] y", "y = Concat <axis=0> (b, a, c)", feeds)
    check("T[L,3] a, T[5,3] b, T[M,3] c", "T[P,3] y", "y = Concat <axis=0> (a, b, c)", feeds, opset=10)


@pytest.mark.parametrize("opset", [8, 11, 13, 21])
def test_split(opset):
    weights = {"s": ints(1, 3, 2)} if opset >= 13 else {}
    body = "a, b, c = Split <axis=1> (x, s)" if weights else "a, b, c = Split <axis=1, split=[1,3,2]> (x)"
    check("T[N,6] x", "T[N,1] a, T[N,2] c", body, {"x": (4, 6)}, weights, opset=opset)


@pytest.mark.parametrize(("opset", "attributes"), [(13, "axis=1"), (21, "axis=-1, num_outputs=2")])
def test_split_into_equal_parts(opset, attributes):
    check("T[N,6] x", "T[N,3] a, T[N,3] b", f"a, b = Split <{attributes}> (x)", {"x": (4, 6)}, opset=opset)


def test_split_into_uneven_parts():
    check("T[N,5] x", "T[N,3] a, T[N,2] b", "a, b = Split <axis=1, num_outputs=2> (x)", {"x": (4, 5)})


@pytest.mark.parametrize("opset", [10, 11, 13, 21])
@pytest.mark.parametrize(
    "bounds",
    [
        ((1, 0), (3, 4)),
        ((1,), (-1,), (-1,)),
        ((0, 1), (1000, -1000), (0, 1), (2, -1)),
        ((-1, -2), (-1000, 0), (1, 0), (-2, -3)),
        ((3,), (1000,), (1,), (3,)),
    ],
)
def test_slice(bounds, opset):
    cut((5, 6), bounds, opset=opset)


@pytest.mark.parametrize(
    "bounds",
    [
        ((1,), (1000,), (0,)),
        ((-2,), (1000,), (0,)),
        ((0,), (-1,), (0,), (2,)),
        ((-1,), (-1000,), (0,), (-1,)),
        ((-2,), (0,), (0,), (-3,)),
        ((2,), (3,), (1,)),
    ],
)
def test_slice_of_open_sizes(bounds):
    cut((7, 6), bounds, inputs=("N", 6), opset=11)


def test_slice_of_nothing():
    cut((5, 6), ((3,), (2,), (1,)), runtime=False)


def test_slice_by_attributes():
    body = "y = Slice <starts=[-3,1], ends=[1000,4], axes=[0,1]> (x)"
    check("T[5,6] x", "T[3,3] y", body, {"x": (5, 6)}, opset=8)


def test_slice_up_to_a_size():
    body = "n = Shape <start=0, end=1> (z)\nb = Constant <value = int64[1] {1}> ()\ny = Slice (x, b, n)"
    check("T[5,6] x, T[N] z", "T[P,6] y", body, {"x": (5, 6), "z": (3,)}, wrt=["x"])


@given(some.data())
@settings(max_examples=25, deadline=None)
def test_slices(data):
    shape = data.draw(some.lists(some.integers(1, 6), min_size=1, max_size=3))
    axes = data.draw(some.permutations(range(len(shape))))[: data.draw(some.integers(1, len(shape)))]
    steps = [data.draw(some.sampled_from([-3, -2, -1, 1, 2, 3])) for _ in axes]
    spans = [sorted(data.draw(some.tuples(*[some.integers(0, shape[axis] - 1)] * 2))) for axis in axes]
    starts = [low if step > 0 else high for (low, high), step in zip(spans, steps, strict=True)]
    ends = [
        high + 1 if step > 0 else (low - 1 if low else -1000)
        for (low, high), step in zip(spans, steps, strict=True)
    ]
    cut(tuple(shape), (starts, ends, axes, steps))


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect"])
@pytest.mark.parametrize("opset", [11, 13, 18, 21])
@pytest.mark.parametrize("inputs", [(4, 5), ("N", 5), ("N", "M")])
def test_pad(mode, opset, inputs):
    pad((4, 5), (1, 0, 2, 3), mode, opset=opset, inputs=inputs)


def test_pad_of_axes():
    pad((4, 5), (2, 1), axes=(1,))
    pad((4, 5), (2, 1), "reflect", axes=(-1,))
    pad((4, 5), (2, 1), "wrap", axes=(-1,))


def test_negative_pad():
    pad((4, 5), (-1, 2, 1, -2), reference=False)
    pad((4, 5), (-1, 0, 0, -2), reference=False, inputs=("N", "M"))


def test_pad_by_attributes():
    body = 'y = Pad <pads=[1,0,2,3], mode="edge"> (x)'
    check("T[4,5] x", "T[7,8] y", body, {"x": (4, 5)}, opset=8)
    check("T[N,5] x", "T[M,8] y", "y = Pad <pads=[1,0,2,3]> (x)", {"x": (4, 5)}, opset=8)


def test_pad_by_a_size():
    body = (
        "n = Shape (z)\nz0 = Constant <value = int64[1] {0}> ()\np = Concat <axis=0> (n, z0)\ny = Pad (x, p)"
    )
    check("T[5] x, T[N] z", "T[P] y", body, {"x": (5,), "z": (3,)}, wrt=["x"])


@given(some.data())
@settings(max_examples=25, deadline=None)
def test_pads(data):
    shape = data.draw(some.lists(some.integers(2, 5), min_size=1, max_size=3))
    mode = data.draw(some.sampled_from(["constant", "edge", "reflect", "wrap"]))
    ends = [[data.draw(some.integers(0, size - 1)) for size in shape] for _ in range(2)]
    inputs = [data.draw(some.sampled_from([size, f"d{k}"])) for k, size in enumerate(shape)]
    pad(tuple(shape), np.ravel(ends).tolist(), mode, inputs=inputs)
