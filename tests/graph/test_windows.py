"""Sizes at which a convolution cannot run are refused."""

from __future__ import annotations

import numpy as np
import pytest

from surgeon.graph.load import from_model
from surgeon.graph.shapes import infer


@pytest.mark.parametrize(("length", "fits"), [(15, False), (16, True)])
@pytest.mark.parametrize(
    "operator",
    [
        "Conv <dilations = [3], pads = [1, 2]> (x, w)",
        "MaxPool <kernel_shape = [7], dilations = [3], pads = [1, 2]> (x)",
    ],
)
def test_windows_that_do_not_fit(parse, operator, length, fits) -> None:
    graph = from_model(
        parse(
            f"net (float[N,2,T] x) => (float[N,k,u] y) {{ y = {operator} }}", w=np.ones((3, 2, 7), np.float32)
        )
    )
    assert ("y" in infer(graph, {"T": length}).failures) is not fits


def test_sizes_that_fit_are_looked_for(parse) -> None:
    graph = from_model(
        parse(
            "net (float[N,2,T] x) => (float[N,3,u] y) { y = Conv <strides = [50]> (x, w) }",
            w=np.ones((3, 2, 100), np.float32),
        )
    )
    assert infer(graph).probe["T"] >= 100
