"""Convolutions, pools and resizing have the gradients that torch computes, where torch is installed."""

from __future__ import annotations

import numpy as np
import pytest
from ops.oracle import build

from surgeon.grad import Tape, Value, gradient
from surgeon.graph.load import from_model
from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session

torch = pytest.importorskip("torch")
F = torch.nn.functional

SHAPE = (2, 4, 9, 8)
RELU_LIKE = np.maximum(np.random.default_rng(0).standard_normal(SHAPE), 0).astype(np.float32)  # with ties
POOLS = [(2, 2, 0, False), (3, 2, 1, False), (3, 2, 1, True), (5, 1, 2, False), (3, 3, 0, True)]


def compare(body, function, weights=None, *, opset=17, x=RELU_LIKE):
    """The gradient of the sum of sines, with respect to the data and all weights."""
    random = np.random.default_rng(1)
    held = {name: random.standard_normal(shape).astype(np.float32) for name, shape in (weights or {}).items()}
    graph = from_model(build("float[N,4,H,W] x", "float[N,C,P,Q] y", body, held, opset=opset))
    found = gradient(graph, _loss, ["x", *held])
    _, *ours = run(session(to_model(found.graph)), {"x": x, **held})
    tensors = [torch.tensor(each, requires_grad=True) for each in (x, *held.values())]
    torch.sin(function(*tensors)).sum().backward()
    for mine, theirs in zip(ours, tensors, strict=True):
        np.testing.assert_allclose(mine, theirs.grad.numpy(), rtol=1e-4, atol=1e-4)


def _loss(tape: Tape) -> Value:
    return tape.op("Sin", tape.value(tape.graph.outputs[0])).sum()


def test_conv():
    body = "y = Conv <group=2, strides=[2,1], pads=[1,1,1,1], dilations=[1,2]> (x, w, b)"
    weights = {"w": (6, 2, 3, 3), "b": (6,)}
    compare(body, lambda x, w, b: F.conv2d(x, w, b, (2, 1), 1, (1, 2), 2), weights)


def test_conv_transpose():
    body = "y = ConvTranspose <group=2, strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]> (x, w)"
    compare(body, lambda x, w: F.conv_transpose2d(x, w, None, 2, 1, 1, 2), {"w": (4, 3, 3, 3)})


@pytest.mark.parametrize(("kernel", "stride", "pad", "ceil"), POOLS)
@pytest.mark.parametrize("opset", [11, 17])
def test_max_pool(kernel, stride, pad, ceil, opset):
    """Of several largest the same one is chosen."""
    body = f"y = MaxPool <kernel_shape=[{kernel},{kernel}], strides=[{stride},{stride}], pads=[{pad},{pad},{pad},{pad}], ceil_mode={int(ceil)}> (x)"
    compare(body, lambda x: F.max_pool2d(x, kernel, stride, pad, ceil_mode=ceil), opset=opset)


@pytest.mark.parametrize(("kernel", "stride", "pad", "ceil"), POOLS)
@pytest.mark.parametrize("counted", [0, 1])
def test_average_pool(kernel, stride, pad, ceil, counted):
    attributes = (
        f"kernel_shape=[{kernel},{kernel}], strides=[{stride},{stride}], pads=[{pad},{pad},{pad},{pad}]"
    )
    body = f"y = AveragePool <{attributes}, ceil_mode={int(ceil)}, count_include_pad={counted}> (x)"
    compare(body, lambda x: F.avg_pool2d(x, kernel, stride, pad, ceil, bool(counted)))


@pytest.mark.parametrize("opset", [11, 17])
def test_resize(opset):
    scales = (
        "s = Constant <value = float[4] {1.0, 1.0, 2.0, 2.0}> ()\nr = Constant <value = float[0] {}> ()\n"
    )
    body = (
        scales + 'y = Resize <mode="linear", coordinate_transformation_mode="pytorch_half_pixel"> (x, r, s)'
    )
    compare(body, lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), opset=opset)
    body = scales + 'y = Resize <mode="linear", coordinate_transformation_mode="align_corners"> (x, r, s)'
    compare(
        body, lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True), opset=opset
    )
    how = 'mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"'
    body = scales + f"y = Resize <{how}> (x, r, s)"
    compare(body, lambda x: F.interpolate(x, scale_factor=2, mode="nearest"), opset=opset)
    how = 'mode="cubic", coordinate_transformation_mode="pytorch_half_pixel", cubic_coeff_a=-0.75'
    body = scales + f"y = Resize <{how}> (x, r, s)"
    compare(body, lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"), opset=opset)
