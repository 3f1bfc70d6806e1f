"""Derivatives of operators that take elements by index, and of those that put them somewhere."""

from __future__ import annotations

import numpy as np
import pytest
from grad.oracle import check
from ops.oracle import build, ints

from surgeon.grad import gradient
from surgeon.graph.load import from_model

IDS = np.array([[0, 2, 2, -1], [3, 0, 1, 2]])


@pytest.mark.parametrize("opset", [11, 13, 16, 21])
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("ids", [IDS, ints(2, 0, 2), np.int64(1)])
def test_gather(axis, ids, opset):
    shape = [3, 5, 4]
    shape[axis] = 4
    out = ",".join("PQRS"[: 2 + ids.ndim])
    sizes, wide = ",".join(map(str, shape)), f"[{','.join(map(str, ids.shape))}]" if ids.ndim else ""
    body, x = f"y = Gather <axis={axis}> (x, i)", tuple(shape)
    check(f"T[{sizes}] x", f"T[{out}] y", body, {"x": x}, {"i": ids}, opset=opset)
    check(f"T[{sizes}] x, int64{wide} i", f"T[{out}] y", body, {"x": x, "i": ids}, opset=opset)


def test_embedding():
    body = "y = Gather (w, i)"
    check("int64[N,L] i", "T[N,L,3] y", body, {"i": IDS}, {"w": (5, 3)})
    check("int32[N,L] i", "T[N,L,3] y", body, {"i": IDS.astype(np.int32)}, {"w": (5, 3)})
    check("int64[N,L] i", "T[N,L,3] y", body, {"i": IDS}, {"w": (5, 3)}, opset=9)


def test_gather_of_open_sizes():
    body = "y = Gather <axis=1> (x, i)"
    check("T[N,M,3] x", "T[N,2,4,3] y", body, {"x": (2, 5, 3)}, {"i": IDS})
    check("T[N,M,3] x", "T[N,3] y", body, {"x": (2, 5, 3)}, {"i": np.int64(-1)})


def test_gather_of_one_place_by_many():
    ids = np.r_[np.zeros(300, np.int64), 40]
    for opset in (13, 21):
        check(
            "T[N,41] x", "T[N,301] y", "y = Gather <axis=1> (x, i)", {"x": (2, 41)}, {"i": ids}, opset=opset
        )


def test_gather_elements():
    body = "y = GatherElements <axis=1> (x, i)"
    for opset in (11, 13, 21):
        check("T[N,4] x, int64[N,4] i", "T[N,4] y", body, {"x": (2, 4), "i": IDS}, opset=opset)
    body0, ids = "y = GatherElements <axis=0> (x, i)", np.clip(IDS, 0, 1)
    for opset in (11, 21):
        check("T[2,4] x", "T[2,4] y", body0, {"x": (2, 4)}, {"i": ids}, opset=opset)
    check("T[N,M] x, int64[N,L] i", "T[N,L] y", body, {"x": (2, 5), "i": IDS})


@pytest.mark.parametrize("batch", [0, 1])
def test_gather_nd(batch):
    ids = np.array([[[0], [1], [1]], [[1], [-1], [0]]])
    body = f"y = GatherND <batch_dims={batch}> (x, i)"
    out = "2,3,4" if batch else "2,3,3,4"
    check("T[2,3,4] x", f"T[{out}] y", body, {"x": (2, 3, 4)}, {"i": ids})
    check(
        "T[N,M,4] x",
        "T[P,4] y",
        "y = GatherND (x, i)",
        {"x": (2, 3, 4)},
        {"i": ints(1, 2, 0, 1, 1, 2).reshape(3, 2)},
    )


def test_compress():
    kept = np.array([True, False, True])
    check("T[N,3] x", "T[N,2] y", "y = Compress <axis=1> (x, c)", {"x": (4, 3)}, {"c": kept}, opset=11)
    check("T[2,3] x", "T[2] y", "y = Compress (x, c)", {"x": (2, 3)}, {"c": kept})


@pytest.mark.parametrize("largest", [0, 1])
def test_top_k(largest):
    body = f"y, i = TopK <axis=1, largest={largest}> (x, k)"
    check("T[N,6] x", "T[N,2] y, int64[N,2] i", body, {"x": (3, 6)}, {"k": ints(2)})


def test_top_k_of_old():
    check(
        "T[N,6] x", "T[N,2] y, int64[N,2] i", "y, i = TopK <k=2> (x)", {"x": (3, 6)}, opset=9, reference=False
    )


@pytest.mark.parametrize("reduction", ["none", "add"])
def test_scatter_elements(reduction):
    ids = np.array([[0, 3], [2, 2 if reduction == "add" else 1]])
    body = f'y = ScatterElements <axis=1, reduction="{reduction}"> (x, i, u)'
    check("T[2,4] x, T[2,2] u", "T[2,4] y", body, {"x": (2, 4), "u": (2, 2)}, {"i": ids})


@pytest.mark.parametrize("reduction", ["none", "add"])
def test_scatter_nd(reduction):
    body = f'y = ScatterND <reduction="{reduction}"> (x, i, u)'
    ids = ints(2, 0).reshape(2, 1)
    check("T[3,4] x, T[2,4] u", "T[3,4] y", body, {"x": (3, 4), "u": (2, 4)}, {"i": ids})


@pytest.mark.parametrize(
    ("body", "opset", "reason"),
    [
        ("y = Gather (x, i)", 8, "Gather y: gradients of a selection that depends on data need opset 9"),
        (
            "y = GatherND (x, i)",
            13,
            "GatherND y: adding up gradients at places that depend on data needs opset 16",
        ),
        ('y = ScatterElements <reduction="mul"> (x, j, x)', 18, "ScatterElements y: it reduces by mul"),
        ('y = ScatterND <reduction="mul"> (x, j, x)', 18, "ScatterND y: it reduces by mul"),
    ],
)
def test_what_cannot_be_done_is_told(body, opset, reason):
    inputs = (
        "float[4,4] x, int64[1,2] i, int64[4,4] j" if "ND (x, j" not in body else "float[4,4] x, int64[4,1] j"
    )
    graph = from_model(build(inputs, "float[N,M] y", body, opset=opset))
    found = gradient(graph, lambda tape: tape.value(tape.graph.outputs[0]).sum(), ["x"])
    assert found.stopped["x"] == reason
