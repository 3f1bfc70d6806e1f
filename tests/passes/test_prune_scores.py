"""What ``prune`` ranks by: weights of every kind, normalisation scales, calibration data and plugins."""

from __future__ import annotations

import distributions
import numpy as np
import onnx.parser
import prunable
import pytest
from onnx import TensorProto, helper, numpy_helper

from surgeon import entries, plugins
from surgeon.errors import PluginError, UsageError
from surgeon.graph.sessions import run, session, with_outputs
from surgeon.scores import SCORES
from surgeon.stats.chunks import Chunk
from surgeon.stats.data import Input, from_chunks
from surgeon_passes.prune import Prune
from surgeon_passes.pruning.rank import Ranking

RISING = np.linspace(0.5, 2.0, 16, dtype=np.float32)


def batches(count=3, size=4, seed=0, shape=(3, 8, 8), dtype=np.float32):
    random = np.random.default_rng(seed)
    return [random.standard_normal((size, *shape)).astype(dtype) for _ in range(count)]


def dataset(arrays):
    shape = ("N", *arrays[0].shape[1:])
    inputs = [Input("x", arrays[0].dtype, shape)]
    return from_chunks(
        "samples", inputs, lambda: iter([Chunk({"x": array}) for array in arrays]), len(arrays[0])
    )


def rising(shape=(16, 3, 3, 3), dtype=np.float32):
    """Filters of rising norm in seeded directions."""
    values = np.random.default_rng(5).standard_normal(shape)
    values /= np.linalg.norm(values.reshape(shape[0], -1), axis=1).reshape(-1, *[1] * (len(shape) - 1))
    return (values * RISING.reshape(-1, *[1] * (len(shape) - 1))).astype(dtype)


def even(shape=(24, 16, 3, 3)):
    """Weights whose magnitudes are all alike, so that they do not say which of their inputs matter."""
    return np.ones(shape, np.float32)


@pytest.mark.parametrize("score", ["l1", "l2"])
def test_small_filters_go_first(score, tmp_path):
    weights = {"w1": RISING[:, None, None, None] * even((16, 3, 3, 3)), "w2": even()}
    _, context = prunable.prune(prunable.chain(**weights), tmp_path, ratio=0.5, score=score)
    assert prunable.kept(context, "w1:0") == tuple(range(8, 16))


def test_of_two_filters_alike_one_goes(tmp_path):
    filters = np.random.default_rng(0).standard_normal((16, 3, 3, 3)).astype(np.float32)
    filters[11] = 0.9 * filters[2]
    weights = {
        "w1": filters,
        "w2": np.random.default_rng(1).standard_normal((24, 16, 3, 3)).astype(np.float32),
    }
    weights["w2"][:, 11] = 0.9 * weights["w2"][:, 2]
    _, context = prunable.prune(prunable.chain(**weights), tmp_path, ratio=0.1, score="redundancy")
    assert prunable.kept(context, "w1:0") == tuple(k for k in range(16) if k != 11)


def test_random_depends_on_the_seed_alone(tmp_path):
    def choice(seed):
        _, context = prunable.prune(prunable.chain(), tmp_path, ratio=0.5, score="random", seed=seed)
        return prunable.kept(context, "w1:0")

    assert choice(0) == choice(0)
    assert choice(0) != choice(1)


@pytest.mark.parametrize(
    "score",
    [
        "l1",
        "l2",
        "geometric_median",
        "redundancy",
        "activation_norm",
        "apoz",
        "wanda",
        "taylor",
        "fisher",
    ],
)
def test_the_same_model_gives_the_same_plan(score, tmp_path):
    plans = [
        prunable.prune(prunable.concat(), tmp_path, data=dataset(batches()), macs=0.6, score=score)[1].plan
        for _ in range(2)
    ]
    assert plans[0].to_json() == plans[1].to_json()


BN = """bn (float["N",3,8,8] x) => (float["N",5] y) {
  c1 = Conv (x, w1)
  n1 = BatchNormalization (c1, gamma, beta, mean, variance)
  r1 = Relu (n1)
  c2 = Conv (r1, w2)
  r2 = Relu (c2)
  p = GlobalAveragePool (r2)
  f = Flatten (p)
  y = Gemm <transB = 1> (f, w3)
}"""


