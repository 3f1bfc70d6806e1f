"""Explanations: what an axis is made of, what pins it and along which operators, and what couples two names."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny
from onnx import numpy_helper, parser

from surgeon.cli import main
from surgeon.errors import UsageError
from surgeon.explain import explain
from surgeon.graph.load import from_model, load
from surgeon.wording import render

ATTENTION = """
<ir_version: 8, opset_import: ["" : 17]>
attention (float[7,24] x) => (float[7,24] y)
{
  q = MatMul (x, wq)
  k = MatMul (x, wk)
  v = MatMul (x, wv)
  q3 = Reshape (q, heads)
  k3 = Reshape (k, heads)
  v3 = Reshape (v, heads)
  qt = Transpose <perm = [1,0,2]> (q3)
  kt = Transpose <perm = [1,2,0]> (k3)
  vt = Transpose <perm = [1,0,2]> (v3)
  s = MatMul (qt, kt)
  p = Softmax (s)
  o = MatMul (p, vt)
  ot = Transpose <perm = [1,0,2]> (o)
  flat = Reshape (ot, joined)
  y = MatMul (flat, wo)
}
"""


def build(text, *, names=True, **weights):
    model = parser.parse_model(text)
    for node in model.graph.node if names else ():
        node.name = f"{node.op_type}_{node.output[0]}"
    for name, value in weights.items():
        array = np.ones(value, np.float32) if isinstance(value, tuple) else np.array(value)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return from_model(model)


@pytest.fixture
def attention():
    matrices = dict.fromkeys(("wq", "wk", "wv", "wo"), (24, 24))
    return build(ATTENTION, **matrices, heads=[7, 4, 6], joined=[7, 24])


@pytest.fixture
def convnet(tmp_path):
    return load(tiny.convnet(tmp_path / "m.onnx"))


def axis_of(answer, tensor, axis):
    return next(each for each in answer["axes"] if (each["tensor"], each["axis"]) == (tensor, axis))


# One name


def test_a_channel_axis_says_its_group_and_who_writes_and_reads(convnet):
    answer = explain(convnet, "c1:1")
    assert (answer["schema"], answer["is"]) == (1, "axis")
    (axis,) = answer["axes"]
    assert (axis["size"], axis["made_of"], axis["can_shrink"]) == (16, "channel(16)", True)
    (group,) = axis["groups"]
    assert (group["id"], group["producers"], group["consumers"]) == ("w1:0", ["Conv_0"], ["Conv_2"])
    assert "can shrink: channel(16) is group w1:0, written by Conv_0; read by Conv_2" in render(answer)


def test_heads_and_their_dimensions_are_a_product(attention):
    axis = axis_of(explain(attention, "wo"), "wo", 0)
    assert axis["made_of"] == "head(4) × head_dim(6)"
    assert [group["kind"] for group in axis["groups"]] == ["head", "head_dim"]


def test_joined_channels_are_a_sum_of_numbered_parts():
    graph = build(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[1,3,8,8] x) => (float[1,5,8,8] y)
        { a = Conv (x, w1)  b = Conv (x, w2)  c = Concat <axis = 1> (a, x, b)  y = Conv (c, w3) }
        """,
        w1=(4, 3, 1, 1), w2=(6, 3, 1, 1), w3=(5, 13, 1, 1),
    )  # fmt: skip
    axis = axis_of(explain(graph, "c"), "c", 1)
    assert axis["made_of"] == "channel1(4) + pinned(3) + channel2(6)"
    assert axis["can_shrink"]
    assert [each["reason"] for each in axis["pinned"]] == ["x: graph input"]


