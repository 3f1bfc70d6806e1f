"""Shapes inside the bodies of If, Loop and Scan, and what follows for the outputs of these operators.

A body is inferred like the graph around it, given the types of its inputs; it is run once, whatever the number of
iterations. An axis that an iteration changes gets a made-up size, and so comes out as dynamic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import onnx

from surgeon.graph.proto import tensor_type

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import onnx_graphsurgeon as gs

    from surgeon.graph.inference import Program, Run

Type: TypeAlias = "onnx.TypeProto | None"
BodyFunction: TypeAlias = "Callable[[Run, gs.Node, Mapping[str, Program]], dict[str, onnx.TypeProto] | None]"


def if_types(run: Run, node: gs.Node, programs: Mapping[str, Program]) -> dict[str, onnx.TypeProto]:
    """The outputs of an ``If``: of the branch taken where the condition is known, else what both agree on.

    See https://onnx.ai/onnx/operators/onnx__If.html. The branch that is not taken is inferred as far as it goes.
    """
    condition = run.values.get(node.inputs[0].name)
    taken = None if condition is None else ("else_branch", "then_branch")[bool(condition.reshape(-1)[0])]
    runs = []
    for name, program in programs.items():
        inner = run.inside(program, [])
        run.keep(inner, counts=taken in (None, name))
        if taken in (None, name):
            runs.append(inner)
    result = {}
    for position, tensor in enumerate(node.outputs):
        found = [_output(inner, position) for inner in runs]
        merged = _merged(found)
        if tensor.name and merged is not None:
            result[tensor.name] = merged
        value = runs[0].values.get(runs[0].program.graph.outputs[position].name) if taken else None
        if value is not None and tensor.name:
            run.values[tensor.name] = value
    return result


def loop_types(run: Run, node: gs.Node, programs: Mapping[str, Program]) -> dict[str, onnx.TypeProto] | None:
    """The outputs of a ``Loop``: its state, and what its iterations yield, stacked along a new first axis.

    See https://onnx.ai/onnx/operators/onnx__Loop.html.
    """
    program = programs["body"]
    own = program.graph.inputs
    kinds = (onnx.TensorProto.INT64, onnx.TensorProto.BOOL)
    given: list[Type] = [
        tensor_type(kind, tuple(1 for _ in t.shape or ())) for kind, t in zip(kinds, own, strict=False)
    ]
    given += [run.types.get(tensor.name) for tensor in node.inputs[2:]]
    if len(given) != len(own):
        return None
    inner = _stable(run, program, given, first=2, shift=1)
    states = len(own) - 2
    found = [_output(inner, 1 + k) for k in range(len(node.outputs))]
    trips = _trips(run, node, inner)
    return _named(
        node,
        [
            _merged([inner.types.get(own[2 + k].name), each]) if k < states else _with_axis(each, 0, trips)
            for k, each in enumerate(found)
        ],
    )


def scan_types(run: Run, node: gs.Node, programs: Mapping[str, Program]) -> dict[str, onnx.TypeProto] | None:
    """The outputs of a ``Scan``: its state, and what its steps yield, stacked along an axis of the same length.

    See https://onnx.ai/onnx/operators/onnx__Scan.html. Opset 8 batched it, which is left to the schema.
    """
    if run.program.versions[""] < 9:
        return None
    program, scans = programs["body"], int(node.attrs["num_scan_inputs"])
    states = len(node.inputs) - scans
    axes = node.attrs.get("scan_input_axes") or [0] * scans
    types = [run.types.get(tensor.name) for tensor in node.inputs]
    length = next((_size(each, axis) for each, axis in zip(types[states:], axes, strict=True)), None)
    given = types[:states] + [
        _without_axis(each, axis) for each, axis in zip(types[states:], axes, strict=True)
    ]
    if len(given) != len(program.graph.inputs):
        return None
    inner = _stable(run, program, given, first=0, shift=0, count=states)
    found = [_output(inner, k) for k in range(len(node.outputs))]
    out_axes = node.attrs.get("scan_output_axes") or [0] * (len(found) - states)
    own = program.graph.inputs
    return _named(
        node,
        [
            _merged([inner.types.get(own[k].name), each])
            if k < states
            else _with_axis(each, out_axes[k - states], length)
            for k, each in enumerate(found)
        ],
    )


#: How the bodies of these operators are run; other operators with bodies are left to their schemas.
BODY_FUNCTIONS: dict[str, BodyFunction] = {"If": if_types, "Loop": loop_types, "Scan": scan_types}


def _stable(
    run: Run, program: Program, given: list[Type], *, first: int, shift: int, count: int | None = None
) -> Run:
    """Run a body with state from input ``first`` on, which comes back from output ``shift`` on.

    What an iteration changes is forgotten, and the body run again.
    """
    inner = run.inside(program, given)
    last = len(given) if count is None else first + count
    merged = list(given)
    for k in range(first, last):
        merged[k] = _merged([given[k], _output(inner, k - first + shift)], unknown=given[k])
    if merged != given:
        inner = run.inside(program, merged)
    run.keep(inner, counts=True)
    return inner


def _trips(run: Run, node: gs.Node, inner: Run) -> int | None:
    """How often a Loop runs, where that is known and it does not stop by itself."""
    most = run.values.get(node.inputs[0].name) if node.inputs[0].name else None
    start = node.inputs[1].name if len(node.inputs) > 1 else ""
    body = inner.program.graph
    end = body.outputs[0]
    while end.inputs and end.inputs[0].op == "Identity":
        end = end.inputs[0].inputs[0]
    goes_on = end is body.inputs[1] or bool(inner.values.get(end.name, False))
    begins = not start or (start in run.values and bool(run.values[start].reshape(-1)[0]))
    return max(int(most.reshape(-1)[0]), 0) if most is not None and goes_on and begins else None


def _output(inner: Run, position: int) -> Type:
    outputs = inner.program.graph.outputs
    return inner.types.get(outputs[position].name) if position < len(outputs) else None


def _named(node: gs.Node, types: Sequence[Type]) -> dict[str, onnx.TypeProto]:
    return {
        tensor.name: found
        for tensor, found in zip(node.outputs, types, strict=True)
        if tensor.name and found is not None
    }


def _sizes(found: onnx.TypeProto) -> list[int | None] | None:
    """The sizes of a tensor, None where one is not known; None where not even their number is."""
    if found.WhichOneof("value") != "tensor_type" or not found.tensor_type.HasField("shape"):
        return None
    return [dim.dim_value if dim.HasField("dim_value") else None for dim in found.tensor_type.shape.dim]


def _typed(kind: int, sizes: Sequence[int | None] | None) -> onnx.TypeProto:
    if sizes is None:
        return tensor_type(kind, None)
    known = [size for size in sizes if size is not None]
    if len(known) == len(sizes):
        return tensor_type(kind, tuple(known))
    result = onnx.TypeProto()
    result.tensor_type.elem_type = kind
    for size in sizes:
        dim = result.tensor_type.shape.dim.add()
        if size is not None:
            dim.dim_value = size
    return result


def _merged(types: Sequence[Type], unknown: Type = None) -> Type:
    """What several types have in common; ``unknown`` where one of them is not known."""
    first = types[0]
    if first is None or any(each is None for each in types):
        return unknown
    for other in types[1:]:
        assert other is not None
        if first == other:
            continue
        kind = first.tensor_type.elem_type
        if first.WhichOneof("value") != "tensor_type" or kind != other.tensor_type.elem_type:
            return None
        one, two = _sizes(first), _sizes(other)
        same = one is not None and two is not None and len(one) == len(two)
        both = zip(one or (), two or (), strict=False)
        first = _typed(kind, [a if a == b else None for a, b in both] if same else None)
    return first


def _size(found: Type, axis: int) -> int | None:
    sizes = _sizes(found) if found is not None else None
    return sizes[axis] if sizes and -len(sizes) <= axis < len(sizes) else None


def _without_axis(found: Type, axis: int) -> Type:
    sizes = _sizes(found) if found is not None else None
    if found is None or not sizes or not -len(sizes) <= axis < len(sizes):
        return None
    sizes.pop(axis)
    return _typed(found.tensor_type.elem_type, sizes)


def _with_axis(found: Type, axis: int, size: int | None) -> Type:
    if found is None or found.WhichOneof("value") != "tensor_type":
        return None
    sizes = _sizes(found)
    if sizes is not None:
        sizes.insert(axis + len(sizes) + 1 if axis < 0 else axis, size)
    return _typed(found.tensor_type.elem_type, sizes)
