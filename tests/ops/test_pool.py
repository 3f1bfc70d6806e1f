"""Pooling, resampling and padding: channels pass, spatial extents are new."""

from __future__ import annotations

import numpy as np
import pytest
from ops.oracle import build, check, check_cut, drop, features, images, ints, of_size, only, reasons, solved


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool"])
def test_pool(op):
    found = check(images(f"b = {op} <kernel_shape=[3,2], strides=[2,1], pads=[1,0,1,0]> (a)", 12), [12])
    assert "spatial extent" in reasons(found)


@pytest.mark.parametrize("op", ["GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool"])
@pytest.mark.parametrize("spatial", [(7,), (8, 6), (3, 4, 5)])
def test_global_pool(op, spatial):
    check(images(f"b = {op} (a)", 12, spatial=spatial), [12])


def test_max_pool_with_indices():
    """The positions of the maxima go nowhere near the channels' values."""
    body = "b, i = MaxPool <kernel_shape=[2,2]> (a)"
    check(images(body, 12), [12])


def test_pool_of_a_whole_map_feeds_a_classifier():
    model = build(
        "float[N,5,8,6] x",
        "float[N,3] y",
        "a = Conv (x, w1)\np = GlobalAveragePool (a)\nf = Flatten (p)\ny = Gemm <transB=1> (f, w2, v)",
        {"w1": (12, 5, 3, 3), "w2": (3, 12), "v": (3,)},
    )
    check(model, [12])


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_resize_by_scales(mode):
    scales = np.array([1, 1, 2, 1.5], np.float32)
    found = check(images(f'b = Resize <mode="{mode}"> (a, , scales)', 12, {"scales": scales}), [12])
    assert "resampled" in reasons(found)


def test_resize_by_sizes_rewrites_the_channel_entry():
    body = 'b = Resize <mode="nearest"> (a, , , sizes)'
    model = build(
        "float[2,5,8,6] x",
        "float[2,3,16,12] y",
        f"a = Conv (x, w1)\n{body}\ny = Conv (b, w2)",
        {"w1": (12, 5, 1, 1), "w2": (3, 12, 1, 1), "sizes": ints(2, 12, 16, 12)},
    )
    found = check(model, [12])
    smaller = check_cut(found, {found.groups[0].id: drop(12, 0, 1)})
    assert only(smaller, "Resize").inputs[3].values.tolist() == [2, 10, 16, 12]


def test_resize_of_listed_axes():
    body = 'b = Resize <mode="linear", axes=[2,3]> (a, , , sizes)'
    check(images(body, 12, {"sizes": ints(16, 9)}, opset=18), [12])


def test_resize_by_sizes_computed_from_another_map():
    body = """
    s = Shape (a)
    head = Slice (s, zero, two, zero)
    up = ConvTranspose <strides=[2,2]> (a, w)
    t = Shape (up)
    tail = Slice (t, two, four, zero)
    sizes = Concat <axis=0> (head, tail)
    r = Resize <mode="nearest"> (a, , , sizes)
    b = Add (r, up)
    """
    weights = {"zero": ints(0), "two": ints(2), "four": ints(4), "w": (12, 12, 2, 2)}
    check(images(body, 12, weights), [12])


def test_resize_of_opset_10():
    scales = np.array([1, 1, 2, 2], np.float32)
    check(images('b = Resize <mode="nearest"> (a, scales)', 12, {"scales": scales}, opset=10), [12])


def test_crop_and_resize_is_a_barrier():
    body = 'b = Resize <mode="linear", coordinate_transformation_mode="tf_crop_and_resize"> (a, roi, scales)'
    weights = {"roi": np.float32([0, 0, 0, 0, 1, 1, 0.5, 0.5]), "scales": np.float32([1, 1, 2, 2])}
    found = solved(images(body, 12, weights))
    assert found.groups == []
    assert "crop and resize" in reasons(found)


@pytest.mark.parametrize("opset", [7, 9])
def test_upsample(opset):
    if opset == 7:
        model = images('b = Upsample <mode="nearest", scales=[1.0,1.0,2.0,2.0]> (a)', 12, opset=7)
    else:
        model = images('b = Upsample <mode="nearest"> (a, s)', 12, {"s": np.float32([1, 1, 2, 2])}, opset=9)
    check(model, [12])


@pytest.mark.parametrize("opset", [10, 11, 13, 18])
def test_pad_of_the_spatial_axes(opset):
    if opset == 10:
        model = images("b = Pad <pads=[0,0,1,2,0,0,0,1]> (a)", 12, opset=opset)
    else:
        model = images("b = Pad (a, pads)", 12, {"pads": ints(0, 0, 1, 2, 0, 0, 0, 1)}, opset=opset)
    check(model, [12])


@pytest.mark.parametrize("opset", [10, 13])
@pytest.mark.parametrize("value", [0.0, 0.75])
def test_pad_of_the_channels_adds_new_ones(opset, value):
    if opset == 10:
        model = images(f"b = Pad <pads=[0,3,0,0,0,5,0,0], value={value}> (a)", 20, opset=opset)
    else:
        weights = {"pads": ints(0, 3, 0, 0, 0, 5, 0, 0), "value": np.float32(value)}
        model = images("b = Pad (a, pads, value)", 20, weights, opset=opset)
    found = check(model, [3, 5, 12])
    smaller = check_cut(found, {of_size(found, 5).id: drop(5, 0), of_size(found, 12).id: drop(12, 11)})
    node = only(smaller, "Pad")
    pads = node.attrs["pads"] if opset == 10 else node.inputs[1].values.tolist()
    assert pads == [0, 3, 0, 0, 0, 4, 0, 0]


def test_pad_of_the_channels_of_a_shortcut():
    """Parameter-free shortcuts of CIFAR ResNets: zero channels around those of the input, added to a wider map."""
    body = """
    p = Pad (a, pads)
    c = Conv (a, w)
    b = Add (p, c)
    """
    check(images(body, 20, {"pads": ints(0, 4, 0, 0, 0, 4, 0, 0), "w": (20, 12, 1, 1)}), [4, 4, 12])


def test_pad_of_listed_axes():
    weights = {"pads": ints(2, 1), "value": np.float32(0), "axes": ints(-3)}
    check(images("b = Pad (a, pads, value, axes)", 15, weights), [2, 12])


@pytest.mark.parametrize("mode", ["reflect", "edge"])
def test_pad_by_repeating_pins_the_padded_axis(mode):
    check(images(f'b = Pad <mode="{mode}"> (a, pads)', 12, {"pads": ints(0, 0, 1, 1, 0, 0, 1, 1)}), [12])
    found = solved(features(f'b = Pad <mode="{mode}"> (a, pads)', 14, {"pads": ints(0, 0, 1, 0, 0, 1)}))
    assert f"padded by {mode}" in reasons(found)
    assert found.groups == []


def test_negative_pads_crop():
    found = solved(images("b = Pad (a, pads)", 10, {"pads": ints(0, -1, 0, 0, 0, -1, 0, 0)}))
    assert found.groups == []
    check(images("b = Pad (a, pads)", 12, {"pads": ints(0, 0, -1, 0, 0, 0, 1, 0)}), [12])