def test_selected_channels_are_said_to_be():
    graph = build(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[1,3,8,8] x) => (float[1,5,8,8] y)
        { a = Conv (x, w1)  b = Gather <axis = 1> (a, order)  c = Gather <axis = 1> (b, some)  y = Conv (c, w2) }
        """,
        w1=(6, 3, 1, 1), w2=(5, 3, 1, 1), order=[0, 3, 1, 4, 2, 5], some=[0, 2, 3],
    )  # fmt: skip
    assert axis_of(explain(graph, "b"), "b", 1)["made_of"] == "reordered(channel(6))"
    assert axis_of(explain(graph, "c"), "c", 1)["made_of"] == "3 of 6 from (channel(6))"


def test_a_pinned_axis_says_why_and_along_which_operators(attention):
    answer = explain(attention, "s:1")
    (pinned,) = answer["axes"][0]["pinned"]
    assert (pinned["op"], pinned["why"]) == ("x", "graph input")
    ops = [step["op"] for step in pinned["path"]]
    assert ops == ["MatMul MatMul_s", "Transpose Transpose_qt", "Reshape Reshape_q3", "MatMul MatMul_q"]
    assert (pinned["path"][0]["from"], pinned["path"][-1]["to"]) == ("s:1", "x:0")
    assert "cannot shrink: pinned(7), x: graph input" in render(answer)
    assert "s:1 — MatMul MatMul_s — Transpose Transpose_qt — " in render(answer)


def test_the_operator_that_pins_is_the_last_of_its_path(convnet):
    (pinned,) = explain(convnet, "w2:2")["axes"][0]["pinned"]
    assert pinned["reason"] == "Conv Conv_2: kernel taps"
    assert pinned["path"] == [{"op": "Conv Conv_2", "from": "w2:2", "to": "w2:2"}]


def test_a_size_that_is_not_fixed_is_said_to_be_one(convnet):
    answer = explain(convnet, "x:0")
    assert answer["axes"][0]["dynamic"]
    assert "size not fixed" in render(answer)
    assert not explain(convnet, "x:1")["axes"][0]["dynamic"]


def test_a_node_is_explained_by_what_it_makes_and_its_weights(convnet):
    answer = explain(convnet, "Conv_2")
    assert answer["is"] == "node"
    assert answer["node"] == {"name": "Conv Conv_2", "barrier": None, "writes": ["w2:0"], "reads": ["w1:0"]}
    assert {each["tensor"] for each in answer["axes"]} == {"c2", "w2", "b2"}
    assert answer["flow"] == {"inputs": ["x"], "outputs": ["y"]}


def test_a_node_without_a_rule_says_so():
    graph = build("""
        <ir_version: 8, opset_import: ["" : 17, "acme" : 1]>
        g (float[2,4] x) => (float[2,4] y) { a = acme.Mystery (x)  y = Relu (a) }
    """)
    answer = explain(graph, "Mystery_a")
    assert answer["node"]["barrier"] == "no rule for this operator"
    assert "everything it touches is pinned: no rule for this operator" in render(answer)


def test_a_structural_group_says_what_it_takes():
    graph = build(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[7,6] x) => (float[7,5] y)
        { a = MatMul (x, w1)  b = LayerNormalization <axis = -1> (a, scale)  y = MatMul (b, w2) }
        """,
        w1=(6, 8), scale=(8,), w2=(8, 5),
    )  # fmt: skip
    (group,) = explain(graph, "a:1")["axes"][0]["groups"]
    assert "layer statistics" in group["structural"]
    assert "only with prune.allow_structural" in render(explain(graph, "a:1"))


def test_axes_count_from_the_end_too(convnet):
    assert explain(convnet, "w1:-4")["axes"] == explain(convnet, "w1:0")["axes"]


def test_a_group_is_explained_by_its_id(attention):
    ids = {group["id"] for axis in explain(attention, "wq")["axes"] for group in axis["groups"]}
    (numbered,) = (each for each in ids if "#" in each)
    answer = explain(attention, numbered)
    assert answer["is"] == "group"
    assert numbered in {group["id"] for group in answer["axes"][0]["groups"]}


def test_names_with_colons_are_names_first():
    graph = build("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[2,4] x) => (float[2,4] y) { a = Relu (x)  y = Relu (a) }
    """)
    graph.nodes[0].outputs[0].name = "scope/a:0"
    assert explain(graph, "scope/a:0")["is"] == "tensor"
    (axis,) = explain(graph, "scope/a:0:1")["axes"]
    assert (axis["tensor"], axis["axis"]) == ("scope/a:0", 1)


def test_what_was_folded_is_not_unknown(attention):
    graph = build(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[2,4] x) => (int64[2] y) { s = Shape (x)  t = Mul (s, two)  y = Identity (t) }
        """,
        two=[2],
    )
    answer = explain(graph, "s")
    assert answer["axes"] == []
    assert "arithmetic on shapes" in answer["note"]
    assert "arithmetic on shapes" in render(explain(graph, "Shape_s"))


def test_names_inside_a_body_are_like_any_other():
    graph = build(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        g (bool which, float[N,2] x) => (float[N,3] y) {
          a = MatMul (x, w1)
          b = If (which) <
            then_branch = left () => (l) { n = Neg (a)  l = Mul (n, v) },
            else_branch = right () => (r) { r = Abs (a) }
          >
          y = MatMul (b, w2)
        }
    """,
        w1=(2, 8), w2=(8, 3), v=(8,),
    )  # fmt: skip
    assert explain(graph, "l:1")["axes"][0]["groups"][0]["id"] == "w1:1"
    answer = explain(graph, "n:1", "w2:0")
    assert answer["coupled"]
    assert [step["op"] for step in answer["couplings"][0]["path"]] == ["Mul l", "If If_b", "MatMul MatMul_y"]
    assert explain(graph, "n", "y")["between"]["through"] == ["Mul l", "If If_b", "MatMul MatMul_y"]
    assert "path" in explain(graph, "b:0")["axes"][0]["pinned"][0]


def test_names_inside_an_operator_that_is_not_understood():
    graph = build("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N,2] x) => (s) {
          q = SequenceConstruct (x, x)
          s = SequenceMap (q) <body = each (float[N,2] e) => (float[N,2] p) { p = Relu (e) }>
        }
    """)
    assert "not understood" in explain(graph, "p")["note"]


