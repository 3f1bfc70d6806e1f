"""Gradient scores against brute force: what fading, and removing, each index does to the loss of every sample."""

from __future__ import annotations

import numpy as np
import onnx
import prunable
import pytest
from onnx import numpy_helper

from surgeon.graph.sessions import run, session
from surgeon.scores import fisher, taylor
from surgeon.stats.chunks import Chunk
from surgeon.stats.data import Input, from_chunks
from surgeon_passes.prune import Prune
from surgeon_passes.pruning.influence import influences
from surgeon_passes.pruning.rank import Ranking

STEP = 1e-2
LARGE = 2**30
LOGITS = prunable.CHAIN.replace("y = Gemm", "z = Gemm").replace("\n}", "\n  y = Softmax <axis = 1> (z)\n}")


def samples(count=24, shape=(3, 8, 8), seed=0):
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)


def dataset(values, labels=None, batch=8):
    inputs = [Input("x", np.dtype(np.float32), ("N", *values.shape[1:]))]
    return from_chunks("samples", inputs, lambda: iter([Chunk({"x": values}, labels)]), batch)


def found(model, folder, data, limit=LARGE, **options):
    analysed = prunable.analysed(model, folder)
    context = prunable.Context(folder / "model.onnx", data=data, **options)
    return influences(analysed, analysed.groups, context, limit), analysed


def outputs(model, values):
    return run(session(model), {"x": values})[0].astype(np.float64)


def scaled(model, places, factor):
    """A copy with some values of its weights multiplied."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        for name, where in places:
            if tensor.name == name:
                values = numpy_helper.to_array(tensor).copy()
                values[where] *= factor
                tensor.CopyFrom(numpy_helper.from_array(values, name))
    return copy


def entropy(labels):
    def losses(scores):
        shifted = scores - scores.max(axis=1, keepdims=True)
        logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        return -logs[np.arange(len(labels)), labels]

    return losses


def squared(labels):
    return lambda values: 0.5 * ((values - labels) ** 2).reshape(len(values), -1).mean(axis=1)


def slopes(model, values, losses, places):
    """Of every sample's loss, by central differences: ``[samples, indices]``."""
    ends = [
        [losses(outputs(scaled(model, each, 1 + sign * STEP), values)) for each in places] for sign in (1, -1)
    ]
    return (np.array(ends[0]) - np.array(ends[1])).T / (2 * STEP)


def check(slopes_found, expected):
    np.testing.assert_allclose(taylor(slopes_found), np.abs(expected).mean(axis=0) ** 2, rtol=0.03, atol=1e-9)
    np.testing.assert_allclose(fisher(slopes_found), 0.5 * (expected**2).mean(axis=0), rtol=0.03, atol=1e-9)


ROW = np.s_[:]
CASES = {
    "chain": (prunable.chain, "w1:0", [[("w2", (ROW, k))] for k in range(16)]),
    "behind a pool": (prunable.chain, "w2:0", [[("w3", (ROW, k))] for k in range(24)]),
    "grouped": (prunable.grouped, 6, [[("w2", (ROW, k))] for k in range(6)]),
    "residual, joined and depthwise": (
        prunable.concat,
        12,
        [[("wc", (ROW, k)), ("w3", (ROW, k))] for k in range(12)],
    ),
}


def of(slopes_found, key):
    """By name, or by size where there is but one."""
    return (
        slopes_found[key]
        if isinstance(key, str)
        else next(each for each in slopes_found.values() if len(each.squares) == key)
    )


@pytest.mark.parametrize("case", CASES)
def test_slopes_are_those_of_every_samples_loss(case, tmp_path):
    make, key, places = CASES[case]
    model, values = make(), samples()
    labels = np.random.default_rng(1).integers(0, outputs(model, values).shape[1], len(values))
    result, _ = found(model, tmp_path, dataset(values, labels))
    assert result.truth == "the labels"
    assert result.without == result.partial == {}
    check(of(result.slopes, key), slopes(model, values, entropy(labels), places))


def test_heads_and_their_dimensions(tmp_path):
    model, values = prunable.attention(), samples(shape=(6, 16))
    labels = samples(shape=(6, 16), seed=1)
    result, analysed = found(model, tmp_path, dataset(values, labels))
    heads = [[("wo", np.s_[8 * k : 8 * k + 8])] for k in range(4)]
    check(of(result.slopes, 4), slopes(model, values, squared(labels), heads))
    names = [group.id for group in analysed.groups if group.size == 8 and "wq:1" in group.id]
    dimensions = [
        [("wq", np.s_[:, k::8])] for k in range(8)
    ]  # the products of queries and keys, not both factors
    for name in names:
        if all("wo" not in member for member, _ in next(g for g in analysed.groups if g.id == name).members):
            check(result.slopes[name], slopes(model, values, squared(labels), dimensions))


