"""Fits and rounding under promises: zeros stay zero, tables stay tables, and what is found is the best or nearly so."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper as nh
from ops.oracle import build
from refit import networks
from refit.rounded import rounded, stored
from refit.test_joint import PAIRS
from refit.test_rounding import problem
from refit.test_settle import CASES, data, error, named

from surgeon.engine import analyse
from surgeon.grad.train import Course
from surgeon.graph.load import from_model
from surgeon.graph.save import to_model
from surgeon.reference import Reference
from surgeon.refit.fit import BIAS_STRENGTH, Effort, Sample, fit, scale_of
from surgeon.refit.gptq import round_again
from surgeon.refit.keeping import Kept, pattern_of
from surgeon.refit.learn import learn_rounding
from surgeon.refit.pattern import Few
from surgeon.refit.rounding import distance
from surgeon.refit.sweep import refit
from surgeon.refit.table import Table
from surgeon.stats.promises import Promise
from surgeon.surgery import cut, keep_of

TABLE = np.array([-1.0, -0.2, 0.3, 1.4])


def with_zeros(model: onnx.ModelProto, fraction: float = 0.5, table: np.ndarray | None = None):
    """The model with zeros in its weights and, if there is a table, its values alone."""
    random = np.random.default_rng(3)
    for entry in model.graph.initializer:
        values = nh.to_array(entry)
        if values.ndim > 1:
            if table is not None:
                scaled = (table * values.std()).astype(values.dtype)
                values = scaled[np.abs(values[..., None] - scaled).argmin(axis=-1)]
            kept = np.where(random.random(values.shape) < fraction, 0, values)
            entry.CopyFrom(nh.from_array(kept.astype(values.dtype), entry.name))
    return model


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {each.name: nh.to_array(each) for each in model.graph.initializer}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 12), st.integers(1, 4), st.booleans())
def test_values_of_a_table_on_their_support_and_never_worse_than_the_nearest(
    seed, groups, inputs, outputs, zeros
):
    ideal, hessian, _ = problem(seed, groups, inputs, outputs)
    support = np.random.default_rng(seed).random((groups, inputs, outputs)) < (0.6 if zeros else 2)
    kept = Kept(support, TABLE[None, None])
    found = kept.constraint()(ideal, hessian)
    assert (found[:, :-1][~support] == 0).all()
    assert np.isin(found[:, :-1][support], TABLE).all()
    plain = np.where(support, Table(TABLE[None, None]).nearest(ideal[:, :-1]), 0.0)
    plain = np.concatenate([plain, ideal[:, -1:]], axis=1)
    if not zeros:
        before = distance(plain, ideal, hessian)
        assert (distance(found, ideal, hessian) <= before * (1 + 1e-9) + 1e-12).all()


@pytest.mark.parametrize("seed", range(6))
def test_near_to_the_best_of_all(seed):
    ideal, hessian, _ = problem(seed, 1, 4, 1, correlation=0.5)
    found = distance(Kept(None, TABLE[None, None]).constraint()(ideal, hessian), ideal, hessian)[0, 0]
    least = np.inf
    for each in itertools.product(TABLE, repeat=4):
        weights = np.array(each)
        # the best bias for these weights
        off = weights - ideal[0, :4, 0]
        bias = ideal[0, 4, 0] - hessian[0, 4, :4] @ off / hessian[0, 4, 4]
        whole = np.append(weights, bias)[None, :, None]
        least = min(least, float(distance(whole, ideal, hessian)[0, 0]))
    assert found <= 1.6 * least + 1e-9


def test_tables_of_their_own_for_each_output():
    random = np.random.default_rng(0)
    values = random.choice(TABLE, (2, 5, 3)) * np.array([1.0, 2.0, 3.0])
    table = Kept.of(Promise(zeros=False, sharing="channel", values=4), values).table
    assert table is not None
    weights = random.standard_normal((2, 5, 3))
    found = Table(table).nearest(weights)
    for g, o in np.ndindex(2, 3):
        own = np.unique(values[g, :, o])
        expected = own[np.abs(weights[g, :, o][:, None] - own).argmin(axis=1)]
        assert np.array_equal(found[g, :, o], expected)


@pytest.mark.parametrize("seed", range(3))
def test_the_best_weights_on_their_support_solve_each_output_s_own_equations(seed):
    random = np.random.default_rng(seed)
    x = np.concatenate([random.standard_normal((1, 80, 6)), np.ones((1, 80, 1))], axis=2).astype("f")
    target = (x @ random.standard_normal((1, 7, 3))).astype("f")
    start = random.standard_normal((1, 7, 3))
    support = random.random((1, 7, 3)) < 0.6
    support[:, -1] = True
    start = np.where(support, start, 0)
    held = np.arange(80) % 5 == 0
    found = fit(Sample(x, target, None, held), start, Effort((1e-2,), 0), support).weights[0]
    gram = (x[0, ~held].T @ x[0, ~held]).astype(np.float64)
    penalty = np.full(7, 1e-2 * scale_of(gram))
    penalty[-1] = BIAS_STRENGTH * gram[-1, -1]
    right = (x[0, ~held].T @ target[0, ~held]).astype(np.float64) + penalty[:, None] * start[0]
    for k in range(3):
        some = support[0, :, k]
        exact = np.linalg.solve((gram + np.diag(penalty))[np.ix_(some, some)], right[some, k])
        assert found[some, k] == pytest.approx(exact, rel=1e-4, abs=1e-4)
        assert (found[~some, k] == 0).all()


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (1, 4), (4, 8)])
@pytest.mark.parametrize("taps", [1, 9])
def test_patterns_are_found(n, m, taps):
    random = np.random.default_rng(0)
    scores = random.random((2, 16, taps, 6))
    kept = Few(n, m).kept(scores, 0.0)
    assert pattern_of(kept.reshape(2, 16 * taps, 6), taps) == Few(n, m)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.75, 0.9])
def test_zeros_anywhere_are_no_pattern(fraction):
    support = np.random.default_rng(1).random((1, 32 * 9, 16)) >= fraction
    assert pattern_of(support, 9) is None


def cut_and_fitted(model: onnx.ModelProto):
    """The model with every second channel, before and after it was refitted, and what was done."""
    found = analyse(from_model(model))
    flags = {group.id: np.arange(group.size) % 2 == 0 for group in found.groups}
    keep = keep_of(flags, {group.id: group.atom for group in found.groups})
    smaller = cut(found.analysis, keep)
    before = to_model(smaller)
    x = data(model, 1, 96)
    result = refit(found.analysis, smaller, keep, [{"x": part} for part in np.split(x, 4)])
    return before, to_model(smaller), result


@pytest.mark.parametrize("table", [None, TABLE])
# in the two that are left out there is no channel that a cut could take
@pytest.mark.parametrize("name", sorted({*PAIRS, "mixed"} - {"depthwise first", "crossed"}))
def test_what_is_left_after_a_cut_keeps_zeros_and_values(name, table):
    model = networks.mixed() if name == "mixed" else build(PAIRS[name][0], "float y", *PAIRS[name][1:])
    model = with_zeros(model, 0.4, table)
    smaller, fitted, result = cut_and_fitted(model)
    before, after = constants(smaller), constants(fitted)
    assert result.errors
    assert all(later <= earlier for earlier, later in result.errors.values())
    changed = 0
    for key, values in before.items():
        if values.ndim > 1:
            assert (after[key][values == 0] == 0).all()
            changed += int((after[key] != values).any())
            if table is not None:
                assert np.isin(after[key], np.unique(values)).all()
    assert changed or table is not None
    x = data(model, 2, 96)
    assert error(model, fitted, x) < error(model, smaller, x)


@pytest.mark.parametrize("table", [None, TABLE])
@pytest.mark.parametrize("kind", ["int8", "uint8"])
@pytest.mark.parametrize("case", ["strided", "depthwise", "Gemm transB", "residual"])
def test_rounding_anew_keeps_zeros_and_values(case, kind, table):
    model = with_zeros(named(CASES[case]), 0.4, table)
    quantized = rounded(model, bits=4, kind=kind)
    x = data(model, 1, 128)
    feeds = [{"x": part} for part in np.split(x, 4)]
    results = {}
    graph = from_model(quantized)
    round_again(graph, Reference(from_model(model)), feeds)
    results["gptq"] = to_model(graph)
    graph = from_model(quantized)
    learn_rounding(graph, Reference(from_model(model)), feeds, Course(30, 32, 0.05))
    results["learned"] = to_model(graph)
    floats, before = constants(model), stored(quantized)
    for result in results.values():
        for name, integers in stored(result).items():
            values = floats[name.removesuffix("/q")]
            zero = before[name][values == 0]
            assert (integers[values == 0] == zero).all()
            assert len(np.unique(zero)) == 1
            if table is not None and values.size > 60:
                assert len(np.unique(integers)) <= len(np.unique(values))
        assert error(model, result, x) <= error(model, quantized, x) * 1.001