def test_a_shared_vector_names_its_copies():
    graph = build(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[1,3,8,8] x) => (float[1,4,8,8] y)
        { a = Conv (x, w1, b)  c = Conv (a, w2, b)  y = Conv (c, w3) }
        """,
        w1=(4, 3, 1, 1), w2=(4, 4, 1, 1), w3=(4, 4, 1, 1), b=(4,),
    )  # fmt: skip
    answer = explain(graph, "b")
    assert "b__2" in answer["note"]
    assert answer["axes"]


def test_what_no_output_needs_is_said_to_be_unused(convnet):
    answer = explain(convnet, "y")
    assert answer["flow"] == {"inputs": ["x"], "outputs": ["y"]}
    assert "no output" not in render(answer)


# Unknown names


@pytest.mark.parametrize(
    ("name", "hint"),
    [("Gem_6", "did you mean 'Gemm_6'?"), ("c1x:1", "did you mean 'c1'?"), ("w11", "did you mean 'w1'?")],
)
def test_unknown_names_get_a_suggestion(convnet, name, hint):
    with pytest.raises(UsageError) as caught:
        explain(convnet, name)
    assert caught.value.hint == hint


def test_an_axis_that_is_not_there(convnet):
    with pytest.raises(UsageError, match="no axis 7: its axes are 0 to 3"):
        explain(convnet, "w1:7")
    with pytest.raises(UsageError, match="no axis 0"):
        explain(build("""
            <ir_version: 8, opset_import: ["" : 17]>
            g (float x) => (float y) { y = Relu (x) }
        """), "x:0")  # fmt: skip


def test_the_second_name_is_checked_too(convnet):
    with pytest.raises(UsageError, match="no node"):
        explain(convnet, "w1", "nothing at all")


# Two names


def test_two_coupled_axes_and_the_shortest_path(convnet):
    answer = explain(convnet, "w1:0", "w2:1")
    assert answer["coupled"]
    (coupling,) = answer["couplings"]
    assert coupling["group"] == "w1:0"
    assert [step["op"] for step in coupling["path"]] == ["Conv Conv_0", "Relu Relu_1", "Conv Conv_2"]
    text = render(answer)
    assert "w1:0 and w2:1 are coupled" in text
    assert "w1:0 — Conv Conv_0 — Relu Relu_1 — Conv Conv_2 — w2:1" in text


def test_whole_tensors_and_nodes_are_coupled_by_groups_only(convnet):
    answer = explain(convnet, "c1", "Conv_2")
    assert [each["group"] for each in answer["couplings"]] == ["w1:0"]
    assert not explain(convnet, "x", "y")["coupled"]  # the batch they share says nothing


def test_two_axes_are_coupled_by_what_is_pinned_too(convnet):
    answer = explain(convnet, "x:0", "y:0")
    (coupling,) = answer["couplings"]
    assert coupling["pinned"] == "x: graph input"
    assert coupling["path"][0]["from"] == "x:0"
    assert "must keep its size" in render(answer)


def test_uncoupled_names_say_how_data_get_from_one_to_the_other(convnet):
    answer = explain(convnet, "w3:1", "w1:0")
    assert (answer["coupled"], answer["couplings"]) == (False, [])
    assert answer["between"]["common"] is None
    text = render(answer)
    assert "are not coupled" in text
    assert "neither is computed from the other" in text
    later = explain(convnet, "y:1", "w1:0")["between"]
    assert (later["from"], later["to"]) == ("w1:0", "y:1")
    assert later["through"][0] == "Conv Conv_0"
    assert later["through"][-1] == "Gemm Gemm_6"


def test_siblings_name_the_last_operator_they_both_depend_on(attention):
    graph = build(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[2,4] x) => (float[2,5] y, float[2,6] z)
        { a = Relu (x)  b = Neg (a)  y = MatMul (b, w1)  z = MatMul (b, w2) }
        """,
        w1=(4, 5), w2=(4, 6),
    )  # fmt: skip
    answer = explain(graph, "y:1", "z:1")
    assert answer["between"]["common"] == "Neg Neg_b"
    assert "the last operator both depend on is Neg Neg_b" in render(answer)


def test_an_axis_and_itself(convnet):
    answer = explain(convnet, "w1:0", "w1:0")
    assert answer["couplings"][0]["path"] == []
    assert "w1:0 is in both" in render(answer)


# The command


def test_the_command(demo, capsys):
    assert main(["explain", str(demo), "logits:1"]) == 0
    assert "logits: graph output" in capsys.readouterr().out
    assert main(["explain", str(demo), "logits:1", "input", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["schema"], facts["names"], facts["coupled"]) == (1, ["logits:1", "input"], False)
    assert main(["explain", str(demo), "lojits"]) == 2
    assert "did you mean 'logits'?" in capsys.readouterr().err


@pytest.mark.slow
def test_every_name_of_real_models_can_be_explained(shared):
    for path in sorted((shared / "models").glob("*.onnx"))[:8]:
        graph = load(path)
        for node in graph.nodes[:: max(1, len(graph.nodes) // 10)]:
            answer = explain(graph, node.name or node.outputs[0].name)
            assert render(answer)
            assert all(each["path"] is not None for axis in answer["axes"] for each in axis["pinned"])
