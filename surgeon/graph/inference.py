"""One pass of shape inference over a graph, with the values of shape arithmetic as data."""

from __future__ import annotations

import math
from itertools import chain, count, zip_longest
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx.shape_inference import InferenceError, infer_node_outputs

from surgeon.graph import contrib
from surgeon.graph.control import BODY_FUNCTIONS
from surgeon.graph.evaluate import ARITHMETIC, GROWING, Call, evaluate, static_size
from surgeon.graph.order import bodies, captured, ordered
from surgeon.graph.probe import dimension_key
from surgeon.graph.proto import node_proto, tensor_type
from surgeon.graph.schemas import node_schema, opsets, schema_of, standard
from surgeon.graph.weights import data_type, peek
from surgeon.graph.windows import WINDOWED, smaller_than_window

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

Dims: TypeAlias = "tuple[int, ...] | None"
ShapeFunction: TypeAlias = "Callable[[gs.Node, Sequence[Dims]], list[Dims]]"

LARGEST_VALUE = 65536  # elements of a tensor whose value is tracked
LARGEST_DATA = 64  # elements of a value that shape inference could want to see
# Operators whose output shape never depends on the values of their inputs.
_BLIND = frozenset(name for name in ARITHMETIC if not name.startswith("Reduce")) | {
    "Concat",
    "Gather",
    "Where",
}
_INTEGERS = {onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL}
_FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16}
# Sizes of axes that depend on data; another run takes others, so that these axes come out as dynamic.
_UNKNOWN = (
    (127, 113, 131, 109),
    (263, 269, 271, 277),
    (1, 2, 3, 4),
    (8, 5, 2, 1),
    (64, 100, 300, 32),
    (1000, 4096, 77, 512),
)
VARIANTS = len(_UNKNOWN)


def _same_as_first(node: gs.Node, dims: Sequence[Dims]) -> list[Dims]:
    return [dims[0]] + [None] * (len(node.outputs) - 1)


# Operators without a schema, or whose schema infers nothing, whose output shapes are obvious: (domain, operator) to
# a function from the node and its inputs' shapes to its outputs' shapes. The data type is the first input's.
SHAPE_FUNCTIONS: dict[tuple[str, str], ShapeFunction] = {
    ("", "SimplifiedLayerNormalization"): _same_as_first,
    ("", "LayerNormalization"): _same_as_first,
    ("", "GroupNormalization"): _same_as_first,
    ("", "MeanVarianceNormalization"): _same_as_first,
    ("", "Affine"): _same_as_first,
    ("", "ParametricSoftplus"): _same_as_first,
    ("", "ScaledTanh"): _same_as_first,
}


# Before opset 22 onnx counts windows that start behind the input's end where sizes are rounded up; onnxruntime never did.
_POOLS = {"AveragePool", "LpPool", "MaxPool"}
_POOLS_AS_RUN = 22


def _schema(node: gs.Node, versions: dict[str, int]) -> onnx.defs.OpSchema | None:
    """The schema whose inference tells the sizes that onnxruntime makes."""
    if node.op in _POOLS and node.attrs.get("ceil_mode") and standard(node.domain) == "":
        return schema_of(node.op, "", max(versions[""], _POOLS_AS_RUN))
    return node_schema(node, versions)