def batch_normalised():
    constants = {
        "gamma": -RISING[::-1].copy(),
        "beta": np.zeros(16, np.float32),
        "mean": np.zeros(16, np.float32),
        "variance": np.ones(16, np.float32),
    }
    return prunable.build(BN, {"w1": (16, 3, 3, 3), "w2": (24, 16, 3, 3), "w3": (5, 24)}, constants)


def test_bn_scale_ranks_by_gamma_and_says_where_there_is_none(tmp_path):
    _, context = prunable.prune(batch_normalised(), tmp_path, ratio=0.5, score="bn_scale")
    assert prunable.kept(context, "w1:0") == tuple(range(8))
    assert "1 of 2 groups have no BatchNormalization" in context.warnings[0]
    assert context.record["ranked_by_l2"] == ["w2:0"]


def dead_channels():
    """A model in which channels 4 to 7 of the first convolution never fire."""
    bias = np.zeros(16, np.float32)
    bias[4:8] = -1000
    return prunable.chain(b1=bias)


@pytest.mark.parametrize("score", ["activation_norm", "apoz", "wanda", "taylor", "fisher"])
def test_channels_that_never_fire_go_first(score, tmp_path):
    _, context = prunable.prune(dead_channels(), tmp_path, data=dataset(batches()), ratio=0.25, score=score)
    assert prunable.kept(context, "w1:0") == tuple(k for k in range(16) if k not in range(4, 8))
    assert context.warnings == []


def test_data_scores_make_do_with_synthetic_inputs_and_say_so(tmp_path):
    _, context = prunable.prune(dead_channels(), tmp_path, ratio=0.25, score="activation_norm")
    assert not set(range(4, 8)) & set(prunable.kept(context, "w1:0"))
    assert "synthetic" in context.warnings[0]


def ranked(model, folder, score, data, monkeypatch):
    """The raw numbers of a score, before they are turned into prices."""
    monkeypatch.setattr("surgeon_passes.pruning.rank.prices", lambda scores, weights: scores)
    analysed = prunable.analysed(model, folder)
    context = prunable.Context(folder / "model.onnx", data=data)
    return Ranking(Prune(score=score), analysed, context).of(analysed.groups)


def activations(model, name, arrays):
    runner = session(with_outputs(model, [name]))
    return np.concatenate([run(runner, {"x": array})[-1] for array in arrays]).astype(np.float64)


def mean_one(values):
    return values / values.mean()


def test_activation_scores_are_what_numpy_says(tmp_path, monkeypatch):
    model, arrays = prunable.chain(), batches()
    seen = activations(model, "r1", arrays)
    expected = {
        "activation_norm": np.sqrt((seen**2).sum(axis=(0, 2, 3))),
        "apoz": (seen != 0).mean(axis=(0, 2, 3)),
    }
    for score, values in expected.items():
        found = ranked(model, tmp_path, score, dataset(arrays), monkeypatch)["w1:0"]
        np.testing.assert_allclose(found, mean_one(values), rtol=1e-4)


def test_wanda_is_what_numpy_says_in_groups_too(tmp_path, monkeypatch):
    model, arrays = prunable.grouped(), batches()
    norms = np.sqrt((activations(model, "r1", arrays) ** 2).sum(axis=(0, 2, 3)))
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    contribution = np.zeros(24)
    for row in range(32):  # each output reads the six inputs of its group
        for column in range(6):
            contribution[row // 8 * 6 + column] += np.abs(weights["w2"][row, column]).sum()
    found = ranked(model, tmp_path, "wanda", dataset(arrays), monkeypatch)
    inner = next(scores for name, scores in found.items() if len(scores) == 6)
    np.testing.assert_allclose(inner, mean_one((contribution * norms).reshape(4, 6).sum(axis=0)), rtol=1e-4)


def test_wanda_reads_matrix_products_on_either_side(tmp_path, monkeypatch):
    model = prunable.attention()
    arrays = batches(shape=(6, 16))
    norms = np.sqrt((activations(model, "flat", arrays) ** 2).sum(axis=(0, 1)))
    weights = next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == "wo")
    found = ranked(model, tmp_path, "wanda", dataset(arrays), monkeypatch)
    heads = next(scores for scores in found.values() if len(scores) == 4)
    per_head = (np.abs(weights).sum(axis=1) * norms).reshape(4, 8).sum(axis=1)
    np.testing.assert_allclose(heads, mean_one(per_head), rtol=1e-4)


