"""Folds inference-time batch normalization into the layer before it.

``scale * (W x + b - mean) / sqrt(var + epsilon) + shift`` is again an affine layer; its weights are computed in double
precision and rounded once. https://onnx.ai/onnx/operators/onnx__BatchNormalization.html
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from surgeon.graph.weights import DerivedValues, derived
from surgeon.stats.moments import note_moments
from surgeon_passes.cleaning.noops import DEFAULT_DOMAINS
from surgeon_passes.cleaning.wiring import fixed_values, set_output

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from surgeon.graph.shapes import Shapes
    from surgeon_passes.cleaning.wiring import Wiring

    Array = NDArray[Any]

BLOCK = 1 << 16  # elements scaled at a time


@dataclass(frozen=True)
class Affine:
    """Per-channel ``y = scale * x + shift`` in double precision, both ``[channels]``."""

    scale: Array
    shift: Array

    def of(self, bias: Array | None, kind: np.dtype[Any]) -> Array:
        """The bias after folding, for a layer whose bias was ``bias`` (none: zero)."""
        before = 0.0 if bias is None else bias.astype(np.float64)
        return np.asarray(self.scale * before + self.shift).astype(kind)


def fold_batchnorm(wiring: Wiring, shapes: Shapes) -> int:
    """Fold what can be folded, drop those nodes, and return how many."""
    folded: list[gs.Node] = []
    for norm in wiring.graph.nodes:
        if norm.op != "BatchNormalization" or norm.domain not in DEFAULT_DOMAINS:
            continue
        layer, affine = _layer_before(wiring, norm), _affine(norm)
        if layer is None or affine is None or not _is_inference(norm, wiring):
            continue
        result, parameters = norm.outputs[0], [fixed_values(tensor) for tensor in norm.inputs[1:3]]
        if FOLDS[layer.op](wiring, shapes, layer, norm, affine):
            folded.append(norm)
            scale, shift = (np.asarray(each).astype(np.float64) for each in parameters)
            note_moments(result, shift, np.abs(scale))  # what makes up data asks for them
    # a MatMul without bias turns its BatchNormalization into an Add, which stays
    wiring.drop([norm for norm in folded if norm.op == "BatchNormalization"])
    return len(folded)


def _layer_before(wiring: Wiring, norm: gs.Node) -> gs.Node | None:
    """The foldable node whose output only ``norm`` sees."""
    source = norm.inputs[0]
    if len(source.inputs) != 1 or wiring.only_consumer(source) is None:
        return None
    layer: gs.Node = source.inputs[0]
    return layer if layer.op in FOLDS and layer.domain in DEFAULT_DOMAINS else None


def _is_inference(norm: gs.Node, wiring: Wiring) -> bool:
    """Per channel, with given statistics, and only the normalised output used."""
    if any(other.outputs or wiring.is_bound(other) for other in norm.outputs[1:]):
        return False
    if wiring.graph.opset < 7 and not norm.attrs.get("is_test", 0):
        return False
    return not norm.attrs.get("training_mode", 0) and norm.attrs.get("spatial", 1) == 1


def _affine(norm: gs.Node) -> Affine | None:
    parameters = [fixed_values(tensor) for tensor in norm.inputs[1:5]]
    if len(parameters) != 4 or any(each is None or each.ndim != 1 for each in parameters):
        return None
    scale, shift, mean, variance = (np.asarray(each).astype(np.float64) for each in parameters)
    spread = variance + float(norm.attrs.get("epsilon", 1e-5))
    if not len(scale) == len(shift) == len(mean) == len(spread) or not (spread > 0).all():
        return None
    factor = scale / np.sqrt(spread)
    return Affine(factor, shift - mean * factor)


def _conv(wiring: Wiring, _shapes: Shapes, layer: gs.Node, norm: gs.Node, affine: Affine) -> bool:
    """Output channels are the weight's first axis, whatever the group."""
    weight = layer.inputs[1]
    if not isinstance(weight, gs.Constant) or weight.shape[0] != len(affine.scale):
        return False
    factors = affine.scale.reshape(-1, *[1] * (len(weight.shape) - 1))
    return _replace(wiring, layer, norm, _scaled(weight, factors), affine)


