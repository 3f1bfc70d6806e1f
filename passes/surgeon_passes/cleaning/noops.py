"""Removes operators that provably pass their input on unchanged.

One small predicate per operator says so from the node, the opset and what shape inference knows; an operator without a
predicate is kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from surgeon_passes.cleaning.wiring import fixed_values

if TYPE_CHECKING:
    from collections.abc import Callable

    from surgeon.graph.shapes import Shapes
    from surgeon_passes.cleaning.wiring import Wiring

DEFAULT_DOMAINS = ("", "ai.onnx", None)


def remove_noops(wiring: Wiring, shapes: Shapes) -> int:
    """Take no-ops out of the data flow, drop them, and return how many."""
    bypassed = []
    for node in wiring.graph.nodes:
        predicate = PREDICATES.get(node.op) if node.domain in DEFAULT_DOMAINS else None
        if (
            predicate is None
            or not node.inputs
            or any(tensor.name for tensor in node.inputs[1:] if _live(tensor))
        ):
            continue
        used_elsewhere = any(other.outputs or wiring.is_bound(other) for other in node.outputs[1:])
        if used_elsewhere or not predicate(node, wiring.graph.opset, shapes):
            continue
        if wiring.bypass(node, node.inputs[0]):
            bypassed.append(node)
    return wiring.drop(bypassed)


def _live(tensor: gs.Tensor) -> bool:
    return not isinstance(tensor, gs.Constant)


def _identity(_node: gs.Node, _opset: int, _shapes: Shapes) -> bool:
    return True


def _single_input(node: gs.Node, _opset: int, _shapes: Shapes) -> bool:
    return len(node.inputs) == 1


def _dropout(node: gs.Node, opset: int, _shapes: Shapes) -> bool:
    """Off at inference: by attribute up to opset 6, always in 7 to 11, by input from 12 on."""
    if opset < 7:
        return bool(node.attrs.get("is_test", 0))
    training = fixed_values(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2].name else None
    return training is None or not training.any()


def _cast(node: gs.Node, _opset: int, shapes: Shapes) -> bool:
    kind = shapes.dtypes.get(node.inputs[0].name)
    return kind is not None and kind == shapes.dtypes.get(node.outputs[0].name)


def _reshape(node: gs.Node, _opset: int, shapes: Shapes) -> bool:
    """The target repeats the shape: each entry is the static size, 0 (copied), or the one -1 (left over)."""
    target = fixed_values(node.inputs[1]) if len(node.inputs) > 1 else None
    sizes = _static_dims(node.inputs[0], shapes)
    if target is None or sizes is None or target.size != len(sizes):
        return False
    copied = 0 if not node.attrs.get("allowzero", 0) else None
    known = [want in {size, copied} for want, size in zip(target.tolist(), sizes, strict=True)]
    left_over = [position for position, want in enumerate(target.tolist()) if want == -1]
    empty = any(size == 0 for size in sizes)
    return not empty and all(fits or position in left_over for position, fits in enumerate(known))


def _flatten(node: gs.Node, _opset: int, shapes: Shapes) -> bool:
    sizes = _static_dims(node.inputs[0], shapes)
    return sizes is not None and len(sizes) == 2 and node.attrs.get("axis", 1) in (1, -1)


def _transpose(node: gs.Node, _opset: int, shapes: Shapes) -> bool:
    order = node.attrs.get("perm")
    if order is None:
        sizes = _static_dims(node.inputs[0], shapes)
        return sizes is not None and len(sizes) < 2
    return list(order) == list(range(len(order)))


def _pad(node: gs.Node, _opset: int, _shapes: Shapes) -> bool:
    """Nothing is padded: by attribute (named differently in opset 1), by input from 11 on."""
    widths = node.attrs.get("pads", node.attrs.get("paddings"))
    if widths is None:
        widths = fixed_values(node.inputs[1]) if len(node.inputs) > 1 else None
    return widths is not None and not np.any(widths)


def _static_dims(tensor: gs.Tensor, shapes: Shapes) -> list[int | None] | None:
    """Sizes with None for those that vary between calls; None if the rank is unknown."""
    dims, dynamic = shapes.dims.get(tensor.name), shapes.dynamic.get(tensor.name)
    if dims is None or dynamic is None:
        return None
    return [None if varies else size for size, varies in zip(dims, dynamic, strict=True)]


PREDICATES: dict[str, Callable[[gs.Node, int, Shapes], bool]] = {
    "Identity": _identity,
    "Dropout": _dropout,
    "Cast": _cast,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Pad": _pad,
    "Concat": _single_input,
    "Sum": _single_input,
    "Max": _single_input,
    "Min": _single_input,
    "Mean": _single_input,
}
