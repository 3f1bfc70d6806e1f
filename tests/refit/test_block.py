"""Blocks learn what the original computes, never get worse, and touch nothing that is not theirs."""

from __future__ import annotations

import gc
import tempfile
from dataclasses import replace

import numpy as np
import onnx
import pytest
from grad import structures
from ops.oracle import build
from refit import networks

from surgeon.engine import analyse
from surgeon.grad.train import Course
from surgeon.graph.load import from_model
from surgeon.graph.order import every_node
from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session
from surgeon.graph.weights import peek
from surgeon.reference import Reference
from surgeon.refit.block import reconstruct
from surgeon.refit.turns import find_trainable, turns_of
from surgeon.surgery import axis_masks, cut, keep_of

COURSE = Course(steps=60, batch=16, rate=5e-3, evaluations=6)


def halved(model, seed=0):
    """A graph without a random half of its channels, and the original as what it should compute."""
    found = analyse(from_model(model))
    random = np.random.default_rng(seed)
    kept = {group.id: random.permutation(group.size) % 2 == 0 for group in found.groups}
    keep = keep_of(kept, {group.id: group.atom for group in found.groups})
    masks = {name: each for name, axes in found.analysis.axes.items() if (each := axis_masks(axes, keep))}
    return cut(found.analysis, keep), Reference(found.analysis.graph, masks)


def noisy(model, size=0.1, seed=0, *, only=lambda name: True):
    """A graph whose float constants are a little off, and the original."""
    random = np.random.default_rng(seed)
    graph = from_model(model)
    for name, constant in constants(graph).items():
        if only(name) and np.dtype(constant.dtype).kind == "f" and constant.shape:
            values = peek(constant)
            off = size * np.sqrt(np.mean(np.square(values, dtype=np.float64)))
            constant.values = np.asarray(values + off * random.standard_normal(values.shape), values.dtype)
    return graph, Reference(from_model(model))


def constants(graph):
    return {t.name: t for node in every_node(graph) for t in node.inputs if hasattr(t, "_values") and t.name}


def state(graph):
    return {name: np.array(peek(constant)) for name, constant in constants(graph).items()}


def changed(graph, before):
    return {name for name, values in state(graph).items() if values.tobytes() != before[name].tobytes()}


def batches(model, count=8, samples=8):
    return [structures.feeds(model, samples, seed) for seed in range(count)]


def distance(first, second, feeds):
    """Over all float outputs, the squared distance relative to the variance."""
    errors = []
    for one, two in zip(run(session(first), feeds), run(session(second), feeds), strict=True):
        if one.dtype.kind == "f":
            errors.append(np.square(one - two).mean() / max(one.var(), 1e-9))
    return float(np.mean(errors))


@pytest.mark.parametrize("name", [name for name in structures.EVERY if name not in ("two_inputs", "masked")])
def test_weights_that_are_off_come_nearer(name):
    model = structures.EVERY[name]()
    graph, reference = noisy(model)
    before, unseen = to_model(graph), structures.feeds(model, 40, seed=99)
    result = reconstruct(graph, reference, batches(model), COURSE)
    assert len(result.errors) == len(find_trainable(graph))
    assert all(after <= first for first, after in result.errors.values())
    assert result.kept
    assert distance(model, to_model(graph), unseen) < 0.7 * distance(model, before, unseen)


@pytest.mark.parametrize("make", [networks.mixed, structures.residual, structures.transformer])
def test_a_cut_network_comes_nearer(make):
    model = make()
    graph, reference = halved(model)
    before = to_model(graph)
    feeds = batches(model)
    result = reconstruct(graph, reference, feeds, COURSE)
    assert result.kept
    assert all(after <= first for first, after in result.errors.values())
    assert sum(after for _, after in result.errors.values()) < 0.9 * sum(
        first for first, _ in result.errors.values()
    )
    unseen = structures.feeds(model, 40, seed=99)
    assert distance(model, to_model(graph), unseen) < distance(model, before, unseen)