class Program:
    """A graph made ready for several runs: ordered nodes, their messages and schemas, the constants worth reading."""

    def __init__(self, graph: gs.Graph) -> None:
        self.graph = graph
        self.versions = opsets(graph)
        self.imports = [
            onnx.helper.make_opsetid(domain, version) for domain, version in self.versions.items()
        ]
        self.nodes = ordered(graph.nodes)
        self.messages = [node_proto(node, self.versions, light=True) for node in self.nodes]
        self.schemas = [_schema(node, self.versions) for node in self.nodes]
        self.captured = {index: captured(node) for index, node in enumerate(self.nodes) if bodies(node)}
        self.bodies = {
            index: {name: Program(body) for name, body in node.attrs.items() if isinstance(body, gs.Graph)}
            for index, node in enumerate(self.nodes)
            if node.op in BODY_FUNCTIONS and standard(node.domain) == ""
        }
        own = {id(tensor) for node in self.nodes for tensor in node.outputs} | {
            id(tensor) for tensor in graph.inputs
        }
        used = [
            tensor
            for tensors in [*(node.inputs for node in self.nodes), *self.captured.values()]
            for tensor in tensors
        ]
        self.outside = {
            tensor.name: tensor
            for tensor in [*used, *graph.outputs]
            if tensor.name and id(tensor) not in own and not isinstance(tensor, gs.Constant)
        }.values()
        self.weights: dict[str, gs.Constant] = {}
        for tensors in [*(node.inputs for node in self.nodes), *self.captured.values(), graph.outputs]:
            self.weights.update(
                (tensor.name, tensor) for tensor in tensors if isinstance(tensor, gs.Constant)
            )
        self.kinds = {name: data_type(constant) for name, constant in self.weights.items()}
        self.constants = {
            name: peek(constant)
            for name, constant in self.weights.items()
            if _worth_reading(constant, self.kinds[name])
        }

    def run(self, sizes: Mapping[str, int], variant: int) -> Run:
        """Infers everything at the given sizes of the open dimensions.

        Axes that depend on data have other sizes in each of the `VARIANTS`.
        """
        return Run(self, dict(sizes), variant)


def _worth_reading(constant: gs.Constant, kind: int) -> bool:
    """Whether a constant may take part in shape arithmetic: integers, and floats like the scales of a Resize."""
    elements = math.prod(constant.shape)
    return (kind in _INTEGERS and elements <= LARGEST_VALUE) or (kind in _FLOATS and elements <= 8)


