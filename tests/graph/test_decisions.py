"""What hangs on a comparison of dynamic sizes is dynamic even where the sizes tried decide it alike."""

from __future__ import annotations

import numpy as np

from surgeon.graph.load import from_model
from surgeon.graph.shapes import infer


def test_comparisons_and_what_is_computed_from_them(parse) -> None:
    shapes = infer(
        from_model(
            parse(
                "net (float[N,4,6] x) => (float[N,4,6] y) { s = Shape (x)  c = Equal (s, ones)  n = Not (c)"
                " w = Where (c, ones, s)  t = Gather (w, last)  u = Concat <axis = 0> (t, last)"
                " a = ReduceMax <keepdims = 0> (w)  y = Expand (x, w) }",
                ones=np.array([1, 1, 1]),
                last=np.array([2, 0]),
            )
        )
    )
    dynamic = {name: value.dynamic.tolist() for name, value in shapes.values.items()}
    assert dynamic["c"] == dynamic["n"] == dynamic["w"] == [True, False, False]
    assert dynamic["t"] == [False, True]
    assert dynamic["u"] == [False, True, False, False]
    assert dynamic["a"] is True


def test_what_is_not_selected_does_not_count(parse) -> None:
    shapes = infer(
        from_model(
            parse(
                "net (float[N,4] x) => (float[N,4] y) { s = Shape (x)  c = Equal (s, s)  m = Cast <to = 9> (mask)"
                " w = Where (m, s, ones)  e = Equal (w, ones)  y = Expand (x, s) }",
                ones=np.array([1, 1]),
                mask=np.array([0, 1]),
            )
        )
    )
    assert shapes.values["c"].dynamic.tolist() == [True, False]
    assert shapes.values["e"].dynamic.tolist() == [False, False]
