"""The pass ``factorize``: two operators compute what one did; the target holds; what cannot be split says why."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx
import onnx.helper as oh
import pytest
from onnx import numpy_helper as nh
from quantizable import context_for, network, weight

import surgeon
from surgeon.cost import count, one_sample
from surgeon.errors import GateError, UsageError
from surgeon.graph.load import from_model
from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session
from surgeon.graph.shapes import infer
from surgeon.refit.twins import operators
from surgeon.stats.data import graph_inputs
from surgeon.stats.synthetic import synthetic
from surgeon_passes.cleaning.wiring import Wiring
from surgeon_passes.factorize import Factorize
from surgeon_passes.factorizing.curves import Way, ranks
from surgeon_passes.factorizing.emit import emit
from surgeon_passes.factorizing.probes import sensitivities, tried
from surgeon_passes.factorizing.splits import KINDS, Divisible, divisible


def single(op, shapes, *, data, opset=17, bias=(), **attributes):
    """A model of one operator; ``data`` is the shape of its first free input, ``shapes`` those of its inputs in order."""
    weights, names = [], []
    for k, shape in enumerate(shapes):
        if shape is None:
            names.append("x")
        else:
            weights.append(weight(f"w{'_' * k}", *shape))
            names.append(weights[-1].name)
    if bias:
        weights.append(weight("bias", *bias))
        names.append("bias")
    node = oh.make_node(op, names, ["y"], name="it", **attributes)
    x = oh.make_tensor_value_info("x", 1, data)
    y = oh.make_tensor_value_info("y", 1, None)
    graph = oh.make_graph([node], "g", [x], [y], weights)
    model = oh.make_model(graph, ir_version=6, opset_imports=[oh.make_opsetid("", opset)])
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


CONVOLUTIONS = {
    "plain": ((8, 6, 3, 3), (2, 6, 9, 8), {"pads": [1] * 4}),
    "strided": ((8, 6, 3, 3), (2, 6, 9, 8), {"strides": [2, 1], "pads": [1, 0, 2, 1]}),
    "dilated": ((7, 6, 3, 2), (2, 6, 11, 9), {"dilations": [2, 3], "pads": [2, 1, 0, 3]}),
    "same upper": ((8, 6, 3, 4), (2, 6, 9, 8), {"auto_pad": "SAME_UPPER", "strides": [2, 3]}),
    "same lower": ((8, 6, 4, 3), (2, 6, 9, 8), {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    "valid": ((8, 6, 3, 3), (2, 6, 9, 8), {"auto_pad": "VALID", "strides": [2, 2]}),
    "one by one": ((12, 16, 1, 1), (2, 16, 5, 4), {"strides": [2, 2], "pads": [1, 0, 0, 1]}),
    "flat": ((8, 6, 1, 5), (2, 6, 5, 9), {"strides": [2, 2], "pads": [0, 2, 0, 2]}),
    "one axis": ((8, 6, 5), (2, 6, 12), {"strides": [2], "pads": [2, 1]}),
    "three axes": ((5, 4, 3, 2, 3), (1, 4, 6, 5, 6), {"strides": [1, 2, 2], "pads": [1, 0, 1, 1, 1, 0]}),
}
PRODUCTS = {
    "gemm": ("Gemm", [None, (12, 10)], (5, 12), {"bias": (10,), "alpha": 0.5, "beta": 2.0}),
    "gemm turned": ("Gemm", [None, (10, 12)], (5, 12), {"transB": 1}),
    "gemm of turned data": ("Gemm", [None, (12, 10)], (12, 5), {"transA": 1, "bias": (10,)}),
    "gemm on the left": ("Gemm", [(10, 12), None], (12, 5), {"alpha": 3.0, "bias": (10, 1)}),
    "gemm on the left, both turned": ("Gemm", [(12, 10), None], (5, 12), {"transA": 1, "transB": 1}),
    "gemm before biases were optional": ("Gemm", [None, (12, 10)], (5, 12), {"opset": 9, "bias": (10,)}),
    "matmul": ("MatMul", [None, (12, 10)], (5, 12), {}),
    "matmul of several": ("MatMul", [None, (12, 10)], (2, 3, 5, 12), {}),
    "matmul of one row": ("MatMul", [None, (12, 10)], (12,), {}),
    "matmul on the left": ("MatMul", [(10, 12), None], (2, 12, 5), {}),
    "matmul with batches": ("MatMul", [None, (3, 12, 10)], (3, 5, 12), {}),
    "matmul with batches on the left": ("MatMul", [(3, 10, 12), None], (2, 3, 12, 5), {}),
}


def cases():
    for name, (shape, data, attributes) in CONVOLUTIONS.items():
        yield pytest.param("Conv", [None, shape], data, {"bias": shape[:1], **attributes}, id=name)
    for name, case in PRODUCTS.items():
        yield pytest.param(*case, id=name)


@pytest.mark.parametrize(("op", "shapes", "data", "attributes"), list(cases()))
def test_at_full_rank_every_split_is_the_same_function(op, shapes, data, attributes):
    model = single(op, shapes, data=data, **attributes)
    feeds = synthetic(graph_inputs(from_model(model)), seed=3, batch=data[0] if data else 1)
    wanted = run(session(model), feeds)[0]
    graph = from_model(model)
    found = divisible(operators(graph, infer(graph))[0], infer(graph), KINDS, lambda _: False)
    assert isinstance(found, Divisible)
    assert found.macs == count(graph).macs
    spatial = sum(size > 1 for size in (shapes[1] or ())[2:]) if op == "Conv" else 0
    assert len(found.splits) == 2**spatial
    assert len({each.words for each in found.splits}) == len(found.splits)
    for which, split in enumerate(found.splits):
        graph = from_model(model)
        each = divisible(operators(graph, infer(graph))[0], infer(graph), KINDS, lambda _: False)
        rank = each.full_rank(split)
        emit(graph, each.view, each.splits[which], rank, Wiring(graph).fresh, {"it"})
        result = to_model(graph)
        onnx.checker.check_model(result, full_check=True)
        assert [node.op_type for node in result.graph.node] == [op, op]
        assert result.graph.node[1].name == "it"
        ours = run(session(result), feeds)[0]
        assert ours.shape == wanted.shape
        assert np.abs(ours - wanted).max() < 1e-5 * max(1.0, np.abs(wanted).max())
        assert count(graph).macs == rank * split.per_rank


def test_kinds_by_name():
    graph = from_model(single("Conv", [None, (8, 6, 3, 3)], data=(1, 6, 9, 8)))
    op = operators(graph, infer(graph))[0]
    words = {
        kind: [split.words for split in divisible(op, infer(graph), (kind,), lambda _: False).splits]
        for kind in KINDS
    }
    assert words == {
        "outputs": ["3×3 then 1×1"],
        "inputs": ["1×1 then 3×3"],
        "spatial": ["3×1 then 1×3", "1×3 then 3×1"],
    }


def test_ranks_suit_the_kernels():
    assert ranks(64, 40, None) == [1, 2, 4, *range(8, 41, 8)]
    assert ranks(256, 100, None) == [1, 2, 4, 8, *range(16, 101, 16)]
    assert ranks(64, 40, 10) == [10, 20, 30, 40]
    assert ranks(5, 4, None) == [1, 2, 3, 4]


def factorized(model, context=None, **options):
    context = context or context_for(model)
    return to_model(Factorize(**options).run(from_model(model), context)), context.record


def outputs(model, seed=9):
    return run(session(model), synthetic(graph_inputs(from_model(model)), seed=seed, batch=8))[0]


def test_the_target_holds_and_the_report_adds_up():
    model = network()
    whole = count(from_model(model)).macs
    for target in (0.8, 0.5, 0.3):
        result, record = factorized(model, macs=target)
        onnx.checker.check_model(result, full_check=True)
        after = count(from_model(result)).macs
        assert after <= target * whole
        assert record["macs"] == {"before": whole, "after": after, "asked": target}
        assert whole - after == sum(e["macs_before"] - e["macs_after"] for e in record["split"])
        assert all(e["error_after"] <= e["error_before"] for e in record["split"])
        names = [node.name for node in result.graph.node if node.name]
        assert len(names) == len(set(names))
        listed = {e["node"] for e in record["split"]} | {e["node"] for e in record["left"]}
        assert listed == {"first", "second", "head"}


def test_fitted_is_better_than_not_and_both_than_magnitude():
    model = network()
    wanted = outputs(model)
    errors = {}
    for refit in (True, False):
        result, record = factorized(model, macs=0.5, refit=refit)
        errors[refit] = np.square(outputs(result) - wanted).sum()
        others = record["refit"]["operators"]
        assert bool(others) == refit
        assert all(each["error_after"] <= each["error_before"] for each in others)
    assert errors[True] < errors[False]


def test_low_rank_weights_are_found_exactly():
    """A layer that has a small rank is split at it without any loss."""
    random = np.random.default_rng(0)
    low = (random.standard_normal((24, 5)) @ random.standard_normal((5, 20))).astype("f")
    model = single("Gemm", [None, (24, 20)], data=("N", 24))
    model.graph.initializer[0].CopyFrom(nh.from_array(low, model.graph.initializer[0].name))
    result, record = factorized(model, macs=0.5, round_to=1)
    assert record["split"][0]["rank"] == 5
    assert record["split"][0]["error"] < 1e-6
    assert np.allclose(outputs(result), outputs(model), atol=1e-3)


def test_out_of_reach_says_how_far_it_came():
    with pytest.raises(GateError, match=r"leaves 0\.\d+"):
        factorized(network(), macs=0.001)
    with pytest.raises(GateError, match=r"leaves 1\.0000; 3 operators stay whole, mostly because: excluded"):
        factorized(network(), macs=0.5, exclude=("*",))


def test_what_stays_whole_says_why():
    nodes = [
        oh.make_node("Conv", ["x", "w"], ["a"], name="grouped", group=2),
        oh.make_node("ConvTranspose", ["a", "t"], ["b"], name="transposed"),
        oh.make_node("Conv", ["b", "s"], ["c"], name="shared_1", pads=[1] * 4),
        oh.make_node("Conv", ["c", "s"], ["d"], name="shared_2", pads=[1] * 4),
        oh.make_node("Conv", ["d", "v"], ["e"], name="small"),
        oh.make_node("Conv", ["e", "u"], ["y"], name="wide", pads=[1] * 4),
    ]
    weights = [
        weight("w", 8, 4, 3, 3),
        weight("t", 8, 8, 2, 2),
        weight("s", 8, 8, 3, 3),
        weight("v", 16, 8, 1, 1),
        weight("u", 16, 16, 3, 3),
    ]
    weights[3] = weight("v", 1, 8, 1, 1)
    weights[4] = weight("u", 16, 1, 3, 3)
    x = oh.make_tensor_value_info("x", 1, ["N", 8, 8, 8])
    graph = oh.make_graph(nodes, "g", [x], [oh.make_tensor_value_info("y", 1, None)], weights)
    model = oh.make_model(graph, ir_version=8, opset_imports=[oh.make_opsetid("", 17)])
    _, record = factorized(model, macs=0.99)
    left = {e["node"]: e["reason"] for e in record["left"]}
    assert left == {
        "grouped": "its channels are in groups",
        "transposed": "a ConvTranspose has no split of this kind",
        "shared_1": "its weight is shared",
        "shared_2": "its weight is shared",
        "small": "no split saves multiply-accumulates",
    }
    assert [e["node"] for e in record["split"]] == ["wide"]


def test_half_precision_stays_half():
    model = single("Gemm", [None, (24, 20)], data=("N", 24))
    half = np.random.default_rng(0).standard_normal((24, 20)).astype(np.float16)
    model.graph.initializer[0].CopyFrom(nh.from_array(half, model.graph.initializer[0].name))
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    result, _ = factorized(model, macs=0.5)
    assert {each.data_type for each in result.graph.initializer} == {onnx.TensorProto.FLOAT16}
    session(result)


@pytest.mark.parametrize(
    ("options", "where"),
    [({"macs": 1.0}, "macs"), ({"round_to": 0}, "round_to"), ({"samples": 0}, "samples")],
)
def test_options_are_checked(options, where):
    with pytest.raises(UsageError) as caught:
        Factorize(**options)
    assert caught.value.where == f"factorize.{where}"


def test_seeds_and_threads_decide_nothing_else():
    results = [factorized(network(), context_for(network(), threads=t), macs=0.5)[0] for t in (1, 2)]
    assert results[0].SerializeToString() == results[1].SerializeToString()


COMPOSED = [
    "factorize{macs=0.7},prune{macs=0.8}",
    "prune{macs=0.8},factorize{macs=0.7}",
    "factorize{macs=0.7},reconstruct{steps=5}",
    "factorize{macs=0.7},quantize{guard=false}",
    "factorize{macs=0.8},factorize{macs=0.8}",
    "factorize{macs=0.7},sparsify{sparsity=0.5}",
    "factorize{macs=0.7},cluster{clusters=16}",
    "prune{macs=0.8},factorize{macs=0.8},reconstruct{steps=5},quantize{guard=false}",
]


@pytest.mark.parametrize("passes", COMPOSED)
def test_with_other_passes(passes, tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(network(), path)
    feeds = synthetic(graph_inputs(from_model(network())), seed=1, batch=64)
    data = tmp_path / "data.npz"
    np.savez(data, **feeds)
    result = surgeon.run(path, passes, data=str(data), force=True)
    before, after = (result.report[key]["macs"] for key in ("before", "after"))
    asked = [float(each.split("}")[0]) for each in passes.split("macs=")[1:]]
    assert after <= np.prod(asked) * before * 1.0001
    wanted, ours = (run(session(each), feeds)[0] for each in (network(), result.model))
    assert np.abs(ours - wanted).max() < 0.25


def test_one_sample_counts():
    """What is foretold is what the model has in the end, whatever the open dimensions."""
    graph = from_model(network())
    sample = one_sample(graph)
    found = [divisible(op, sample, KINDS, lambda _: False) for op in operators(graph, infer(graph))]
    assert sum(each.macs for each in found if each) == count(graph).macs
    for each in filter(None, found):
        for first, second in pairwise(each.splits):
            assert first.per_rank > 0
            assert first.words != second.words


def test_operators_that_are_not_tried_count_as_their_neighbours():
    def ways(error):
        return [Way(None, 8, 100.0, 0.0), Way(None, 4, 60.0, error), Way(None, 2, 30.0, 0.9)]

    found = sensitivities(
        {f"n{k}": ways(0.03) for k in range(61)}, lambda name, way: way.error * 2.0 ** int(name[1:])
    )
    assert len(found) == 61
    assert all(found[f"n{k}"] == pytest.approx(2.0**k) for k in range(61))  # a straight line in logarithms
    assert tried(ways(0.02)).error == 0.02
    assert tried(ways(1e-5)).error == 0.9
    assert sensitivities({"only": ways(0.03)}, lambda *_: 7.0) == {"only": 1.0}
    assert sensitivities({"a": ways(0.03), "b": ways(0.03)}, lambda *_: np.inf) == {"a": 1.0, "b": 1.0}


def test_what_matters_more_to_the_outputs_loses_less():
    """Two heads of the same width; one of them hardly counts."""
    nodes = [
        oh.make_node("MatMul", ["x", "a"], ["h"], name="loud"),
        oh.make_node("MatMul", ["x", "b"], ["i"], name="quiet"),
        oh.make_node("Mul", ["i", "small"], ["j"]),
        oh.make_node("Add", ["h", "j"], ["y"]),
    ]
    weights = [weight("a", 32, 32), weight("b", 32, 32), nh.from_array(np.float32(0.01), "small")]
    x, y = (oh.make_tensor_value_info(name, 1, ["N", 32]) for name in "xy")
    graph = oh.make_graph(nodes, "g", [x], [y], weights)
    model = oh.make_model(graph, ir_version=8, opset_imports=[oh.make_opsetid("", 17)])
    _, record = factorized(model, macs=0.7)
    assert [entry["node"] for entry in record["split"]] == ["quiet"]
    _, record = factorized(model, macs=0.7, sensitivity=False)
    assert {entry["weight"] for entry in record["split"]} == {1.0}
