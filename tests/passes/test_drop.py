"""The pass ``drop``: the result is the graph without the branch or layer, the cheapest one, and what is behind is refitted."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper as nh
from quantizable import context_for, network

import surgeon
from surgeon.cost import count, macs_of_nodes
from surgeon.errors import GateError, UsageError
from surgeon.graph.load import from_model
from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session
from surgeon.graph.shapes import infer
from surgeon.stats.data import graph_inputs
from surgeon.stats.synthetic import synthetic
from surgeon_passes.drop import Drop
from surgeon_passes.dropping.aims import aims, makers
from surgeon_passes.dropping.gaps import Gap, Wires, find_gaps
from surgeon_passes.dropping.removal import without

RESIDUAL = """
<ir_version: 8, opset_import: ["" : 17]>
residual (float["N",8,6,6] x) => (float["N",8,3,3] y, float["N",10] z)
{
  a1 = Conv <pads = [1,1,1,1]> (x, a)
  a2 = Relu (a1)
  a3 = Conv <pads = [1,1,1,1]> (a2, b)
  s = Add (a3, x)
  b1 = Conv <pads = [1,1,1,1]> (s, c)
  b2 = Relu (b1)
  t = Add (s, b2)
  c1 = Conv <pads = [1,1,1,1], strides = [2,2]> (t, d)
  c2 = Conv <strides = [2,2]> (t, e)
  u = Add (c1, c2)
  y = Relu (u)
  p = GlobalAveragePool (y)
  f = Flatten (p)
  z = MatMul (f, g)
}
"""
WEIGHTS = {
    "a": (8, 8, 3, 3),
    "b": (8, 8, 3, 3),
    "c": (8, 8, 3, 3),
    "d": (8, 8, 3, 3),
    "e": (8, 8, 1, 1),
    "g": (8, 10),
}


def model_of(text, weights, *, small=()):
    """With seeded weights; those in ``small`` hardly do anything."""
    model = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    for k, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{k}"
    for name, shape in weights.items():
        values = random.standard_normal(shape) / np.sqrt(max(np.prod(shape[1:]), 1))
        model.graph.initializer.append(
            nh.from_array((values * (0.01 if name in small else 1)).astype("f"), name)
        )
    onnx.checker.check_model(model, full_check=True)
    return model


def residual(*small):
    return model_of(RESIDUAL, WEIGHTS, small=small)


def candidates(model, exclude=()):
    graph = from_model(model)
    return find_gaps(Wires(graph, macs_of_nodes(graph)), infer(graph), lambda name: name in exclude)


def dropped(model, context=None, **options):
    context = context or context_for(model)
    return to_model(Drop(**options).run(from_model(model), context)), context.record


def outputs(model, seed=9):
    return run(session(model), synthetic(graph_inputs(from_model(model)), seed=seed, batch=8))


def test_branches_and_layers_are_found():
    found = candidates(residual())
    assert [(gap.kind, gap.tensor, gap.source) for gap in found.gaps] == [
        ("layer", "a1", "x"),
        ("layer", "a3", "a2"),
        ("layer", "a3", "x"),
        ("branch", "s", "x"),
        ("layer", "b1", "s"),
        ("branch", "t", "s"),
        ("layer", "t", "x"),
        ("branch", "u", "c1"),
        ("branch", "u", "c2"),
    ]
    gone = {(gap.tensor, gap.source): set(gap.gone) for gap in found.gaps}
    assert gone["a3", "x"] == {"a1", "a2", "a3"}
    assert gone["s", "x"] == {"a1", "a2", "a3", "s"}
    assert gone["u", "c2"] == {"c1", "u"}
    assert gone["u", "c1"] == {"c2", "u"}
    macs = {gap.tensor: gap.macs for gap in found.gaps if gap.kind == "branch"}
    assert macs == {"s": 2 * 36 * 8 * 72, "t": 36 * 8 * 72, "u": 9 * 8 * 72}


def test_without_a_branch_is_the_graph_without_it():
    model = residual()
    for removed, text in {
        ("s", "x"): RESIDUAL.replace(
            "b1 = Conv <pads = [1,1,1,1]> (s", "b1 = Conv <pads = [1,1,1,1]> (x"
        ).replace("Add (s, b2)", "Add (x, b2)"),
        ("u", "c2"): RESIDUAL.replace("Relu (u)", "Relu (c2)"),
        ("b1", "s"): RESIDUAL.replace("Relu (b1)", "Relu (s)"),
    }.items():
        graph = from_model(model)
        ours = to_model(without(graph, dict([removed])))
        wanted = model_of(text, WEIGHTS)
        for first, second in zip(outputs(ours), outputs(wanted), strict=True):
            assert np.array_equal(first, second)
        assert len(ours.graph.node) < len(wanted.graph.node)
        assert count(from_model(ours)).macs < count(from_model(model)).macs
        assert len(graph.nodes) == len(model.graph.node)  # the graph itself is as it was


def test_replacements_follow_one_another():
    """Where both blocks go, what stands for the second is what stands for the first."""
    ours = to_model(without(from_model(residual()), {"t": "s", "s": "x"}))
    reads = {node.name: list(node.input) for node in ours.graph.node}
    assert reads["Conv_7"][0] == reads["Conv_8"][0] == "x"
    assert {node.op_type for node in ours.graph.node if node.name.startswith("Conv")} == {"Conv"}
    assert len([n for n in ours.graph.node if n.op_type == "Conv"]) == 2


def test_macs_of_nodes_add_up():
    graph = from_model(residual())
    found = macs_of_nodes(graph)
    assert sum(found.values()) == count(graph).macs
    assert found["a1"] == 36 * 8 * 72
    assert found["z"] == 80


def test_what_hardly_does_anything_goes_first():
    model = residual("b")
    result, record = dropped(model, macs=0.7, refit=False)
    assert {e["tensor"] for e in record["candidates"] if e["dropped"]} <= {"a1", "a3", "s"}
    after = count(from_model(result)).macs
    assert after <= 0.7 * count(from_model(model)).macs
    assert record["macs"]["after"] == after
    ours, wanted = outputs(result), outputs(model)
    assert all(np.abs(a - b).max() < 0.05 * np.abs(b).max() for a, b in zip(ours, wanted, strict=True))
    assert [tensor.name for tensor in result.graph.output] == ["y", "z"]


def test_what_is_left_makes_up_for_the_gap():
    model = residual()
    wanted = outputs(model)
    errors = {}
    for refit in (True, False):
        result, record = dropped(model, macs=0.75, refit=refit)
        errors[refit] = sum(np.square(a - b).sum() for a, b in zip(outputs(result), wanted, strict=True))
        assert bool(record["refit"]["operators"]) == refit
        assert (record["error"]["refitted"] < record["error"]["dropped"]) == refit
    assert errors[True] < 0.7 * errors[False]


def test_out_of_reach_says_how_far_it_came():
    with pytest.raises(
        GateError, match=r"leaving out all of \d+ blocks and layers that can go leaves 0\.\d+"
    ):
        dropped(residual(), macs=0.001)
    narrow = model_of(
        """<ir_version: 8, opset_import: ["" : 17]>
        narrow (float["N",8] x) => (float["N",4] y) { h = MatMul (x, a)  r = Relu (h)  y = MatMul (r, b) }""",
        {"a": (8, 6), "b": (6, 4)},
    )
    with pytest.raises(GateError, match="no sum and no layer has an input of its own shape"):
        dropped(narrow)


def test_plain_networks_lose_layers():
    plain = model_of(
        """<ir_version: 8, opset_import: ["" : 17]>
        plain (float["N",8] x) => (float["N",4] y)
        {
          h = MatMul (x, a)
          r = Relu (h)
          i = MatMul (r, b)
          q = Relu (i)
          y = MatMul (q, c)
        }""",
        {"a": (8, 8), "b": (8, 8), "c": (8, 4)},
    )
    found = candidates(plain)
    assert [(gap.kind, gap.tensor, gap.source) for gap in found.gaps][:2] == [
        ("layer", "h", "x"),
        ("layer", "i", "r"),
    ]
    result, _ = dropped(plain, macs=0.7)
    assert len([n for n in result.graph.node if n.op_type == "MatMul"]) == 2


def test_what_cannot_go_says_why():
    model = residual()
    found = candidates(model, exclude=("b",))
    assert found.left["s"] == "excluded"
    assert "s" not in {gap.tensor for gap in found.gaps}
    text = RESIDUAL.replace('float["N",10] z', 'float["N",10] z, float["N",8,6,6] s')
    found = candidates(model_of(text, WEIGHTS))
    assert found.left["s"] == "the model puts it out"


CONTROL = """
<ir_version: 8, opset_import: ["" : 17]>
control (float["N",8] x, bool c) => (float["N",8] y)
{
  h = MatMul (x, a)
  s = Add (h, x)
  i = MatMul (s, b)
  t = Add (i, s)
  y = If (c) <
    then_branch = g1 () => (float["N",8] p) { p = MatMul (s, a) },
    else_branch = g2 () => (float["N",8] q) { q = Add (t, s) }
  >
}
"""


def test_bodies_are_left_alone():
    found = candidates(model_of(CONTROL, {"a": (8, 8), "b": (8, 8)}))
    assert found.left["s"] == found.left["t"] == "a body reads it"
    assert found.left["If_4"] == "what is inside a body is not looked at"
    assert {gap.tensor for gap in found.gaps} <= {"h", "i"}


@pytest.mark.parametrize(
    ("options", "where"), [({"macs": 0.0}, "macs"), ({"trials": 0}, "trials"), ({"samples": 0}, "samples")]
)
def test_options_are_checked(options, where):
    with pytest.raises(UsageError) as caught:
        Drop(**options)
    assert caught.value.where == f"drop.{where}"


@pytest.mark.parametrize(
    "passes",
    [
        "drop{macs=0.8},prune{macs=0.8}",
        "prune{macs=0.8},drop{macs=0.8}",
        "drop{macs=0.8},factorize{macs=0.8},reconstruct{steps=5},quantize{guard=false}",
        "factorize{macs=0.8},drop{macs=0.8}",
        "drop{macs=0.9},drop{macs=0.8}",
    ],
)
def test_with_other_passes(passes, tmp_path):
    path, data = tmp_path / "m.onnx", tmp_path / "data.npz"
    onnx.save(residual("c"), path)
    np.savez(data, **synthetic(graph_inputs(from_model(residual())), seed=1, batch=64))
    result = surgeon.run(path, passes, data=str(data), force=True)
    before, after = (result.report[key]["macs"] for key in ("before", "after"))
    asked = [float(each.split("}")[0]) for each in passes.split("macs=")[1:]]
    assert after <= np.prod(asked) * before * 1.0001
    assert [tensor.shape for tensor in outputs(result.model)] == [
        tensor.shape for tensor in outputs(residual())
    ]


def test_a_branch_of_one_layer_may_be_nothing_or_the_identity():
    """``x + f(x)`` becomes ``x`` or ``x + x``; both are tried."""
    found = {(gap.kind, gap.tensor, gap.source) for gap in candidates(network()).gaps}
    assert found == {("branch", "s", "r1"), ("layer", "c2", "r1")}


CHAIN = """
<ir_version: 8, opset_import: ["" : 17]>
chain (float["N",8] x) => (float["N",4] y)
{
  h = MatMul (x, a)
  r = Relu (h)
  i = MatMul (r, b)
  q = Relu (i)
  k = MatMul (q, c)
  s = Add (k, q)
  t = Tanh (s)
  y = MatMul (t, d)
}
"""
SQUARE = {"a": (8, 8), "b": (8, 8), "c": (8, 8), "d": (8, 4)}


def aimed(*pairs):
    graph = from_model(model_of(CHAIN, SQUARE))
    gaps = [Gap("layer", tensor, source, frozenset(), 0.0) for tensor, source in pairs]
    return aims(graph, without(graph, dict(pairs)), gaps)


def test_what_is_before_a_gap_aims_at_what_was_behind_it():
    assert aimed(("i", "r")) == {"r": "i", "h": "i"}  # a Relu follows either way
    assert aimed(("s", "q")) == {"q": "s"}  # a Tanh follows: what is before the Relu has another aim
    assert aimed(("i", "r"), ("s", "q")) == {"r": "i", "h": "i", "q": "s"}
    assert aimed(("i", "r"), ("s", "i")) == {"r": "s"}  # the gaps are one, and no Relu is left
    assert aimed(("k", "q")) == {}  # the sum reads it too
    assert aimed(("h", "x")) == {}  # nothing makes an input


def test_sums_before_a_gap_have_terms_that_aim():
    graph = from_model(model_of(CHAIN, SQUARE))
    assert makers(graph, {"s": "y"}) == {"s", "k", "q"}


def test_a_layer_before_a_gap_learns_what_both_did():
    """Two layers with nothing in between are one; the first learns to be their product."""
    text = """<ir_version: 8, opset_import: ["" : 17]>
        linear (float["N",8] x) => (float["N",4] y)
        { h = MatMul (x, a)  i = MatMul (h, b)  q = Relu (i)  y = MatMul (q, d) }"""
    model = model_of(text, SQUARE)
    result, record = dropped(model, macs=0.7)
    assert record["error"]["refitted"] < 1e-3 < 0.1 < record["error"]["dropped"]
    ours, wanted = outputs(result)[0], outputs(model)[0]
    assert np.square(ours - wanted).sum() < 1e-3 * np.square(wanted - wanted.mean(0)).sum()
