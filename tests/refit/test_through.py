"""Activations behind a product: what they compute, how steep they are, and what least squares gains from them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.oracle import build
from refit.products import extended, problem, sample_of

from surgeon.graph.load import from_model
from surgeon.graph.sessions import run, session
from surgeon.refit.fit import Effort, fit
from surgeon.refit.through import Activation, activation_after

SIZES = "float[N,4]"
NODES = {
    "Relu": "y = Relu (h)",
    "LeakyRelu": "y = LeakyRelu (h)",
    "LeakyRelu, steep": "y = LeakyRelu <alpha=1.75> (h)",
    "LeakyRelu, falling": "y = LeakyRelu <alpha=-1.5> (h)",
    "Elu": "y = Elu (h)",
    "Elu, steep": "y = Elu <alpha=2.5> (h)",
    "Sigmoid": "y = Sigmoid (h)",
    "Tanh": "y = Tanh (h)",
    "HardSigmoid": "y = HardSigmoid (h)",
    "HardSigmoid, steep": "y = HardSigmoid <alpha=1.5, beta=0.25> (h)",
    "Softplus": "y = Softplus (h)",
    "HardSwish": "y = HardSwish (h)",
    "Gelu": "y = Gelu (h)",
    "Clip": "y = Clip (h, low, high)",
    "Clip from below": "y = Clip (h, low)",
    "Clip from above": "y = Clip (h, , high)",
    "Clip, unbounded": "y = Clip (h)",
    "Clip, opset 10": "y = Clip <min=-0.5, max=1.5> (h)",
    "SiLU": "s = Sigmoid (h) y = Mul (h, s)",
    "SiLU, turned": "s = Sigmoid (h) y = Mul (s, h)",
    "hard swish": "s = HardSigmoid <alpha=0.16666667, beta=0.5> (h) y = Mul (s, h)",
    "x tanh x": "s = Tanh (h) y = Mul (h, s)",
}
UNBOUNDED = {  # the slope of these products grows with x, so that no bound is right
    "squared relu": "s = Relu (h) y = Mul (h, s)",
    "x softplus x": "s = Softplus (h) y = Mul (h, s)",
    "x elu x": "s = Elu (h) y = Mul (h, s)",
}
MONOTONE = [
    name for name in NODES if name.split(",")[0] in {"Relu", "LeakyRelu", "Elu", "Sigmoid", "Tanh", "HardSigmoid", "Softplus", "Clip"}
    and name != "LeakyRelu, falling"
]  # fmt: skip
GRID = np.linspace(-12, 12, 20_001, dtype=np.float32)
ROUNDING = 1e-4  # of float32 between neighbours of the grid: 2^-23 / 0.0012


def model_of(body, outputs=f"{SIZES} y", opset=21, inputs=""):
    weights = {
        name: np.float32(value) for name, value in (("low", -0.5), ("high", 1.5)) if name + ")" in body.replace(",", ")")
    }  # fmt: skip
    return build(f"{SIZES} x{inputs}", outputs, f"h = Neg (x) {body}", weights, opset=opset)


def opset_of(name):
    return 10 if "opset 10" in name else 22


def after(body, **options) -> Activation | None:
    graph = from_model(model_of(body, **options))
    outputs = [tensor.name for tensor in graph.outputs]
    return activation_after(next(t for node in graph.nodes for t in node.outputs if t.name == "h"), outputs)


def activation(name: str) -> Activation:
    found = after({**NODES, **UNBOUNDED}[name], opset=opset_of(name))
    assert found is not None
    return found


@pytest.mark.parametrize("name", [name for name in NODES if name != "Gelu"])
def test_activations_are_those_of_onnxruntime(name):
    x = GRID[: len(GRID) // 4 * 4].reshape(-1, 4)
    expected = run(session(model_of(NODES[name], opset=opset_of(name))), {"x": -x})[0]
    found = activation(name).function(x)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(("attribute", "largest"), [("none", 0.02034), ("tanh", 0.02066)])
def test_gelu_is_approximated(attribute, largest):
    x = GRID[: len(GRID) // 4 * 4].reshape(-1, 4)
    expected = run(session(model_of(f'y = Gelu <approximate="{attribute}"> (h)')), {"x": -x})[0]
    difference = np.abs(activation("Gelu").function(x) - expected).max()
    assert difference == pytest.approx(largest, abs=2e-5)


def steepest_on_grid(found: Activation) -> float:
    """Of neighbours, for no secant is steeper than the steepest piece of it."""
    x = GRID.astype(np.float64)
    return float(np.abs(np.diff(found.function(x)) / np.diff(x)).max())


@pytest.mark.parametrize("name", NODES)
def test_no_secant_is_steeper_than_the_steepest(name):
    found = activation(name)
    assert steepest_on_grid(found) <= found.steepest + ROUNDING


@pytest.mark.parametrize("alpha", [-0.5, 1.0])
def test_a_falling_function_has_a_bound_too(alpha):
    for name in ("HardSigmoid", "Elu"):
        found = after(f"y = {name} <alpha={alpha}> (h)")
        assert steepest_on_grid(found) <= found.steepest + ROUNDING


@pytest.mark.parametrize("body", UNBOUNDED.values(), ids=UNBOUNDED)
def test_a_gate_without_bounds_is_no_gate(body):
    assert after(body) is None


def test_no_target_lies_beyond_the_wish_however_steep_a_secant_is():
    found = after("s = HardSigmoid <alpha=1.0, beta=0.0> (h) y = Mul (h, s)")
    assert steepest_on_grid(found) > found.steepest
    p, t = np.float32([0.8]), np.float32([0.9])
    assert found.towards(p, t) == t


@pytest.mark.parametrize("name", NODES)
@settings(max_examples=60, deadline=None)
@given(st.floats(-9, 9, width=32), st.floats(-9, 9, width=32))
def test_the_next_target_is_between_prediction_and_target(name, prediction, target):
    found = activation_of(name)
    p, t = np.float32([prediction]), np.float32([target])
    towards = found.towards(p, t)
    assert towards.dtype == np.float32
    slack = 1e-5 * max(abs(prediction), abs(target), 1)
    assert min(prediction, target) - slack <= towards[0] <= max(prediction, target) + slack
    if name in MONOTONE:  # so that a step that gets all it wants brings the results nearer, too
        seen, wanted = found.function(np.float32([prediction, towards[0]])), found.function(t)
        errors = np.abs(seen - wanted)
        assert errors[1] <= errors[0] + 1e-5 * max(1, abs(float(wanted[0])))


KNOWN: dict[str, Activation] = {}


def activation_of(name: str) -> Activation:
    """The same, made once: hypothesis asks often."""
    return KNOWN.setdefault(name, activation(name))


@pytest.mark.parametrize("name", NODES)
def test_a_prediction_that_is_right_stays(name):
    np.testing.assert_array_equal(activation(name).towards(GRID, GRID), GRID)


def test_what_a_relu_cuts_off_is_free():
    relu = activation("Relu")
    p, t = np.float32([-3, -0.5, 0]), np.float32([-1, -4, -2])
    np.testing.assert_array_equal(relu.towards(p, t), p)
    p, t = np.float32([3, 0.5, 1]), np.float32([1, 2, 1.5])
    np.testing.assert_allclose(relu.towards(p, t), t, rtol=1e-6)  # and where it lets all through, nothing is
    assert (
        relu.towards(np.float32([1]), np.float32([-1])) == 0.5
    )  # half of the secant's slope: a quarter of the way


def test_what_a_clip_cuts_off_is_free_on_both_sides():
    clip = activation("Clip")
    p, t = np.float32([5, -1]), np.float32([2, -7])
    np.testing.assert_array_equal(clip.towards(p, t), p)


def step_problem(seed, name):
    """Something the activation bends, that no weights can reach exactly."""
    x, t, w = problem(seed, inputs=5, places=240)
    random = np.random.default_rng(seed + 100)
    x = x / np.sqrt(np.square(x).mean())
    t = extended(x) @ w + random.standard_normal(t.shape) * 0.7 + np.tanh(2 * x[:, :3])
    return x, t, random.standard_normal(w.shape)


@pytest.mark.parametrize("name", NODES)
def test_steps_through_an_activation_only_help(name):
    """On held-out places, by choice of the best; and on average they do help where the activation is not the identity."""
    gains = []
    for seed in range(6):
        x, t, start = step_problem(seed, name)
        sample = sample_of(x, t, through=activation(name))
        with_steps, without = (fit(sample, start[None], Effort(steps=steps)) for steps in (12, 0))
        assert with_steps.after <= without.after <= with_steps.before
        assert with_steps.before == without.before
        gains.append(with_steps.after / without.after)
    assert np.mean(gains) < (1.0 if name != "Clip, unbounded" else 1.0 + 1e-9)


@pytest.mark.parametrize("name", NODES)
def test_steps_lower_what_is_fitted_too(name):
    """The loss behind the activation of the places that are fitted, held out as well so that the best step is theirs."""
    for seed in range(3):
        x, t, start = step_problem(seed, name)
        both = np.concatenate([x, x]), np.concatenate([t, t])
        held_out = np.arange(2 * len(x)) >= len(x)
        sample = sample_of(*both, held_out, through=activation(name))
        errors = [fit(sample, start[None], Effort((1e-9,), steps)).after for steps in (0, 1, 3, 12)]
        assert errors == sorted(errors, reverse=True)
        if name != "Clip, unbounded":
            assert errors[-1] < errors[0]


def test_a_target_behind_a_sum_is_met_behind_the_sum():
    """What the other term adds shifts where the activation is flat: the fit sees it."""
    x, t, start = step_problem(0, "Relu")
    other = np.random.default_rng(3).standard_normal(t.shape) - 2
    relu = activation("Relu")
    aware = fit(sample_of(x, t, other=other, through=relu), start[None])
    alone = fit(sample_of(x, t, through=relu), start[None])
    held_out = sample_of(x, t).held_out

    def error(weights):
        seen = relu.function(extended(x)[held_out] @ weights + other[held_out])
        return np.square(seen - relu.function((t + other)[held_out])).sum()

    assert error(aware.weights[0]) < error(alone.weights[0])


def test_an_activation_that_is_the_identity_changes_nothing():
    x, t, start = step_problem(1, "Clip")
    plain = fit(sample_of(x, t), start[None])
    through = fit(sample_of(x, t, through=activation("Clip, unbounded")), start[None])
    np.testing.assert_allclose(through.weights, plain.weights, rtol=1e-3, atol=1e-4)
    assert through.after == pytest.approx(plain.after, rel=1e-4)


@pytest.mark.parametrize("body", [
    "r = Relu (h) y = Add (r, h)",
    "r = Relu (h) s = Sigmoid (h) y = Add (r, s)",
    "y = Mul (h, h)",
    "y = Mul (h, x)",
    "y = Softmax (h)",
    "s = Sigmoid (h) y = Div (h, s)",
    "s = Sigmoid (h) t = Neg (s) u = Add (s, t) y = Mul (h, u)",
    "s = Sigmoid (h) p = Mul (h, s) y = Add (p, s)",
    "s = Sigmoid (h) p = Mul (h, s) y = Add (p, h)",
    "s = Softmax (h) y = Mul (h, s)",
    "low2 = ReduceMin <keepdims=0> (x) y = Clip (h, low2)",
    "y = Identity (x)",
])  # fmt: skip
def test_other_readers_and_other_operators_are_no_activation(body):
    assert after(body) is None


def test_operators_of_other_domains_are_no_activation():
    model = build(f"{SIZES} x", f"{SIZES} y", "h = Neg (x) y = own.Relu (h)", domains={"own": 1})
    graph = from_model(model)
    assert activation_after(graph.nodes[0].outputs[0]) is None


def test_a_reader_in_a_body_counts():
    body = (
        "o = ReduceSum <keepdims=0> (x) f = IsNaN (o) k = If (f) <then_branch = t () => (float[N,4] p) { p = Neg (h) },"
        " else_branch = e () => (float[N,4] q) { q = Neg (x) }> r = Relu (h) y = Add (r, k)"
    )
    assert after(body) is None


@pytest.mark.parametrize(("body", "outputs"), [
    ("y = Relu (h)", f"{SIZES} y, {SIZES} h"),
    ("s = Sigmoid (h) y = Mul (h, s)", f"{SIZES} y, {SIZES} s"),
    ("s = Sigmoid (h) y = Mul (h, s)", f"{SIZES} y, {SIZES} h"),
], ids=["result", "gate", "gated result"])  # fmt: skip
def test_an_output_of_the_model_is_seen_as_it_is(body, outputs):
    assert after(body, outputs=outputs) is None


def test_gelu_has_the_largest_slope_of_the_exact_one():
    """The bound is that of the exact function, which is a little steeper than the approximation."""
    x = np.linspace(-6, 6, 20_001)
    exact = x * 0.5 * (1 + np.array([math.erf(each / math.sqrt(2)) for each in x]))
    assert np.abs(np.diff(exact) / np.diff(x)).max() <= activation("Gelu").steepest
