"""Caches and recurrent states: found by structure, whole by default, cut on both sides when asked for."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from ops.oracle import build, choices, drop, ints, reasons

import surgeon
from surgeon.analysis import Tie
from surgeon.engine import analyse
from surgeon.errors import GateError
from surgeon.graph.load import from_model, load
from surgeon.graph.save import to_model
from surgeon.plan import Plan
from surgeon.replay import verify_files
from surgeon.states import find_states
from surgeon.verify import prove


def solved(model, *, cut_cache=True):
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return analyse(from_model(copy), cut_cache=cut_cache)


def cut_all(found):
    """Every choice of indices is proved; returns the last smaller graph and its plan."""
    for kept in choices(found.groups):
        smaller, plan = found.cut(kept)
        certificate = prove(found.analysis, smaller, plan.tensors, interface=plan.interface)
        assert certificate.status == "exact", kept
        onnx.checker.check_model(to_model(smaller), full_check=True)
    return smaller, plan


def decoder(heads=4, dim=6, width=5):
    """One attention layer with cached keys and values, heads apart."""
    hidden = heads * dim
    return build(
        f"float[N,T,{width}] x, float[N,{heads},P,{dim}] old_a, float[N,{heads},P,{dim}] old_b",
        f"float[N,T,{width}] y, float[N,{heads},S,{dim}] new_a, float[N,{heads},S,{dim}] new_b",
        """
        q0 = MatMul (x, wq)
        k0 = MatMul (x, wk)
        v0 = MatMul (x, wv)
        q1 = Reshape (q0, split)
        k1 = Reshape (k0, split)
        v1 = Reshape (v0, split)
        q = Transpose <perm=[0,2,1,3]> (q1)
        k = Transpose <perm=[0,2,1,3]> (k1)
        v = Transpose <perm=[0,2,1,3]> (v1)
        new_a = Concat <axis=2> (old_a, k)
        new_b = Concat <axis=-2> (old_b, v)
        t = Transpose <perm=[0,1,3,2]> (new_a)
        s = MatMul (q, t)
        p = Softmax <axis=-1> (s)
        o = MatMul (p, new_b)
        o1 = Transpose <perm=[0,2,1,3]> (o)
        o2 = Reshape (o1, join)
        y = MatMul (o2, wo)
        """,
        {
            **dict.fromkeys(("wq", "wk", "wv"), (width, hidden)),
            "wo": (hidden, width),
            "split": ints(0, 0, heads, dim),
            "join": ints(0, 0, hidden),
        },
    )


def test_cached_keys_and_values_are_found_by_structure():
    found = solved(decoder(), cut_cache=False)
    assert found.groups == []
    assert "4: old_a: graph input" in reasons(found)
    assert find_states(found.analysis) == [
        Tie("old_a", "new_a", 1), Tie("old_a", "new_a", 3), Tie("old_b", "new_b", 1), Tie("old_b", "new_b", 3)
    ]  # fmt: skip


def test_heads_and_their_dimensions_are_cut_on_both_sides():
    found = solved(decoder())
    assert sorted(group.size for group in found.groups) == [4, 6, 6]
    assert sorted(group.kind for group in found.groups) == ["head", "head_dim", "head_dim"]
    heads = next(group for group in found.groups if group.kind == "head")
    smaller, plan = found.cut({heads.id: drop(4, 1)})
    assert plan.interface == {name: {1: (0, 2, 3)} for name in ("new_a", "new_b", "old_a", "old_b")}
    assert [list(tensor.shape) for tensor in smaller.inputs[1:]] == [["N", 3, "P", 6]] * 2
    assert [list(tensor.shape) for tensor in smaller.outputs[1:]] == [["N", 3, "S", 6]] * 2
    cut_all(found)


def test_the_cut_model_decodes_step_by_step():
    found = solved(decoder())
    smaller, _ = cut_all(found)
    session = onnxruntime.InferenceSession(to_model(smaller).SerializeToString())
    cache = {
        each.name: np.zeros(
            [size if isinstance(size, int) else {"N": 2, "P": 0}[size] for size in each.shape], "f"
        )
        for each in session.get_inputs()[1:]
    }
    for _ in range(3):
        x = np.random.default_rng(0).standard_normal((2, 1, 5)).astype(np.float32)
        _, *new = session.run(None, {"x": x, **cache})
        cache = dict(zip(cache, new, strict=True))
    assert [array.shape[2] for array in cache.values()] == [3, 3]


@pytest.mark.parametrize(("op", "gates", "states"), [("LSTM", 4, 2), ("GRU", 3, 1), ("RNN", 1, 1)])
def test_recurrent_states(op, gates, states):
    given = ["h0", "c0"][:states]
    last = ["h1", "c1"][:states]
    model = build(
        ", ".join(["float[T,N,5] x", *(f"float[1,N,6] {name}" for name in given)]),
        ", ".join(["float[T,N,3] y", *(f"float[1,N,6] {name}" for name in last)]),
        f"""
        h, {", ".join(last)} = {op} <hidden_size=6> (x, w, r, b, , {", ".join(given)})
        s = Squeeze (h, one)
        y = MatMul (s, w_out)
        """,
        {
            "w": (1, gates * 6, 5),
            "r": (1, gates * 6, 6),
            "b": (1, 2 * gates * 6),
            "one": ints(1),
            "w_out": (6, 3),
        },
    )
    assert solved(model, cut_cache=False).groups == []
    found = solved(model)
    assert [group.size for group in found.groups] == [6]
    _, plan = cut_all(found)
    assert plan.interface.keys() == {*given, *last}


def test_state_of_a_loop_and_states_packed_in_one_input():
    model = build(
        "float[N,5] x, float[2,N,8] state",
        "float[N,3] y, float[2,N,8] after",
        """
        h0, c0 = Split <axis=0, num_outputs=2> (state)
        h = Squeeze (h0, zero)
        c = Squeeze (c0, zero)
        e = MatMul (x, w_in)
        h_last, c_last = Loop (trips, , h, c) <
            body = step (int64 i, bool k, float[N,8] a, float[N,8] b) => (bool k2, float[N,8] a2, float[N,8] b2) {
                k2 = Identity (k) m = MatMul (a, w) s = Add (m, e) a2 = Tanh (s) b2 = Add (b, a2)
            }
        >
        y = MatMul (c_last, w_out)
        h1 = Unsqueeze (h_last, zero)
        c1 = Unsqueeze (c_last, zero)
        after = Concat <axis=0> (h1, c1)
        """,
        {"w_in": (5, 8), "w": (8, 8), "w_out": (8, 3), "zero": ints(0), "trips": np.array(3)},
    )
    assert solved(model, cut_cache=False).groups == []
    found = solved(model)
    assert [group.size for group in found.groups] == [8]
    _, plan = cut_all(found)
    assert plan.interface.keys() == {"state", "after"}


def test_attention_with_a_past():
    model = build(
        "float[N,T,5] x, float[N,2,P,8] past_a, float[N,2,P,8] past_b",
        "float[N,T,3] y, float[N,2,S,8] all_a, float[N,2,S,8] all_b",
        """
        q = MatMul (x, wq)
        k = MatMul (x, wk)
        v = MatMul (x, wv)
        o, all_a, all_b = Attention <q_num_heads=4, kv_num_heads=2> (q, k, v, , past_a, past_b)
        y = MatMul (o, wo)
        """,
        {"wq": (5, 32), "wk": (5, 16), "wv": (5, 16), "wo": (32, 3)},
        opset=23,
    )
    ties = find_states(solved(model, cut_cache=False).analysis)
    assert {(tie.input, tie.output) for tie in ties} == {("past_a", "all_a"), ("past_b", "all_b")}
    assert len(solved(model).groups) > len(solved(model, cut_cache=False).groups)


def test_what_is_no_cache_stays_whole():
    """A residual image network, an input that is only joined with another one, and one that is only padded."""
    image = build(
        "float[N,4,8,8] x",
        "float[N,4,8,8] y",
        "a = Conv <pads=[1,1,1,1]> (x, w1)\nr = Relu (a)\nb = Conv <pads=[1,1,1,1]> (r, w2)\ny = Add (x, b)",
        {"w1": (6, 4, 3, 3), "w2": (4, 6, 3, 3)},
    )
    joined = build("float[N,4,T] x, float[N,4,U] z", "float[N,4,V] y", "y = Concat <axis=2> (x, z)")
    padded = build(
        "float[N,4,T] x",
        "float[N,4,V] y",
        "z = ConstantOfShape (s)\ny = Concat <axis=2> (x, p)",
        {"s": ints(1), "p": (1, 4, 2)},
    )
    del padded.graph.node[0]
    for model in (image, joined, padded):
        assert find_states(solved(model, cut_cache=False).analysis) == []


def test_a_cache_whose_window_slides_keeps_its_length():
    model = build(
        "float[N,6,4] x, float[N,6,7] old",
        "float[N,3,9] y, float[N,6,7] new",
        """
        a = Conv (x, w_in)
        all = Concat <axis=2> (old, a)
        y = Conv <kernel_shape=[3]> (all, w_out)
        new = Slice (all, four, eleven, two)
        """,
        {"w_in": (6, 6, 1), "w_out": (3, 6, 3), "four": ints(4), "eleven": ints(11), "two": ints(2)},
    )
    assert solved(model, cut_cache=False).groups == []
    found = solved(model)
    assert [group.size for group in found.groups] == [6]
    _, plan = cut_all(found)
    assert all(list(axes) == [1] for axes in plan.interface.values())


def test_a_run_reports_the_new_shapes_and_can_be_verified(tmp_path):
    path, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(decoder(), path)
    with pytest.raises(GateError):
        surgeon.run(path, passes="prune{ratio=0.5}", destination=out)
    report = surgeon.run(path, passes="prune{ratio=0.5 cut_cache=true}", destination=out).report
    changed = report["passes"][-1]["interface"]
    assert changed["old_a"] == {"before": ["N", 4, "P", 6], "after": ["N", 2, "P", 6]}
    assert changed.keys() == {"old_a", "old_b", "new_a", "new_b"}
    assert any("interface has changed" in text for text in report["warnings"])
    assert report["certificate"]["status"] == "exact"
    session = onnxruntime.InferenceSession(out)
    assert [list(each.shape) for each in session.get_inputs()[1:]] == [["N", 2, "P", 6]] * 2
    plan_path = out.with_suffix(".plan.json")
    assert Plan.load(plan_path).interface["old_a"].keys() == {1}
    assert verify_files(path, out, plan_path).to_json()["output"]["weights"] == "original"


@pytest.mark.parametrize("options", ["ratio=0.5", "ratio=0.5 steps=3", "macs=0.6 multiple_of=1"])
def test_data_fit_the_original_only_so_that_nothing_is_refitted(tmp_path, options):
    path, data = tmp_path / "m.onnx", tmp_path / "d.npz"
    onnx.save(decoder(), path)
    random = np.random.default_rng(0)
    shapes = {"x": (8, 3, 5), "old_a": (8, 4, 2, 6), "old_b": (8, 4, 2, 6)}
    np.savez(
        data, **{name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    )
    result = surgeon.run(path, passes=f"prune{{cut_cache=true {options}}}", data=data)
    record = result.report["passes"][-1]
    assert record["interface"]
    assert "reconstruct" not in record


def test_a_plan_keeps_what_it_says_of_the_interface(tmp_path):
    plan = Plan("0" * 64, (), {"w": {0: (1, 2)}}, interface={"past": {1: (0, 2)}})
    plan.save(tmp_path / "p.json")
    assert Plan.load(tmp_path / "p.json") == plan


def test_the_real_speech_detector_gives_up_half_of_its_state(shared):
    found = analyse(load(shared / "models" / "silero_vad.onnx"), cut_cache=True)
    group = next(group for group in found.groups if "state" in {name for name, _ in group.members})
    assert (group.kind, group.size) == ("hidden", 128)
    smaller, plan = found.cut({group.id: np.arange(128) % 2 == 0})
    assert plan.interface.keys() == {"state", "stateN"}
    assert prove(found.analysis, smaller, plan.tensors, interface=plan.interface).status == "exact"
    assert list(smaller.inputs[1].shape) == [2, "batch", 64]
