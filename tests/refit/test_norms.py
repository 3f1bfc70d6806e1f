"""Batch normalization that is still a node: its scale and shift against least squares for each channel."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from ops.oracle import build
from refit import networks
from refit.test_sweep import every_second, refitted
from stats.products import analysed, operator

from surgeon.refit.norms import EVERY, is_norm, refit_norm, thinned
from surgeon.refit.sampling import Places

CHANNELS, EPSILON = 4, 1e-3
BODY = f"y = BatchNormalization <epsilon={EPSILON}> (x, s, b, m, v)"


def constants(seed=0, kind=np.float32):
    random = np.random.default_rng(seed)
    values = {name: random.uniform(0.5, 2, CHANNELS) for name in "sbmv"}
    values["s"][1] *= -1
    return {name: each.astype(kind) for name, each in values.items()}


def norm(seed=0, kind=np.float32) -> gs.Node:
    inputs = [gs.Variable("x"), *(gs.Constant(name, each) for name, each in constants(seed, kind).items())]
    return gs.Node(
        "BatchNormalization", attrs={"epsilon": EPSILON}, inputs=inputs, outputs=[gs.Variable("y")]
    )


def computed(node, x):
    s, b, m, v = (
        tensor.values.astype(np.float64).reshape(-1, *[1] * (x.ndim - 2)) for tensor in node.inputs[1:]
    )
    return s * (x - m) / np.sqrt(v + node.attrs.get("epsilon", 1e-5)) + b


def batches(sizes, seed=0, shape=(3, 2)):
    """Inputs, and targets that are linear in them but for noise."""
    random = np.random.default_rng(seed)
    xs = [random.standard_normal((count, CHANNELS, *shape)) * 1.5 + 0.7 for count in sizes]
    column = (CHANNELS, *[1] * len(shape))
    slope, offset = random.uniform(0.5, 3, column), random.standard_normal(column)
    ts = [slope * x + offset + 0.1 * random.standard_normal(x.shape) for x in xs]
    return [x.astype(np.float32) for x in xs], [t.astype(np.float32) for t in ts]


def channel(arrays, c, held_out):
    """One channel's values in the samples that are held out, or in those that are not."""
    whole = np.concatenate(arrays)
    return whole[(np.arange(len(whole)) % EVERY == EVERY - 1) == held_out, c].ravel().astype(np.float64)


@pytest.mark.parametrize("shape", [(), (5,), (3, 2), (2, 2, 2)])
@pytest.mark.parametrize("sizes", [(60,), (7, 20, 1, 32)])
def test_scale_and_shift_become_those_of_least_squares(shape, sizes):
    xs, ts = batches(sizes, shape=shape)
    node = norm()
    before, after = refit_norm(node, xs, ts)
    for c in range(CHANNELS):
        x, t = channel(xs, c, False), channel(ts, c, False)
        best = np.polyfit(x, t, 1)
        probe = np.zeros((1, CHANNELS, 1)), np.ones((1, CHANNELS, 1))
        offset, both = (computed(node, each)[0, c, 0] for each in probe)
        # the ridge pulls by a thousandth, of a spread of 2 and a variance of at most 2
        assert [both - offset, offset] == pytest.approx(best, rel=0.01, abs=0.02)
    assert after < 0.1 * before


def test_errors_are_those_of_the_samples_held_out():
    xs, ts = batches((13, 40))
    node = norm()
    errors = []
    for _ in range(2):
        ys = [computed(node, x) for x in xs]
        pairs = [(channel(ys, c, True), channel(ts, c, True)) for c in range(CHANNELS)]
        energy = sum(np.square(t - t.mean()).sum() for _, t in pairs)
        errors.append(sum(np.square(y - t).sum() for y, t in pairs) / energy)
        if len(errors) == 1:
            claimed = refit_norm(node, xs, ts)
    assert claimed == pytest.approx(errors, rel=1e-4)


