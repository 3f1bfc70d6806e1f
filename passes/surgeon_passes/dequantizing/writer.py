"""The float graph that is written next to a quantized one, and what each quantized tensor means in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from surgeon.errors import UnsupportedModelError
from surgeon.graph.order import bodies
from surgeon.graph.schemas import label, standard
from surgeon.graph.weights import peek
from surgeon.quantized import is_quantized_operator
from surgeon_passes.dequantizing.numbers import as_one, is_small, numbers_of, onnx_kind
from surgeon_passes.dequantizing.registry import DEQUANTIZE_RULES

Array: TypeAlias = "NDArray[Any]"


class Given:
    """A node that is being replaced, with its inputs as they are in the float graph."""

    def __init__(self, node: gs.Node, writer: Writer) -> None:
        self.node = node
        self.operator, self.attributes = node.op, dict(node.attrs)
        self.inputs = [writer.alias(tensor) for tensor in node.inputs]
        self.outputs = list(node.outputs)

    def __getitem__(self, index: int) -> gs.Tensor:
        found = self.optional(index)
        if found is None:
            raise self.unsupported(f"input {index} is missing")
        return found

    def optional(self, index: int) -> gs.Tensor | None:
        """Input ``index``, or None where it is left out."""
        return self.inputs[index] if index < len(self.inputs) and self.inputs[index].name else None

    def array(self, index: int) -> Array:
        """The values of input ``index``, which has to be a constant."""
        tensor = self[index]
        if not isinstance(tensor, gs.Constant):
            raise self.unsupported(f"input {index} ({tensor.name}) is not constant")
        return peek(tensor)

    def unsupported(self, why: str) -> UnsupportedModelError:
        """The error that this node cannot be written in floats."""
        return UnsupportedModelError(
            f"cannot be turned into float operators: {why}",
            where=label(self.node),
            hint="start from the float model",
        )


@dataclass(frozen=True)
class Steps:
    """Integers that stand for numbers of the float graph: ``numbers = (integers - zero) * scale``."""

    numbers: gs.Tensor
    scale: gs.Tensor
    zero: gs.Tensor | None
    axis: int


@dataclass(frozen=True)
class Later:
    """A tensor that is written where something reads it: ``write`` is asked once for each graph that does."""

    write: Callable[[Writer], gs.Tensor]


class Writer:
    """One graph that is rewritten, inside the one it is a body of.

    Attributes:
        nodes: The nodes of the float graph so far.
        steps: Quantized tensors that stand for numbers, by name.
        moved: Quantized tensors that are made of others by moving their values, by name.
        later: Tensors that are written when they are read, by name.
        products, scales: Products of integers and of scales that are not numbers yet, by name.
        derived: Names of constants that were computed of constant integers.
        counts: How many nodes of each operator were turned into floats.
    """

    def __init__(self, outer: Writer | None, dims: dict[str, Any], opset: int) -> None:
        self.outer, self.dims, self.opset = outer, dims, opset
        self.nodes: list[gs.Node] = []
        self.steps: dict[str, Steps] = {}
        self.moved: dict[str, Given] = {}
        self.later: dict[str, Later] = {}
        self.products: dict[str, Any] = {}
        self.scales: dict[str, Any] = {}
        self.derived: dict[str, bool] = {}
        self.counts: dict[str, int] = {} if outer is None else outer.counts
        self._names: set[str] = set() if outer is None else outer._names  # noqa: SLF001  # one of its own kind
        self._aliases: dict[str, gs.Tensor] = {}
        self._written: dict[object, Any] = {}

    # --- reading -----------------------------------------------------------------------------------------------

    def alias(self, tensor: gs.Tensor) -> gs.Tensor:
        """What a tensor is called in the float graph."""
        found = self.find("_aliases", tensor.name)
        return tensor if found is None else found

    def find(self, table: str, name: str) -> Any:
        """What a table of this graph or of those around it says about a tensor, or None."""
        writer: Writer | None = self
        while writer is not None:
            found = getattr(writer, table).get(name)
            if found is not None:
                return found
            writer = writer.outer
        return None

    def once(self, key: object, write: Callable[[], Any]) -> Any:
        """What ``write`` returns, which is called once for each graph."""
        found = self.find("_written", key)  # type: ignore[arg-type]  # any key serves
        if found is None:
            found = self._written[key] = write()
        return found

    def rank(self, tensor: gs.Tensor) -> int | None:
        """The rank of a tensor of the quantized graph, where it is known."""
        if isinstance(tensor, gs.Constant):
            return len(tensor.shape)
        dims = self.dims.get(tensor.name)
        return None if dims is None else len(dims)

    # --- writing -----------------------------------------------------------------------------------------------

    def fresh(self, name: str) -> str:
        """``name``, or with a number appended if a tensor has it already."""
        result, number = name, 2
        while result in self._names:
            result, number = f"{name}__{number}", number + 1
        self._names.add(result)
        return result

    def constant(self, values: Any, name: str = "constant") -> gs.Constant:
        """A new constant; of floats where ``values`` has no type of its own."""
        array = values if isinstance(values, np.ndarray | np.generic) else np.asarray(values, np.float32)
        return gs.Constant(self.fresh(name), np.ascontiguousarray(array).reshape(np.shape(array)))

    def add(
        self,
        operator: str,
        *inputs: gs.Tensor | None,
        into: gs.Tensor | None = None,
        domain: str | None = None,
        **attributes: Any,
    ) -> gs.Tensor:
        """A node with one output: ``into``, or a new tensor."""
        output = into if into is not None else gs.Variable(self.fresh(f"{operator}_float"))
        self.put(operator, inputs, [output], domain, **attributes)
        return output

    def put(
        self,
        operator: str,
        inputs: tuple[gs.Tensor | None, ...],
        outputs: list[gs.Tensor],
        domain: str | None = None,
        **attributes: Any,
    ) -> None:
        """A node with several outputs."""
        given = [gs.Variable.empty() if tensor is None else tensor for tensor in inputs]
        while given and not given[-1].name:
            given.pop()
        for output in outputs:
            output.inputs.clear()
        name = self.fresh(f"{outputs[0].name}/{operator}")
        self.nodes.append(gs.Node(operator, name, attributes, given, outputs, domain))

    def same(self, old: gs.Tensor, new: gs.Tensor) -> None:
        """Readers of ``old`` read ``new``."""
        self._aliases[old.name] = new

    def state(
        self, output: gs.Tensor, numbers: gs.Tensor, scale: gs.Tensor, zero: gs.Tensor | None, axis: int = 1
    ) -> None:
        """The integers ``output`` stand for ``numbers``, within the bounds of their type."""
        from surgeon_passes.dequantizing.limits import limited

        self.steps[output.name] = Steps(limited(self, numbers, scale, zero), scale, zero, axis)

    # --- numbers -----------------------------------------------------------------------------------------------

    def number(
        self, tensor: gs.Tensor, scale: gs.Tensor, zero: gs.Tensor | None, axis: int = 1, block: int = 0
    ) -> gs.Tensor:
        """The numbers that integers stand for.

        Raises:
            UnsupportedModelError: They were quantized with other scales than they are read with.
        """
        key = (tensor.name, scale.name, "" if zero is None else zero.name, axis, block)
        found: gs.Tensor = self.once(key, lambda: self._number(tensor, scale, zero, axis, block))
        return found

    def _number(
        self, tensor: gs.Tensor, scale: gs.Tensor, zero: gs.Tensor | None, axis: int, block: int
    ) -> gs.Tensor:
        steps: Steps | None = self.find("steps", tensor.name)
        if steps is not None:
            return self._rescaled(steps, tensor, scale, zero)
        moved: Given | None = self.find("moved", tensor.name)
        if moved is not None:
            from surgeon_passes.dequantizing.moving import moved_numbers

            return moved_numbers(self, moved, tensor, scale, zero)
        constants = [each for each in (tensor, scale, zero) if each is not None]
        if all(isinstance(each, gs.Constant) for each in constants):
            zeros = None if zero is None else peek(zero)
            values = numbers_of(peek(tensor), peek(scale), zeros, axis, block)
            return self.constant(values, f"{tensor.name}_float")
        return self._arithmetic(tensor, scale, zero, axis, block)

    def _rescaled(
        self, steps: Steps, tensor: gs.Tensor, scale: gs.Tensor, zero: gs.Tensor | None
    ) -> gs.Tensor:
        """The numbers as they are, or as other scales read their integers."""
        if steps.scale is scale and (steps.zero is zero or zero is None):
            return steps.numbers
        known = (steps.scale, steps.zero, scale, zero)
        if not all(each is None or isinstance(each, gs.Constant) for each in known):
            raise UnsupportedModelError(
                "is read with a scale that it was not quantized with",
                where=f"tensor {tensor.name}",
                hint="start from the float model",
            )
        first, second = (as_one(peek(each).astype(np.float32)) for each in (steps.scale, scale))
        zeros = [
            np.zeros((), np.float32) if each is None else as_one(peek(each).astype(np.float32))
            for each in (steps.zero, zero)
        ]
        if np.array_equal(first.ravel(), second.ravel()) and np.array_equal(
            zeros[0].ravel(), zeros[1].ravel()
        ):
            return steps.numbers
        if any(each.size != 1 for each in (first, second, *zeros)):
            raise UnsupportedModelError(
                "is read with scales of other channels than it was quantized with",
                where=f"tensor {tensor.name}",
                hint="start from the float model",
            )
        kind = peek(scale).dtype
        factor = (second.ravel()[0] / first.ravel()[0]).astype(kind)
        offset = ((zeros[0].ravel()[0] - zeros[1].ravel()[0]) * second.ravel()[0]).astype(kind)
        return self.add("Add", self.add("Mul", steps.numbers, self.constant(factor)), self.constant(offset))

    def _arithmetic(
        self, tensor: gs.Tensor, scale: gs.Tensor, zero: gs.Tensor | None, axis: int, block: int
    ) -> gs.Tensor:
        """Integers that come from outside, or a scale that is computed."""
        if block:
            raise UnsupportedModelError(
                "blocks of values that are not constant", where=f"tensor {tensor.name}"
            )
        kind = onnx_kind(scale.dtype or np.float32)
        value = self.add("Cast", tensor, to=kind)
        if zero is not None:
            value = self.add(
                "Sub",
                value,
                self.along(
                    self.add("Cast", zero, to=kind)
                    if not isinstance(zero, gs.Constant)
                    else self.constant(peek(zero).astype(scale.dtype or np.float32)),
                    axis,
                    tensor,
                ),
            )
        return self.add("Mul", value, self.along(scale, axis, tensor))

    def along(self, parameter: gs.Tensor, axis: int, tensor: gs.Tensor) -> gs.Tensor:
        """A scale or zero point in a shape that broadcasts along an axis of ``tensor``."""
        if not isinstance(parameter, gs.Constant) or peek(parameter).size == 1:
            return parameter
        rank = self.rank(tensor)
        if rank is None:
            raise UnsupportedModelError("its rank is not known", where=f"tensor {tensor.name}")
        shape = [1] * rank
        shape[axis] = -1
        return self.constant(peek(parameter).reshape(shape))

    # --- nodes -------------------------------------------------------------------------------------------------

    def rewrite(self, graph: gs.Graph) -> None:
        """Write a whole graph in floats, in place."""
        self._names |= {tensor.name for node in graph.nodes for tensor in (*node.inputs, *node.outputs)}
        self._names |= {tensor.name for tensor in (*graph.inputs, *graph.outputs)}
        self._names |= {node.name for node in graph.nodes}
        old = list(graph.nodes)
        for node in old:
            self._node(node)
        outputs = [(tensor, self.plain(tensor)) for tensor in graph.outputs]
        for position, (tensor, found) in enumerate(outputs):
            if found is not tensor:
                self._leave(graph, position, tensor, found)
        graph.nodes.clear()
        graph.nodes.extend(self.nodes)

    def _leave(self, graph: gs.Graph, position: int, tensor: gs.Tensor, found: gs.Tensor) -> None:
        """A graph output keeps its name."""
        tensor.inputs.clear()
        self.add("Identity", found, into=tensor)
        graph.outputs[position] = tensor

    def _node(self, node: gs.Node) -> None:
        domain = standard(node.domain)
        rule = DEQUANTIZE_RULES.find(node.op, domain, self.opset if domain == "" else 1)
        given = Given(node, self)
        if rule is not None and rule.function(self, given):
            self.counts[node.op] = self.counts.get(node.op, 0) + 1
            node.inputs.clear()
            return
        if is_quantized_operator(node):
            raise given.unsupported(f"no rule for {domain or 'ai.onnx'}.{node.op}")
        self.keep(node)

    def keep(self, node: gs.Node) -> None:
        """The node stays; what it reads is written where that has not been done yet."""
        for index, tensor in enumerate(node.inputs):
            found = self.plain(tensor) if tensor.name else tensor
            if found is not tensor:
                node.inputs[index] = found
        for body in bodies(node):
            Writer(self, self.dims, self.opset).rewrite(body)
        self.nodes.append(node)

    def plain(self, tensor: gs.Tensor) -> gs.Tensor:
        """A tensor for an operator that reads it as it is: quantized ones are rounded again."""
        tensor = self.alias(tensor)
        later: Later | None = self.find("later", tensor.name)
        if later is not None:
            found: gs.Tensor = self.once(("later", tensor.name), lambda: later.write(self))
            return found
        if self.find("steps", tensor.name) is not None or self.find("moved", tensor.name) is not None:
            rounded: gs.Tensor = self.once(("rounded", tensor.name), lambda: self._rounded(tensor))
            return rounded
        return tensor

    def _rounded(self, tensor: gs.Tensor) -> gs.Tensor:
        steps: Steps | None = self.find("steps", tensor.name)
        if steps is None:
            moved: Given = self.find("moved", tensor.name)
            outputs = [gs.Variable(self.fresh(f"{each.name}_again"), each.dtype) for each in moved.outputs]
            inputs = tuple(self.plain(each) if each.name else None for each in moved.inputs)
            self.put(moved.operator, inputs, outputs, moved.node.domain, **moved.attributes)
            return outputs[[each.name for each in moved.outputs].index(tensor.name)]
        kind = np.dtype(np.uint8 if steps.zero is None else steps.zero.dtype)
        if not is_small(kind):
            raise UnsupportedModelError(
                "its integers are read by an operator without a rule", where=f"tensor {tensor.name}"
            )
        scale = self.along(steps.scale, steps.axis, tensor)
        value = self.add("Round", self.add("Div", steps.numbers, scale))
        if steps.zero is not None:
            zero = (
                self.constant(peek(steps.zero).astype(np.float32))
                if isinstance(steps.zero, gs.Constant)
                else self.add("Cast", steps.zero, to=onnx_kind(np.float32))
            )
            value = self.add("Add", value, self.along(zero, steps.axis, tensor))
        bounds = np.iinfo(kind)
        value = self.add("Clip", value, self.constant(float(bounds.min)), self.constant(float(bounds.max)))
        return self.add("Cast", value, to=onnx_kind(kind))
