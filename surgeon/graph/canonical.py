"""The form of a graph the analysis works on: static shape arithmetic computed, shared vectors given to each user.

Exporters write chunks, head splits and reshapes as arithmetic on shapes, and de-duplicate equal biases. Both hide
what is related to what: the arithmetic hides constants, the sharing ties layers that have nothing to do with each
other.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues

from surgeon.graph.branches import inline_branches
from surgeon.graph.copy import copy_of
from surgeon.graph.evaluate import MOVEMENT
from surgeon.graph.order import every_node, graphs, needs, ordered
from surgeon.graph.shapes import infer
from surgeon.graph.weights import data_type

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from surgeon.graph.shapes import Shapes

# Operators whose output is about integers whatever the type of their inputs is.
_SOURCES = frozenset({"Shape", "Size", "Range", "ConstantOfShape", "OneHot"})
# Shared vectors of these types are shape arithmetic, not weights.
_SHAPE_TYPES = {onnx.TensorProto.INT64, onnx.TensorProto.BOOL, onnx.TensorProto.STRING}


def canonicalize(graph: gs.Graph, shapes: Shapes) -> None:
    """Rewrites the graph in place; it computes the same, and tensors keep their names.

    1. An If whose condition is the same for every input of the model becomes the branch it takes.
    2. What shape arithmetic computes, where it is the same for every input of the model, becomes a constant with
       the tensor's name; nodes nothing depends on any more are dropped. Graph outputs stay computed.
    3. A vector or scalar of weights with several uses becomes one constant per use, ``NAME``, ``NAME__2``, …, each
       with the attribute ``origin`` = ``NAME``. Matrices stay tied.
    4. Constants that are outputs go through an Identity, so that they are read by nodes; an initializer that is an
       output of the whole graph stays one.

    All of this happens inside the bodies of control flow as well.

    Args:
        graph: The graph.
        shapes: What :func:`surgeon.graph.shapes.infer` found for it; it describes the result as well, except for
            the new constants of steps 3 and 4.
    """
    for each in graphs(graph):
        each.nodes = ordered(each.nodes)
    inline_branches(graph, shapes)
    for each in list(graphs(graph)):
        fold_shapes(each, shapes)
    for each in reversed(list(graphs(graph))):
        drop_dead(each)
        _read_constants(each)
        if each is not graph:
            _name_outputs(each, shapes)
    split_shared(graph)


def without_decided(graph: gs.Graph, named: Callable[[str], bool]) -> gs.Graph:
    """A copy after step 1 of :func:`canonicalize` alone, and without what nothing depends on any more.

    Args:
        graph: The graph.
        named: Whether a user has named a node or tensor for a purpose.

    Returns:
        The graph itself where there are no such Ifs, or where one is named or a name would be gone that a user has given.
    """
    branching = [node for node in every_node(graph) if node.op == "If" and not node.domain]
    if not branching or any(named(name) for node in branching for name in _names(node)):
        return graph
    copy = copy_of(graph)
    if not inline_branches(copy, infer(copy)):
        return graph
    drop_dead(copy)
    return graph if _called(graph, named) - _called(copy, named) else copy


def _called(graph: gs.Graph, named: Callable[[str], bool]) -> Counter[str]:
    """How many nodes have each name that a user means, themselves or by what they read and make."""
    return Counter(name for node in every_node(graph) for name in _names(node) if named(name))


def _names(node: gs.Node) -> set[str]:
    return {node.name, *(tensor.name for tensor in (*node.inputs, *node.outputs))} - {""}


def _read_constants(graph: gs.Graph) -> None:
    """Step 4 of :func:`canonicalize` where a node makes the constant."""
    for node in graph.nodes:
        values = _values(node) if node.op == "Constant" and not node.domain else None
        if values is not None:
            name = f"{node.outputs[0].name}/value"
            node.op, node.attrs = "Identity", {}
            node.inputs.append(gs.Constant(name, values))


def _name_outputs(body: gs.Graph, shapes: Shapes) -> None:
    """Step 4 of :func:`canonicalize` where the constant itself is the output of a body."""
    for index, tensor in enumerate(body.outputs):
        if isinstance(tensor, gs.Constant):
            output = gs.Variable(f"{tensor.name}/output{index}", tensor.dtype, list(tensor.shape))
            shapes.dims[output.name], shapes.dtypes[output.name] = tuple(tensor.shape), data_type(tensor)
            shapes.dynamic[output.name] = (False,) * len(tensor.shape)
            body.nodes.append(gs.Node("Identity", output.name, {}, [tensor], [output]))
            body.outputs[index] = output


def _values(node: gs.Node) -> np.ndarray | LazyValues | None:
    """What a Constant node makes, unread; None where it is sparse or text."""
    ((name, value),) = node.attrs.items()
    if name == "value":
        return value._values  # noqa: SLF001  # shared and unread
    kinds = {
        "value_float": np.float32,
        "value_floats": np.float32,
        "value_int": np.int64,
        "value_ints": np.int64,
    }
    return np.array(value, dtype=kinds[name]) if name in kinds else None


def fold_shapes(graph: gs.Graph, shapes: Shapes) -> None:
    """Step 2 of :func:`canonicalize` for one graph or body, without dropping what is dead afterwards."""
    kept = {tensor.name for tensor in graph.outputs}
    computed = shape_arithmetic(graph, shapes)
    folded = [
        node
        for node in graph.nodes
        if node.outputs
        and all(tensor.name in computed and tensor.name not in kept for tensor in node.outputs)
    ]
    inside = {id(node) for node in folded}
    for node in folded:
        for tensor in list(node.outputs):
            if any(id(user) not in inside for user in tensor.outputs):
                data = shapes.values[tensor.name].data
                list.clear(node.outputs)  # bypasses graphsurgeon's bookkeeping, which is quadratic
                list.clear(tensor.inputs)
                tensor.to_constant(np.array(data))
    graph.nodes = [node for node in graph.nodes if id(node) not in inside]
    _forget(folded)


def shape_arithmetic(graph: gs.Graph, shapes: Shapes) -> set[str]:
    """Names of the tensors that are computed from shapes and integers alone and never change.

    A float result counts when it comes from a shape or an integer, as the scale of a Resize does; float arithmetic
    on weights only does not: those constants are weights and stay visible as such.
    """
    descended: set[str] = set()
    computed: set[str] = set()
    for node in graph.nodes:
        sources = node.inputs
        if node.op in MOVEMENT and node.op not in ("Concat", "Where", *_SOURCES):
            sources = node.inputs[:1]  # the others say where elements go, not what they are
        if node.op in _SOURCES or any(
            _is_integer(tensor, shapes) or tensor.name in descended for tensor in sources
        ):
            known = [tensor.name for tensor in node.outputs if tensor.name in shapes.values]
            descended.update(known)
            computed.update(name for name in known if shapes.values[name].static)
    return computed


def _is_integer(tensor: gs.Tensor, shapes: Shapes) -> bool:
    value = shapes.values.get(tensor.name)
    return value is not None and value.data.dtype.kind in "bi"


def drop_dead(graph: gs.Graph) -> None:
    """Removes every node on which no graph output depends; inputs and outputs of the graph stay."""
    makers = {id(tensor): node for node in graph.nodes for tensor in node.outputs}
    pending = [makers[id(tensor)] for tensor in graph.outputs if id(tensor) in makers]
    alive = {id(node) for node in pending}
    while pending:
        for tensor in needs(pending.pop()):
            maker = makers.get(id(tensor))
            if maker is not None and id(maker) not in alive:
                alive.add(id(maker))
                pending.append(maker)
    dead = [node for node in graph.nodes if id(node) not in alive]
    graph.nodes = [node for node in graph.nodes if id(node) in alive]
    _forget(dead)


def _forget(nodes: Iterable[gs.Node]) -> None:
    """Takes removed nodes out of the lists of the tensors they used, in linear time."""
    gone: set[int] = set()
    touched: dict[int, gs.Tensor] = {}
    for node in nodes:
        gone.add(id(node))
        touched.update((id(tensor), tensor) for tensor in [*node.inputs, *node.outputs])
        for body in node.subgraphs(recursive=True):
            for inner in body.nodes:
                gone.add(id(inner))
                touched.update((id(tensor), tensor) for tensor in inner.inputs)
    for tensor in touched.values():
        list.__setitem__(
            tensor.outputs, slice(None), [user for user in tensor.outputs if id(user) not in gone]
        )
        list.__setitem__(
            tensor.inputs, slice(None), [maker for maker in tensor.inputs if id(maker) not in gone]
        )


def split_shared(graph: gs.Graph) -> None:
    """Step 3 of :func:`canonicalize`: every use of a vector or scalar of weights gets a constant of its own.

    Uses as a graph output keep the original.
    """
    nodes = list(every_node(graph))
    names = {tensor.name for node in nodes for tensor in [*node.inputs, *node.outputs]}
    outputs: set[int] = set()
    for each in graphs(graph):
        names.update(tensor.name for tensor in [*each.inputs, *each.outputs])
        outputs.update(id(tensor) for tensor in each.outputs)
    uses: dict[int, list[tuple[gs.Node, int]]] = {}
    vectors: dict[int, gs.Constant] = {}
    for node in nodes:
        for index, tensor in enumerate(node.inputs):
            if isinstance(tensor, gs.Constant) and _is_vector(tensor):
                uses.setdefault(id(tensor), []).append((node, index))
                vectors[id(tensor)] = tensor
    for key, constant in vectors.items():
        here = {id(node) for node, _ in uses[key]}
        elsewhere = [user for user in constant.outputs if id(user) not in here]
        first = 0 if elsewhere or key in outputs else 1
        if len(uses[key]) > first:
            _split(constant, uses[key][first:], names)
            kept = [node for node, _ in uses[key][:first]] + elsewhere
            list.__setitem__(constant.outputs, slice(None), kept)


def _is_vector(constant: gs.Constant) -> bool:
    return len(constant.shape) <= 1 and data_type(constant) not in _SHAPE_TYPES


def _split(constant: gs.Constant, uses: list[tuple[gs.Node, int]], names: set[str]) -> None:
    constant.origin = constant.name
    number = 1
    for node, index in uses:
        number += 1
        while f"{constant.name}__{number}" in names:
            number += 1
        copy = gs.Constant(f"{constant.name}__{number}", constant._values)  # noqa: SLF001  # shared and unread
        copy.origin = constant.name
        names.add(copy.name)
        list.__setitem__(node.inputs, index, copy)
        list.append(copy.outputs, node)
