"""Masks are packed bits that come back as they were, and are told from zeros that happen by chance."""

from __future__ import annotations

import base64

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given
from hypothesis.extra import numpy as arrays

from surgeon.masks import Mask, found_in, impose, violations


@given(arrays.arrays(bool, arrays.array_shapes(max_dims=4, max_side=7)))
def test_a_mask_survives_a_round_trip(stays):
    mask = Mask.of(stays)
    np.testing.assert_array_equal(mask.array(), stays)
    assert Mask(tuple(mask.to_json()["shape"]), mask.to_json()["bits"]) == mask


def test_the_layout_is_as_documented():
    stays = np.array([[1, 0, 0, 0, 1], [1, 1, 1, 0, 0]], bool)
    assert base64.b64decode(Mask.of(stays).bits) == bytes([0b10001111, 0b00000000])


@pytest.mark.parametrize("mask", [Mask((2, 8), "/w=="), Mask((8,), "%%"), Mask((2, 2), "////")])
def test_bits_that_do_not_fit_are_refused(mask):
    with pytest.raises(ValueError, match=r"bits"):
        mask.array()


def graph(**weights):
    x = gs.Variable("x", np.float32, [4, 40])
    nodes = []
    for name, values in weights.items():
        made = gs.Variable(f"{name}_out")
        nodes.append(gs.Node("MatMul", name, {}, [x, gs.Constant(name, values)], [made]))
    return gs.Graph(nodes=nodes, inputs=[x], outputs=[node.outputs[0] for node in nodes])


def weight(rows, columns, zeros=0, dtype=np.float32):
    values = np.ones((rows, columns), dtype)
    values.reshape(-1)[:zeros] = 0
    return values


def test_few_zeros_are_chance_and_many_are_a_mask():
    before = graph(a=weight(40, 50), b=weight(40, 50))
    assert found_in(before, graph(a=weight(40, 50, 19), b=weight(40, 50)), {}) == ({}, [])
    masks, _ = found_in(before, graph(a=weight(40, 50, 20), b=weight(40, 50, 1)), {})
    assert {name: int((~mask.array()).sum()) for name, mask in masks.items()} == {"a": 20, "b": 1}


def test_zeros_that_were_there_are_nobody_s():
    assert found_in(graph(a=weight(40, 50, 500)), graph(a=weight(40, 50, 500)), {}) == ({}, [])


def test_masks_have_the_shape_of_before_the_cut():
    kept = {"a": {0: (0, 2, 5), 1: (1, 3)}}
    after = np.array([[1, 0], [0, 1], [1, 1]], np.float32)
    masks, strange = found_in(graph(a=weight(6, 4)), graph(a=after), kept)
    stays = masks["a"].array()
    assert strange == []
    np.testing.assert_array_equal(np.argwhere(~stays), [[0, 3], [2, 1]])


def test_weights_that_the_file_does_not_have_are_named():
    masks, strange = found_in(graph(a=weight(6, 4)), graph(a=weight(6, 4, 3), new=weight(3, 4, 9)), {})
    assert (set(masks), strange) == ({"a"}, ["new"])


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_masks_are_imposed_and_checked(dtype):
    model, stays = graph(a=weight(6, 4, dtype=dtype)), np.ones((6, 4), bool)
    stays[1:3, 2] = False
    masks = {"a": Mask.of(stays), "gone": Mask.of(stays)}
    assert list(violations(model, masks, {})) == [("a", 2), ("gone", None)]
    impose(model, {"a": masks["a"]})
    values = model.nodes[0].inputs[1].values
    assert values.dtype == dtype
    np.testing.assert_array_equal(values, stays)
    assert next(violations(model, masks, {})) == ("a", 0)
    smaller = graph(a=values[[0, 2]])
    assert next(violations(smaller, masks, {"a": {0: (0, 2)}})) == ("a", 0)
    assert next(violations(smaller, masks, {"a": {0: (0, 3)}})) == ("a", 0)
    assert next(violations(graph(a=values[[0, 3]]), masks, {"a": {0: (0, 2)}})) == ("a", 1)
