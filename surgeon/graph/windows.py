"""Windows that do not fit: onnx gives a convolution of too small an input a shape; onnxruntime refuses to run it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_graphsurgeon as gs

WINDOWED = frozenset({"Conv", "AveragePool", "MaxPool", "LpPool"})


def smaller_than_window(node: gs.Node, dims: Sequence[tuple[int, ...] | None]) -> bool:
    """Whether some axis, padding included, is shorter than the window that slides over it.

    Args:
        node: A convolution or pooling; https://onnx.ai/onnx/operators/onnx__Conv.html.
        dims: The shapes of its inputs.
    """
    if dims[0] is None or node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return False
    spatial = dims[0][2:]
    weight = dims[1] if len(dims) > 1 and node.op == "Conv" else None
    kernel = node.attrs.get("kernel_shape") or (weight[2:] if weight else ())
    count = len(spatial)
    pads = node.attrs.get("pads") or [0] * (2 * count)
    dilations = node.attrs.get("dilations") or [1] * count
    if not len(kernel) == len(dilations) == count == len(pads) // 2:
        return False
    return any(
        0 < size + pads[k] + pads[k + count] < dilations[k] * (kernel[k] - 1) + 1
        for k, size in enumerate(spatial)
    )