class Run:
    """The outcome of one pass.

    Attributes:
        dims, dtypes, values: By tensor name; see :class:`surgeon.graph.shapes.Shapes`.
        types, data: The same as messages, for onnx.
        sizes: The sizes of the open dimensions.
        failures: Why inference refused a node, by its first output.
        data_dependent: Whether some axis got a made-up size because it depends on data.
        bodies: The runs of bodies, and whether what fails in them fails the model (it does not in the branch of an
            ``If`` that is not taken).
    """

    def __init__(
        self,
        program: Program,
        sizes: dict[str, int],
        variant: int,
        around: Run | None = None,
        given: Sequence[onnx.TypeProto | None] = (),
    ) -> None:
        self.program, self.sizes, self.variant = program, sizes, variant
        self.dims: dict[str, Dims] = {}
        self.dtypes: dict[str, int] = {}
        self.values: dict[str, NDArray[Any]] = {}
        self.failures: dict[str, str] = {}
        self.data_dependent = False
        self.types: dict[str, onnx.TypeProto] = {}
        self.data: dict[str, onnx.TensorProto] = {}
        self.bodies: list[tuple[Run, bool]] = []
        self._unknown = chain(_UNKNOWN[variant], count(1009 + 2 * variant, 4 * VARIANTS))
        if around is not None:
            self._look_around(around)
        for tensor, found in zip_longest(program.graph.inputs, given):
            if around is None:
                self._add_input(tensor)
            elif found is not None:
                self._typed(tensor.name, found)
            else:
                self.dims[tensor.name] = None
        for name, constant in program.weights.items():
            self._add(name, program.kinds[name], tuple(int(size) for size in constant.shape))
        for name, array in program.constants.items():
            self.values[name] = array
        for index in range(len(program.nodes)):
            self._node(index)

    def inside(self, program: Program, given: Sequence[onnx.TypeProto | None]) -> Run:
        """Runs a body, with what is known around it and the types of its inputs."""
        return Run(program, self.sizes, self.variant, self, given)

    def keep(self, body: Run, *, counts: bool) -> None:
        """Takes a body's run as what there is to know of that body; ``counts`` as in ``bodies``."""
        self.bodies.append((body, counts))
        if counts:
            self.failures.update(body.failures)
            self.data_dependent |= body.data_dependent

    def _look_around(self, around: Run) -> None:
        for tensor in self.program.outside:
            name = tensor.name
            if name in around.types:
                self.dims[name], self.types[name] = around.dims[name], around.types[name]
                self.dtypes[name] = around.dtypes.get(name, 0)
            if name in around.values:
                self.values[name] = around.values[name]

    def _add(self, name: str, kind: int, dims: Dims) -> None:
        self.dims[name] = dims
        self.dtypes[name] = kind
        self.types[name] = tensor_type(kind, dims)

    def _datum(self, name: str) -> onnx.TensorProto | None:
        """A small value as onnx's inference wants to see it."""
        found = self.data.get(name)
        if found is None and name in self.values and self.values[name].size <= LARGEST_DATA:
            array = self.values[name]
            found = onnx.numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape))
            self.data[name] = found
        return found

    def _add_input(self, tensor: gs.Tensor) -> None:
        if tensor.type != "tensor_type" or tensor.dtype is None:
            self.dims[tensor.name] = None
            return
        kind = int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype)))
        if tensor.shape is None:
            self._add(tensor.name, kind, None)
            return
        keys = [dimension_key(tensor.name, axis, size) for axis, size in enumerate(tensor.shape)]
        self._add(
            tensor.name,
            kind,
            tuple(
                size if isinstance(size, int) and size > 0 else self.sizes[key]
                for size, key in zip(tensor.shape, keys, strict=True)
            ),
        )

    def _node(self, index: int) -> None:
        node = self.program.nodes[index]
        values = self._evaluate(node, None)
        types = self._infer(index, node) if values is None else {}
        if values is None:
            values = self._evaluate(node, types)
        for position, tensor in enumerate(node.outputs):
            name = tensor.name
            if not name:
                continue
            value = values[position] if values is not None and position < len(values) else None
            if value is not None and _tracked(value):
                self._add(name, int(onnx.helper.np_dtype_to_tensor_dtype(value.dtype)), value.shape)
                self.values[name] = value
            elif name in types:
                self._typed(name, types[name])
            else:
                self.dims[name] = None

    def _typed(self, name: str, found: onnx.TypeProto) -> None:
        self.types[name] = found
        self.dims[name] = None
        if found.WhichOneof("value") != "tensor_type":
            return
        tensor = found.tensor_type
        self.dtypes[name] = tensor.elem_type
        if not tensor.HasField("shape"):
            return
        sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
        if None in sizes:
            self.data_dependent = True
        dims = tuple(next(self._unknown) if size is None else int(size) for size in sizes)
        self._add(name, tensor.elem_type, dims)

    def _infer(self, index: int, node: gs.Node) -> dict[str, onnx.TypeProto]:
        program = self.program
        if index in program.bodies:
            outputs = BODY_FUNCTIONS[node.op](self, node, program.bodies[index])
            if outputs is not None:
                return outputs
        schema = program.schemas[index]
        inputs = [tensor.name for tensor in node.inputs]
        silent = schema is None or not schema.has_type_and_shape_inference_function
        function = SHAPE_FUNCTIONS.get((standard(node.domain), node.op)) if silent else None
        if function is not None and inputs and inputs[0] in self.dtypes:
            shapes = function(node, [self.dims.get(name) for name in inputs])
            kind = self.dtypes[inputs[0]]
            return {
                tensor.name: tensor_type(kind, dims)
                for tensor, dims in zip(node.outputs, shapes, strict=True)
                if tensor.name
            }
        if standard(node.domain) == contrib.DOMAIN and schema is None:
            return self._contrib(node)
        if schema is None or any(name and name not in self.types for name in inputs):
            return {}
        types = {name: self.types[name] for name in inputs if name}
        for tensor in program.captured.get(index, ()):
            if tensor.name in self.types:
                types[tensor.name] = self.types[tensor.name]
        data = {}
        if node.op not in _BLIND:
            data = {name: datum for name in inputs if (datum := self._datum(name)) is not None}
        try:
            found = infer_node_outputs(
                schema, program.messages[index], types, data, None, program.imports, onnx.IR_VERSION
            )
        except (InferenceError, onnx.checker.ValidationError, RuntimeError, ValueError) as error:
            self.failures[node.outputs[0].name] = (
                str(error).strip().splitlines()[0] if str(error).strip() else "refused"
            )
            return {}
        if node.op == "Reshape" and self._reshape_clashes(node, found):
            self.failures[node.outputs[0].name] = "the element counts before and after do not agree"
            return {}
        if node.op in WINDOWED and smaller_than_window(node, [self.dims.get(name) for name in inputs]):
            self.failures[node.outputs[0].name] = "the window is larger than what it slides over"
            return {}
        if node.op == "Dropout" and len(node.outputs) > 1:  # older versions say nothing about the mask
            mask = tensor_type(onnx.TensorProto.BOOL, self.dims[inputs[0]])
            found[node.outputs[1].name] = mask
        return found

    def _contrib(self, node: gs.Node) -> dict[str, onnx.TypeProto]:
        """The same for an operator of onnxruntime's own domain."""
        names = [tensor.name for tensor in node.inputs]
        shapes = [(self.dtypes.get(name), self.dims.get(name)) for name in names]
        inputs = [None if kind is None or dims is None else (kind, dims) for kind, dims in shapes]
        data = [self._datum(name) for name in names]
        try:
            found = contrib.infer_contrib(contrib.Call(node.op, node.attrs, inputs, data, len(node.outputs)))
        except (InferenceError, onnx.checker.ValidationError, RuntimeError, ValueError) as error:
            self.failures[node.outputs[0].name] = (str(error).strip() or "refused").splitlines()[0]
            return {}
        pairs = zip(node.outputs, found or [], strict=False)
        return {tensor.name: kind for tensor, kind in pairs if tensor.name and kind is not None}

    def _reshape_clashes(self, node: gs.Node, found: Mapping[str, onnx.TypeProto]) -> bool:
        """Whether a Reshape would fail when run, which onnx does not check: lengths baked in by an exporter."""
        before = self.dims.get(node.inputs[0].name)
        entry = found.get(node.outputs[0].name)
        if before is None or entry is None or not entry.tensor_type.HasField("shape"):
            return False
        after = [dim.dim_value for dim in entry.tensor_type.shape.dim if dim.HasField("dim_value")]
        known = len(after) == len(entry.tensor_type.shape.dim)
        return known and math.prod(before) != math.prod(after)

    def _evaluate(
        self, node: gs.Node, types: Mapping[str, onnx.TypeProto] | None
    ) -> list[NDArray[Any]] | None:
        """The node's outputs where they are known; without ``types`` only if they are small whatever they are."""
        names = [tensor.name for tensor in node.inputs]
        if standard(node.domain) != "" or not names:
            return None
        if node.op in ("Shape", "Size"):
            dims = self.dims.get(names[0])
            if dims is None:
                return None
            if node.op == "Size":
                return [np.asarray(np.prod(dims, dtype=np.int64), dtype=np.int64)]
            return [static_size(dims, node.attrs.get("start", 0), node.attrs.get("end"))]
        if any(name and name not in self.values for name in names):
            return None
        if types is None:
            most = math.prod(max(self.values[name].size, 1) for name in names if name)
            if node.op in GROWING or most > LARGEST_VALUE:
                return None
        elif not self._bounded(node, types):
            return None
        return evaluate(
            Call(
                node.op,
                node.attrs,
                [self.values[name] if name else None for name in names],
                len(node.outputs),
            )
        )

    def _bounded(self, node: gs.Node, types: Mapping[str, onnx.TypeProto]) -> bool:
        """Whether computing the node stays small, whatever sizes it was given."""
        for tensor in node.outputs:
            found = types.get(tensor.name)
            shape = (
                None if found is None or not found.tensor_type.HasField("shape") else found.tensor_type.shape
            )
            if shape is None or not all(dim.HasField("dim_value") for dim in shape.dim):
                if tensor.name and node.op in GROWING:
                    return False
            elif math.prod(dim.dim_value for dim in shape.dim) > LARGEST_VALUE:
                return False
        return True


def _tracked(value: NDArray[Any]) -> bool:
    known = value.dtype.kind in "bf" or (value.dtype.kind == "i" and value.dtype.itemsize >= 4)
    return known and value.size <= LARGEST_VALUE