TYPED = """typed (TYPE["N",3,8,8] x) => (TYPE["N",24,8,8] y) {
  c1 = Conv (x, w1)
  r1 = Relu (c1)
  y = Conv (r1, w2)
}"""


@pytest.mark.parametrize(
    "score",
    [
        "l1",
        "l2",
        "geometric_median",
        "redundancy",
        "activation_norm",
        "apoz",
        "wanda",
        "taylor",
        "fisher",
    ],
)
def test_half_precision(score, tmp_path):
    weights = {"w1": rising((16, 3, 1, 1), np.float16), "w2": even((24, 16, 1, 1)).astype(np.float16)}
    model = prunable.build(TYPED.replace("TYPE", "float16"), {}, weights)
    data = dataset(batches(dtype=np.float16))
    _, context = prunable.prune(model, tmp_path, data=data, ratio=0.5, score=score)
    assert len(prunable.kept(context, "w1:0")) == 8
    if score in ("l1", "l2"):
        assert set(prunable.kept(context, "w1:0")) > set(range(12, 16))


def derived(op):
    """A weight of rising rows that reaches its MatMul through another operator."""
    rows = (RISING[:, None] * np.ones((16, 4))).astype(np.float32)
    value = helper.make_tensor_value_info
    scale, zero = np.full(16, 0.02, np.float32), np.full(16, 128, np.uint8)
    stored = {
        "transpose": {"w1": rows},
        "dequantize": {"w1": np.round(rows.T / 0.02 + 128).astype(np.uint8), "scale": scale, "zero": zero},
        "cast": {"w1": rows.T.astype(np.float16)},
    }[op]
    node = {
        "transpose": helper.make_node("Transpose", ["w1"], ["w"], perm=[1, 0]),
        "dequantize": helper.make_node("DequantizeLinear", ["w1", "scale", "zero"], ["w"], axis=1),
        "cast": helper.make_node("Cast", ["w1"], ["w"], to=TensorProto.FLOAT),
    }[op]
    nodes = [
        node,
        helper.make_node("MatMul", ["x", "w"], ["h"], name="up"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["y"], name="down"),
    ]
    tensors = [numpy_helper.from_array(v, k) for k, v in (stored | {"w2": even((16, 3))}).items()]
    graph = helper.make_graph(nodes, "g", [value("x", 1, ["N", 4])], [value("y", 1, ["N", 3])], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("score", ["l2", "wanda"])
@pytest.mark.parametrize("op", ["transpose", "dequantize", "cast"])
def test_weights_behind_other_operators(op, score, tmp_path):
    data = dataset([np.abs(array) for array in batches(shape=(4,))])
    _, context = prunable.prune(derived(op), tmp_path, data=data, ratio=0.5, score=score)
    group = context.plan.groups[0]
    assert group.kept == tuple(range(8, 16))


def test_groups_without_weights_lose_their_last_indices(tmp_path):
    nodes = [
        helper.make_node("Expand", ["x", "shape"], ["e"]),
        helper.make_node("ReduceSum", ["e", "axes"], ["y"], keepdims=0),
    ]
    constants = {"shape": np.array([1, 6, 4], np.int64), "axes": np.array([1], np.int64)}
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", 1, ["N", 1, 4])],
        [value("y", 1, ["N", 4])],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    analysed = prunable.analysed(model, tmp_path)
    context = prunable.Context(tmp_path / "model.onnx")
    for score in ("l2", "bn_scale"):
        found = Ranking(Prune(score=score), analysed, context).of(analysed.groups)
        assert {name: np.argsort(scores).tolist() for name, scores in found.items()} == {
            group.id: list(range(group.size))[::-1] for group in analysed.groups
        }


def test_weights_that_are_not_numbers_do_not_break_the_ranking(tmp_path, monkeypatch):
    broken = rising()
    broken[3] = np.nan
    analysed = prunable.analysed(prunable.chain(w1=broken), tmp_path)
    found = Ranking(Prune(score="l2"), analysed, prunable.Context(tmp_path / "model.onnx")).of(
        analysed.groups
    )
    assert all(np.isfinite(scores).all() for scores in found.values())


@pytest.fixture
def third_party(tmp_path, monkeypatch):
    """A distribution that registers scores and a reduction of its own."""
    (tmp_path / "their_scores.py").write_text(
        "import numpy as np\n"
        "from surgeon.scores import Score\n"
        "def first(slices): return np.arange(slices.size)[::-1] + 1.0\n"
        "def energy(activity): return activity.squares\n"
        "of_data = Score(energy, 'activations')\n"
        "def wrong(slices): return np.ones(3)\n"
        "def least(table): return np.nanmin(table, axis=0)\n"
        "number = 7\n"
    )
    scores = {name: f"their_scores:{name}" for name in ("first", "of_data", "wrong", "number")} | {
        "l1": "their_scores:first"
    }
    provided = {entries.SCORES: scores, entries.REDUCTIONS: {"least": "their_scores:least"}}
    distributions.announce(tmp_path, "their-scores", provided)
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins.forget()
    yield
    plugins.forget()


@pytest.mark.usefixtures("third_party")
def test_scores_and_reductions_of_plugins(tmp_path):
    _, context = prunable.prune(prunable.chain(), tmp_path, ratio=0.5, score="first", reduce="least")
    assert prunable.kept(context, "w1:0") == tuple(range(8))
    data = dataset(batches())
    _, theirs = prunable.prune(prunable.chain(), tmp_path, data=data, ratio=0.5, score="of_data")
    _, ours = prunable.prune(prunable.chain(), tmp_path, data=data, ratio=0.5, score="activation_norm")
    assert theirs.plan.to_json() == ours.plan.to_json()


@pytest.mark.usefixtures("third_party")
@pytest.mark.parametrize(
    ("score", "message"),
    [("wrong", "for a group of"), ("number", "cannot be called"), ("l1", "provided twice")],
)
def test_broken_plugins_are_named(score, message, tmp_path):
    with pytest.raises(PluginError, match=message):
        prunable.prune(prunable.chain(), tmp_path, ratio=0.5, score=score)


@pytest.mark.usefixtures("third_party")
def test_a_misspelt_plugin_score_is_answered_with_its_name():
    with pytest.raises(UsageError) as caught:
        Prune(score="frist")
    assert "first" in caught.value.hint


def test_every_score_runs_on_every_small_model(tmp_path):
    for make, shape in (
        (prunable.chain, (3, 8, 8)),
        (prunable.grouped, (3, 8, 8)),
        (prunable.concat, (3, 8, 8)),
        (prunable.attention, (6, 16)),
    ):
        for score in SCORES:
            data = dataset(batches(shape=shape))
            _, context = prunable.prune(make(), tmp_path, data=data, params=0.6, score=score)
            assert context.record["certificate"]["status"] == "exact"


@pytest.mark.parametrize("score", ["wanda", "activation_norm", "apoz"])
def test_channels_inside_bodies_have_no_activations_and_are_ranked_by_weights(score, tmp_path):
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float["N",8] x) => (float["N",4] y) {
        a = MatMul (x, w1) b = Relu (a) m = ReduceMean <keepdims = 0> (x) p = Greater (m, zero)
        d = If (p) <
          then_branch = g1 () => (float["N",8] u) { t1 = MatMul (b, w2) t2 = Relu (t1) u = MatMul (t2, w3) },
          else_branch = g2 () => (float["N",8] v) { e1 = MatMul (b, w4) e2 = Relu (e1) v = MatMul (e2, w5) }
        >
        y = MatMul (d, w6) }"""
    model = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    shapes = {"w1": (8, 12), "w2": (12, 16), "w3": (16, 8), "w4": (12, 16), "w5": (16, 8), "w6": (8, 4)}
    weights = {name: random.standard_normal(shape).astype("f") for name, shape in shapes.items()}
    weights["zero"] = np.float32(0)
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), n) for n, v in weights.items())
    data = dataset(batches(shape=(8,)))
    _, context = prunable.prune(model, tmp_path, data=data, ratio=0.5, score=score)
    assert prunable.kept(context, "w1:1")
    assert any("l2" in warning for warning in context.warnings)