@pytest.mark.parametrize("make", [networks.mixed, structures.residual, structures.transformer])
def test_neighbours_make_up_for_each_other(make):
    """What is said of the last block is true: nothing it reads is from before its neighbours were trained."""
    model = make()
    graph, reference = halved(model)
    feeds = batches(model)
    found = reconstruct(graph, reference, feeds, COURSE, neighbours=2)
    pairs = [name for name in found.errors if name.endswith(", 2 blocks")]
    assert len(found.errors) == len(find_trainable(graph)) + len(pairs) == len(turns_of(graph, 2))
    assert set(pairs) & set(found.kept)
    assert all(after <= first for first, after in found.errors.values())
    again = reconstruct(graph, reference, feeds, replace(COURSE, steps=0))
    last = list(again.errors)[-1]
    assert again.errors[last][0] == pytest.approx(
        found.errors.get(f"{last}, 2 blocks", found.errors[last])[1]
    )


@pytest.mark.parametrize("rate", [1e3, 1e30])
@pytest.mark.filterwarnings("error")
def test_a_block_that_cannot_improve_stays_bit_for_bit(rate):
    model = structures.residual()
    graph, reference = noisy(model)
    before = state(graph)
    result = reconstruct(graph, reference, batches(model), replace(COURSE, rate=rate, clip=None))
    assert changed(graph, before) == set()
    assert result.kept == []
    assert all(first == after for first, after in result.errors.values())


def test_what_is_right_already_is_not_touched():
    model = structures.unet()
    graph, reference = noisy(model, 0)
    before = state(graph)
    result = reconstruct(graph, reference, batches(model), COURSE)
    assert changed(graph, before) == set()
    assert all(first < 1e-8 for first, _ in result.errors.values())


def test_only_the_block_that_is_off_changes():
    model = structures.chain(6)
    graph, reference = noisy(model, only=lambda name: name in ("w2", "w3"))
    before = state(graph)
    reconstruct(graph, reference, batches(model), COURSE)
    assert changed(graph, before) <= {"w2", "w3", "w4", "w5"}
    assert changed(graph, before) >= {"w2", "w3"}


def test_statistics_and_other_constants_stay():
    model = structures.transformer()
    graph, reference = noisy(model, only=lambda name: name.startswith("w"))
    before = state(graph)
    reconstruct(graph, reference, batches(model), COURSE)
    assert not changed(graph, before) & {"heads", "flat", "first", "third", "scale"}


TURNED = """
t1 = Transpose (w1)
a = MatMul (x, t1)
b = Relu (a)
c = MatMul (b, w2)
d = Relu (c)
e = MatMul (d, w3)
f = Relu (e)
y = MatMul (f, w4)
"""


def turned(body=TURNED, weights=("w1", "w2", "w3", "w4")):
    model = build("float[N,6] x", "float[N,6] y", body, dict.fromkeys(weights, (6, 6)))
    for node in model.graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    return model


VECTORS = [{"x": x} for x in np.random.default_rng(0).standard_normal((8, 16, 6)).astype(np.float32)]


@pytest.mark.parametrize(
    ("excluded", "stays"),
    [("w2", "w2"), ("MatMul_c", "w2"), ("Transpose_t1", "w1"), ("MatMul_a", "w1"), ("w1", "w1")],
)
def test_what_is_excluded_stays(excluded, stays):
    graph, reference = noisy(turned())
    before = state(graph)
    result = reconstruct(graph, reference, VECTORS, COURSE, excluded=lambda name: name == excluded)
    assert changed(graph, before) == {"w1", "w2", "w3", "w4"} - {stays}
    assert result.stopped == {}


