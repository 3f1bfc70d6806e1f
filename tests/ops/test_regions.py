"""Images read at computed places: channels are free, places stay."""

from __future__ import annotations

import numpy as np
import pytest
from ops.oracle import build, check, check_cut, drop, images, of_size, only, reasons, solved

BOXES = np.float32([[0, 0, 3, 3], [1, 1, 5, 4]])


def grid(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


@pytest.mark.parametrize("domain", ["", "com.microsoft."])
@pytest.mark.parametrize("padding", ["zeros", "border"])
def test_places_of_a_grid(domain, padding):
    mode = "bilinear" if domain else "linear"
    body = f"""
    a = Conv (x, w_in, b_in)
    b = {domain}GridSample <mode="{mode}", padding_mode="{padding}"> (a, g)
    y = Conv (b, w_out)
    """
    weights = {"w_in": (12, 5, 1, 1), "b_in": (12,), "g": grid(2, 4, 3, 2), "w_out": (3, 12, 1, 1)}
    domains = {"com.microsoft": 1}
    check(build("float[2,5,8,6] x", "float[2,3,4,3] y", body, weights, domains=domains), [12])


def test_places_from_matrices():
    body = """
    a = Conv (x, w_in)
    g = AffineGrid (t, size)
    b = GridSample (a, g)
    y = Conv (b, w_out)
    """
    weights = {"w_in": (12, 5, 1, 1), "size": np.int64([2, 12, 4, 3]), "w_out": (3, 12, 1, 1)}
    found = check(build("float[2,5,8,6] x, float[2,2,3] t", "float[2,3,4,3] y", body, weights), [12])
    assert "places" in reasons(found)


@pytest.mark.parametrize("op", ["RoiAlign", "MaxRoiPool"])
def test_regions(op):
    body = f"""
    a = Conv (x, w_in, b_in)
    r = {op} {"<output_height=2, output_width=2> (a, boxes, which)" if op == "RoiAlign" else "<pooled_shape=[2,2]> (a, boxes)"}
    y = Conv (r, w_out)
    """
    boxes = BOXES if op == "RoiAlign" else np.concatenate([np.zeros((2, 1), np.float32), BOXES], axis=1)
    weights = {
        "w_in": (12, 5, 1, 1),
        "b_in": (12,),
        "boxes": boxes,
        "which": np.int64([0, 0]),
        "w_out": (3, 12, 1, 1),
    }
    check(build("float[1,5,8,6] x", "float[2,3,2,2] y", body, weights), [12])


def test_a_pool_is_undone():
    """The places it counts run over all channels, and are counted again when some are gone."""
    middle = """
    p, i = MaxPool <kernel_shape=[2,2], strides=[2,2]> (a)
    q = Relu (p)
    b = MaxUnpool <kernel_shape=[2,2], strides=[2,2]> (q, i)
    """
    check(images(middle, 12), [12])


def test_places_that_are_given_cannot_follow():
    middle = "b = MaxUnpool <kernel_shape=[2,2], strides=[2,2]> (a, i)"
    places = np.arange(12 * 48, dtype=np.int64).reshape(1, 12, 8, 6) * 4
    found = solved(images(middle, 12, {"i": places}))
    assert found.groups == []
    assert "no MaxPool" in reasons(found)


def test_blocks_become_an_image():
    body = """
    a = MatMul (w_in, x)
    b = Col2Im (a, image, block)
    y = Conv (b, w_out)
    """
    weights = {
        "w_in": (12, 5),
        "image": np.int64([4, 3]),
        "block": np.int64([2, 1]),
        "w_out": (3, 6, 1, 1),
    }
    found = check(build("float[N,5,9] x", "float[N,3,4,3] y", body, weights), [6])
    smaller = check_cut(found, {found.groups[0].id: drop(6, 1)})
    assert tuple(only(smaller, "MatMul").inputs[0].shape) == (10, 5)


@pytest.mark.parametrize(("group", "offsets"), [(1, 1), (1, 3), (2, 1)])
def test_taps_that_move(group, offsets):
    middle = f"""
    m = Conv (x, w_m)
    o = Conv (x, w_o)
    b = DeformConv <group={group}, offset_group={offsets}, pads=[1,1,1,1]> (a, w, o, v, m)
    """
    taps = 9 * offsets
    weights = {
        "w_m": (taps, 5, 1, 1),
        "w_o": (2 * taps, 5, 1, 1),
        "w": (10, 12 // group, 3, 3),
        "v": (10,),
    }
    groups = {(1, 1): [10, 12], (1, 3): [3, 4, 10], (2, 1): [2, 5, 6]}
    found = check(images(middle, 10, weights), groups[group, offsets])
    if offsets == 3:
        smaller = check_cut(found, {of_size(found, 3).id: drop(3, 0)})
        assert only(smaller, "DeformConv").attrs["offset_group"] == 2


@pytest.mark.parametrize("axes", ["<axes=[2,3]>", ""])
def test_cut_and_padded_around_the_middle(axes):
    target = np.int64([6, 8] if axes else [1, 12, 6, 8])
    model = images(f"b = CenterCropPad {axes} (a, target)", 12, {"target": target})
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    check(model, [12])


def test_channels_that_are_cropped_stay():
    found = solved(images("b = CenterCropPad <axes=[1]> (a, target)", 10, {"target": np.int64([10])}))
    assert found.groups == []
