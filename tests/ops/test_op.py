"""What rules see of their operator: defaults, names in reasons, barriers, and rules that are not trusted."""

from __future__ import annotations

import pytest
from ops.oracle import build, features, reasons, solved

from surgeon.analysis import solve
from surgeon.graph.load import from_model
from surgeon.graph.shapes import infer
from surgeon.ops import RULES, Op
from surgeon.ops.registry import Rule


def ops_of(model):
    graph = from_model(model)
    return {op.node.op: op for op in solve(graph, infer(graph)).ops}


def test_attributes_have_the_defaults_of_their_opset():
    old = ops_of(features("b = Softmax (a)", 12, opset=11))["Softmax"]
    new = ops_of(features("b = Softmax (a)", 12, opset=13))["Softmax"]
    assert (old.attribute("axis"), new.attribute("axis")) == (1, -1)
    assert new.attribute("no_such_attribute", 7) == 7
    assert ops_of(features("b = Elu <alpha=0.5> (a)", 12))["Elu"].attribute("alpha") == 0.5


def test_reasons_name_the_operator_and_its_output():
    assert "12: Softmax b: softmax axis" in reasons(solved(features("b = Softmax (a)", 12)))


def test_values_are_known_for_constants_and_shape_arithmetic():
    body = "s = Shape (a)\nr = Reshape (a, s)\nb = Relu (r)"
    reshape = ops_of(features(body, 12))["Reshape"]
    assert reshape.value(1) is None
    values, dynamic = reshape.partial(1)
    assert values.tolist()[1:] == [7, 12]
    assert dynamic.tolist() == [True, False, False]
    assert reshape.value(0) is None
    assert reshape.partial(0) is None
    assert ops_of(features("b = Relu (a)", 12))["MatMul"].value(1).shape == (12, 3)


def test_an_operator_without_a_rule_pins_what_it_touches_and_no_more(monkeypatch):
    monkeypatch.delitem(RULES._rules, ("", "Softsign"))
    model = build(
        "float[N,7,5] x",
        "float[N,7,3] y",
        """
        a = MatMul (x, w_in)
        p = Softsign (a)
        s = Add (a, p)
        m = MatMul (s, w)
        y = MatMul (m, w_out)
        """,
        {"w_in": (5, 12), "w": (12, 10), "w_out": (10, 3)},
    )
    found = solved(model)
    assert [group.size for group in found.groups] == [10]
    assert "12: Softsign p: no rule for this operator" in reasons(found)


@pytest.fixture
def wrong_rule(monkeypatch):
    """Transpose claims to leave the order of the axes alone."""

    def wrong(op: Op, data):
        return [data]

    monkeypatch.setitem(RULES._rules, ("", "Transpose"), [Rule("Transpose", "", 1, wrong)])


def test_a_rule_that_disagrees_with_shape_inference_is_not_trusted(wrong_rule):
    body = "t = Transpose <perm=[0,2,1]> (a)\nr = Relu (t)\nb = Transpose <perm=[0,2,1]> (r)"
    found = solved(features(body, 12))
    assert found.groups == []
    assert "its rule gives" in reasons(found)


def test_an_operator_that_reads_a_tensor_of_unknown_rank_is_a_barrier():
    model = build(
        "float[N,7,5] x, int64[K] target",
        "float[N,7,3] y",
        "a = MatMul (x, w_in)\nr = Reshape (a, target)\nm = Relu (r)\ns = ReduceSum <keepdims=0> (m)\nb = Mul (a, s)\ny = MatMul (b, w_out)",
        {"w_in": (5, 12), "w_out": (12, 3)},
    )
    found = solved(model)
    assert found.groups == []


def test_bodies_of_operators_without_a_rule_pin_what_they_capture():
    model = build(
        "float[N,7,5] x",
        "float[N,7,3] y",
        """
        a = MatMul (x, w_in)
        s = SequenceConstruct (x, x)
        r = SequenceMap (s) <body = each (float[N,7,5] e) => (float[N,7,12] p) { f = MatMul (e, w) p = Add (f, a) }>
        zero = Constant <value = int64 {0}> ()
        b = SequenceAt (r, zero)
        m = MatMul (b, w_mid)
        y = MatMul (m, w_out)
        """,
        {"w_in": (5, 12), "w": (5, 12), "w_mid": (12, 10), "w_out": (10, 3)},
    )
    found = solved(model)
    assert [group.size for group in found.groups] == [10]
    assert "12: SequenceMap r: a sequence of tensors" in reasons(found)
    assert [op.facts.barrier for op in found.analysis.ops if op.node.op == "Add"] == [
        "inside an operator that is not understood"
    ]