def ranks(values):
    return np.argsort(np.argsort(values)).astype(float)


@pytest.mark.parametrize("score", [taylor, fisher])
def test_ranks_as_removing_each_channel_alone_does(score, tmp_path):
    model, values = prunable.chain(), samples(48)
    labels = np.random.default_rng(1).integers(0, 10, len(values))
    losses = entropy(labels)
    whole = losses(outputs(model, values))
    changes = [
        np.abs(losses(outputs(scaled(model, [("w2", (ROW, k))], 0.0), values)) - whole).mean()
        for k in range(16)
    ]
    result, _ = found(model, tmp_path, dataset(values, labels))
    assert np.corrcoef(ranks(score(result.slopes["w1:0"])), ranks(changes))[0, 1] > 0.9


def test_without_labels_it_is_the_fisher_information_of_the_models_own_distribution(tmp_path):
    model = prunable.build(LOGITS, prunable.CHAIN_SHAPES)
    before = prunable.chain()
    values = samples(300)
    result, _ = found(model, tmp_path, dataset(values, batch=64))
    scores = outputs(before, values)
    chances = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    places = [[("w2", (ROW, k))] for k in range(16)]
    expected = np.zeros(16)
    for label in range(10):
        every = np.full(len(values), label)
        expected += (chances[:, label, None] * slopes(before, values, entropy(every), places) ** 2).mean(0)
    assert result.truth != "the labels"
    np.testing.assert_allclose(fisher(result.slopes["w1:0"]), 0.5 * expected, rtol=0.35)


def test_class_scores_are_known_by_softmax_or_by_the_metric(tmp_path):
    values = samples()
    softmax, _ = found(prunable.build(LOGITS, prunable.CHAIN_SHAPES), tmp_path, dataset(values))
    scores, _ = found(prunable.chain(), tmp_path, dataset(values))
    np.testing.assert_allclose(scores.slopes["w1:0"].squares, softmax.slopes["w1:0"].squares, rtol=1e-4)
    numbers, _ = found(prunable.chain(), tmp_path, dataset(values), metric="mse")
    assert not np.allclose(numbers.slopes["w1:0"].squares, scores.slopes["w1:0"].squares, rtol=0.1)


def test_other_outputs_count_by_the_energy_of_their_change(tmp_path):
    model, values = prunable.attention(), samples(128, shape=(6, 16))
    result, _ = found(model, tmp_path, dataset(values, batch=32))
    whole = outputs(model, values)
    expected = []
    for k in range(4):
        faded = outputs(scaled(model, [("wo", np.s_[8 * k : 8 * k + 8])], 1 - STEP), values)
        expected.append(np.square((faded - whole) / STEP).mean() / whole.var())
    np.testing.assert_allclose(2 * fisher(of(result.slopes, 4)), expected, rtol=0.3)


@pytest.mark.parametrize("labelled", [True, False])
def test_neither_memory_nor_threads_nor_batches_matter(labelled, tmp_path):
    values = samples(20)
    labels = np.arange(20) % 10 if labelled else None
    model = prunable.chain()
    first, _ = found(model, tmp_path, dataset(values, labels))
    again, _ = found(model, tmp_path, dataset(values, labels))
    np.testing.assert_array_equal(first.slopes["w1:0"].squares, again.slopes["w1:0"].squares)
    for limit, threads, batch in ((1, 1, 8), (LARGE, 2, 8), (LARGE, 1, 5)):
        other, _ = found(model, tmp_path, dataset(values, labels, batch), limit, threads=threads)
        for name, each in first.slopes.items():
            np.testing.assert_allclose(other.slopes[name].squares, each.squares, rtol=1e-4)


def test_small_limits_run_one_sample_at_a_time(tmp_path, monkeypatch):
    sizes = []

    def counted(runner, feeds):
        sizes.append(len(feeds["x"]))
        return run(runner, feeds)

    monkeypatch.setattr("surgeon_passes.pruning.influence.run", counted)
    found(prunable.chain(), tmp_path, dataset(samples(4)), limit=1)
    assert set(sizes) == {1}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("score", ["taylor", "fisher"])
def test_plans_do_not_depend_on_threads(score, threads, tmp_path):
    plans = []
    for count in (1, threads):
        analysed = prunable.analysed(prunable.concat(), tmp_path)
        context = prunable.Context(tmp_path / "model.onnx", data=dataset(samples()), threads=count)
        ranked = Ranking(Prune(score=score), analysed, context).of(analysed.groups)
        plans.append({name: np.argsort(scores, kind="stable").tolist() for name, scores in ranked.items()})
    assert plans[0] == plans[1]


