"""Small models for the tests of the pass ``clean``, and the check that it changed nothing it must not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from surgeon.graph.load import load
from surgeon.graph.save import to_model
from surgeon.passes import Context
from surgeon_passes.clean import Clean

GENERATOR = np.random.default_rng(0)


def draw(*shape, kind=np.float32):
    return GENERATOR.standard_normal(shape).astype(kind)


def norm_parameters(channels, name="n", kind=np.float32):
    return {
        f"{name}_scale": draw(channels, kind=kind),
        f"{name}_shift": draw(channels, kind=kind),
        f"{name}_mean": draw(channels, kind=kind),
        f"{name}_var": (np.abs(draw(channels)) + 0.1).astype(kind),
    }


def norm(source, target, name="n", **attributes):
    parameters = [f"{name}_{part}" for part in ("scale", "shift", "mean", "var")]
    return helper.make_node("BatchNormalization", [source, *parameters], [target], name=name, **attributes)


def model(nodes, constants, inputs, outputs, opset=17):
    """Inputs and outputs are name -> shape; a string entry of a shape is a symbolic dimension."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()],
    )
    built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(built)
    return built


def run(proto, feeds):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(proto.SerializeToString(), options).run(None, feeds)


def cleaned(proto, tmp_path, tolerance=1e-5, batch=3, **options):
    """Runs the pass, asserts that outputs and interface are the same, and returns the new model and the record."""
    path = Path(tmp_path) / "model.onnx"
    onnx.save(proto, path)
    graph, context = load(path), Context(source_path=path)
    after = to_model(Clean(**options).run(graph, context))
    onnx.checker.check_model(after)
    feeds = {
        value.name: draw(*[axis.dim_value or batch for axis in value.type.tensor_type.shape.dim])
        for value in proto.graph.input
    }
    for side in ("input", "output"):
        names = [[value.name for value in getattr(m.graph, side)] for m in (proto, after)]
        assert names[0] == names[1]
    for old, new in zip(run(proto, feeds), run(after, feeds), strict=True):
        assert np.abs(old - new).max() <= tolerance * max(1.0, np.abs(old).max())
    return after, context.record


def ops(proto):
    return [node.op_type for node in proto.graph.node]


def constant(proto, name):
    return next(numpy_helper.to_array(each) for each in proto.graph.initializer if each.name == name)
