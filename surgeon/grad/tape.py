"""Writing ONNX nodes as arithmetic: a `Value` is a tensor to be, a `Tape` the nodes that make it.

What differs between opsets (attributes that became inputs) is settled here, so that rules need not know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from surgeon.ops.operator import Barrier

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from surgeon.graph.shapes import Shapes

Number: TypeAlias = int | float
Operand: TypeAlias = Union["Value", Number]
Size: TypeAlias = Union["Value", int]  # of an axis: a number, or an int64 tensor of one element

INPUT_AXES = 13  # the opset from which ReduceSum and Unsqueeze take their axes as an input
INPUT_AXES_OF_ALL = 18  # and from which every reduction does
INPUT_BOUNDS = 10  # Slice
INPUT_PADS = 11  # Pad
SELECTS = 9  # from which there are Where, ConstantOfShape and Sign
EXPANDS = 8  # from which there is Expand
EQUAL_FLOATS = 11  # from which Equal compares floats
COUNTS = 11  # from which there is Range
SMALL = 64  # elements of constants that are looked up


class Value:
    """A tensor that nodes on a tape can read; arithmetic with it writes further nodes.

    Attributes:
        tape: Where nodes are written.
        tensor: The graphsurgeon tensor.
        dtype: Its element type.
    """

    def __init__(self, tape: Tape, tensor: gs.Tensor, dtype: np.dtype[Any]) -> None:
        self.tape, self.tensor, self.dtype = tape, tensor, dtype

    def __add__(self, other: Operand) -> Value:
        return self.tape.op("Add", self, self._like(other))

    def __radd__(self, other: Number) -> Value:
        return self + other

    def __sub__(self, other: Operand) -> Value:
        return self.tape.op("Sub", self, self._like(other))

    def __rsub__(self, other: Number) -> Value:
        return self.tape.op("Sub", self._like(other), self)

    def __mul__(self, other: Operand) -> Value:
        return self.tape.op("Mul", self, self._like(other))

    def __rmul__(self, other: Number) -> Value:
        return self * other

    def __truediv__(self, other: Operand) -> Value:
        return self.tape.op("Div", self, self._like(other))

    def __rtruediv__(self, other: Number) -> Value:
        return self.tape.op("Div", self._like(other), self)

    def __pow__(self, other: Operand) -> Value:
        return self.tape.op("Pow", self, self._like(other))

    def __neg__(self) -> Value:
        return self.tape.op("Neg", self)

    def __matmul__(self, other: Value) -> Value:
        return self.tape.op("MatMul", self, other)

    def __gt__(self, other: Operand) -> Value:
        return self.tape.op("Greater", self, self._like(other), dtype=np.bool_)

    def __lt__(self, other: Operand) -> Value:
        return self.tape.op("Less", self, self._like(other), dtype=np.bool_)

    def equals(self, other: Operand) -> Value:
        """Where both are the same."""
        if self.tape.opset < EQUAL_FLOATS and self.dtype.kind == "f":
            apart = self.tape.op("Or", self > other, self < other)
            return self.tape.op("Not", apart)
        return self.tape.op("Equal", self, self._like(other), dtype=np.bool_)

    def sign(self) -> Value:
        """1, 0 or −1."""
        if self.tape.opset < SELECTS:
            return (self > 0).cast(self.dtype) - (self < 0).cast(self.dtype)
        return self.tape.op("Sign", self)

    def cast(self, dtype: Any) -> Value:
        """The same with another element type."""
        kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self.tape.op("Cast", self, dtype=dtype, to=kind)

    def transpose(self, *order: int) -> Value:
        """The axes in another order."""
        if order == tuple(range(len(order))):
            return self
        return self.tape.op("Transpose", self, perm=list(order))

    def reshape(self, sizes: Value | Sequence[Size]) -> Value:
        """The same elements in another shape."""
        shape = sizes if isinstance(sizes, Value) else self.tape.sizes(sizes)
        return self.tape.op("Reshape", self, shape)

    def expand_as(self, other: Value) -> Value:
        """Repeated along axes of size 1, to the shape of another."""
        if self.tape.opset < EXPANDS:
            return self + other * 0.0
        return self.tape.op("Expand", self, other.shape())

    def sum(self, axes: Sequence[int] | None = None, *, keepdims: bool = False) -> Value:
        """The sum over ``axes``, or over all."""
        return self._reduced("ReduceSum", axes, keepdims=keepdims, since=INPUT_AXES)

    def mean(self, axes: Sequence[int] | None = None, *, keepdims: bool = False) -> Value:
        """The mean over ``axes``, or over all."""
        return self._reduced("ReduceMean", axes, keepdims=keepdims, since=INPUT_AXES_OF_ALL)

    def max(self, axes: Sequence[int] | None = None, *, keepdims: bool = False) -> Value:
        """The largest over ``axes``, or over all."""
        return self._reduced("ReduceMax", axes, keepdims=keepdims, since=INPUT_AXES_OF_ALL)

    def product(self, axes: Sequence[int]) -> Value:
        """The product over ``axes``, which stay with size 1."""
        return self._reduced("ReduceProd", axes, keepdims=True, since=INPUT_AXES_OF_ALL)

    def _reduced(self, name: str, axes: Sequence[int] | None, *, keepdims: bool, since: int) -> Value:
        if axes is not None and not axes:
            return self
        if axes is None:
            return self.tape.op(name, self, keepdims=int(keepdims))
        if self.tape.opset < since:
            return self.tape.op(name, self, axes=list(axes), keepdims=int(keepdims))
        return self.tape.op(name, self, self.tape.integers(axes), keepdims=int(keepdims))

    def unsqueeze(self, *axes: int) -> Value:
        """With axes of size 1 at these places of the result."""
        if self.tape.opset < INPUT_AXES:
            return self.tape.op("Unsqueeze", self, axes=list(axes))
        return self.tape.op("Unsqueeze", self, self.tape.integers(axes))

    def slice(
        self,
        axes: Sequence[int],
        starts: Sequence[Size],
        ends: Sequence[Size],
        steps: Sequence[int] | None = None,
    ) -> Value:
        """Part of some axes.

        Raises:
            Barrier: The opset cannot do it.
        """
        tape = self.tape
        if tape.opset < INPUT_BOUNDS:
            return self._early_slice(axes, starts, ends, steps or [1] * len(starts))
        more = [] if steps is None else [tape.integers(steps)]
        return tape.op("Slice", self, tape.sizes(starts), tape.sizes(ends), tape.integers(axes), *more)

    def _early_slice(
        self, axes: Sequence[int], starts: Sequence[Size], ends: Sequence[Size], steps: Sequence[int]
    ) -> Value:
        """Bounds are attributes, and there are no steps."""
        result = self
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
            if isinstance(start, Value) or isinstance(end, Value):
                raise Barrier(f"slices that depend on sizes need opset {INPUT_BOUNDS}")
            if step == 1:
                result = self.tape.op("Slice", result, axes=[axis], starts=[start], ends=[end])
            else:
                result = result.gather(self.tape.integers(range(start, end, step)), axis)
        return result

    def pad(self, before: Sequence[Size], after: Sequence[Size]) -> Value:
        """Zeros around every axis.

        Raises:
            Barrier: The opset cannot do it.
        """
        pads = [*before, *after]
        fixed = [each for each in pads if isinstance(each, int)]
        if len(fixed) == len(pads) and not any(fixed):
            return self
        if self.tape.opset >= INPUT_PADS:
            return self.tape.op("Pad", self, self.tape.sizes(pads))
        if len(fixed) < len(pads):
            raise Barrier(f"padding that depends on sizes needs opset {INPUT_PADS}")
        return self.tape.op("Pad", self, pads=fixed)

    def gather(self, indices: Value, axis: int = 0) -> Value:
        """What is at these places of an axis."""
        return self.tape.op("Gather", self, indices, axis=axis)

    def shape(self) -> Value:
        """The sizes of the axes, int64."""
        return self.tape.shape_of(self)

    def size(self, axis: int) -> Value:
        """The size of one axis, int64 with one element."""
        return self.shape().gather(self.tape.integers([axis]))

    def zeros(self) -> Value:
        """Zeros of the same shape."""
        if self.tape.opset < SELECTS:
            return self * 0.0
        return self.tape.filled(0, self.shape(), self.dtype)

    def _like(self, other: Operand) -> Value:
        if isinstance(other, Value):
            return other
        return self.tape.constant(np.asarray(other, self.dtype))


class Tape:
    """Nodes being written for a graph.

    Args:
        graph: Names that occur in it are not used again.
        shapes: Of the graph's tensors.
        prefix: How names of new tensors begin.
    """

    def __init__(self, graph: gs.Graph, shapes: Shapes, prefix: str = "grad") -> None:
        self.graph, self.shapes, self.prefix = graph, shapes, prefix
        self.opset = int(graph.opset)
        self.nodes: list[gs.Node] = []
        self._taken = set(shapes.dims) | {t.name for t in graph.tensors().values()}
        self._constants: dict[tuple[Any, ...], Value] = {}

    def inside(self, body: gs.Graph) -> Tape:
        """A tape for a body of a node: names differ from those outside."""
        tape = Tape(body, self.shapes, self.prefix)
        self._taken |= tape._taken
        tape._taken, tape.opset = self._taken, self.opset
        return tape

    def name(self, stem: str) -> str:
        """A name that is not taken."""
        name, number = f"{self.prefix}/{stem}", 1
        while name in self._taken:
            number += 1
            name = f"{self.prefix}/{stem}_{number}"
        self._taken.add(name)
        return name

    def value(self, tensor: gs.Tensor) -> Value:
        """A tensor of the graph."""
        kind = self.shapes.dtypes.get(tensor.name)
        known = tensor.dtype if kind is None else onnx.helper.tensor_dtype_to_np_dtype(kind)
        return Value(self, tensor, np.dtype(np.float32 if known is None else known))

    def find(self, name: str) -> Value:
        """A tensor of the graph, by name."""
        return self.value(self.graph.tensors()[name])

    def constant(self, array: NDArray[Any]) -> Value:
        """A constant; equal small ones are one."""
        key = (
            (array.dtype.str, array.shape, array.tobytes())
            if array.size <= SMALL
            else (id(array), len(self._taken))
        )
        if key not in self._constants:
            tensor = gs.Constant(self.name("constant"), np.ascontiguousarray(array).reshape(array.shape))
            self._constants[key] = Value(self, tensor, array.dtype)
        return self._constants[key]

    def integers(self, numbers: Sequence[int]) -> Value:
        """A constant vector of int64."""
        return self.constant(np.asarray(list(numbers), np.int64))

    def sizes(self, sizes: Sequence[Size]) -> Value:
        """Sizes of axes as one vector of int64."""
        if all(isinstance(size, int) for size in sizes):
            return self.integers([size for size in sizes if isinstance(size, int)])
        parts = [size if isinstance(size, Value) else self.integers([size]) for size in sizes]
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=0)

    def range(self, size: Size) -> Value:
        """0, 1, … up to a size, int64.

        Raises:
            Barrier: The opset cannot do it.
        """
        if isinstance(size, int):
            return self.constant(np.arange(size, dtype=np.int64))
        if self.opset < SELECTS:
            raise Barrier(f"counting up to a size needs opset {SELECTS}")
        if self.opset < COUNTS:
            ones = self.filled(1, size, np.float32)
            return self.op("NonZero", ones, dtype=np.int64).reshape([-1])
        zero, one = (self.constant(np.asarray(each, np.int64)) for each in (0, 1))
        return self.op("Range", zero, size.reshape([]), one)

    def filled(self, number: Number, sizes: Value | Sequence[Size], dtype: Any) -> Value:
        """One number in every place; needs opset 9."""
        shape = sizes if isinstance(sizes, Value) else self.sizes(sizes)
        value = gs.Constant("value", np.asarray([number], dtype))
        return self.op("ConstantOfShape", shape, dtype=dtype, value=value)

    def one_hot(self, indices: Value, size: Size, dtype: Any, axis: int = -1) -> Value:
        """Rows of an identity matrix along a new axis, by default the last: ``[..., size]``; needs opset 9."""
        depth = self.constant(np.asarray(size, np.int64)) if isinstance(size, int) else size.reshape([])
        values = self.constant(np.asarray([0, 1], dtype))
        return self.op("OneHot", indices.cast(np.int64), depth, values, dtype=dtype, axis=axis)

    def op(
        self,
        name: str,
        *inputs: Value | None,
        dtype: Any = None,
        domain: str | None = None,
        **attributes: Any,
    ) -> Value:
        """Write a node with one output, of the type of its first input unless ``dtype`` says otherwise."""
        return self.ops(name, *inputs, outputs=1, dtype=dtype, domain=domain, **attributes)[0]

    def ops(
        self,
        name: str,
        *inputs: Value | None,
        outputs: int,
        dtype: Any = None,
        domain: str | None = None,
        **attributes: Any,
    ) -> list[Value]:
        """Write a node with several outputs."""
        first = next((each for each in inputs if each is not None), None)
        kind = (
            np.dtype(dtype)
            if dtype is not None
            else first.dtype
            if first is not None
            else np.dtype(np.float32)
        )
        made = [gs.Variable(self.name(name), kind) for _ in range(outputs)]
        given = [gs.Variable.empty() if each is None else each.tensor for each in inputs]
        self.nodes.append(gs.Node(name, made[0].name, attributes, given, made, domain))
        return [Value(self, tensor, kind) for tensor in made]

    def where(self, condition: Value, then: Operand, otherwise: Operand) -> Value:
        """One of two values, by place; one of them must be a `Value`."""
        like = then if isinstance(then, Value) else otherwise
        if not isinstance(like, Value):
            raise TypeError("one of the two has to be a value")
        yes, no = (
            each if isinstance(each, Value) else self.constant(np.asarray(each, like.dtype))
            for each in (then, otherwise)
        )
        if self.opset >= SELECTS:
            return self.op("Where", condition, yes, no, dtype=like.dtype)
        chosen = condition.cast(like.dtype)
        return chosen * yes + (1 - chosen) * no

    def only(self, condition: Value, value: Value) -> Value:
        """A value where a condition holds, else zero: in onnxruntime a product takes a quarter of the time of Where."""
        return value * condition.cast(value.dtype)

    def shape_of(self, value: Value) -> Value:
        """The sizes of the axes of a value: a constant where none of them is dynamic."""
        dims = self.shapes.dims.get(value.tensor.name)
        if dims is not None and not any(self.shapes.dynamic[value.tensor.name]):
            return self.integers(dims)
        return self.op("Shape", value, dtype=np.int64)

    def total(self, values: Sequence[Value]) -> Value:
        """The sum of values of one shape."""
        if len(values) == 1:
            return values[0]
        return values[0] + values[1] if len(values) == 2 else self.op("Sum", *values)
