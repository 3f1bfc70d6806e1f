"""Re-emitting a node after a cut: attributes, sizes and indices follow from what is left of its axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from surgeon.axes import Axis, Keep, is_fixed, mask, normal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from surgeon.graph.weights import DerivedValues
    from surgeon.ops.op import Op


class Emitter:
    """One node of the new graph, with the sizes its axes have there.

    Attributes:
        node: The node of the new graph; ``op`` speaks of the same node in the analysed graph.
    """

    def __init__(self, graph: gs.Graph, node: gs.Node, op: Op, keep: Keep) -> None:
        self.graph, self.node, self.op, self._keep = graph, node, op, keep
        self._made = 0

    def mask(self, axis: Axis) -> NDArray[np.bool_]:
        """Which positions of ``axis`` are left."""
        return mask(axis, self._keep)

    def size(self, axis: Axis) -> int:
        """How many positions of ``axis`` are left."""
        return int(self.mask(axis).sum())

    def changed(self, axis: Axis) -> bool:
        """Whether ``axis`` lost positions."""
        return self.size(axis) != axis.size

    def set_attribute(self, name: str, axis: Axis | Sequence[Axis]) -> None:
        """Write the size of ``axis``, or the list of sizes, to an attribute."""
        several = isinstance(axis, (list, tuple))
        self.node.attrs[name] = [self.size(each) for each in axis] if several else self.size(axis)  # type: ignore[union-attr, arg-type]  # told apart by `several`

    def set_input(self, index: int, values: NDArray[Any] | DerivedValues) -> None:
        """Replace input ``index`` by a constant of its own, appended when it was not given."""
        constant = gs.Constant(self._name(f"input{index}"), values)
        while len(self.node.inputs) <= index:
            self.node.inputs.append(gs.Variable.empty())
        self.node.inputs[index] = constant

    def set_elements(self, index: int, elements: Mapping[int, int]) -> None:
        """Overwrite some elements of the integer tensor at input ``index``; the others stay as they are."""
        known = self.op.partial(index)
        if known is None:
            return
        values, dynamic = known
        new = values.copy()
        for position, element in elements.items():
            new.flat[position] = element
        if np.array_equal(new, values) and not self._reads_a_cut_size(index):
            return
        if not dynamic.any():
            self.set_input(index, new)
        else:
            self.node.inputs[index] = self._vector(
                [
                    self._pick(self.node.inputs[index], k) if dynamic.flat[k] else int(new.flat[k])
                    for k in range(new.size)
                ]
            )

    def set_sizes(self, index: int, axes: Sequence[Axis]) -> None:
        """Write the sizes of ``axes`` to input ``index``; elements that are dynamic or mean something else stay."""
        known = self.op.partial(index)
        if known is None:
            return
        values, dynamic = known
        static = [
            k for k, axis in enumerate(axes) if not dynamic.flat[k] and int(values.flat[k]) == axis.size
        ]
        self.set_elements(index, {k: self.size(axes[k]) for k in static})

    def set_reshape(self, index: int, source: Sequence[Axis], target: Sequence[Axis]) -> None:
        """Write the target shape of a Reshape.

        A dynamic element is copied (0) where the input has the same axis in the same place. Of the others one can be
        inferred (-1), best one that also shrinks; the rest are sizes of other axes of the input, or taken from the old
        target as it is computed.
        """
        if not any(map(self.changed, target)) and not self._reads_a_cut_size(index):
            return
        dynamic = self.op.out_dynamic()
        elements: list[int | gs.Tensor] = [self.size(axis) for axis in target]
        solved = [normal(axis) for axis in source]  # kept, for an id is an axis's own only while that exists
        from_source = {id(axis): k for k, axis in reversed(list(enumerate(solved)))}
        left = []
        for k in np.flatnonzero(dynamic).tolist():
            if k < len(source) and normal(source[k]) is normal(target[k]):
                elements[k] = 0
            else:
                left.append(k)
        left.sort(key=lambda k: (is_fixed(target[k]), id(normal(target[k])) in from_source))
        for rank, k in enumerate(left):
            place = from_source.get(id(normal(target[k])))
            if rank == 0:
                elements[k] = -1
            elif place is not None:
                elements[k] = self._pick(self._shape_of(self.node.inputs[0]), place)
            else:
                elements[k] = self._pick(self.node.inputs[index], k)
        self.node.attrs.pop("allowzero", None)
        self.node.inputs[index] = self._vector(elements)

    def set_indices(self, index: int, axis: Axis) -> None:
        """Renumber constant indices into ``axis``; those that point at removed positions are dropped (rank 1 only)."""
        kept = self.mask(axis)
        if kept.all():
            return
        values = self.op.value(index)
        assert values is not None
        wrapped = np.where(values < 0, values + axis.size, values)
        renumbered = np.cumsum(kept) - 1
        if values.ndim == 1:
            wrapped = wrapped[kept[wrapped]]
        self.set_input(index, renumbered[wrapped].astype(values.dtype))

    def set_range(self, entry: int, start: int, end: int) -> None:
        """Write one start and end of a Slice."""
        if "starts" in self.node.attrs:
            for name, value in (("starts", start), ("ends", end)):
                self.node.attrs[name] = [
                    value if k == entry else old for k, old in enumerate(self.node.attrs[name])
                ]
        else:
            self.set_elements(1, {entry: start})
            self.set_elements(2, {entry: end})

    def replace(self, op_type: str, constants: Sequence[NDArray[Any]], **attributes: Any) -> None:
        """Turn the node into another operator of its first input and ``constants``."""
        self.node.op, self.node.attrs = op_type, dict(attributes)
        while len(self.node.inputs) > 1:
            self.node.inputs.pop()
        for k, values in enumerate(constants):
            self.set_input(k + 1, values)

    def scale_output(self, factor: float, index: int = 0) -> None:
        """Multiply output ``index`` by a constant."""
        import onnx

        output = self.node.outputs[index]
        element = onnx.helper.tensor_dtype_to_np_dtype(self.op.shapes.dtypes[output.name])
        unscaled = gs.Variable(self._name("unscaled"))
        constant = self._constant("scale", np.asarray(factor, dtype=element))
        self.node.outputs[index] = unscaled
        rescale = gs.Node("Mul", name=self._name("rescale"), inputs=[unscaled, constant], outputs=[output])
        self.graph.nodes.append(rescale)

    def scale_input(self, index: int, factor: float) -> None:
        """Multiply input ``index`` by ``factor``: its values where it is a constant, else what is computed for it."""
        import onnx

        from surgeon.graph.weights import derived

        tensor = self.node.inputs[index]
        if not isinstance(tensor, gs.Constant):
            element = onnx.helper.tensor_dtype_to_np_dtype(self.op.shapes.dtypes[tensor.name])
            scaled = gs.Variable(self._name(f"scaled{index}"))
            constant = gs.Constant(self._name(f"scale{index}"), np.asarray(factor, dtype=element))
            self.graph.nodes.append(gs.Node("Mul", scaled.name, inputs=[tensor, constant], outputs=[scaled]))
            self.node.inputs[index] = scaled
            return
        # the result has another name, by which nothing would slice it later
        masks = list(map(self.mask, self.op.axes[tensor.name] or ()))

        def scaled_slice(values: NDArray[Any]) -> NDArray[Any]:
            for k, kept in enumerate(masks):
                values = np.compress(kept, values, axis=k)
            return (values * factor).astype(values.dtype)

        self.set_input(index, derived(tensor, scaled_slice, [int(kept.sum()) for kept in masks]))

    def _reads_a_cut_size(self, index: int) -> bool:
        """Whether input ``index`` is computed from the size of an axis that lost positions, perhaps another one's."""
        pending, seen = [self.op.node.inputs[index]], set()
        while pending:
            tensor = pending.pop()
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            for node in tensor.inputs:
                if node.op in ("Shape", "Size"):
                    if any(map(self.changed, self.op.axes.get(node.inputs[0].name) or ())):
                        return True
                else:
                    pending += node.inputs
        return False

    def _vector(self, elements: Sequence[int | gs.Tensor]) -> gs.Tensor:
        """An int64 vector of constants and computed one-element vectors."""
        parts: list[gs.Tensor] = []
        run: list[int] = []
        for element in (*elements, None):
            if isinstance(element, int):
                run.append(element)
                continue
            if run:
                parts.append(self._constant("sizes", np.array(run, dtype=np.int64)))
                run = []
            if element is not None:
                parts.append(element)
        return parts[0] if len(parts) == 1 else self._add("Concat", parts, "target", axis=0)

    def _pick(self, vector: gs.Tensor, position: int) -> gs.Tensor:
        return self._add("Gather", [vector, self._constant("position", np.array([position]))], "size", axis=0)

    def _shape_of(self, tensor: gs.Tensor) -> gs.Tensor:
        return self._add("Shape", [tensor], "shape")

    def _constant(self, suffix: str, values: NDArray[Any]) -> gs.Constant:
        return gs.Constant(self._name(suffix), values)

    def _add(self, op_type: str, inputs: Sequence[gs.Tensor], suffix: str, **attributes: Any) -> gs.Variable:
        output = gs.Variable(self._name(suffix))
        node = gs.Node(op_type, name=output.name, attrs=attributes, inputs=list(inputs), outputs=[output])
        self.graph.nodes.append(node)
        return output

    def _name(self, suffix: str) -> str:
        """A name of its own for every tensor the emitter makes."""
        base = self.op.node.outputs[0].name if self.op.node.outputs else self.op.node.name
        self._made += 1
        return f"{base}/surgeon/{suffix}{self._made}"
