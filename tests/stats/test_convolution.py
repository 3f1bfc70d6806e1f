"""Convolutions as matrix products: what each tap sees is what onnxruntime multiplies."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from ops.oracle import build
from stats.products import analysed, check, operator, tensors, values

from surgeon.stats.linear import linear_views

CONVOLUTIONS = [
    ("", (7, 6, 3, 3), (11, 9)),
    ("strides=[2,3]", (7, 6, 3, 2), (11, 9)),
    ("dilations=[2,1]", (7, 6, 3, 3), (11, 9)),
    ("pads=[1,0,2,3]", (7, 6, 3, 3), (11, 9)),
    ("pads=[2,1,0,3], strides=[2,2], dilations=[2,3]", (7, 6, 3, 2), (11, 9)),
    ("pads=[1,1,1,1], strides=[3,3]", (7, 6, 2, 2), (11, 9)),
    *[
        (f'auto_pad="{mode}"{more}', (7, 6, *kernel), (11, 10))
        for mode in ("SAME_UPPER", "SAME_LOWER", "VALID")
        for more in ("", ", strides=[2,3]", ", strides=[3,2], dilations=[1,1]")
        for kernel in ((3, 3), (4, 2), (1, 5))
    ],
    ('auto_pad="SAME_UPPER", strides=[2,2]', (7, 6, 1, 1), (11, 10)),
    ("group=3", (9, 2, 3, 3), (8, 8)),
    ("group=6, pads=[1,1,1,1]", (6, 1, 3, 3), (8, 8)),
    ("group=6, strides=[2,2]", (12, 1, 3, 3), (8, 8)),
    ("strides=[2], dilations=[2], pads=[3,1]", (7, 6, 3), (15,)),
    ('auto_pad="SAME_LOWER", strides=[2], group=2', (8, 3, 4), (15,)),
    ("pads=[1,0,1,0,2,1], strides=[1,2,1]", (7, 6, 2, 3, 3), (5, 6, 7)),
    ('auto_pad="SAME_UPPER", strides=[2,1,2], group=2', (4, 3, 2, 3, 2), (5, 6, 7)),
    ("group=2, dilations=[2,1,1], pads=[1,1,1,1,1,1]", (4, 3, 2, 3, 2), (5, 6, 7)),
]
TRANSPOSED = [
    ("", (6, 4, 3, 3), (5, 4)),
    ("strides=[2,3]", (6, 4, 3, 2), (5, 4)),
    ("strides=[3,3]", (6, 4, 2, 2), (5, 4)),
    ("dilations=[2,3]", (6, 4, 3, 2), (5, 4)),
    ("pads=[1,0,2,3]", (6, 4, 3, 4), (5, 5)),
    ("strides=[2,2], pads=[1,1,1,1], output_padding=[1,0]", (6, 4, 3, 3), (5, 4)),
    ("strides=[3,2], dilations=[2,1], pads=[0,1,2,1], output_padding=[2,1]", (6, 4, 3, 3), (5, 4)),
    ("strides=[2,2], output_shape=[10,9]", (6, 4, 3, 3), (5, 4)),
    ("strides=[2,2], output_shape=[9,8], output_padding=[1,1]", (6, 4, 3, 3), (5, 4)),
    ('strides=[2,2], output_shape=[8,8], auto_pad="SAME_UPPER"', (6, 4, 3, 4), (5, 4)),
    ('strides=[2,2], output_shape=[8,8], auto_pad="SAME_LOWER"', (6, 4, 3, 4), (5, 4)),
    *[
        (f'auto_pad="{mode}"{more}', (6, 4, *kernel), (5, 4))
        for mode in ("SAME_UPPER", "SAME_LOWER", "VALID")
        for more in ("", ", strides=[2,3]", ", strides=[1,2], output_padding=[0,1]")
        for kernel in ((3, 4), (2, 2), (5, 1))
    ],
    ("group=3, strides=[2,1]", (6, 4, 3, 3), (5, 4)),
    ("group=6, strides=[2,2], pads=[1,1,1,1]", (6, 1, 4, 4), (5, 4)),
    ("group=6", (6, 2, 2, 2), (5, 4)),
    ("strides=[2], pads=[1,0], dilations=[2]", (6, 4, 3), (7,)),
    ('strides=[3], group=2, auto_pad="SAME_LOWER"', (6, 4, 4), (7,)),
    ("strides=[1,2,2], pads=[0,1,1,1,0,1], output_padding=[0,1,0], group=2", (6, 2, 2, 3, 3), (3, 4, 3)),
]


def model_of(kind, attributes, weight, spatial, bias=True):
    outputs = weight[0]
    if kind == "ConvTranspose":
        outputs = weight[1] * int(
            attributes.split("group=")[1].split(",")[0] if "group=" in attributes else 1
        )
    x, y = ",".join(map(str, (6, *spatial))), ",".join(f"d{k}" for k in range(len(spatial)))
    node = f"y = {kind} <{attributes}> (x, w{', b' if bias else ''})".replace("<> ", "")
    weights = {"w": weight, **({"b": (outputs,)} if bias else {})}
    return build(f"float[N,{x}] x", f"float[N,{outputs},{y}] y", node, weights)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("attributes", "weight", "spatial"), CONVOLUTIONS)
def test_convolutions(attributes, weight, spatial, bias):
    check(model_of("Conv", attributes, weight, spatial, bias), "Conv", x=values(3, 6, *spatial))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("attributes", "weight", "spatial"), TRANSPOSED)
def test_transposed_convolutions(attributes, weight, spatial, bias):
    model = model_of("ConvTranspose", attributes, weight, spatial, bias)
    check(model, "ConvTranspose", x=values(3, 6, *spatial))


def naive(kind, attrs, weight, x, y_shape, groups):
    """Patches ``[groups, places, channels * taps]`` of a 2-D convolution with explicit pads, tap by tap."""
    strides, dilations = attrs.get("strides", [1, 1]), attrs.get("dilations", [1, 1])
    low, each = attrs.get("pads", [0] * 4)[:2], x.shape[1] // groups
    result = []
    for group, n, *at in product(range(groups), range(x.shape[0]), *map(range, y_shape[2:])):
        row = []
        for channel, *tap in product(range(group * each, group * each + each), *map(range, weight[2:])):
            seen = 0.0
            if kind == "Conv":
                place = [at[k] * strides[k] + tap[k] * dilations[k] - low[k] for k in (0, 1)]
                if all(0 <= place[k] < x.shape[2 + k] for k in (0, 1)):
                    seen = x[(n, channel, *place)]
            else:
                for i, j in product(*map(range, x.shape[2:])):
                    ends = [(i, j)[k] * strides[k] + tap[k] * dilations[k] - low[k] for k in (0, 1)]
                    if ends == at:
                        seen = x[n, channel, i, j]
            row.append(seen)
        result.append(row)
    return np.array(result).reshape(groups, -1, each * int(np.prod(weight[2:])))


@pytest.mark.parametrize(
    ("kind", "attributes", "weight"),
    [
        ("Conv", "strides=[2,1], dilations=[1,2], pads=[1,0,2,3], group=2", (4, 3, 3, 2)),
        ("Conv", "strides=[3,2], pads=[0,2,1,1], group=6", (6, 1, 2, 3)),
        ("ConvTranspose", "strides=[2,1], dilations=[1,2], pads=[1,0,0,1], group=2", (6, 2, 3, 2)),
        ("ConvTranspose", "strides=[3,2], pads=[0,1,1,1], output_padding=[1,0], group=6", (6, 1, 2, 3)),
    ],
)
def test_patches_tap_by_tap(kind, attributes, weight):
    model, x = model_of(kind, attributes, weight, (5, 4)), values(2, 6, 5, 4)
    known = tensors(model, x=x)
    (view,) = linear_views(operator(analysed(model), kind))
    node = view.op.node
    groups = node.attrs["group"]
    places = np.arange(view.count(known.__getitem__))
    expected = naive(kind, node.attrs, weight, x, known["y"].shape, groups)
    np.testing.assert_array_equal(view.rows(node, known.__getitem__, places), expected.astype(np.float32))
    for place in places:  # few are fetched in another way than many
        alone = view.rows(node, known.__getitem__, np.array([place]))
        np.testing.assert_array_equal(alone, expected[:, place : place + 1].astype(np.float32))


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
def test_half_precision(kind):
    random = np.random.default_rng(0)
    weights = {
        name: random.uniform(-1, 1, s).astype(np.float16) for name, s in (("w", (4, 4, 3)), ("b", (4,)))
    }
    model = build("float16[N,4,9] x", "float16[N,4,d] y", f"y = {kind} <strides=[2]> (x, w, b)", weights)
    check(model, kind, tolerance=2e-2, x=values(2, 4, 9).astype(np.float16))


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
def test_a_bias_that_is_computed_leaves_no_view(kind):
    model = build("float[2,6,5] x, float[6] v", "float[2,6,d] y", f"y = {kind} (x, w, v)", {"w": (6, 6, 3)})
    assert linear_views(operator(analysed(model), kind)) == []
