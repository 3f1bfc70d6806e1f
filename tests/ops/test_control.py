"""If, Loop and Scan: what bodies capture, carry and hold themselves is cut like everything else."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from ops.oracle import build, check, check_cut, drop, ints, of_size, reasons, sizes, solved

from surgeon.graph.order import every_node
from surgeon.graph.save import to_model

TRUE = np.array(True)


def with_body_weights(model, **weights):
    """Puts weights into the first body that uses them, where exporters put them."""
    random = np.random.default_rng(7)
    pending = [
        a.g for node in model.graph.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH
    ]
    while pending:
        body = pending.pop(0)
        for name in [name for node in body.node for name in node.input if name in weights]:
            if name in weights:
                values = random.uniform(0.3, 1.0, weights[name]) * random.choice([-1, 1], weights[name])
                body.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
                del weights[name]
        pending += [a.g for node in body.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    assert not weights
    return model


# If ---------------------------------------------------------------------------------------------------------------


def test_both_branches_of_an_if_capture_a_stream_of_channels():
    model = build(
        "float[N,5,8,6] x, bool flag",
        "float[N,3,8,6] y",
        """
        a = Conv (x, w_in)
        b = If (flag) <
            then_branch = yes () => (float[N,12,8,6] p) { p = Relu (a) },
            else_branch = no () => (float[N,12,8,6] q) { u = Conv <group=12, pads=[1,1,1,1]> (a, w_depth) q = Add (u, a) }
        >
        y = Conv (b, w_out)
        """,
        {"w_in": (12, 5, 1, 1), "w_depth": (12, 1, 3, 3), "w_out": (3, 12, 1, 1)},
    )
    found = check(model, [12])
    (group,) = found.groups
    assert {name for name, _ in group.members} >= {"w_in", "w_depth", "w_out", "a", "p", "q", "u", "b"}
    smaller = check_cut(found, {group.id: drop(12, 0, 5, 7)})
    depth = next(node for node in every_node(smaller) if node.inputs[-1].name == "w_depth")
    assert depth.attrs["group"] == 9


def test_both_ways_are_proved_whatever_the_probes_do():
    """The condition is never true on made-up inputs; a wrong cut of that branch must not pass."""
    from surgeon.errors import GateError
    from surgeon.verify import prove

    model = build(
        "float[N,7,5] x",
        "float[N,7,3] y",
        """
        s = ReduceSum <keepdims=0> (x)
        c = Greater (s, huge)
        a = MatMul (x, w_in)
        b = If (c) <
            then_branch = yes () => (float[N,7,12] p) { p = Mul (a, v) },
            else_branch = no () => (float[N,7,12] q) { q = Relu (a) }
        >
        y = MatMul (b, w_out)
        """,
        {"w_in": (5, 12), "v": (12,), "w_out": (12, 3), "huge": np.array(1e9, np.float32)},
    )
    found = check(model, [12])
    smaller, plan = found.cut({found.groups[0].id: drop(12, 3)})
    (constant,) = (t for node in every_node(smaller) for t in node.inputs if t.name == "v")
    constant.values = np.roll(constant.values, 1)
    with pytest.raises(GateError, match="differs"):
        prove(found.analysis, smaller, plan.tensors)


def test_weights_inside_a_branch_are_groups_of_their_own():
    model = build(
        "float[N,5] x, bool flag",
        "float[N,3] y",
        """
        y = If (flag) <
            then_branch = yes () => (float[N,3] p) { h = Gemm (x, w1, b1) r = Relu (h) p = Gemm (r, w2) },
            else_branch = no () => (float[N,3] q) { q = MatMul (x, w3) }
        >
        """,
        {"w3": (5, 3)},
    )
    found = check(with_body_weights(model, w1=(5, 10), b1=(10,), w2=(10, 3)), [10])
    smaller, plan = found.cut({found.groups[0].id: drop(10, 1, 2)})
    assert plan.tensors.keys() == {"w1", "b1", "w2"}
    written = to_model(smaller)
    onnx.checker.check_model(written, full_check=True)
    (node,) = written.graph.node
    branch = next(a.g for a in node.attribute if a.name == "then_branch")
    assert {tuple(tensor.dims) for tensor in branch.initializer} == {(5, 8), (8,), (8, 3)}


def test_a_recurrent_layer_inside_a_branch():
    model = build(
        "float[T,N,5] x, bool flag",
        "float[T,1,N,3] y",
        """
        y = If (flag) <
            then_branch = yes () => (float[T,1,N,3] p) { h = LSTM <hidden_size=6> (x, w, r, v) p = MatMul (h, w_out) },
            else_branch = no () => (float[T,1,N,3] q) { u = MatMul (x, w3) q = Unsqueeze (u, one) }
        >
        """,
        {"w3": (5, 3), "one": ints(1)},
    )
    inside = {"w": (1, 24, 5), "r": (1, 24, 6), "v": (1, 48), "w_out": (6, 3)}
    found = check(with_body_weights(model, **inside), [6])
    assert found.groups[0].kind == "hidden"
    smaller = check_cut(found, {found.groups[0].id: drop(6, 1, 4)})
    (lstm,) = (node for node in every_node(smaller) if node.op == "LSTM")
    assert lstm.attrs["hidden_size"] == 4


def test_branches_of_other_sizes_or_ranks_pin_what_they_return():
    body = """
        a = MatMul (x, w_in)
        b = If (flag) <
            then_branch = yes () => (p) { p = Relu (a) },
            else_branch = no () => (q) { q = OTHER }
        >
        y = ReduceSum (b, last)
        """
    weights = {"w_in": (5, 12), "last": ints(-1), "axes": ints(2)}
    for other in ("Concat <axis=2> (a, a)", "ReduceMean <keepdims=0, axes=[2]> (a)"):
        model = build(
            "float[N,7,5] x, bool flag", "float[N,k,j] y", body.replace("OTHER", other), weights, opset=17
        )
        found = solved(model)
        assert found.groups == []
        assert "12: If b: the branches disagree" in reasons(found)


def test_constants_returned_by_a_branch():
    model = build(
        "float[N,5] x, bool flag",
        "float[N,3] y",
        """
        a = Gemm (x, w_in)
        b = If (flag) <then_branch = yes () => (float[12] p) { }, else_branch = no () => (float[12] q) { q = Neg (v) }>
        c = Mul (a, b)
        y = MatMul (c, w_out)
        """,
        {"w_in": (5, 12), "v": (12,), "w_out": (12, 3)},
    )
    node = next(node for node in model.graph.node if node.op_type == "If")
    branch = next(a.g for a in node.attribute if a.name == "then_branch")
    branch.initializer.append(numpy_helper.from_array(np.linspace(1, 2, 12, dtype=np.float32), "p"))
    check(model, [12])


def test_arithmetic_outside_is_read_inside_too():
    model = build(
        "float[N,7,5] x, bool flag",
        "float[N,7,3] y",
        """
        a = MatMul (x, w_in)
        s = Shape (x)
        n = Gather (s, one)
        t = Concat <axis=0> (minus, n, twelve)
        f = Reshape (a, t)
        b = If (flag) <
            then_branch = yes () => (p) { p = Reshape (f, t) },
            else_branch = no () => (q) { c = Cast <to=1> (n) d = Mul (f, c) q = Relu (d) }
        >
        y = MatMul (b, w_out)
        """,
        {"w_in": (5, 12), "w_out": (12, 3), "minus": ints(-1), "one": ints(1), "twelve": ints(12)},
    )
    found = check(model, [12])
    smaller, _ = found.cut({})
    onnx.checker.check_model(to_model(smaller), full_check=True)


# Loop -------------------------------------------------------------------------------------------------------------


def loop(body, state="h", weights=None, *, outputs="", more=""):
    return build(
        "float[N,5] x",
        "float[N,3] y",
        f"""
        start = MatMul (x, w_in)
        {more}
        h_last{outputs} = Loop (trips, go, start) <
            body = step (int64 i, bool k, float[N,8] {state}) => (bool k2, float[N,8] h2{", o" if outputs else ""}) {{
                k2 = Identity (k)
                {body}
            }}
        >
        y = MatMul (h_last, w_out)
        """,
        {"w_in": (5, 8), "w_out": (8, 3), "trips": np.array(4), "go": TRUE, **(weights or {})},
    )


def test_a_loop_carries_a_hidden_state_through_a_gemm():
    model = loop("g = Gemm (h, w, v) t = Tanh (g) h2 = Add (t, start)", weights={"w": (8, 8), "v": (8,)})
    found = check(model, [8])
    smaller = check_cut(found, {found.groups[0].id: drop(8, 0, 6)})
    (gemm,) = (node for node in every_node(smaller) if node.op == "Gemm")
    assert tuple(gemm.inputs[1].shape) == (6, 6)


def test_a_hidden_layer_inside_a_loop_is_another_group():
    model = loop("a = MatMul (h, w1) r = Relu (a) h2 = MatMul (r, w2)")
    model = with_body_weights(model, w1=(8, 14), w2=(14, 8))
    found = check(model, [8, 14])
    # Gemms inside count as often as the loop runs
    cost = found.cost.evaluate()
    assert cost.macs == 5 * 8 + 4 * (8 * 14 + 14 * 8) + 8 * 3
    assert cost.params == 5 * 8 + 2 * 8 * 14 + 8 * 3


def test_what_iterations_yield_is_stacked():
    model = build(
        "float[N,5] x",
        "float[4,N,3] y",
        """
        start = MatMul (x, w_in)
        last, all = Loop (trips, , start) <
            body = step (int64 i, bool k, float[N,8] h) => (bool k2, float[N,8] h2, float[N,8] o) {
                k2 = Identity (k) g = MatMul (h, w) h2 = Tanh (g) o = Mul (h2, v)
            }
        >
        y = MatMul (all, w_out)
        """,
        {"w_in": (5, 8), "w": (8, 8), "v": (8,), "w_out": (8, 3), "trips": np.array(4)},
    )
    found = check(model, [8])
    assert "4: Loop last: iterations" in reasons(found)


def test_state_that_changes_its_size_stays_whole():
    model = loop("g = MatMul (h, w) h2 = Concat <axis=0> (g, g)", weights={"w": (8, 8)})
    found = solved(model)
    assert sizes(found) == [8], "only the batch grows"
    model = build(
        "float[N,5] x",
        "float[N,k] y",
        """
        start = MatMul (x, w_in)
        y = Loop (trips, , start) <
            body = step (int64 i, bool k, h) => (bool k2, h2) { k2 = Identity (k) h2 = Concat <axis=1> (h, h) }
        >
        """,
        {"w_in": (5, 8), "trips": np.array(4)},
    )
    found = solved(model)
    assert found.groups == []
    assert "8: Loop y: it changes from one iteration to the next" in reasons(found)


def test_an_if_inside_a_loop():
    model = loop(
        """
        odd = Mod (i, two)
        c = Cast <to=9> (odd)
        h2 = If (c) <
            then_branch = yes () => (float[N,8] p) { g = MatMul (h, w) p = Relu (g) },
            else_branch = no () => (float[N,8] q) { q = Mul (h, v) }
        >
        """,
        weights={"w": (8, 8), "v": (8,), "two": np.array(2)},
    )
    check(model, [8])


def test_shape_arithmetic_inside_a_loop_follows_the_cut():
    model = loop(
        """
        s = Shape (h)
        n = Gather (s, zero)
        t = Concat <axis=0> (n, four, two)
        r = Reshape (h, t)
        m = MatMul (r, w)
        h2 = Reshape (m, s)
        """,
        weights={"w": (2, 2), "zero": ints(0), "four": ints(4), "two": ints(2)},
    )
    check(model, [2, 4])


# Scan -------------------------------------------------------------------------------------------------------------


def scan(attributes="", x="float[T,N,5] x", y="float[T,N,3] y", opset=21):
    """A recurrent cell written out, with weights captured from outside."""
    return build(
        x,
        y,
        f"""
        n = Shape (x)
        b = Gather (n, one)
        d = Concat <axis=0> (b, hidden)
        h0 = ConstantOfShape (d)
        last, all = Scan <num_scan_inputs=1{attributes}, body = cell (h, e) => (h2, o) {{
            u = MatMul (e, w)
            v = MatMul (h, r)
            a = Add (u, v)
            z = Add (a, c)
            h2 = Tanh (z)
            o = Identity (h2)
        }}> (h0, x)
        y = MatMul (all, w_out)
        """,
        {"w": (5, 6), "r": (6, 6), "c": (6,), "w_out": (6, 3), "one": ints(1), "hidden": ints(6)},
        opset=opset,
    )


@pytest.mark.parametrize("direction", ["", ", scan_input_directions=[1], scan_output_directions=[1]"])
@pytest.mark.parametrize("opset", [9, 11, 21])
def test_a_scan_over_time_is_a_recurrent_layer(direction, opset):
    found = check(scan(direction, opset=opset), [6])
    smaller = check_cut(found, {found.groups[0].id: drop(6, 2, 3)})
    assert {tuple(n.inputs[1].shape) for n in every_node(smaller) if n.op == "MatMul"} == {
        (5, 4),
        (4, 4),
        (4, 3),
    }


def test_a_scan_along_the_axis_in_the_middle():
    attributes = ", scan_input_axes=[1], scan_output_axes=[-2]"
    model = scan(attributes, "float[N,T,5] x", "float[N,T,3] y")
    for tensor in model.graph.initializer:
        if tensor.name == "one":
            tensor.CopyFrom(numpy_helper.from_array(ints(0), "one"))
    check(model, [6])


def test_a_scan_costs_as_often_as_it_steps():
    found = solved(scan())
    shapes = found.cost
    assert shapes.evaluate().macs == 8 * (5 * 6 + 6 * 6) + 8 * 6 * 3


def test_what_a_scan_reads_and_yields_besides_its_state():
    model = build(
        "float[T,N,5] x",
        "float[T,N,3] y",
        """
        e = MatMul (x, w_in)
        total, f = Scan <num_scan_inputs=1, body = cell (s, a) => (s2, o) {
            s2 = Add (s, one)
            r = Relu (a)
            o = MatMul (r, w)
        }> (zero, e)
        y = MatMul (f, w_out)
        """,
        {
            "w_in": (5, 8),
            "w": (8, 7),
            "w_out": (7, 3),
            "one": np.ones(1, np.float32),
            "zero": np.zeros(1, np.float32),
        },
    )
    found = check(model, [7, 8])
    assert of_size(found, 7).producers == ["o"]


# What is not understood -------------------------------------------------------------------------------------------


def test_the_batched_scan_of_opset_8_is_a_barrier():
    model = build(
        "float[N,T,5] x",
        "float[N,T,12] y",
        """
        a = MatMul (x, w_in)
        y = Scan <num_scan_inputs=1, body = each (e) => (o) { o = Relu (e) }> ( , a)
        """,
        {"w_in": (5, 12)},
        opset=8,
    )
    found = solved(model)
    assert found.groups == []
    assert "12: Scan y: no rule for this operator" in reasons(found)


def test_one_name_for_two_tensors_is_a_barrier():
    from surgeon.analysis import solve
    from surgeon.graph.load import from_model

    model = build(
        "float[N,7,5] x, bool flag",
        "float[N,7,3] y",
        """
        a = MatMul (x, w_in)
        b = If (flag) <then_branch = yes () => (p) { p = Relu (a) }, else_branch = no () => (q) { q = Neg (a) }>
        y = MatMul (b, w_out)
        """,
        {"w_in": (5, 12), "w_out": (12, 3)},
    )
    graph = from_model(model)
    for node in every_node(graph):
        if node.op in ("Relu", "Neg"):
            node.outputs[0].name = "same"
    analysis = solve(graph)
    (op,) = (op for op in analysis.ops if op.node.op == "If")
    assert op.facts.barrier == "two tensors have the name same"


def test_the_number_of_iterations_may_be_an_input():
    from surgeon.probes import probe_feeds

    model = build(
        "float[N,5] x, int64 trips",
        "float[N,3] y",
        """
        start = MatMul (x, w_in)
        last = Loop (trips, , start) <
            body = step (int64 i, bool k, float[N,8] h) => (bool k2, float[N,8] h2) {
                k2 = Identity (k) g = MatMul (h, w) h2 = Tanh (g)
            }
        >
        y = MatMul (last, w_out)
        """,
        {"w_in": (5, 8), "w": (8, 8), "w_out": (8, 3)},
    )
    found = check(model, [8])
    assert {int(feeds["trips"]) for feeds in probe_feeds(found.analysis)} <= {2, 3, 4}
    assert found.cost.evaluate().macs == 5 * 8 + 8 * 8 + 8 * 3, "the body counts once"


def test_a_loop_that_stops_by_itself():
    model = build(
        "float[N,5] x",
        "float[N,3] y",
        """
        start = MatMul (x, w_in)
        last = Loop ( , go, start) <
            body = step (int64 i, bool k, float[N,8] h) => (bool k2, float[N,8] h2) {
                g = MatMul (h, w) h2 = Tanh (g) k2 = Less (i, three)
            }
        >
        y = MatMul (last, w_out)
        """,
        {"w_in": (5, 8), "w": (8, 8), "w_out": (8, 3), "go": TRUE, "three": np.array(3)},
    )
    check(model, [8])


def test_a_scan_inside_an_if_inside_a_loop():
    model = build(
        "float[T,N,5] x",
        "float[T,N,3] y",
        """
        start = MatMul (x, w_in)
        last = Loop (trips, , start) <
            body = step (int64 i, bool k, float[T,N,8] h) => (bool k2, float[T,N,8] h2) {
                k2 = Identity (k)
                first = Equal (i, zero)
                h2 = If (first) <
                    then_branch = yes () => (p) {
                        s0 = Gather (h, zero)
                        end, p = Scan <num_scan_inputs=1> (s0, h) <
                            body = cell (s, e) => (s2, o) { a = MatMul (e, w) b = Add (a, s) s2 = Tanh (b) o = Mul (s2, v) }
                        >
                    },
                    else_branch = no () => (q) { q = Relu (h) }
                >
            }
        >
        y = MatMul (last, w_out)
        """.replace("<num_scan_inputs=1> (s0, h) <", "(s0, h) <num_scan_inputs=1,"),
        {"w_in": (5, 8), "w": (8, 8), "v": (8,), "w_out": (8, 3), "zero": np.array(0), "trips": np.array(2)},
    )
    found = check(model, [8])
    assert len(found.analysis.ops) == len(list(every_node(found.analysis.graph)))
    assert [op.within[1] for op in found.analysis.ops if op.node.op == "Scan"] == ["then_branch"]
