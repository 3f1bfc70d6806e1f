"""Running a graph piece by piece: every node once, nothing kept too long, the same arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import onnx_graphsurgeon as gs
import pytest
from ops.oracle import build

from surgeon.graph.load import from_model
from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session, with_outputs
from surgeon.graph.shapes import infer
from surgeon.stats import replay as module
from surgeon.stats.replay import Replay, Store

BODY = """
a = MatMul (x, w1)
b = Relu (a)
c = MatMul (b, w2)
d = Add (c, x)
e, f = Split <axis=1> (d, parts)
g = If (flag) <then_branch = t () => (float[N,2] p) { p = Neg (e) },
               else_branch = o () => (float[N,2] q) { q = Mul (f, b2) }>
y = Concat <axis=1> (g, e)
"""
NAMES = ["a", "b", "c", "d", "e", "f", "g", "y"]
WEIGHTS = {"w1": (4, 6), "w2": (6, 4), "b2": (2,), "parts": np.array([2, 2])}


@pytest.fixture
def model():
    return build("float[N,4] x, bool flag", "float[N,4] y", BODY, WEIGHTS)


@pytest.fixture
def feeds():
    random = np.random.default_rng(0)
    return [
        {"x": random.standard_normal((n, 4)).astype(np.float32), "flag": np.array(flag)}
        for n, flag in ((3, True), (2, False), (5, False))
    ]


@pytest.fixture
def ran(monkeypatch):
    """The nodes (by first output) of every piece that was run."""
    pieces = []

    def spy(piece):
        pieces.append([node.outputs[0].name for node in piece.nodes])
        return to_model(piece)

    monkeypatch.setattr(module, "to_model", spy)
    return pieces


def replay_of(model, feeds, **options) -> Replay:
    graph = from_model(model)
    return Replay(graph, infer(graph).dtypes, feeds, **options)


@pytest.mark.parametrize("limit", [2**31, 100, 0])
@pytest.mark.parametrize("order", [NAMES, NAMES[::-1], ["d", "y", "b", "g", "a", "e", "f", "c"]])
def test_the_same_arrays_in_any_order_and_any_memory(model, feeds, ran, limit, order):
    replay = replay_of(model, feeds, limit_bytes=limit)
    whole = session(with_outputs(model, NAMES), optimize=False)
    expected = [dict(zip(["y", *NAMES[:-1]], run(whole, batch), strict=True)) for batch in feeds]
    for name in NAMES:
        replay.hold(name)
    for name in order:
        replay.advance([name])
        for batch, array in enumerate(replay.get(name, k) for k in range(replay.batches)):
            np.testing.assert_allclose(array, expected[batch][name], rtol=1e-6, atol=1e-6)
        assert replay.store.used <= limit
    assert (replay.store.spilled > 0) == (limit < 2**31)
    done = [name for piece in ran for name in piece]
    assert sorted(done) == sorted(set(done))
    assert set(done) == {"a", "b", "c", "d", "e", "g", "y"}


def test_only_what_is_needed_runs(model, feeds, ran):
    replay = replay_of(model, feeds)
    assert replay.runs(["c"]) == {"a", "b", "c"}
    replay.hold("b")
    replay.advance(["c"])
    assert ran == [["a", "b", "c"]]
    assert replay.runs(["b", "c"]) == set()
    assert replay.runs(["d"]) == {"d"}
    replay.advance(["b"])
    assert len(ran) == 1


def test_tensors_go_when_nobody_needs_them(model, feeds):
    replay = replay_of(model, feeds)
    replay.hold("b")
    replay.advance(["b"])
    assert "a" not in replay.store
    assert "x" in replay.store  # the addition has yet to read it
    replay.advance(["d"])
    assert "x" not in replay.store
    assert "c" not in replay.store
    assert "b" in replay.store
    replay.release("b")
    assert "b" not in replay.store
    replay.hold("y")
    replay.advance(["y"])
    assert "flag" not in replay.store
    assert "d" not in replay.store
    replay.release("y")
    assert replay.store.used == 0


def test_holds_are_counted(model, feeds):
    replay = replay_of(model, feeds)
    for _ in range(2):
        replay.hold("a")
    replay.advance(["c"])
    replay.release("a")
    assert "a" in replay.store
    replay.release("a")
    assert "a" not in replay.store


def test_constants_of_nodes_that_have_not_run_may_change(model, feeds):
    replay = replay_of(model, feeds)
    replay.hold("c")
    replay.advance(["b"])
    node = next(node for node in replay.graph.nodes if node.outputs[0].name == "c")
    node.inputs[1] = gs.Constant("w2", np.zeros((6, 4), np.float32))
    replay.advance(["c"])
    assert all(not array.any() for array in (replay.get("c", k) for k in range(replay.batches)))


LATER = {"c", "d", "e", "g", "y"}  # by first output; the Split's second one is f


def beside(model, feeds, within=LATER, *, limit=2**31):
    """A run of the whole graph, and one of a part of it that takes the rest from there."""
    source = replay_of(model, feeds, limit_bytes=limit)
    return source, replay_of(model, [{}] * len(feeds), limit_bytes=limit, within=within, source=source)


@pytest.mark.parametrize("limit", [2**31, 100, 0])
@pytest.mark.parametrize(
    "within", [LATER, {"b", "d", "g"}, {"a", "y"}, set()], ids=["later", "every other", "ends", "none"]
)
@pytest.mark.parametrize("order", [NAMES, NAMES[::-1]])
def test_a_part_beside_the_whole_has_the_same_arrays(model, feeds, ran, limit, within, order):
    _, replay = beside(model, feeds, within, limit=limit)
    whole = session(with_outputs(model, NAMES), optimize=False)
    expected = [dict(zip(["y", *NAMES[:-1]], run(whole, batch), strict=True)) for batch in feeds]
    for name in order:
        replay.hold(name)
    for name in order:
        replay.advance([name])
        for batch in range(replay.batches):
            np.testing.assert_allclose(replay.get(name, batch), expected[batch][name], rtol=1e-6, atol=1e-6)
            assert (name in replay.store) == (name in within or (name == "f" and "e" in within))
    done = [name for piece in ran for name in piece]
    # each runs a node once; what the part makes the other makes too only if it needs it for what it is asked for
    assert all(done.count(name) == 1 for name in set(done) - within)
    assert within != LATER or len(done) == len(set(done))
    for name in order:
        replay.release(name)
    assert replay.store.used == 0


def test_a_part_has_weights_of_its_own(model, feeds):
    source, replay = beside(model, feeds)
    node = next(node for node in replay.graph.nodes if node.outputs[0].name == "c")
    node.inputs[1] = gs.Constant("w2", np.zeros((6, 4), np.float32))
    for run_of in (source, replay):
        run_of.hold("c")
        run_of.advance(["c"])
    for batch in range(len(feeds)):
        assert not replay.get("c", batch).any()
        assert source.get("c", batch).any()


def test_the_other_run_keeps_what_the_part_has_yet_to_read(model, feeds):
    source, replay = beside(model, feeds)
    source.hold("y")
    source.advance(["y"])
    assert {name for name in ("x", "flag", *NAMES) if name in source.store} == {"x", "flag", "b", "y"}
    replay.hold("d")
    replay.advance(["d"])
    assert "b" not in source.store
    assert "x" not in source.store
    assert "flag" in source.store
    replay.hold("y")
    replay.advance(["y"])
    assert {name for name in ("x", "flag", *NAMES) if name in source.store} == {"y"}


def test_the_other_run_is_advanced_when_the_part_needs_it(model, feeds, ran):
    source, replay = beside(model, feeds)
    assert replay.runs(["d"]) == {"c", "d"}
    replay.hold("d")
    replay.advance(["d"])
    assert sorted(ran) == [["a", "b"], ["c", "d"]]
    assert source.runs(["d"]) == {"c", "d"}


def test_holds_go_to_the_run_that_has_the_tensor(model, feeds):
    source, replay = beside(model, feeds)
    replay.hold("a")
    replay.hold("c")
    replay.advance(["a", "c"])
    assert "a" in source.store
    assert "a" not in replay.store
    assert "c" in replay.store
    assert "c" not in source.store
    assert replay.get("a", 1) is source.get("a", 1)
    replay.release("a")
    replay.release("c")
    assert "a" not in source.store
    assert "c" in replay.store  # the sum has yet to read it


def test_spilled_files_go_with_their_tensors():
    store = Store(40)
    first, second = np.arange(10, dtype=np.float32), np.arange(12, dtype=np.int64).reshape(3, 4)
    store.put("a", first)
    store.put("a", second)
    assert store.get("a", 0) is first
    assert store.used == 40
    spilled = store.get("a", 1)
    assert isinstance(spilled, np.memmap)
    np.testing.assert_array_equal(spilled, second)
    path = Path(str(spilled.filename))
    assert path.exists()
    store.drop("a")
    store.drop("a")
    assert not path.exists()
    assert store.used == 0
    assert "a" not in store


@pytest.mark.parametrize(
    "array",
    [np.array(3.5, np.float32), np.zeros((0, 4), np.float32), np.array(["a", "bc"], dtype=object)],
    ids=["scalar", "empty", "text"],
)
def test_what_files_cannot_hold_or_barely(array):
    store = Store(0)
    store.put("a", array)
    assert isinstance(store.get("a", 0), np.memmap) == (array.shape == ())
    np.testing.assert_array_equal(store.get("a", 0), array)
    assert store.get("a", 0).shape == array.shape
    store.drop("a")
    assert store.used == 0


def test_the_folder_of_spilled_arrays_does_not_outlive_the_store():
    store = Store(0)
    store.put("a", np.ones(3, np.float32))
    folder = Path(str(store.get("a", 0).filename)).parent
    del store
    assert not folder.exists()


def test_nodes_run_again_with_weights_that_are_turned_on_the_way():
    """What makes the weight is not held by anybody, for it reads constants alone."""
    body = "t = Transpose (w)\nv = Identity (t)\nh = MatMul (x, v)\ny = Relu (h)"
    model = build("float[N,4] x", "float[N,6] y", body, {"w": (6, 4)})
    x = np.ones((3, 4), np.float32)
    run_of = replay_of(model, [{"x": x}])
    for name in ("x", "h"):
        run_of.hold(name)
    run_of.advance(["h"])
    constant = next(t for t in run_of.graph.tensors().values() if isinstance(t, gs.Constant))
    constant.values = constant.values * 2
    product = next(node for node in run_of.graph.nodes if node.op == "MatMul")
    run_of.again([product])
    assert np.allclose(run_of.get("h", 0), x @ constant.values.T)


def test_further_batches_are_run_when_they_are_asked_for(model, feeds, ran):
    graph = from_model(model)
    dtypes = infer(graph).dtypes
    more = Replay(graph, dtypes, feeds[1:])
    replay = Replay(graph, dtypes, feeds[:1], more=more)
    whole = session(with_outputs(model, NAMES), optimize=False)
    for name in ("b", "y"):
        replay.hold(name)
    replay.advance(["b"])
    replay.release("b")
    replay.advance(["y"])
    assert not {name for name in NAMES if name in more.store}
    before = len(ran)
    for batch, given in enumerate(feeds):
        np.testing.assert_allclose(
            replay.get("y", batch), run(whole, given)[0], rtol=1e-6, atol=1e-6
        )  # fmt: skip
    assert ran[before:] == [["a", "b", "c", "d", "e", "g", "y"]]  # in one piece: nothing on the way was held
    assert {name for name in NAMES if name in more.store} == {"y"}
    replay.release("y")
    assert replay.store.used == more.store.used == 0


@pytest.mark.parametrize("early", [True, False])
def test_changed_nodes_run_again_in_further_batches(model, feeds, early):
    graph = from_model(model)
    dtypes = infer(graph).dtypes
    source = Replay(graph, dtypes, feeds[:1], more=Replay(graph, dtypes, feeds[1:]))
    source.hold("x")
    source.hold("b")
    source.advance(["b"])
    if early:
        source.get("b", 1)
    nodes = [node for node in graph.nodes if node.outputs[0].name in ("a", "b")]
    nodes[0].inputs[1] = gs.Constant("w1", np.zeros((4, 6), np.float32))
    source.again(nodes)
    assert all(not source.get("b", batch).any() for batch in range(len(feeds)))


def test_bodies_that_declare_no_shapes_run_in_pieces():
    """A Scan over what another piece has made: onnxruntime wants to know how many axes that has."""
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,5,4] x) => (float[5,N,4] y)
        <float[4,4] w = {1,2,0,0, 0,1,0,0, 0,0,1,3, 0,0,0,1}> {
        a = MatMul (x, w)
        steps = Transpose <perm = [1, 0, 2]> (a)
        zero = ReduceSum <keepdims = 0> (steps, axis)
        last, y = Scan <num_scan_inputs = 1, body = b (float[n,c] before, float[n,c] now) => (float after, float out) {
            more = MatMul (before, w) sum = Add (more, now) after = Tanh (sum) out = Identity (after) }> (zero, steps) }"""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0]), "axis"))
    for each in next(node for node in model.graph.node if node.op_type == "Scan").attribute:
        for end in (*each.g.input, *each.g.output):
            end.type.tensor_type.ClearField("shape")
    x = np.random.default_rng(0).standard_normal((3, 5, 4)).astype("f")
    graph = from_model(model)
    replay = Replay(graph, infer(graph).dtypes, [{"x": x}])
    for name in ("steps", "zero", "y"):
        replay.hold(name)
        replay.advance([name])
    np.testing.assert_array_equal(replay.get("y", 0), run(session(model), {"x": x})[0])