@pytest.mark.parametrize("behind", ["", "s = Transpose (w)\n"])
def test_weights_that_several_blocks_read_stay(behind):
    shared = "s" if behind else "w"
    body = behind + "\n".join(
        f"m{k} = MatMul (r{k}, {shared})\nn{k} = MatMul (m{k}, v{k})\nr{k + 1} = Relu (n{k})"
        for k in range(3)
    )
    body = f"r0 = Identity (x)\n{body}\ny = Identity (r3)"
    graph, reference = noisy(turned(body, ("w", "v0", "v1", "v2")))
    assert len(find_trainable(graph)) == 3
    before = state(graph)
    result = reconstruct(graph, reference, VECTORS, COURSE)
    assert changed(graph, before) == {"v0", "v1", "v2"}
    assert result.kept
    assert result.stopped == {"w": "several blocks read it"}


@pytest.mark.parametrize(("behind", "name"), [("", "w2"), ("z = Transpose (w2)\n", "z")])
def test_weights_that_the_model_puts_out_stay(behind, name):
    model = turned(TURNED + behind)
    model.graph.output.append(onnx.helper.make_tensor_value_info(name, 1, [6, 6]))
    graph, reference = noisy(model)
    before = state(graph)
    result = reconstruct(graph, reference, VECTORS, COURSE)
    assert changed(graph, before) == {"w1", "w3", "w4"}
    assert result.stopped == {"w2": "the model puts it out"}


def test_a_weight_that_is_read_twice_in_one_block_is_learned():
    body = "a = MatMul (x, w)\nb = Relu (a)\ny = MatMul (b, w)"
    graph, reference = noisy(turned(body, ("w",)))
    before = state(graph)
    result = reconstruct(graph, reference, VECTORS, COURSE)
    assert changed(graph, before) == {"w"}
    assert all(after < 0.5 * first for first, after in result.errors.values())


@pytest.mark.parametrize("shape", ["N", "1"])
def test_models_of_one_sample_at_a_time(shape):
    model = build(
        f"float[{shape},6] x", f"float[{shape},6] y", TURNED, {f"w{k}": (6, 6) for k in range(1, 5)}
    )
    graph, reference = noisy(model)
    feeds = [{"x": x[None]} for x in np.concatenate([each["x"] for each in VECTORS])]
    result = reconstruct(graph, reference, feeds, COURSE)
    assert all(after < 0.7 * first for first, after in result.errors.values())


def test_a_size_that_is_written_into_the_model():
    body = TURNED.replace("d = Relu (c)", "d0 = Relu (c)\nd = Reshape (d0, s)")
    weights = {f"w{k}": (6, 6) for k in range(1, 5)} | {"s": np.array([16, 6])}
    model = build("float[16,6] x", "float[16,6] y", body, weights)
    graph, reference = noisy(model)
    result = reconstruct(graph, reference, VECTORS, COURSE)
    assert all(after < 0.7 * first for first, after in result.errors.values())


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_sequences_whose_first_axis_is_time(kind):
    model = networks.layers(kind, outputs="s, ")
    graph, reference = noisy(model)
    before = to_model(graph)
    data = np.random.default_rng(1).standard_normal((10, 5, 8, 6)).astype(np.float32)
    result = reconstruct(graph, reference, [{"x": x} for x in data], replace(COURSE, batch=3))
    assert result.kept
    unseen = {"x": networks.sequences(seed=9)}
    assert distance(model, to_model(graph), unseen) < 0.7 * distance(model, before, unseen)


def test_steps_of_a_sequence_are_not_taken_out_of_their_order():
    model = networks.layers("LSTM")
    graph, reference = noisy(model, 0)
    data = np.random.default_rng(1).standard_normal((6, 5, 8, 6)).astype(np.float32)
    result = reconstruct(graph, reference, [{"x": x} for x in data], COURSE)
    assert all(error < 1e-8 for pair in result.errors.values() for error in pair)


def test_inputs_of_different_leading_sizes():
    model = structures.two_inputs()
    graph, reference = noisy(model)
    result = reconstruct(graph, reference, batches(model), replace(COURSE, batch=4))
    assert result.kept
    assert all(after <= first for first, after in result.errors.values())


