"""The pass sparsify: zeros are counted on what it returns, and the data make a better model of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import onnx_graphsurgeon as gs
import pytest
from onnx import numpy_helper as nh
from ops.oracle import build
from quantizable import context_for, network, weight

import surgeon
from surgeon.errors import UsageError
from surgeon.graph.load import from_model
from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session
from surgeon.passes import Context, Graph, Pass
from surgeon.stats.data import graph_inputs
from surgeon.stats.matrices import weights_of
from surgeon.stats.synthetic import synthetic
from surgeon.stats.weight import weight_values
from surgeon_passes.cluster import Cluster
from surgeon_passes.sparsify import Sparsify
from surgeon_passes.sparsifying.curves import LEVELS, Curve
from surgeon_passes.sparsifying.spread import spread


def sparse(model: onnx.ModelProto, context: Context, **options) -> onnx.ModelProto:
    return to_model(Sparsify(**options).run(from_model(model), context))


def weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    graphs, found = [model.graph], {}
    while graphs:
        graph = graphs.pop()
        found |= {each.name: nh.to_array(each) for each in graph.initializer}
        graphs += [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
    return found


def error(model: onnx.ModelProto, other: onnx.ModelProto) -> float:
    feeds = synthetic(graph_inputs(from_model(model)), seed=9, batch=16)
    ours, theirs = run(session(model), feeds)[0], run(session(other), feeds)[0]
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(ours))


MATRICES = ("w1", "w2", "w3")
NORM = ("scale", "shift", "mean", "variance")


@pytest.mark.parametrize("score", ["auto", "wanda", "obs", "magnitude"])
@pytest.mark.parametrize("sparsity", [0.3, 0.75])
def test_every_weight_has_its_zeros(score: str, sparsity: float) -> None:
    context = context_for(network())
    result = weights(sparse(network(), context, sparsity=sparsity, score=score, scope="layer"))
    for name in MATRICES:
        wanted = int(np.ceil(sparsity * result[name].size - 1e-9))
        assert int((result[name] == 0).sum()) == wanted
    assert (result["b1"] != 0).all()
    reported = {entry["name"]: entry for entry in context.record["tensors"]}  # type: ignore[index]  # JSON
    for name in MATRICES:
        assert reported[name]["sparsity"] == pytest.approx((result[name] == 0).mean())
        assert reported[name]["distinct_values"] == len(np.unique(result[name]))
        assert reported[name]["bytes"] == result[name].nbytes
        assert reported[name]["pattern_ok"]
        assert reported[name]["error_after"] <= reported[name]["error_before"]


def test_all_together_have_as_many_zeros_as_asked_for() -> None:
    context = context_for(network())
    result = weights(sparse(network(), context, sparsity=0.8, scope="global"))
    zeros = sum(int((result[name] == 0).sum()) for name in MATRICES)
    size = sum(result[name].size for name in MATRICES)
    assert 0.8 * size <= zeros <= 0.8 * size + len(MATRICES)
    fractions = {round(float((result[name] == 0).mean()), 3) for name in MATRICES}
    assert len(fractions) > 1
    assert context.record["total"]["sparsity"] == pytest.approx(zeros / size)  # type: ignore[index]  # JSON


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (1, 4)])
def test_few_of_many_input_channels(n: int, m: int) -> None:
    result = weights(sparse(network(), context_for(network()), pattern=f"{n}:{m}"))
    second = result["w2"].transpose(0, 2, 3, 1).reshape(-1, m)
    assert ((second != 0).sum(axis=1) == n).all()
    head = result["w3"].reshape(-1, m)
    assert ((head != 0).sum(axis=1) == n).all()
    assert ((result["w1"] != 0).sum(axis=1) == min(n, 3)).all()  # three channels are fewer than m


def test_blocks_of_outputs_and_inputs() -> None:
    result = weights(sparse(network(), context_for(network()), pattern="block-4x2", sparsity=0.5))
    blocks = (result["w2"].reshape(8, 4, 16, 2, 9) != 0).sum(axis=(1, 3))
    assert set(np.unique(blocks)) == {0, 8}


def test_zeros_that_were_there_before_do_not_break_the_pattern() -> None:
    model, context = network(), context_for(network())
    for tensor in model.graph.initializer:
        if tensor.name == "w2":  # so few that nobody chose them
            values = nh.to_array(tensor).copy()
            values.ravel()[np.argmax(np.abs(values))] = 0
            tensor.CopyFrom(nh.from_array(values, "w2"))
    sparse(model, context, pattern="block-4x1", sparsity=0.5, refit=False)
    assert context.record["pattern_ok"] is True


def test_data_help() -> None:
    plain = sparse(
        network(), context_for(network()), sparsity=0.7, scope="layer", score="magnitude", refit=False
    )
    found = {}
    for options in ({"scope": "layer"}, {"scope": "layer", "score": "wanda"}, {}):
        found[str(options)] = error(
            network(), sparse(network(), context_for(network()), sparsity=0.7, **options)
        )
    assert all(each < 0.6 * error(network(), plain) for each in found.values())


def test_without_data_the_largest_stay_as_they_are() -> None:
    context = context_for(network(), data=False)
    result, before = weights(sparse(network(), context, sparsity=0.5)), weights(network())
    for name in MATRICES:
        kept = result[name] != 0
        assert np.array_equal(result[name][kept], before[name][kept])
        assert np.abs(before[name][kept]).min() >= np.abs(before[name][~kept]).max()
    assert any("nothing makes up for them" in text for text in context.warnings)


@pytest.mark.parametrize("schedule", ["polynomial", "constant"])
def test_steps(schedule: str) -> None:
    result = weights(
        sparse(network(), context_for(network()), sparsity=0.75, steps=3, schedule=schedule, scope="layer")
    )
    assert {float((result[name] == 0).mean()) for name in ("w1", "w2", "w3")} == {0.75}


def test_zeros_of_an_earlier_step_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    from surgeon_passes.sparsifying import zeros

    seen: list[np.ndarray] = []
    original = zeros.Work.step

    def step(self, graph, jobs, share, progress):
        result = original(self, graph, jobs, share, progress)
        seen.append(jobs[1].weight.matrices() == 0)
        return result

    monkeypatch.setattr(zeros.Work, "step", step)
    sparse(network(), context_for(network()), sparsity=0.8, steps=3, power=1.0, scope="layer")
    size = seen[0].size
    for share, found in zip((1 / 3, 2 / 3, 1.0), seen, strict=True):
        assert int(found.sum()) == int(np.ceil(0.8 * share * size - 1e-9))
    assert (seen[1] | ~seen[0]).all()
    assert (seen[2] | ~seen[1]).all()


def odd() -> onnx.ModelProto:
    """A shared weight, a weight on the left, a weight behind a Transpose, an LSTM whose states nobody reads, a body."""
    body = oh.make_graph(
        [oh.make_node("MatMul", ["m", "inner"], ["i"], name="inside")],
        "then",
        [],
        [oh.make_tensor_value_info("i", 1, None)],
        [weight("inner", 16, 16)],
    )
    other = oh.make_graph(
        [oh.make_node("Identity", ["m"], ["e"])], "else", [], [oh.make_tensor_value_info("e", 1, None)]
    )
    nodes = [
        oh.make_node("MatMul", ["x", "shared"], ["a"], name="once"),
        oh.make_node("MatMul", ["a", "shared"], ["b"], name="twice"),
        oh.make_node("Transpose", ["turned"], ["w"], perm=[1, 0]),
        oh.make_node("MatMul", ["b", "w"], ["c"], name="behind"),
        oh.make_node("MatMul", ["left", "c"], ["d"], name="on the left"),
        oh.make_node("LSTM", ["d", "lw", "lr"], ["", "h"], name="lstm", hidden_size=16),
        oh.make_node("Squeeze", ["h", "zero"], ["m"]),
        oh.make_node("If", ["yes"], ["y"], then_branch=body, else_branch=other, name="if"),
    ]
    held = [
        weight("shared", 16, 16),
        weight("turned", 16, 16),
        weight("left", 5, 5),
        weight("lw", 1, 64, 16),
        weight("lr", 1, 64, 16),
        nh.from_array(np.array([0]), "zero"),
        nh.from_array(np.array(True), "yes"),
    ]
    x = oh.make_tensor_value_info("x", 1, ["N", 5, 16])
    graph = oh.make_graph(nodes, "g", [x], [oh.make_tensor_value_info("y", 1, None)], held)
    return oh.make_model(graph, ir_version=8, opset_imports=[oh.make_opsetid("", 17)])


def test_weights_of_every_kind() -> None:
    context = context_for(odd())
    result = sparse(odd(), context, sparsity=0.5, scope="layer")
    found = context.record["tensors"]
    assert {entry["node"] for entry in found} == {
        "once",
        "behind",
        "on the left",
        "lstm[1]",
        "lstm[2]",
        "inside",
    }  # type: ignore[attr-defined, index]  # JSON
    assert all(entry["sparsity"] >= 0.5 for entry in found)  # type: ignore[attr-defined]  # JSON
    refitted = {entry["node"] for entry in found if entry["error_after"] is not None}  # type: ignore[attr-defined]  # JSON
    assert refitted == {"behind", "on the left", "lstm[1]", "lstm[2]"}
    reasons = {entry["node"]: entry["reason"] for entry in context.record["left"]}  # type: ignore[attr-defined]  # JSON
    assert reasons["once"] == reasons["twice"] == "its weight is shared"
    plain = sparse(odd(), context_for(odd()), sparsity=0.5, scope="layer", refit=False)
    assert error(odd(), result) < 0.8 * error(odd(), plain)


def test_a_recurrent_operator_without_any_name_is_reported() -> None:
    body = "nobody, y = GRU <hidden_size=8> (x, gates, states)"
    model = build("float[5,N,4] x", "float y", body, {"gates": (1, 24, 4), "states": (1, 24, 8)})
    model.graph.node[0].output[0] = ""
    context = context_for(model)
    sparse(model, context, sparsity=0.5)
    found = {entry["node"]: entry["error_after"] for entry in context.record["tensors"]}  # type: ignore[attr-defined]  # JSON
    assert set(found) == {"y[1]", "y[2]"}
    assert None not in found.values()


def test_patterns_of_names() -> None:
    before = weights(network())
    result = weights(sparse(network(), context_for(network()), exclude=("second",)))
    assert np.array_equal(result["w2"], before["w2"])
    assert (result["w1"] == 0).any()
    result = weights(
        sparse(network(), context_for(network(), exclude=("w1",)), include=("w*", "*d"), scope="layer")
    )
    assert np.array_equal(result["w1"], before["w1"])
    assert (result["w3"] == 0).any()
    with pytest.raises(UsageError, match="no weight to change"):
        sparse(network(), context_for(network()), include=("nothing",))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 0.0}, "sparsity"),
        ({"sparsity": 1.0}, "sparsity"),
        ({"pattern": "4:2"}, "pattern"),
        ({"pattern": "2:4", "scope": "global"}, "scope"),
        ({"steps": 0}, "steps"),
        ({"score": "wanda", "refit": False}, "refit"),
        ({"initial": 1.5}, "initial"),
        ({"power": 0.0}, "power"),
    ],
)
def test_options_are_checked(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=rf"sparsify\.{message}"):
        Sparsify(**options)


def products(*layers: tuple[int, int], then: list[onnx.NodeProto], kind: int = 1) -> onnx.ModelProto:
    """Matrix products with Relu in between, and more behind them."""
    nodes, held = [], []
    for k, shape in enumerate(layers):
        nodes.append(
            oh.make_node("MatMul", ["x" if k == 0 else f"r{k - 1}", f"w{k}"], [f"m{k}"], name=f"m{k}")
        )
        nodes.append(oh.make_node("Relu", [f"m{k}"], [f"r{k}"]))
        held.append(weight(f"w{k}", *shape))
    x = oh.make_tensor_value_info("x", 1, ["N", layers[0][0]])
    graph = oh.make_graph([*nodes, *then], "g", [x], [oh.make_tensor_value_info("y", kind, None)], held)
    return oh.make_model(graph, ir_version=8, opset_imports=[oh.make_opsetid("", 17)])


def test_decisions_are_judged_by_how_many_change() -> None:
    model = products((16, 30), (30, 30), then=[oh.make_node("ArgMax", ["m1"], ["y"], axis=1)], kind=7)
    context = context_for(model)
    result = sparse(model, context, sparsity=0.5)
    assert max((weights(result)[name] == 0).mean() for name in ("w0", "w1")) < 0.9
    found = context.record["output_error"]
    assert found["fitted"] <= found["plain"] <= 1  # type: ignore[index]  # JSON


def test_infinite_outputs_do_not_switch_the_judge_off() -> None:
    mask = np.zeros(30, np.float32)
    mask[:3] = -np.inf
    model = products((16, 30), then=[oh.make_node("Add", ["m0", "mask"], ["y"])])
    model.graph.initializer.append(nh.from_array(mask, "mask"))
    context = context_for(model)
    sparse(model, context, sparsity=0.5)
    assert np.isfinite(list(context.record["output_error"].values())).all()  # type: ignore[attr-defined]  # JSON


def test_what_is_not_finite_inside_has_a_reason() -> None:
    nodes = [oh.make_node("Log", ["x"], ["l"]), oh.make_node("MatMul", ["l", "w"], ["m"], name="bad")]
    graph = oh.make_graph(
        [*nodes, oh.make_node("Sigmoid", ["m"], ["y"])],
        "g",
        [oh.make_tensor_value_info("x", 1, ["N", 16])],
        [oh.make_tensor_value_info("y", 1, None)],
        [weight("w", 16, 8)],
    )
    model = oh.make_model(graph, ir_version=8, opset_imports=[oh.make_opsetid("", 17)])
    context = context_for(model)
    result = sparse(model, context, sparsity=0.5)
    assert (weights(result)["w"] == 0).mean() == 0.5
    assert context.record["left"] == [{"node": "bad", "reason": "what it reads or should make is not finite"}]


def turned(*, half: bool = False) -> onnx.ModelProto:
    """A weight behind a Transpose and, in half precision, a Cast."""
    on_the_way = [oh.make_node("Transpose", ["t"], ["w"], perm=[1, 0])]
    if half:
        on_the_way = [
            oh.make_node("Cast", ["t"], ["f"], to=1),
            oh.make_node("Transpose", ["f"], ["w"], perm=[1, 0]),
        ]
    model = products((16, 30), then=[*on_the_way, oh.make_node("MatMul", ["r0", "w"], ["y"], name="behind")])
    model.graph.initializer.append(
        nh.from_array(nh.to_array(weight("t", 40, 30)).astype("e" if half else "f"), "t")
    )
    return model


@pytest.mark.parametrize("half", [False, True])
def test_a_weight_behind_other_nodes_is_changed_where_it_is_stored(half: bool) -> None:
    model, context = turned(half=half), context_for(turned(half=half))
    result = sparse(model, context, sparsity=0.5, scope="layer")
    before, after = weights(model), weights(result)
    assert {name: (each.shape, each.dtype) for name, each in after.items()} == {
        name: (each.shape, each.dtype) for name, each in before.items()
    }
    assert (after["t"] == 0).mean() == 0.5
    assert [node.op_type for node in result.graph.node] == [node.op_type for node in model.graph.node]
    assert next(each for each in context.record["tensors"] if each["node"] == "behind")["name"] == "t"  # type: ignore[attr-defined]  # JSON
    plain = sparse(model, context_for(model), sparsity=0.5, scope="layer", refit=False)
    assert error(model, result) < error(model, plain)


def test_a_plan_has_masks_of_weights_behind_other_nodes(tmp_path: Path) -> None:
    data = synthetic(graph_inputs(from_model(turned())), seed=1, batch=64)
    result = surgeon.run(turned(), "sparsify", data=data, destination=tmp_path / "m.onnx")
    assert set(result.plan.masks) == {"w0", "t"}


@pytest.mark.parametrize("first", ["straight", "turned"])
@pytest.mark.parametrize("other", [Sparsify(sparsity=0.5, scope="layer"), Cluster(clusters=8)])
def test_a_weight_that_is_read_straight_and_turned_stays_one(first: str, other: Pass) -> None:
    body = "[straight] a = MatMul (x, w) [turn] t = Transpose <perm=[1,0]> (w) [turned] y = MatMul (a, t)"
    if first == "turned":
        body = "[turn] t = Transpose <perm=[1,0]> (w) [turned] a = MatMul (x, t) [straight] y = MatMul (a, w)"
    size = 16 if first == "straight" else 30
    model = build(f"float[N,{size}] x", f"float[N,{size}] y", body, {"w": (16, 30)})
    context = context_for(model)
    result = to_model(other.run(from_model(model), context))
    assert [each.name for each in result.graph.initializer] == ["w"]
    assert [node.op_type for node in result.graph.node] == [node.op_type for node in model.graph.node]
    left = {entry["node"]: entry["reason"] for entry in context.record["left"]}  # type: ignore[attr-defined]  # JSON
    assert left == {"straight": "its weight is shared", "turned": "its weight is shared"}
    made, original = weights(result)["w"], weights(model)["w"]
    if other.name == "sparsify":
        assert (made == 0).mean() == 0.5
        assert np.array_equal(made[made != 0], original[made != 0])
    else:
        assert len(np.unique(made)) == 8
    assert [entry["name"] for entry in context.record["tensors"]] == ["w"]  # type: ignore[attr-defined]  # JSON


def test_whoever_excludes_one_reader_of_a_shared_weight_excludes_it() -> None:
    model = odd()
    context = context_for(model)
    result = weights(sparse(model, context, sparsity=0.5, refit=False, exclude=("twice",)))
    assert np.array_equal(result["shared"], weights(model)["shared"])


@pytest.mark.parametrize("named", [True, False])
def test_what_clean_folds_into_a_weight_is_part_of_what_is_aimed_at(named: bool) -> None:
    body = """
        [one] a = Conv <pads=[1,1,1,1]> (x, w1) [norm] b = BatchNormalization (a, scale, shift, mean, variance)
        c = Relu (b) [two] d = Conv (c, w2) e = Mul (d, factor)
        [last] y = Conv (e, w3)
    """
    if not named:
        body = re.sub(r"\[\w+\] ", "", body)
    sizes = {"w1": (24, 3, 3, 3), "w2": (24, 24, 1, 1), "w3": (8, 24, 1, 1), "factor": (24, 1, 1)}
    model = build("float[N,3,8,8] x", "float y", body, {**sizes, **dict.fromkeys(NORM, (24,))})
    for tensor in model.graph.initializer:
        if tensor.name == "variance":
            tensor.CopyFrom(nh.from_array(np.linspace(0.01, 40, 24, dtype=np.float32), "variance"))
    data = synthetic(graph_inputs(from_model(model)), seed=1, batch=64)
    found = {}
    for clean in (True, False):
        result = surgeon.run(model, "sparsify{sparsity=0.6 scope=layer}", data=data, clean=clean)
        record = result.report["passes"][-1]
        assert record["left"] == []
        assert record["output_error"]["fitted"] < record["output_error"]["plain"]
        found[clean] = record["output_error"]["fitted"]
    assert found[True] < 0.02 < found[False]  # scales that weights have tell which are small


@dataclass(frozen=True)
class Renamed(Pass):
    """Weights get names that the file does not have."""

    name = "renamed"

    def run(self, graph: Graph, context: Context) -> Graph:
        for each in weights_of(graph):
            each.node.inputs[each.index] = gs.Constant(f"{each.name}/new", weight_values(each.tensor))
        return graph


def test_zeros_that_no_plan_can_name_are_said() -> None:
    data = synthetic(graph_inputs(from_model(network())), seed=1, batch=16)
    result = surgeon.run(network(), [Renamed(), Sparsify(sparsity=0.5)], data=data, force=True)
    assert any("has zeros but is no weight of the model file" in each for each in result.report["warnings"])
    assert result.plan is None or not result.plan.masks
    untouched = surgeon.run(network(), [Renamed()], data=data, force=True)
    assert not any("has zeros" in each for each in untouched.report["warnings"])


def test_a_weight_that_is_one_block_stays() -> None:
    context = context_for(network())
    result = weights(sparse(network(), context, pattern="block-64x64", sparsity=0.5))
    assert all((result[name] != 0).any() for name in MATRICES)
    assert any("leaves no more that may be" in text for text in context.warnings)


def test_the_same_twice_whatever_the_threads() -> None:
    texts = {
        sparse(network(), context_for(network(), threads=threads), sparsity=0.6).SerializeToString(
            deterministic=True
        )
        for threads in (1, 2, 1)
    }
    assert len(texts) == 1


def test_through_the_pipeline(tmp_path: Path) -> None:
    data = synthetic(graph_inputs(from_model(network())), seed=1, batch=64)
    out = tmp_path / "out.onnx"
    result = surgeon.run(network(), "sparsify{sparsity=0.9},clean", data=data, destination=out)
    assert result.report["after"]["nonzeros"] < 0.15 * result.report["before"]["nonzeros"]
    assert result.report["after"]["gzip_bytes"] < 0.4 * result.report["before"]["gzip_bytes"]
    assert error(network(), onnx.load(out)) < 1.0


def test_zeros_are_spread_where_they_cost_least() -> None:
    cheap = Curve(100, tuple(0.1 * level for level in LEVELS))
    dear = Curve(100, tuple(level for level in LEVELS))
    found = spread({"cheap": cheap, "dear": dear}, 120)
    assert found["cheap"] == pytest.approx(LEVELS[-1])
    assert 100 * found["cheap"] + 100 * found["dear"] == pytest.approx(120)
    bent = Curve(100, tuple(level**2 for level in LEVELS))
    even = spread({"one": bent, "two": bent, "three": bent}, 150)
    assert list(even.values()) == pytest.approx([0.5] * 3, abs=0.11)
    assert sum(even.values()) == pytest.approx(1.5)
    seen = spread({"hidden": Curve(100, bent.errors, share=0.01), "shown": bent}, 100)
    assert seen["hidden"] > 0.9 > seen["shown"]


@pytest.mark.parametrize("score", ["auto", "wanda", "obs"])
def test_groups_of_a_convolution_have_their_zeros_together(score: str) -> None:
    """No group is taken from one solution and another from another: the count would be of neither."""
    model = depthwise()
    result = weights(sparse(model, context_for(model), sparsity=0.6, score=score, scope="layer"))
    for name in ("w1", "w2"):
        wanted = int(np.ceil(0.6 * result[name].size - 1e-9))
        assert int((result[name] == 0).sum()) == wanted


def depthwise() -> onnx.ModelProto:
    """A convolution whose channels have kernels of their own, in the middle."""
    body = "a = Conv <pads=[1,1,1,1]> (x, w1) r = Relu (a) b = Conv <group=32> (r, w2) y = Relu (b)"
    return build("float[N,3,8,8] x", "float y", body, {"w1": (32, 3, 3, 3), "w2": (32, 1, 3, 3)})
