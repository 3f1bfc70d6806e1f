"""What weights promise by their values: zeros and tables that somebody made, and not what chance or rounding makes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.oracle import build

from surgeon.graph.load import from_model
from surgeon.stats.matrices import weights_of
from surgeon.stats.promises import Promise, channels_of, noted, promise_of
from surgeon.stats.weight import weight_chain, weight_values

SHAPES = [(1, 3, 9, 16), (1, 64, 9, 32), (32, 1, 9, 1), (1, 16, 1, 96), (2, 8, 9, 12), (1, 300, 1, 10)]


def trained(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def nearest(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    return table[np.abs(values[..., None] - table).argmin(axis=-1)].astype(values.dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
def test_trained_weights_promise_nothing_however_they_were_stored(shape, kind):
    values = trained(shape)
    if kind == "float16":
        values = values.astype(np.float16).astype(np.float32)
    if kind == "bfloat16":
        values = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
    assert promise_of(values) is None


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("per_channel", [False, True])
def test_rounding_promises_nothing(shape, per_channel):
    values = trained(shape)
    axes = tuple(range(1, len(shape) - 1)) if per_channel else None
    step = np.abs(values).max(axis=axes, keepdims=True) / 127
    rounded = (np.rint(values / step) * step).astype(np.float32)
    assert promise_of(rounded) is None


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fraction", [0.3, 0.9])
def test_zeros_that_were_made_are_kept(shape, fraction):
    values = trained(shape)
    values[np.abs(values) <= np.quantile(np.abs(values), fraction)] = 0
    assert promise_of(values) == Promise(zeros=True)


def test_a_few_zeros_are_no_promise():
    values = trained((1, 64, 9, 32))
    values.flat[:50] = 0
    assert promise_of(values) is None


@given(st.sampled_from(SHAPES[:5]), st.integers(2, 16), st.booleans(), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_a_table_is_found_with_or_without_zeros(shape, count, sparse, seed):
    random = np.random.default_rng(seed)
    table = random.standard_normal(count)
    values = table[random.integers(0, count, shape)].astype(np.float32)
    if sparse:
        values[random.random(shape) < 0.5] = 0
    found = promise_of(values)
    assert found is not None
    assert (found.sharing, found.values) == ("tensor", len(np.unique(values)))
    assert found.zeros == bool((values == 0).mean() >= 0.01)


@pytest.mark.parametrize("shape", [(1, 64, 9, 32), (2, 8, 9, 12), (1, 300, 1, 10)])
@pytest.mark.parametrize("count", [3, 16])
def test_channels_with_tables_of_their_own(shape, count):
    random = np.random.default_rng(5)
    tables = random.standard_normal((shape[0], shape[3], count))
    pick = random.integers(0, count, shape)
    values = np.take_along_axis(tables[:, None, None], pick[..., None], axis=-1)[..., 0].astype(np.float32)
    most = max(len(np.unique(values[g, ..., o])) for g in range(shape[0]) for o in range(shape[3]))
    assert promise_of(values) == Promise(zeros=False, sharing="channel", values=most)


def test_evenly_spaced_tables_of_a_few_values_count():
    values = nearest(trained((1, 64, 9, 32)), np.linspace(-2, 2, 16))
    assert promise_of(values) == Promise(zeros=False, sharing="tensor", values=16)


def test_one_value_everywhere_is_no_table():
    assert promise_of(np.full((1, 4, 9, 8), 0.25, np.float32)) is None


def test_zeros_of_a_pruned_and_rounded_weight_are_kept():
    values = trained((1, 64, 9, 32))
    values[np.abs(values) <= np.quantile(np.abs(values), 0.5)] = 0
    step = np.abs(values).max() / 127
    found = promise_of((np.rint(values / step) * step).astype(np.float32))
    assert found is not None
    assert found.zeros
    assert not found.sharing


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        ("y = Conv <group=2> (x, w)", (6, 2, 3, 3)),
        ("y = ConvTranspose <group=2> (x, w)", (4, 3, 3, 3)),
        ("f = Flatten (x) y = Gemm <transB=1> (f, w)", (5, 100)),
        ("f = Flatten (x) t = Transpose <perm=[1,0]> (w) y = MatMul (f, t)", (5, 100)),
    ],
)
def test_channels_of_the_constant_that_is_stored(body, shape):
    graph = from_model(build("float[N,4,5,5] x", "float[N,A,B,C] y", body, {"w": shape}))
    [weight] = weights_of(graph)
    channels = channels_of(weight)
    chain = weight_chain(weight.tensor)
    assert chain is not None
    assert channels.shape == tuple(chain[0].shape)
    stored = chain[0].values.copy()
    marked = channels.astype(np.float32)
    chain[0].values = marked
    matrices = weight.matrices()
    numbers = np.arange(matrices.shape[0] * matrices.shape[-1]).reshape(matrices.shape[0], 1, 1, -1)
    assert (matrices == numbers).all()
    chain[0].values = stored
    assert weight_values(weight.tensor).size == stored.size


def test_what_reports_say():
    random = np.random.default_rng(0)
    weight = random.choice(np.array([-1.5, 0.0, 0.7]), (8, 4, 3, 3)).astype(np.float32)
    graph = from_model(build("float[N,4,5,5] x", "float[N,8,3,3] y", "y = Conv (x, w)", {"w": weight}))
    assert noted(graph) == [{"name": "w", "zeros": int((weight == 0).sum()), "values": 3, "per": "tensor"}]