def test_integers_made_of_floats_that_several_blocks_read():
    model = structures.masked()
    graph, reference = noisy(model)
    result = reconstruct(graph, reference, batches(model), COURSE)
    assert len(result.errors) == len(find_trainable(graph))
    assert all(after <= first for first, after in result.errors.values())


def test_sequences_of_several_lengths():
    model = structures.transformer()
    random = np.random.default_rng(0)
    feeds = [
        {"x": random.standard_normal((4, length, 8)).astype(np.float32)} for length in (3, 5, 7, 4, 6, 5)
    ]
    graph, reference = noisy(model)
    result = reconstruct(graph, reference, feeds, replace(COURSE, batch=2))
    assert result.kept


def test_little_memory_goes_to_files_and_is_told():
    model = structures.residual()
    results = []
    for limit in (2**31, 10_000):
        graph, reference = noisy(model)
        result = reconstruct(graph, reference, batches(model), COURSE, limit_bytes=limit)
        results.append((result, state(graph)))
    (roomy, first), (tight, second) = results
    assert roomy.spilled == 0
    assert tight.spilled > 0
    for name in first:  # fewer samples at once: sums in another order
        np.testing.assert_allclose(first[name], second[name], rtol=1e-4, atol=1e-5)


def test_files_are_gone_at_the_end_without_being_collected(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model = structures.residual()
    graph, reference = noisy(model)
    gc.disable()
    try:
        result = reconstruct(graph, reference, batches(model), COURSE, neighbours=2, limit_bytes=10_000)
        assert result.spilled > 0
        assert list(tmp_path.iterdir()) == []
    finally:
        gc.enable()


def test_threads_do_not_matter():
    model = structures.residual()
    found = []
    for threads in (1, 2):
        graph, reference = noisy(model)
        reconstruct(graph, reference, batches(model), COURSE, threads=threads)
        found.append(state(graph))
    assert all(found[0][name].tobytes() == found[1][name].tobytes() for name in found[0])


def test_pieces_bound_what_runs_at_once():
    model = structures.residual(2)
    errors = []
    for most in (10**9, 5):
        graph, reference = noisy(model)
        errors.append(reconstruct(graph, reference, batches(model), replace(COURSE, most=most)).errors)
    for name, (_, after) in errors[0].items():
        assert errors[1][name][1] == pytest.approx(after, rel=0.05)


def test_progress_counts_every_step_of_every_block():
    model = structures.detector()
    graph, reference = noisy(model)
    seen = []
    reconstruct(graph, reference, batches(model), COURSE, progress=seen.append)
    assert sum(seen) == COURSE.steps * len(find_trainable(graph))


def test_targets_that_are_gone_or_of_another_shape_are_not_learned_from():
    graph, reference = noisy(structures.chain(4))
    other = from_model(structures.chain(4))
    for node in other.nodes:
        for tensor in node.outputs:
            if tensor.name in ("r2", "c1"):
                tensor.name = f"old_{tensor.name}"
    before = state(graph)
    result = reconstruct(graph, Reference(other), batches(structures.chain(4)), COURSE)
    assert len(result.errors) == 1
    assert changed(graph, before) == {"w2", "w3"}
    assert result.stopped == dict.fromkeys(("w0", "w1"), "its block has nothing to learn from")

    graph, reference = noisy(structures.chain(4))
    before = state(graph)
    flags = np.array([True, False, True, False])
    narrow = Reference(reference.graph, {"r2": {1: flags}})
    result = reconstruct(graph, narrow, batches(structures.chain(4)), COURSE)
    assert len(result.errors) == 1
    assert changed(graph, before) == {"w2", "w3"}


@pytest.mark.filterwarnings("error")
def test_what_is_not_a_number_is_not_learned():
    model = structures.chain(4)
    graph, reference = noisy(model)
    before = state(graph)
    feeds = batches(model)
    for each in feeds:
        each["x"][:] = np.nan
    result = reconstruct(graph, reference, feeds, COURSE)
    assert changed(graph, before) == set()
    assert result.kept == []


def test_one_sample_is_too_few_and_that_is_said():
    model = structures.chain(4)
    graph, reference = noisy(model)
    before = state(graph)
    result = reconstruct(graph, reference, batches(model, 1, 1), COURSE)
    assert changed(graph, before) == set()
    assert set(result.stopped) == {"w0", "w1", "w2", "w3"}
    assert "one sample" in result.stopped["w0"]


BRANCH = """
a = MatMul (x, w1)
b = Relu (a)
c = MatMul (b, w2)
s = ReduceSum <keepdims=0> (x)
p = Greater (s, zero)
d = If (p) <
  then_branch = g1 () => (float[N,6] u) { t1 = MatMul (c, w3) u = Relu (t1) },
  else_branch = g2 () => (float[N,6] v) { v = MatMul (c, w3) }
>
e = MatMul (d, w4)
f = Relu (e)
y = MatMul (f, w5)
"""


def test_weights_in_branches_stay_and_others_learn():
    weights = {f"w{k}": (6, 6) for k in range(1, 6)} | {"zero": np.float32(0)}
    model = build("float[N,6] x", "float[N,6] y", BRANCH, weights)
    graph, reference = noisy(model, only=lambda name: name.startswith("w"))
    before = state(graph)
    result = reconstruct(graph, reference, VECTORS, replace(COURSE, batch=4))
    assert result.kept
    assert "w3" not in changed(graph, before)
    assert result.stopped["w3"].startswith("the body of If")
    assert changed(graph, before) >= {"w4", "w5"}


def test_half_floats_around_single_ones():
    body = """
    h = MatMul (x, w1)
    g = Cast <to=10> (h)
    r = Relu (g)
    s = Cast <to=1> (r)
    m = MatMul (s, w2)
    t = MatMul (m, w3)
    y = Cast <to=10> (t)
    """
    weights = {"w1": (6, 6), "w2": (6, 6), "w3": 300 * np.random.default_rng(0).standard_normal((6, 6))}
    model = build("float[N,6] x", "float16[N,6] y", body, {**weights, "w3": weights["w3"].astype(np.float32)})
    graph, reference = noisy(model)
    result = reconstruct(graph, reference, VECTORS, COURSE)
    assert result.kept
    assert all(np.isfinite(each).all() for each in result.errors.values())


def test_weights_in_half_floats_stay():
    body = TURNED
    weights = {f"w{k}": np.random.default_rng(k).standard_normal((6, 6)) for k in range(1, 5)}
    model = build(
        "float16[N,6] x", "float16[N,6] y", body, {n: w.astype(np.float16) for n, w in weights.items()}
    )
    graph, reference = noisy(model)
    before = state(graph)
    reconstruct(graph, reference, [{"x": f["x"].astype(np.float16)} for f in VECTORS], COURSE)
    assert changed(graph, before) == set()


def test_the_result_loads_and_keeps_its_interface():
    model = structures.detector()
    graph, reference = noisy(model)
    reconstruct(graph, reference, batches(model), COURSE)
    result = to_model(graph)
    onnx.checker.check_model(result)
    assert [output.name for output in result.graph.output] == [output.name for output in model.graph.output]
    assert [node.op_type for node in result.graph.node] == [node.op_type for node in model.graph.node]


def test_weights_that_only_decisions_depend_on_are_named():
    weights = {"w1": (6, 6), "w2": (6, 6), "w3": (6, 6)}
    body = "a = MatMul (x, w1)\nb = Relu (a)\ny = MatMul (b, w2)\nc = MatMul (x, w3)\nz = ArgMax <axis=1> (c)"
    model = build("float[N,6] x", "float[N,6] y, int64[N,1] z", body, weights)
    graph, reference = noisy(model)
    before = state(graph)
    result = reconstruct(graph, reference, VECTORS, COURSE)
    assert "w3" not in changed(graph, before)
    assert result.stopped == {"w3": "nothing that is learned from depends on it"}
