"""Surgery: weights are sliced, untouched ones shared, interfaces and dynamic dimensions kept."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from ops.oracle import build, check_cut, drop, features, images, ints, of_size, solved

from surgeon.axes import Atom, Concat, Product
from surgeon.errors import InternalError
from surgeon.graph.save import to_model
from surgeon.surgery import axis_masks, cut, keep_of, sliced, tensor_cuts


def two_layers():
    return solved(features("b = MatMul (a, w)", 10, {"w": (12, 10)}))


def test_weights_lose_exactly_the_removed_slices():
    found = two_layers()
    smaller, _ = found.cut({of_size(found, 12).id: drop(12, 3, 7), of_size(found, 10).id: drop(10, 0)})
    whole = [node.inputs[1].values for node in found.analysis.graph.nodes]
    left = [node.inputs[1].values for node in smaller.nodes]
    np.testing.assert_array_equal(left[0], np.delete(whole[0], [3, 7], axis=1))
    np.testing.assert_array_equal(left[1], np.delete(np.delete(whole[1], [3, 7], axis=0), 0, axis=1))
    np.testing.assert_array_equal(left[2], np.delete(whole[2], 0, axis=0))
    assert all(array.flags.c_contiguous for array in left)


def test_nothing_removed_changes_nothing():
    found = two_layers()
    smaller, plan = found.cut({group.id: np.ones(group.size, bool) for group in found.groups})
    assert plan.groups == ()
    assert plan.tensors == {}
    assert to_model(smaller).SerializeToString(deterministic=True) == to_model(
        found.analysis.graph
    ).SerializeToString(deterministic=True)


def test_untouched_weights_are_not_copied():
    found = two_layers()
    smaller, _ = found.cut({of_size(found, 12).id: drop(12, 0)})
    old, new = found.analysis.graph.nodes[2].inputs[1], smaller.nodes[2].inputs[1]
    assert new._values is old._values


def test_inputs_outputs_and_their_symbols_are_kept():
    model = build(
        "float[batch,length,5] tokens",
        "float[batch,length,3] scores",
        "a = MatMul (tokens, w1)\nscores = MatMul (a, w2)",
        {"w1": (5, 12), "w2": (12, 3)},
    )
    model.graph.node[0].name = "first"
    found = solved(model)
    small = to_model(check_cut(found, {found.groups[0].id: drop(12, 0)}))
    for old, new in zip(
        (*model.graph.input, *model.graph.output), (*small.graph.input, *small.graph.output), strict=True
    ):
        assert old == new
    assert small.graph.node[0].name == "first"
    assert small.opset_import == model.opset_import
    assert small.ir_version <= 13
    onnx.checker.check_model(small, full_check=True)


def test_shapes_declared_for_inner_tensors_are_dropped():
    model = features("b = MatMul (a, w)", 10, {"w": (12, 10)})
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("a", 1, ["N", 7, 12]))
    found = solved(model)
    small = to_model(check_cut(found, {of_size(found, 12).id: drop(12, 0)}))
    assert all("12" not in str(info) for info in small.graph.value_info)


def test_groups_can_be_cut_one_after_the_other():
    """A cut model is a model: analysing and cutting it again gives what cutting at once gives."""
    model = images("c = Conv <pads=[1,1,1,1]> (a, w)\nb = Relu (c)", 10, {"w": (10, 12, 3, 3)})
    found = solved(model)
    first, second = of_size(found, 12), of_size(found, 10)
    at_once, _ = found.cut({first.id: drop(12, 1), second.id: drop(10, 2, 3)})
    half_way, _ = found.cut({first.id: drop(12, 1)})
    again = solved(to_model(half_way))
    in_turn, _ = again.cut({second.id: drop(10, 2, 3)})
    for a, b in zip(at_once.nodes, in_turn.nodes, strict=True):
        for x, y in zip(a.inputs[1:], b.inputs[1:], strict=True):
            np.testing.assert_array_equal(x.values, y.values)


def test_an_axis_is_never_emptied():
    found = two_layers()
    group = found.groups[0]
    with pytest.raises(InternalError, match="nothing would be left"):
        cut(found.analysis, {group.atom: np.zeros(group.size, bool)})


def test_masks_are_given_for_axes_that_shrink_only():
    a, b = Atom(3), Atom(2)
    masks = axis_masks([a, b, Concat([b, a])], {a: np.array([True, False, True])})
    assert list(masks) == [0, 2]
    assert masks[2].tolist() == [True, True, True, False, True]
    assert axis_masks(None, {}) == {}


def test_slices_along_several_axes():
    values = np.arange(24).reshape(2, 3, 4)
    result = sliced(values, {0: np.array([False, True]), 2: np.array([True, False, False, True])})
    np.testing.assert_array_equal(result, values[1:][:, :, [0, 3]])


def test_whole_groups_are_left_out_of_what_is_kept():
    a, b = Atom(2), Atom(3)
    keep = keep_of({"a": np.ones(2, bool), "b": np.array([True, False, True])}, {"a": a, "b": b})
    assert list(keep) == [b]


def test_cuts_of_tensors_are_listed_by_the_names_of_the_file():
    model = build(
        "float[N,5] x",
        "float[N,16] y",
        "a = Gemm (x, w1, shared)\nb = Relu (a)\nc = Gemm (b, w2, shared)\nd = Relu (c)\ny = Gemm (d, w3, shared)",
        {"w1": (5, 16), "w2": (16, 16), "w3": (16, 16), "shared": (16,)},
    )
    found = solved(model)
    first, second = found.groups
    keep = {first.atom: drop(16, 0), second.atom: drop(16, 0, 1)}
    cuts = tensor_cuts(found.analysis, keep)
    assert cuts["w1"] == {1: tuple(range(1, 16))}
    assert cuts["w2"] == {0: tuple(range(1, 16)), 1: tuple(range(2, 16))}
    assert "shared" not in cuts  # the last layer, whose outputs are the graph's, keeps all of it


def test_products_of_groups_are_cut_as_outer_products():
    found = solved(
        features("r = Reshape (a, s)\nb = Reshape (r, j)", 12, {"s": ints(0, 0, 3, 4), "j": ints(0, 0, -1)})
    )
    heads, each = of_size(found, 3), of_size(found, 4)
    cuts = tensor_cuts(found.analysis, {heads.atom: drop(3, 1), each.atom: drop(4, 0, 3)})
    assert cuts["w_in"] == {1: (1, 2, 9, 10)}
    assert isinstance(found.analysis.axes["b"][2], Product)


def test_weights_of_half_precision_stay_so():
    model = features(
        "h = Cast <to=10> (a)\nm = MatMul (h, w)\nb = Cast <to=1> (m)",
        10,
        {"w": np.ones((12, 10), np.float16)},
    )
    found = solved(model)
    smaller = check_cut(found, {of_size(found, 12).id: drop(12, 0)})
    weight = smaller.nodes[2].inputs[1]
    assert isinstance(weight, gs.Constant)
    assert weight.values.dtype == np.float16
