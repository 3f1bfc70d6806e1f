"""Rounding that is learned: better blocks, on the grid, and never worse on held-out samples."""

from __future__ import annotations

import numpy as np
import pytest
from refit import networks
from refit.rounded import rounded, stored
from refit.test_settle import CASES, data, error, named

from surgeon.grad.train import Course
from surgeon.graph.load import from_model
from surgeon.graph.save import to_model
from surgeon.reference import Reference
from surgeon.refit.learn import learn_rounding


def learned(model, quantized, x, rate=0.02, steps=60, **options):
    graph = from_model(quantized)
    feeds = [{"x": part} for part in np.split(x, 4)]
    found = learn_rounding(graph, Reference(from_model(model)), feeds, Course(steps, 32, rate), **options)
    return found, to_model(graph)


@pytest.mark.parametrize("case", ["strided", "depthwise", "Gemm transB", "residual", "weight on the left"])
def test_blocks_get_better_on_their_grid(case):
    model = named(CASES[case])
    quantized = rounded(model, bits=3)
    found, result = learned(model, quantized, data(model, 1, 128))
    assert found.left == {}
    assert found.blocks.kept
    before, after = stored(quantized), stored(result)
    assert found.changed == (
        sum(int((after[name] != before[name]).sum()) for name in before),
        sum(each.size for each in before.values()),
    )
    assert all(np.abs(after[name]).max() <= 3 for name in after)
    fresh = data(model, 2)
    assert error(model, result, fresh) < 0.95 * error(model, quantized, fresh)


def test_only_integers_change():
    model = named(networks.mixed())
    quantized = rounded(model, bits=3)
    result = learned(model, quantized, networks.images(128))[1]
    expected, made = networks.weights(quantized), networks.weights(result)
    assert made.keys() == expected.keys()
    others = [name for name in made if not name.endswith("/q")]
    assert all(np.array_equal(made[name], expected[name]) for name in others)
    assert [(n.op_type, n.input, n.output) for n in result.graph.node] == [
        (n.op_type, n.input, n.output) for n in to_model(from_model(quantized)).graph.node
    ]


def test_what_does_not_help_is_not_taken():
    model = named(CASES["strided"])
    quantized = rounded(model, bits=4)
    found, result = learned(model, quantized, data(model, 1, 64), rate=1e3, steps=3)
    assert found.changed[0] == 0
    assert found.blocks.kept == []
    assert all(np.array_equal(integers, stored(quantized)[name]) for name, integers in stored(result).items())


def test_what_is_left_alone_and_why():
    model = named(CASES["depthwise"])
    quantized = rounded(model, bits=3)
    found, result = learned(model, quantized, data(model, 1, 64), excluded=lambda name: name == "n2")
    assert found.left == {"n2": "excluded"}
    assert np.array_equal(stored(result)["w2/q"], stored(quantized)["w2/q"])


def test_threads_change_nothing():
    model = named(CASES["strided"])
    quantized = rounded(model, bits=3)
    results = [
        learned(model, quantized, data(model, 1, 64), steps=10, threads=threads)[1] for threads in (1, 2)
    ]
    assert results[0].SerializeToString() == results[1].SerializeToString()
