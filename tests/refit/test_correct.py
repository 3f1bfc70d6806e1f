"""Biases that make up for mean errors: exactly in the mean, behind activations, and where there was none."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from ops.oracle import build
from refit.rounded import rounded, stored
from refit.test_settle import CASES, data, error, named

from surgeon.graph.load import from_model
from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session, with_outputs
from surgeon.reference import Reference
from surgeon.refit import correct
from surgeon.refit.correct import correct_biases


def corrected(model, quantized, x, **options):
    graph = from_model(quantized)
    found = correct_biases(
        graph, Reference(from_model(model)), [{"x": part} for part in np.split(x, 8)], **options
    )
    return found, to_model(graph)


def tensor(model, name, x):
    return run(session(with_outputs(model, [name])), {"x": x})[-1]


# onnxruntime runs products with integer weights in kernels that round as they like, depending on what is around them
@pytest.mark.parametrize(
    ("case", "axes", "left"),
    [
        ("strided", (0, 2, 3), 1e-5),
        ("grouped", (0, 2, 3), 1e-5),
        ("transposed", (0, 2, 3), 1e-5),
        ("Gemm", 0, 0.05),
        ("Gemm transB", 0, 0.05),
        ("MatMul", (0, 1), 0.05),
    ],
)
def test_the_mean_error_is_zero_on_a_few_samples(case, axes, left):
    model = named(CASES[case])
    quantized = rounded(model, activations=False)  # else onnxruntime rounds the biases
    x = data(model, 1, 32)
    result = corrected(model, quantized, x)[1]
    before, after = (
        np.abs((tensor(each, "y", x) - tensor(model, "y", x)).mean(axis=axes)).max()
        for each in (quantized, result)
    )
    assert after < left * before


@pytest.mark.parametrize("case", CASES)
def test_never_worse_and_weights_stay(case):
    model = named(CASES[case])
    quantized = rounded(model)
    found, result = corrected(model, quantized, data(model, 1, 64))
    assert all(after <= before for before, after in found.errors.values())
    assert all(np.array_equal(integers, stored(quantized)[name]) for name, integers in stored(result).items())
    fresh = data(model, 2)
    assert error(model, result, fresh) <= error(model, quantized, fresh) * 1.02


def test_behind_a_relu_it_is_not_the_mean_error():
    body = "a = Conv (x, w, b) y = Relu (a)"
    weights = {"w": (6, 3, 1, 1), "b": np.full(6, -1.5, np.float32)}
    model = named(build("float[N,3,6,6] x", "float[N,6,6,6] y", body, weights))
    quantized = rounded(model, bits=3)
    x = data(model, 1, 32)
    found, result = corrected(model, quantized, x)
    (before, after), truth = found.errors["n0"], tensor(model, "y", x)
    energy = np.square(truth - truth.mean(axis=(0, 2, 3), keepdims=True)).sum()
    assert np.isclose(before, np.square(tensor(quantized, "y", x) - truth).sum() / energy, rtol=1e-4)
    assert np.isclose(after, np.square(tensor(result, "y", x) - truth).sum() / energy, rtol=1e-4)
    assert after < before
    shift = tensor(model, "a", x).mean(axis=(0, 2, 3)) - tensor(quantized, "a", x).mean(axis=(0, 2, 3))
    plain = np.maximum(tensor(quantized, "a", x) + shift[:, None, None], 0)
    assert after < np.square(plain - truth).sum() / energy


def test_new_biases_are_stored_as_the_kernels_want_them():
    model = named(CASES["depthwise"])
    quantized = rounded(model)
    result = corrected(model, quantized, data(model, 1, 64))[1]
    makers = {output: node for node in result.graph.node for output in node.output}
    values = {entry.name: onnx.numpy_helper.to_array(entry) for entry in result.graph.initializer}
    last = next(node for node in result.graph.node if node.name == "n4")
    bias, weight, x = (makers[last.input[k]] for k in (2, 1, 0))
    assert [values[bias.input[0]].dtype, values[bias.input[0]].shape] == [np.int32, (5,)]
    assert values[bias.input[0]].any()
    assert np.allclose(values[bias.input[1]], values[weight.input[1]] * values[x.input[1]])


def test_what_is_left_alone_and_why():
    model = named(CASES["MatMul, nothing added"])
    found, result = corrected(model, rounded(model), data(model, 1, 64))
    assert found.left == {"n0": "nothing is added to it", "n2": "nothing is added to it"}
    assert result.graph.node == to_model(from_model(rounded(model))).graph.node
    model = named(CASES["Gemm"])
    found, _ = corrected(model, rounded(model), data(model, 1, 64), excluded=lambda name: name == "n0")
    assert found.left == {"n0": "excluded"}
    assert list(found.errors) == ["n2"]


def test_threads_change_nothing():
    model = named(CASES["residual"])
    results = [corrected(model, rounded(model), data(model, 1, 64), threads=threads)[1] for threads in (1, 2)]
    assert results[0].SerializeToString() == results[1].SerializeToString()


def test_few_samples_are_held_at_a_time_and_all_count_alike(monkeypatch):
    """Each few samples give a bias; the mean of these, by samples, is what all of them together give without an activation."""
    model = named(build("float[N,6] x", "float[N,5] y", "y = Gemm (x, w, b)", {"w": (6, 5), "b": (5,)}))
    quantized, x = rounded(model, activations=False), np.random.default_rng(0).standard_normal((70, 6))
    parts = [{"x": each.astype(np.float32)} for each in np.split(x, [20, 30, 62])]
    sizes, walk = [], correct._Walk

    def spy(twins, graph, reference, feeds, *rest):
        sizes.append([len(each["x"]) for each in feeds])
        return walk(twins, graph, reference, feeds, *rest)

    monkeypatch.setattr(correct, "_Walk", spy)
    biases, errors = [], []
    for at_once in (32, 1000):
        monkeypatch.setattr(correct, "AT_ONCE", at_once)
        graph = from_model(quantized)
        found = correct_biases(graph, Reference(from_model(model)), iter(parts))
        errors.append(found.errors["n0"])
        biases.append(next(t.values for name, t in graph.tensors().items() if name == "b"))
    assert sizes == [[20, 10], [32], [8], [20, 10, 32, 8]]
    assert np.allclose(biases[0], biases[1], atol=1e-6)
    assert all(after < before for before, after in errors)


def test_without_samples_nothing_changes():
    model = named(CASES["Gemm"])
    graph = from_model(rounded(model))
    assert correct_biases(graph, Reference(from_model(model)), iter([])).errors == {}
    assert run(session(to_model(graph)), {"x": data(model, 1, 4)})[0].shape[0] == 4
