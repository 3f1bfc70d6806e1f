"""What an operator is: its inputs, attributes, shapes, and what is known of its values."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import numpy as np
    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

    from surgeon.graph.shapes import Shapes


class Barrier(Exception):  # noqa: N818 - it is a statement, not a fault
    """Raised by a rule that cannot say what it is asked; the reason is shown."""


@cache
def _defaults(name: str, domain: str, opset: int) -> dict[str, Any]:
    import onnx

    try:
        schema = onnx.defs.get_schema(name, opset, domain)
    except onnx.defs.SchemaError:
        return {}
    return {
        key: onnx.helper.get_attribute_value(attribute.default_value)
        for key, attribute in schema.attributes.items()
        if attribute.default_value.type
    }


class Operator:
    """One node with its shapes.

    Attributes:
        node: The graphsurgeon node.
        name: How reasons call it: operator type and node name.
        opset: The version of its domain that the graph imports.
        shapes: Those of its graph.
    """

    def __init__(self, node: gs.Node, opset: int, shapes: Shapes) -> None:
        self.node, self.opset, self.shapes = node, opset, shapes
        label = node.name or (node.outputs[0].name if node.outputs else "")
        self.name = f"{node.op} {label}".strip()

    def stop(self, why: str) -> NoReturn:
        """Give up on the operator.

        Raises:
            Barrier: Always.
        """
        raise Barrier(why)

    def has(self, index: int) -> bool:
        """Whether input ``index`` is given."""
        return index < len(self.node.inputs) and self.node.inputs[index].name != ""

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute, or its default in the ONNX schema, or ``default``."""
        if name in self.node.attrs:
            return self.node.attrs[name]
        known = _defaults(self.node.op, self.node.domain or "", self.opset)
        value = known.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def dims(self, index: int) -> tuple[int, ...]:
        """The concrete shape of input ``index`` at the probe sizes.

        Raises:
            Barrier: It is not known.
        """
        return self._dims(self.node.inputs[index].name)

    def out_dims(self, index: int = 0) -> tuple[int, ...]:
        """The concrete shape of output ``index`` at the probe sizes.

        Raises:
            Barrier: It is not known.
        """
        return self._dims(self.node.outputs[index].name)

    def _dims(self, name: str) -> tuple[int, ...]:
        dims = self.shapes.dims.get(name)
        if dims is None:
            raise Barrier(f"the shape of {name} is not known")
        return dims

    def out_dynamic(self, index: int = 0) -> tuple[bool, ...]:
        """Which axes of output ``index`` change with a dynamic dimension."""
        name = self.node.outputs[index].name
        return self.shapes.dynamic.get(name) or (False,) * len(self.out_dims(index))

    def value(self, index: int) -> NDArray[Any] | None:
        """The value of input ``index`` if it is the same for every input of the model, else None."""
        import onnx_graphsurgeon as gs

        from surgeon.graph.weights import peek

        tensor = self.node.inputs[index]
        if isinstance(tensor, gs.Constant):
            return peek(tensor)
        known = self.shapes.values.get(tensor.name)
        return None if known is None or known.dynamic.any() else known.data

    def partial(self, index: int) -> tuple[NDArray[Any], NDArray[np.bool_]] | None:
        """The value of input ``index`` at the probe sizes and which elements are dynamic, or None when unknown."""
        import numpy as np

        fixed = self.value(index)
        if fixed is not None:
            return fixed, np.zeros(fixed.shape, bool)
        known = self.shapes.values.get(self.node.inputs[index].name)
        return None if known is None else (known.data, known.dynamic)