def test_a_channel_stays_where_nothing_beats_it():
    xs, _ = batches((60,))
    node = norm()
    ts = [computed(node, xs[0]).astype(np.float32)]
    ts[0][np.arange(60) % EVERY != EVERY - 1, 2] *= 3  # what is fitted says otherwise than what is held out
    ts[0][:, 0] += 1
    before, after = refit_norm(node, xs, ts)
    given = constants()
    for index, name in ((1, "s"), (2, "b")):
        np.testing.assert_allclose(node.inputs[index].values[1:], given[name][1:], rtol=1e-4, atol=1e-4)
    assert node.inputs[2].values[0] == pytest.approx(given["b"][0] + 1, abs=1e-3)
    assert after < 1e-6 < before


def test_mean_and_variance_stay():
    xs, ts = batches((24,))
    node = norm()
    refit_norm(node, xs, ts)
    for index, name in ((3, "m"), (4, "v")):
        np.testing.assert_array_equal(node.inputs[index].values, constants()[name])


@pytest.mark.parametrize("count", [1, EVERY - 1])
def test_too_few_samples_to_hold_any_out_change_nothing(count):
    xs, ts = batches((count,))
    node = norm()
    assert refit_norm(node, xs, ts) == (0.0, 0.0)
    np.testing.assert_array_equal(node.inputs[1].values, constants()["s"])


@pytest.mark.parametrize("value", [0.0, 5.0])
def test_channels_that_never_move_get_the_right_shift(value):
    xs, ts = batches((60,))
    xs[0][:, 1], ts[0][:, 1] = value, -2.0
    node = norm()
    refit_norm(node, xs, ts)
    y = computed(node, xs[0])
    assert np.isfinite(y).all()
    np.testing.assert_allclose(y[:, 1], -2.0, atol=1e-4)
    assert node.inputs[1].values[1] == pytest.approx(
        constants()["s"][1], rel=1e-5
    )  # nothing speaks against it


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_channel_that_is_not_finite_stays(value):
    xs, ts = batches((60,))
    for arrays in (xs, ts):
        arrays[0][0, 1] = value
    node = norm()
    refit_norm(node, xs, ts)
    for index, name in ((1, "s"), (2, "b")):
        assert node.inputs[index].values[1] == pytest.approx(constants()[name][1], rel=1e-5)
    assert np.isfinite(node.inputs[1].values).all()


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16])
def test_types_and_names_of_constants_stay(kind):
    xs, ts = batches((24,))
    node = norm(kind=kind)
    refit_norm(node, xs, ts)
    assert [tensor.name for tensor in node.inputs] == ["x", *"sbmv"]
    assert {tensor.values.dtype for tensor in node.inputs[1:]} == {np.dtype(kind)}


@pytest.mark.parametrize("shape", [(), (5,), (3, 2)])
@pytest.mark.parametrize("every", [1, 4, 100])
def test_batches_together_have_every_position_once(shape, every):
    array = np.random.default_rng(0).standard_normal((3, CHANNELS, *shape))
    flat = array.reshape(3, CHANNELS, -1)
    parts = [thinned(array, every, batch) for batch in range(min(every, flat.shape[2]))]
    found = np.concatenate([part.reshape(-1) for part in parts])
    np.testing.assert_array_equal(np.sort(found), np.sort(flat.ravel()))
    np.testing.assert_array_equal(parts[-1], thinned(array, every, len(parts) - 1 + every))


def test_positions_of_a_batch_are_spread_over_rows_and_columns():
    rows, columns = np.indices((56, 56))
    array = np.stack([rows, columns])[None]
    for batch in range(4):
        for axis in thinned(array, 56, batch)[0]:
            assert len(set(axis.tolist())) > 56 / 3


