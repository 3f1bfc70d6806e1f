"""Checks that a view computes what onnxruntime computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from surgeon.analysis import Analysis, solve
from surgeon.graph.load import from_model
from surgeon.ops import Op
from surgeon.stats.bias import read_bias, write_bias
from surgeon.stats.linear import Linear, linear_views
from surgeon.stats.weight import weight_values


def analysed(model: onnx.ModelProto) -> Analysis:
    return solve(from_model(model))


def values(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def tensors(model: onnx.ModelProto, **feeds: np.ndarray) -> dict[str, np.ndarray]:
    """All tensors of a model, as onnxruntime computes them."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {each.name for each in copy.graph.output}
    for node in copy.graph.node:
        for name in node.output:
            if name and name not in known:
                copy.graph.output.add(name=name)
    names = [each.name for each in copy.graph.output]
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    runner = ort.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return {**feeds, **dict(zip(names, runner.run(None, feeds), strict=True))}


def operator(found: Analysis, kind: str) -> Op:
    return next(op for op in found.ops if op.node.op == kind)


def nodes_of(found: Analysis) -> dict[str, Any]:
    return {node.outputs[0].name: node for node in found.graph.nodes}


def check(
    model: onnx.ModelProto, kind: str, *, output: str = "y", tolerance: float = 1e-4, **feeds: np.ndarray
) -> Linear:
    """The only view of the operator of this kind: its product plus bias is the tensor, at all and at some places."""
    found = analysed(model)
    (view,) = linear_views(operator(found, kind))
    assert view.output == output
    known = tensors(model, **feeds)
    check_view(found, view, known, tolerance)
    node, y = view.op.node, known[output]
    groups = view.groups(node)
    matrices = view.matrices(node, weight_values(node.inputs[view.weight]))
    per_channel = 1 if view.channel_axis is None else y.shape[view.channel_axis]
    along = int(np.prod([y.shape[axis] for axis in view.group_axes], dtype=int))
    assert per_channel * along == groups * matrices.shape[2]
    assert view.count(known.__getitem__) * per_channel * along == y.size
    return view


def check_view(found: Analysis, view: Linear, known: dict[str, np.ndarray], tolerance: float = 1e-4) -> None:
    """What holds for every view, given all tensors of the original."""
    node, nodes = view.op.node, nodes_of(found)
    weight = weight_values(node.inputs[view.weight])
    matrices = view.matrices(node, weight)
    groups, inputs, outputs = matrices.shape
    assert groups == view.groups(node)
    assert matrices.dtype == weight.dtype
    again = view.weights(matrices, weight.shape)
    np.testing.assert_array_equal(again, weight)
    assert again.dtype == weight.dtype
    read, target_read = ({name: known[name] for name in names} for names in (view.reads, view.target_reads))
    count = view.count(read.__getitem__)
    some = np.sort(np.random.default_rng(0).choice(count, max(count // 3, 1), replace=False))
    bias = read_bias(view, nodes)
    assert bias.shape == (groups, 1, outputs)
    for places in (np.arange(count), some):
        rows = view.rows(node, read.__getitem__, places)
        target = view.target(node, target_read.__getitem__, places)
        assert rows.shape == (groups, len(places), inputs)
        assert target.shape == (groups, len(places), outputs)
        assert rows.dtype == weight.dtype
        product = rows.astype(np.float64) @ matrices.astype(np.float64) + bias
        np.testing.assert_allclose(product, target, rtol=tolerance, atol=tolerance)
    if view.bias is not None:
        check_bias(found, view, bias)


def check_bias(found: Analysis, view: Linear, bias: np.ndarray) -> None:
    """A bias that is written is read again, and the graph has it at a place of the right shape."""
    nodes = nodes_of(found)
    other = np.random.default_rng(3).standard_normal(bias.shape)
    given = [*nodes[view.bias.node].inputs]
    write_bias(view, nodes, other)
    np.testing.assert_allclose(read_bias(view, nodes), other, rtol=1e-2, atol=1e-2)
    list.clear(nodes[view.bias.node].inputs)
    nodes[view.bias.node].inputs.extend(given)