def test_a_model_that_takes_one_sample_or_mixes_them_is_measured_sample_by_sample(tmp_path):
    text = prunable.ATTENTION.replace('float["N",6,16] x', "float[1,6,16] x")
    single = prunable.build(text, prunable.ATTENTION_SHAPES, prunable.ATTENTION_CONSTANTS)
    values, labels = samples(6, shape=(6, 16)), samples(6, shape=(6, 16), seed=1)
    heads = [[("wo", np.s_[8 * k : 8 * k + 8])] for k in range(4)]
    analysed = prunable.analysed(single, tmp_path)
    inputs = [Input("x", np.dtype(np.float32), (1, 6, 16))]
    data = from_chunks("samples", inputs, lambda: iter([Chunk({"x": values}, labels)]), 1)
    context = prunable.Context(tmp_path / "model.onnx", data=data)
    result = influences(analysed, analysed.groups, context, LARGE)
    expected = slopes(prunable.attention(), values, squared(labels), heads)
    check(of(result.slopes, 4), expected)


def test_what_has_no_gradient_falls_back_and_says_why(tmp_path):
    text = prunable.CHAIN.replace("r2 = Relu (c2)", "r2 = Floor (c2)")
    model = prunable.build(text, prunable.CHAIN_SHAPES)
    _, context = prunable.prune(model, tmp_path, data=dataset(samples()), ratio=0.5, score="taylor")
    assert context.record["ranked_by_l2"] == ["w1:0"]
    assert "Floor" in context.record["gradients"]["without"]["w1:0"]
    assert "score=taylor: 1 of 2 groups have no gradient and are ranked by l2: w1:0 (" in context.warnings[0]
    assert len(prunable.kept(context, "w1:0")) == 8


def test_labels_that_fit_nothing_are_said_to(tmp_path):
    values = samples(8)
    analysed = prunable.analysed(prunable.chain(), tmp_path)
    context = prunable.Context(tmp_path / "model.onnx", data=dataset(values, np.zeros((8, 3), np.int64)))
    result = influences(analysed, analysed.groups, context, LARGE)
    assert result.truth == "the model's own outputs"
    assert "the labels do not fit" in context.warnings[0]


@pytest.mark.parametrize("score", ["taylor", "fisher"])
def test_channels_that_do_nothing_go_first(score, tmp_path):
    weights = prunable.chain()
    second = next(numpy_helper.to_array(t) for t in weights.graph.initializer if t.name == "w2").copy()
    second[:, 4:8] = 0  # they fire, but nobody listens
    _, context = prunable.prune(
        prunable.chain(w2=second), tmp_path, data=dataset(samples()), ratio=0.25, score=score
    )
    assert prunable.kept(context, "w1:0") == tuple(k for k in range(16) if k not in range(4, 8))
    assert context.warnings == []


RECURRENT = """recurrent (float["N",6,16] x) => (float["N",6,5] y) {
  t = Transpose <perm = [1,0,2]> (x)
  h, last = LSTM <hidden_size = 8> (t, w, r)
  s = Squeeze <axes = [1]> (h)
  b = Transpose <perm = [1,0,2]> (s)
  y = MatMul (b, wo)
}"""


def test_what_recurrent_layers_feed_back_is_said_to_be_left_out(tmp_path):
    shapes = {"w": (1, 32, 16), "r": (1, 32, 8), "wo": (8, 5)}
    text = prunable.HEAD.replace("17", "11") + RECURRENT
    model = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    model.graph.initializer.extend(
        numpy_helper.from_array(0.3 * random.standard_normal(shape).astype(np.float32), name)
        for name, shape in shapes.items()
    )
    for number, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{number}"
    values, labels = samples(6, shape=(6, 16)), samples(6, shape=(6, 5), seed=1)
    result, _ = found(model, tmp_path, dataset(values, labels))
    hidden = [[("wo", k)] for k in range(8)]
    check(of(result.slopes, 8), slopes(model, values, squared(labels), hidden))
    assert any("feeds back into itself" in why for why in result.partial.values())


def test_groups_that_are_not_tried_alone_have_slopes_whatever_the_labels(tmp_path, monkeypatch):
    for module in ("surgeon.refit.sensitivity", "surgeon_passes.pruning.obs"):
        monkeypatch.setattr(f"{module}.PROBES", 1)
    values = samples(16)
    scores = []
    for labels in (None, np.arange(16) % 5):
        analysed = prunable.analysed(prunable.concat(), tmp_path)
        context = prunable.Context(tmp_path / "model.onnx", data=dataset(values, labels))
        ranking = Ranking(Prune(score="obs"), analysed, context)
        scores.append(ranking.of(analysed.groups))
        assert len(ranking.eliminator.probes) == 1
        assert ranking.eliminator.slopes.keys() == {group.id for group in analysed.groups}
        assert context.warnings == []
    for name, each in scores[0].items():
        assert np.isfinite(each).all()
        np.testing.assert_array_equal(each, scores[1][name])