CASES = {
    "as in inference": (BODY, True),
    "in training mode": (BODY.replace("<", "<training_mode=1, ").replace("y =", "y, rm, rv ="), False),
    "with a computed scale": ("k = Neg (s) " + BODY.replace("x, s,", "x, k,"), False),
    "with a shared scale": (BODY.replace("y =", "z =") + " k = Neg (s) l = Mul (k, z) y = Add (l, z)", False),
    "with one vector twice": (BODY.replace("x, s, b,", "x, s, s,"), False),
    "with a shared mean": (BODY.replace("y =", "z =") + " k = ReduceSum <keepdims=0> (m) y = Add (z, k)", True),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_batch_normalization(case):
    body, expected = CASES[case]
    found = analysed(build(f"float[N,{CHANNELS},3] x", f"float[N,{CHANNELS},3] y", body, constants()))
    assert is_norm(operator(found, "BatchNormalization")) == expected


def test_other_operators_are_none():
    found = analysed(build("float[N,4] x", "float[N,4] y", "y = Relu (x)"))
    assert not is_norm(found.ops[0])


def unfused(seed=0, *, shortcut=True, shared=False):
    """Normalization that cannot be fused, for a Relu or a sum is before it; two may share their scale and shift."""
    body = f"""
    a = Conv <pads=[1,1,1,1]> (x, w1)
    n = BatchNormalization (a, s1, c1, m1, v1)
    r = Relu (n)
    b = Conv <pads=[1,1,1,1]> (r, w2)
    k = {"Conv (r, w3)" if shortcut else "Sigmoid (b)"}
    t = Add (b, k)
    o = BatchNormalization (t, s2, c2, m2, v2)
    u = Relu (o)
    d = BatchNormalization (u, s3, c3, m3, v3)
    z = Conv (d, w4)
    g = GlobalAveragePool (z)
    y = Flatten (g)
    """
    random = np.random.default_rng(seed)
    weights = {"w1": (12, 3, 3, 3), "w2": (10, 12, 3, 3), "w3": (10, 12, 1, 1), "w4": (5, 10, 3, 3)}
    for k, size in ((1, 12), (2, 10), (3, 10)):
        weights |= {f"{name}{k}": random.uniform(0.5, 1.5, size).astype(np.float32) for name in "scmv"}
    if not shortcut:
        del weights["w3"]
    if shared:
        body = body.replace("(u, s3, c3", "(u, s2, c2")
        del weights["s3"], weights["c3"]
    return build("float[N,3,6,6] x", "float[N,5] y", body, weights, seed=seed)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_norms_behind_a_cut_are_refitted_in_turn(seed, shared):
    model = unfused(seed, shared=shared)
    before, after, result = refitted(model, every_second, seed=seed)
    assert {"o", "d"} < set(result.errors)
    assert "n" not in result.errors  # what it gets is what it got
    assert all(later <= earlier for earlier, later in result.errors.values())
    unseen = networks.images(100, seed=9)
    assert networks.relative_error(model, after, unseen) < networks.relative_error(model, before, unseen)
    old, new = networks.weights(before), networks.weights(after)
    scales = {node.output[0]: new[node.input[1]] for node in after.graph.node if len(node.input) == 5}
    assert not np.array_equal(old["s2"], scales["o"])
    assert not np.array_equal(scales["o"], scales["d"])
    for name in ("s1", "m2", "v2", "m3", "v3"):
        np.testing.assert_array_equal(old[name], new[name])


def test_a_norm_alone_behind_a_cut_is_refitted():
    """Nothing else stands between the cut and the output: the two numbers per channel do what they can."""
    body = "a = Gemm (x, w1) r = Relu (a) p = Gemm (r, w2) q = Gemm (r, w2) t = Add (p, q) y = BatchNormalization (t, s, b, m, v)"
    model = build("float[N,6] x", "float[N,4] y", body, {"w1": (6, 12), "w2": (12, CHANNELS), **constants()})
    x = np.random.default_rng(0).standard_normal((400, 6)).astype(np.float32)
    before, after, result = refitted(model, every_second, [{"x": part} for part in np.split(x[:300], 3)])
    assert list(result.errors) == ["y"]  # the weight is shared, and stays one
    assert result.errors["y"][1] < result.errors["y"][0]
    assert networks.relative_error(model, after, x[300:]) < networks.relative_error(model, before, x[300:])


def test_some_places_say_what_all_of_them_do():
    """Two numbers for each channel: a tenth of the places finds them as well, up to their noise."""
    model = unfused()
    outcomes = [
        refitted(model, every_second, places=Places(per_input=10**6, fewest=fewest))
        for fewest in (10**6, 200 * 36 // 9)
    ]
    unseen = networks.images(100, seed=9)
    errors = [networks.relative_error(model, after, unseen) for _, after, _ in outcomes]
    assert errors[1] != errors[0]
    assert errors[1] == pytest.approx(errors[0], rel=0.05)
