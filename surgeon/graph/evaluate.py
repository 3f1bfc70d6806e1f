"""Computing small nodes in numpy: the integer arithmetic with which exported models work out shapes.

One small function per operator, in tables by name. An operator without a function has no known value; neither
has a node whose inputs make no sense. Operator semantics: https://onnx.ai/onnx/operators.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx

from surgeon.graph.weights import peek

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

Array: TypeAlias = "NDArray[Any]"


@dataclass(frozen=True)
class Call:
    """One node to compute: its operator, attributes, input values (None: not given) and number of outputs."""

    operator: str
    attributes: Mapping[str, Any]
    inputs: Sequence[Array | None]
    outputs: int = 1

    def __getitem__(self, index: int) -> Array:
        """Input ``index``, which must be given."""
        value = self.optional(index)
        if value is None:
            raise ValueError(f"input {index} is not given")
        return value

    def optional(self, index: int) -> Array | None:
        """Input ``index``, or None where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute's value, or the default its operator's page gives."""
        return self.attributes.get(name, default)

    def integers(self, index: int, name: str) -> list[int] | None:
        """Integers that older opsets hold in attribute ``name`` and newer ones in input ``index``."""
        if name in self.attributes:
            return [int(value) for value in self.attributes[name]]
        given = self.optional(index)
        return None if given is None else [int(value) for value in given.reshape(-1)]


def evaluate(call: Call) -> list[Array] | None:
    """The outputs of a node, or None when its operator is not in the tables or its inputs do not fit."""
    function = MOVEMENT.get(call.operator) or ARITHMETIC.get(call.operator)
    if function is None:
        return None
    try:
        with np.errstate(all="ignore"):
            result = function(call)
    except (ValueError, IndexError, TypeError, ZeroDivisionError, OverflowError, KeyError):
        return None  # numpy's refusals: a node that cannot run has no value, and onnxruntime will say why
    results = result if isinstance(result, list) else [result]
    return [np.asarray(value) for value in results]


def static_size(dims: Sequence[int], start: int = 0, end: int | None = None) -> Array:
    """What ``Shape`` gives for a tensor with these dimensions (``start`` and ``end`` as in opset 15)."""
    return np.asarray(list(dims)[slice(start, end)], dtype=np.int64)


# Arithmetic -----------------------------------------------------------------------------------------------------


def _like(call: Call, value: Any) -> Array:
    return np.asarray(value, dtype=call[0].dtype)


def _divide(call: Call) -> Array:
    above, below = call[0], call[1]
    if above.dtype.kind not in "iu":
        return _like(call, above / below)
    if not np.all(below):
        raise ZeroDivisionError
    quotient = above // below  # numpy rounds down, ONNX towards zero
    return _like(call, quotient + ((above % below != 0) & ((above < 0) != (below < 0))))


def _modulo(call: Call) -> Array:
    return _like(call, np.fmod(call[0], call[1]) if call.attribute("fmod", 0) else np.mod(call[0], call[1]))


def _clip(call: Call) -> Array:
    low, high = call.optional(1), call.optional(2)
    low = call.attribute("min") if low is None else low
    high = call.attribute("max") if high is None else high
    result = call[0]
    result = result if low is None else np.maximum(result, low)
    return _like(call, result if high is None else np.minimum(result, high))


def _cast(call: Call) -> Array:
    target = call.attribute("to") if call.operator == "Cast" else None
    if target is None:
        return call[0].astype(call[1].dtype)
    return call[0].astype(onnx.helper.tensor_dtype_to_np_dtype(target))


def _reduce(function: Callable[..., Array]) -> Callable[[Call], Array]:
    def reduced(call: Call) -> Array:
        axes = call.integers(1, "axes")
        if not axes and call.attribute("noop_with_empty_axes", 0):
            return call[0]
        over = tuple(axes) if axes else None
        return _like(call, function(call[0], axis=over, keepdims=bool(call.attribute("keepdims", 1))))

    return reduced


def _cumulative_sum(call: Call) -> Array:
    axis = int(call[1].reshape(-1)[0])
    data = np.flip(call[0], axis) if call.attribute("reverse", 0) else call[0]
    result = np.cumsum(data, axis=axis, dtype=data.dtype)
    if call.attribute("exclusive", 0):
        result = result - data
    return np.flip(result, axis) if call.attribute("reverse", 0) else result


def _fold(function: Callable[[Array, Array], Array]) -> Callable[[Call], Array]:
    def folded(call: Call) -> Array:
        result = call[0]
        for index in range(1, len(call.inputs)):
            result = function(result, call[index])
        return _like(call, result)

    return folded


def _keep(function: Callable[..., Any]) -> Callable[[Call], Array]:
    return lambda call: _like(call, function(*(call[index] for index in range(len(call.inputs)))))


def _test(function: Callable[..., Any]) -> Callable[[Call], Array]:
    return lambda call: np.asarray(function(*(call[index] for index in range(len(call.inputs)))), dtype=bool)


ARITHMETIC: dict[str, Callable[[Call], Array | list[Array]]] = {
    "Add": _keep(np.add),
    "Sub": _keep(np.subtract),
    "Mul": _keep(np.multiply),
    "Div": _divide,
    "Mod": _modulo,
    "Pow": _keep(np.power),
    "Neg": _keep(np.negative),
    "Abs": _keep(np.abs),
    "Sign": _keep(np.sign),
    "Min": _fold(np.minimum),
    "Max": _fold(np.maximum),
    "Sum": _fold(np.add),
    "Clip": _clip,
    "Floor": _keep(np.floor),
    "Ceil": _keep(np.ceil),
    "Round": _keep(np.rint),
    "Sqrt": _keep(np.sqrt),
    "Reciprocal": _keep(np.reciprocal),
    "Equal": _test(np.equal),
    "Greater": _test(np.greater),
    "Less": _test(np.less),
    "GreaterOrEqual": _test(np.greater_equal),
    "LessOrEqual": _test(np.less_equal),
    "Not": _test(np.logical_not),
    "And": _test(np.logical_and),
    "Or": _test(np.logical_or),
    "Xor": _test(np.logical_xor),
    "Cast": _cast,
    "CastLike": _cast,
    "ReduceProd": _reduce(np.prod),
    "ReduceSum": _reduce(np.sum),
    "ReduceMax": _reduce(np.max),
    "ReduceMin": _reduce(np.min),
    "CumSum": _cumulative_sum,
}


# Movement: outputs hold the elements of the first input, or of all inputs (Concat, Where), and nothing new ------------


def _gather(call: Call) -> Array:
    result: Array = np.take(call[0], call[1], axis=call.attribute("axis", 0))
    return result


def _along(data: Array, places: Array, axis: int) -> tuple[Array, ...]:
    """The index that picks, at every position of ``places``, the element it names along ``axis``."""
    grid: list[Array] = list(np.indices(places.shape, sparse=True))
    grid[axis] = np.where(places < 0, places + data.shape[axis], places)
    return tuple(grid)


def _gather_elements(call: Call) -> Array:
    result: Array = call[0][_along(call[0], call[1], call.attribute("axis", 0))]
    return result


def _gather_nd(call: Call) -> Array:
    if call.attribute("batch_dims", 0):
        raise ValueError("batched gathers are not needed for shapes")
    result: Array = call[0][tuple(np.moveaxis(call[1], -1, 0))]
    return result


def _slice(call: Call) -> Array:
    starts, ends = call.integers(1, "starts"), call.integers(2, "ends")
    if starts is None or ends is None:
        raise ValueError("no bounds")
    axes = call.integers(3, "axes")
    steps = call.integers(4, "steps") or [1] * len(starts)
    cuts = [slice(None)] * call[0].ndim
    for axis, start, end, step in zip(axes or range(len(starts)), starts, ends, steps, strict=True):
        cuts[axis] = slice(start, end, step)
    return call[0][tuple(cuts)]


def _concat(call: Call) -> Array:
    return np.concatenate([call[index] for index in range(len(call.inputs))], axis=call.attribute("axis", 1))


def _unsqueeze(call: Call) -> Array:
    return np.expand_dims(call[0], tuple(call.integers(1, "axes") or ()))


def _squeeze(call: Call) -> Array:
    axes = call.integers(1, "axes")
    return np.squeeze(call[0], tuple(axes) if axes else None)


def _reshape(call: Call) -> Array:
    target = call.integers(1, "shape")
    if target is None:
        raise ValueError("no target")
    if not call.attribute("allowzero", 0):
        target = [call[0].shape[index] if size == 0 else size for index, size in enumerate(target)]
    return call[0].reshape(target)


def _flatten(call: Call) -> Array:
    axis = call.attribute("axis", 1)
    shape = call[0].shape
    first = int(np.prod(shape[: axis if axis >= 0 else axis + len(shape)], dtype=np.int64))
    return call[0].reshape(first, -1)


def _transpose(call: Call) -> Array:
    return np.transpose(call[0], call.attribute("perm"))


def _expand(call: Call) -> Array:
    return np.broadcast_to(call[0], np.broadcast_shapes(call[0].shape, tuple(int(size) for size in call[1])))


def _tile(call: Call) -> Array:
    return np.tile(call[0], [int(times) for times in call[1]])


def _split(call: Call) -> list[Array]:
    axis = call.attribute("axis", 0)
    sizes = call.integers(1, "split")
    if sizes is None:
        whole = -(-call[0].shape[axis] // call.outputs)
        sizes = [whole] * (call.outputs - 1)
    return np.split(call[0], np.cumsum(sizes)[: call.outputs - 1], axis=axis)


def _triangle(call: Call) -> Array:
    given = call.optional(1)
    diagonal = 0 if given is None else int(given)
    return np.triu(call[0], diagonal) if call.attribute("upper", 1) else np.tril(call[0], diagonal)


def _scatter_nd(call: Call) -> Array:
    if call.attribute("reduction", "none") != "none":
        raise ValueError("reducing scatters are not needed for shapes")
    result = call[0].copy()
    result[tuple(np.moveaxis(call[1], -1, 0))] = call[2]
    return result


def _scatter_elements(call: Call) -> Array:
    if call.attribute("reduction", "none") != "none":
        raise ValueError("reducing scatters are not needed for shapes")
    result = call[0].copy()
    result[_along(result, call[1], call.attribute("axis", 0))] = call[2]
    return result


def _range(call: Call) -> Array:
    start, limit, delta = (call[index].reshape(()) for index in range(3))
    count = max(int(np.ceil((limit - start) / delta)), 0)
    return np.asarray(start + np.arange(count, dtype=start.dtype) * delta, dtype=start.dtype)


def _constant_of_shape(call: Call) -> Array:
    value = call.attribute("value")
    fill = np.zeros(1, np.float32) if value is None else peek(value)
    return np.full([int(size) for size in call[0]], fill.reshape(-1)[0], dtype=fill.dtype)


def _one_hot(call: Call) -> Array:
    depth, (off, on) = int(call[1].reshape(-1)[0]), call[2]
    axis, indices = call.attribute("axis", -1), call[0]
    places = np.where(indices < 0, indices + depth, indices)
    hot = np.expand_dims(places, axis) == np.arange(depth).reshape(
        [-1 if index == axis % (indices.ndim + 1) else 1 for index in range(indices.ndim + 1)]
    )
    result: Array = np.where(hot, on, off).astype(call[2].dtype)
    return result


MOVEMENT: dict[str, Callable[[Call], Array | list[Array]]] = {
    "Identity": lambda call: call[0],
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Slice": _slice,
    "Concat": _concat,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Expand": _expand,
    "Tile": _tile,
    "Split": _split,
    "Trilu": _triangle,
    "Where": lambda call: np.where(call[0], call[1], call[2]),
    "ScatterND": _scatter_nd,
    "ScatterElements": _scatter_elements,
    "Range": _range,
    "ConstantOfShape": _constant_of_shape,
    "OneHot": _one_hot,
    "NonZero": lambda call: np.asarray(np.nonzero(np.atleast_1d(call[0])), dtype=np.int64),
}

# Operators whose output can be far larger than their inputs: computed only where the output's size is known.
GROWING = frozenset({"Expand", "Tile", "Range", "ConstantOfShape", "OneHot"})
