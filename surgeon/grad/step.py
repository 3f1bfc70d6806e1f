"""What a derivative rule sees of its operator: inputs, outputs, the gradient that arrives, and sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surgeon.graph.order import captured
from surgeon.ops.operator import Operator

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import onnx_graphsurgeon as gs

    from surgeon.grad.tape import Size, Tape, Value


class Step(Operator):
    """One operator on the way back.

    Attributes:
        tape: Where the gradient's nodes are written.
        inputs: The operator's inputs; None where an optional one is absent.
        outputs: Its outputs.
        arriving: The gradient of the loss with respect to each output; None where the loss does not depend on it.
        reads: Tensors in the order of the gradients a rule returns: the inputs, then what bodies capture.
        active: Tensors that gradients are wanted of, by identity.
    """

    def __init__(
        self, node: gs.Node, opset: int, tape: Tape, arriving: Sequence[Value | None], active: Collection[int]
    ) -> None:
        super().__init__(node, opset, tape.shapes)
        self.tape, self.arriving, self.active = tape, arriving, active
        self.reads = [*node.inputs, *captured(node)]
        self.inputs = [tape.value(tensor) if tensor.name else None for tensor in node.inputs]
        self.outputs = [tape.value(tensor) for tensor in node.outputs]

    def dy(self, index: int = 0) -> Value:
        """The gradient with respect to an output; zeros where the loss does not depend on it."""
        found = self.arriving[index]
        return self.outputs[index].zeros() if found is None else found

    def x(self, index: int = 0) -> Value:
        """An input that is there."""
        found = self.inputs[index]
        if found is None:
            raise IndexError(f"{self.name} has no input {index}")
        return found

    def y(self, index: int = 0) -> Value:
        """An output."""
        return self.outputs[index]

    def size(self, index: int, axis: int) -> Size:
        """The size of an axis of an input: a number unless it is dynamic."""
        return self._size(self.node.inputs[index], axis)

    def out_size(self, axis: int, index: int = 0) -> Size:
        """The size of an axis of an output: a number unless it is dynamic."""
        return self._size(self.node.outputs[index], axis)

    def _size(self, tensor: gs.Tensor, axis: int) -> Size:
        dims = self._dims(tensor.name)
        if self.shapes.dynamic[tensor.name][axis]:
            return self.tape.value(tensor).size(axis % len(dims))
        return dims[axis]

    def axes(self, default: Sequence[int] | None = None, index: int = 1, of: int = 0) -> list[int]:
        """Axes from the attribute ``axes`` or from input ``index``, counted from the front of input ``of``.

        Raises:
            Barrier: They depend on data.
        """
        rank = len(self.dims(of))
        given = self.attribute("axes")
        if given is None and self.has(index):
            value = self.value(index)
            if value is None:
                self.stop("its axes are not constant")
            given = [int(each) for each in value.ravel()]
        chosen = default if given is None else given
        return [axis % rank for axis in (range(rank) if chosen is None else chosen)]

    def unbroadcast(self, gradient: Value, index: int, output: int = 0) -> Value:
        """Sum a gradient of an output's shape over the axes along which input ``index`` was repeated."""
        have, want = self.out_dims(output), self.dims(index)
        extra = len(have) - len(want)
        repeated = [k for k, size in enumerate(want) if size == 1 and have[extra + k] != 1]
        if extra:
            gradient = gradient.sum(range(extra))
        return gradient.sum(repeated, keepdims=True)
