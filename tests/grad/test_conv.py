"""Derivatives of convolutions and transposed convolutions."""

from __future__ import annotations

import pytest
from grad.oracle import check
from hypothesis import given, settings
from hypothesis import strategies as some


def conv(op, x, w, attributes="", *, y="", bias=True, dynamic=False):
    rank = len(x)
    names = ",".join("NCHWD"[k] if dynamic and k != 1 else str(size) for k, size in enumerate(x))
    groups = int(attributes.split("group=")[1].split(",")[0]) if "group=" in attributes else 1
    outputs = w[0] if op == "Conv" else w[1] * groups
    out = ",".join(["N", str(outputs), *"PQR"[: rank - 2]])
    weights = {"w": w, **({"b": (outputs,)} if bias else {})}
    given = f"<{attributes}>" if attributes else ""
    body = f"y = {op} {given} (x, w{', b' if bias else ''})"
    # onnx's evaluator has mistakes in transposed convolutions with groups or of a given size
    reference = groups == 1 and "output_shape" not in attributes
    return check(f"T[{names}] x", f"T[{out}] y", body, {"x": x}, weights, reference=reference)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    "attributes",
    [
        "pads=[1,1,1,1]",
        "",
        "strides=[2,2]",
        "strides=[2,3], pads=[1,0,2,1]",
        "dilations=[2,1], pads=[2,1,2,1]",
        "strides=[2,1], dilations=[1,2], pads=[0,1,1,2]",
        "strides=[3,3], pads=[2,2,2,2]",
    ],
)
def test_conv(attributes, dynamic):
    conv("Conv", (2, 3, 8, 7), (4, 3, 3, 3), attributes, dynamic=dynamic)


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("stride", [1, 2])
def test_conv_pads_by_itself(mode, stride):
    conv("Conv", (2, 3, 8, 7), (4, 3, 4, 3), f'auto_pad="{mode}", strides=[{stride},{stride}]')


@pytest.mark.parametrize("group", [2, 4])
def test_grouped_conv(group):
    conv(
        "Conv",
        (2, 4, 6, 6),
        (8, 4 // group, 3, 3),
        f"group={group}, pads=[1,1,1,1], strides=[2,2]",
        bias=False,
    )


def test_depthwise_conv():
    conv("Conv", (2, 4, 6, 6), (4, 1, 3, 3), "group=4, pads=[1,1,1,1]")


def test_conv_of_other_ranks():
    conv("Conv", (2, 3, 9), (4, 3, 3), "strides=[2]")
    conv("Conv", (2, 3, 5, 4, 5), (2, 3, 2, 3, 2), "strides=[2,1,2], pads=[0,1,1,1,1,0]")


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    "attributes",
    [
        "",
        "strides=[2,2]",
        "strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]",
        "strides=[2,3], pads=[1,0,0,1], dilations=[2,1]",
        "group=3, strides=[2,2]",
    ],
)
def test_conv_transpose(attributes, dynamic):
    w = (3, 1, 3, 3) if "group" in attributes else (3, 4, 3, 3)
    conv("ConvTranspose", (2, 3, 4, 5), w, attributes, dynamic=dynamic)


def test_conv_transpose_to_a_given_size():
    conv("ConvTranspose", (2, 3, 4, 5), (3, 4, 3, 3), "strides=[2,2], output_shape=[8,10]")
    conv("ConvTranspose", (2, 3, 4, 5), (3, 4, 3, 3), 'strides=[2,2], auto_pad="SAME_UPPER"')


@given(some.data())
@settings(max_examples=25, deadline=None)
def test_any_conv(data):
    rank = data.draw(some.integers(1, 3))
    op = data.draw(some.sampled_from(["Conv", "ConvTranspose"]))
    draw = lambda low, high: [data.draw(some.integers(low, high)) for _ in range(rank)]  # noqa: E731
    kernel, strides, dilations = draw(1, 3), draw(1, 3), draw(1, 2)
    pads = [min(pad, taps - 1) for pad, taps in zip(draw(0, 2) + draw(0, 2), kernel * 2, strict=True)]
    group = data.draw(some.integers(1, 2))
    sizes = {"group": group, "strides": strides, "dilations": dilations, "pads": pads}
    text = ", ".join(f"{name}={str(each).replace(' ', '')}" for name, each in sizes.items())
    w = (4, 2 // group, *kernel) if op == "Conv" else (2, 4 // group, *kernel)
    conv(op, (2, 2, *draw(5, 7)), w, text, dynamic=data.draw(some.booleans()))