def _conv_transpose(wiring: Wiring, _shapes: Shapes, layer: gs.Node, norm: gs.Node, affine: Affine) -> bool:
    """The weight is ``[inputs, outputs / group, ...]``: the group is part of its first axis."""
    weight, group = layer.inputs[1], int(layer.attrs.get("group", 1))
    if not isinstance(weight, gs.Constant) or weight.shape[1] * group != len(affine.scale):
        return False
    factors = np.repeat(affine.scale.reshape(group, -1), weight.shape[0] // group, axis=0)
    factors = factors.reshape(*weight.shape[:2], *[1] * (len(weight.shape) - 2))
    return _replace(wiring, layer, norm, _scaled(weight, factors), affine)


def _gemm(wiring: Wiring, _shapes: Shapes, layer: gs.Node, norm: gs.Node, affine: Affine) -> bool:
    """``alpha A B + beta C``: B is scaled by columns; the bias takes beta in, as beta may be zero."""
    weight = layer.inputs[1]
    outputs = 0 if layer.attrs.get("transB", 0) else 1
    if not isinstance(weight, gs.Constant) or weight.shape[outputs] != len(affine.scale):
        return False
    scaled = _scaled(weight, affine.scale[:, None] if outputs == 0 else affine.scale)
    beta = float(layer.attrs.get("beta", 1.0))
    if not _replace(wiring, layer, norm, scaled, affine, beta=beta):
        return False
    layer.attrs["beta"] = 1.0
    return True


def _replace(
    wiring: Wiring,
    layer: gs.Node,
    norm: gs.Node,
    weight: Array | DerivedValues,
    affine: Affine,
    *,
    beta: float = 1.0,
) -> bool:
    """Give ``layer`` its new weight and bias and the output of ``norm``."""
    bias = None
    if len(layer.inputs) > 2 and layer.inputs[2].name:
        bias = _vector(layer.inputs[2], len(affine.scale))
        if bias is None:
            return False
        bias = bias.astype(np.float64) * beta
    shifted = affine.of(bias, weight.dtype)
    if not (_is_finite(weight) and np.isfinite(shifted).all()):
        return False
    stem = layer.inputs[1].name
    wiring.set_constant(layer, 1, weight, f"{stem}__folded")
    wiring.set_constant(layer, 2, shifted, f"{stem}__bias")
    set_output(layer, norm.outputs[0])
    return True


def _matmul(wiring: Wiring, shapes: Shapes, layer: gs.Node, norm: gs.Node, affine: Affine) -> bool:
    """Without a bias the normalization leaves an Add behind."""
    weight = _columns(shapes, layer, affine)
    shift = affine.of(None, weight.dtype) if weight is not None else None
    if weight is None or shift is None or not np.isfinite(shift).all():
        return False
    wiring.set_constant(layer, 1, weight, f"{layer.inputs[1].name}__folded")
    norm.op, norm.attrs = "Add", {}
    constant = gs.Constant(wiring.fresh(f"{layer.inputs[1].name}__bias"), shift)
    wiring.set_input(norm, 1, constant)
    wiring.keep_inputs(norm, 2)
    return True


def _add(wiring: Wiring, shapes: Shapes, layer: gs.Node, norm: gs.Node, affine: Affine) -> bool:
    """A linear layer written as MatMul and Add."""
    for index in (0, 1):
        bias = _vector(layer.inputs[index], len(affine.scale))
        product = layer.inputs[1 - index]
        if bias is None or len(product.inputs) != 1 or wiring.only_consumer(product) is not layer:
            continue
        matmul: gs.Node = product.inputs[0]
        weight = _columns(shapes, matmul, affine) if matmul.op == "MatMul" else None
        shift = affine.of(bias, weight.dtype) if weight is not None else None
        if weight is None or shift is None or not np.isfinite(shift).all():
            continue
        wiring.set_constant(matmul, 1, weight, f"{matmul.inputs[1].name}__folded")
        wiring.set_constant(layer, index, shift, f"{matmul.inputs[1].name}__bias")
        set_output(layer, norm.outputs[0])
        return True
    return False


def _columns(shapes: Shapes, matmul: gs.Node, affine: Affine) -> Array | DerivedValues | None:
    """The scaled weight of a MatMul whose columns are channels, which is so only for matrices."""
    weight, rows = matmul.inputs[1], shapes.dims.get(matmul.inputs[0].name)
    if not isinstance(weight, gs.Constant) or len(weight.shape) != 2 or rows is None or len(rows) != 2:
        return None
    if weight.shape[1] != len(affine.scale):
        return None
    scaled = _scaled(weight, affine.scale)
    return scaled if _is_finite(scaled) else None


def _scaled(weight: gs.Constant, factors: Array) -> Array | DerivedValues:
    """The weight times ``factors``, which broadcast to its shape."""
    return derived(weight, partial(_times, factors=factors))


def _times(weight: Array, factors: Array) -> Array:
    """Computed in double precision, so many rows at a time, and rounded once."""
    result, every = np.empty_like(weight), np.broadcast_to(factors, weight.shape)
    step = max(1, BLOCK // max(weight[:1].size, 1))
    for start in range(0, len(weight), step):
        rows = slice(start, start + step)
        result[rows] = weight[rows] * every[rows]
    return result


def _is_finite(weight: Array | DerivedValues) -> bool:
    return bool(np.isfinite(weight.load() if isinstance(weight, DerivedValues) else weight).all())


def _vector(tensor: gs.Tensor, channels: int) -> Array | None:
    """A constant that adds one number per channel (the last axis), as ``[channels]``; None for anything else."""
    values = fixed_values(tensor)
    if values is None or values.ndim > 2 or values.size not in (1, channels):
        return None
    if values.size == channels and values.ndim and values.shape[-1] != channels:
        return None
    return np.broadcast_to(values.reshape(-1), (channels,))


FOLDS: dict[str, Callable[[Wiring, Shapes, gs.Node, gs.Node, Affine], bool]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Add": _add,
}
