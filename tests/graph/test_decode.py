"""Weights that are stored as indices and a table are read as constants; whatever only looks like that stays."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from ops.oracle import build

from surgeon.graph.decode import decode
from surgeon.graph.load import from_model
from surgeon.graph.source import source_of
from surgeon.stats.encode import encode
from surgeon.stats.matrices import weights_of


def encoded(values: int, *, then: str = "") -> gs.Graph:
    """A product whose weight has so many values, encoded."""
    model = build("float[N,60] x", "float y", f"y = MatMul (x, w) {then}", {"w": (60, 90)})
    graph = from_model(model)
    (weight,) = weights_of(graph)
    matrices = np.rint(weight.matrices() * 100) % values
    weight.set(matrices.astype(np.float32))
    encode(graph, [weight], values)
    return graph


@pytest.mark.parametrize(("values", "bits"), [(2, 1), (4, 2), (16, 4), (200, 8)])
def test_the_same_constant_comes_back(values: int, bits: int) -> None:
    graph = encoded(values)
    assert len(graph.nodes) > 1
    assert decode(graph) == {"w": bits}
    assert [node.op for node in graph.nodes] == ["MatMul"]
    found = graph.nodes[0].inputs[1]
    assert (found.name, found.values.shape, found.values.dtype) == ("w", (60, 90), np.float32)
    assert set(np.unique(found.values)) <= set(range(values))
    assert decode(graph) == {}


def test_a_name_that_is_taken_is_left_to_who_has_it() -> None:
    graph = encoded(4)
    x = graph.inputs[0]
    made = gs.Variable("z", np.float32)
    graph.nodes.append(gs.Node("Mul", "z", {}, [x, gs.Constant("w", np.ones(60, np.float32))], [made]))
    graph.outputs.append(made)
    assert decode(graph) == {"w/surgeon/weight": 2}


def test_what_is_an_output_and_what_is_looked_up_otherwise_stay() -> None:
    graph = encoded(4)
    graph.outputs.append(graph.nodes[-1].inputs[1])
    assert decode(graph) == {}
    body = "k = Cast <to=6> (places) w = Gather (table, k) y = MatMul (x, w)"
    places = np.arange(12).reshape(4, 3).astype(np.uint8)
    table = np.arange(12, dtype=np.float32)
    other = from_model(build("float[N,4] x", "float y", body, {"places": places, "table": table}))
    assert len(other.nodes) == 3
    source = source_of(other)
    assert source is not None
    assert source.encoded == {}
