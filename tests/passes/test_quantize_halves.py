"""Models in half precision are quantized as what they are in single precision, and keep their inputs and outputs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from quantizable import context_for

from surgeon.graph.halves import graphs_of
from surgeon.graph.load import from_model
from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session
from surgeon_passes.quantize import Quantize
from surgeon_passes.quantizing.widen import widened

INSIDE = (
    "net (float[N,3,8,8] x) => (float[N,40] y) { a = Cast <to = 10> (x)  c = Conv <pads = [1, 1, 1, 1]> (a, w)  r = Relu (c)"
    " p = ReduceMean <axes = [2, 3], keepdims = 0> (r)  m = MatMul (p, v)  y = Cast <to = 1> (m) }"
)
ENDS = (
    "net (float16[N,3,8,8] x) => (float16[N,64,8,8] c, float16[N,40] y) { c = Conv <pads = [1, 1, 1, 1]> (x, w)  r = Relu (c)"
    " p = ReduceMean <axes = [2, 3], keepdims = 0> (r)  y = MatMul (p, v) }"
)
CONSTANTS = (
    "net (float16[N,3,8,8] x) => (float16[N,40] y) { c = Conv <pads = [1, 1, 1, 1]> (x, w)  r = Relu (c)"
    " k = Constant <value = float[1] {0.5}> ()  q = Mul (r, k)  p = ReduceMean <axes = [2, 3], keepdims = 0> (q)"
    " s = Shape (p)  o = ConstantOfShape <value = float[1] {1.0}> (s)  n = Add (p, o)  y = MatMul (n, v) }"
)
BODY = (
    "net (float16[N,3,8,8] x) => (float16[N,40] y) { c = Conv <pads = [1, 1, 1, 1]> (x, w)"
    " t = ReduceSum <keepdims = 0> (x)  z = Constant <value = float {0.0}> ()  b = Greater (t, z)"
    " r = If (b) <then_branch = t1 () => (float16[N,3,8,8] i) { i = Abs (x) },"
    " else_branch = e1 () => (float16[N,3,8,8] j) { h = Constant <value = float[1] {0.25}> ()  j = Mul (x, h) }>"
    " d = Conv <pads = [1, 1, 1, 1]> (r, w)  q = Add (c, d)"
    " p = ReduceMean <axes = [2, 3], keepdims = 0> (q)  y = MatMul (p, v) }"
)
ODD_ENDS = (
    "net (float16[N,3,8,8] x) => (float16[N,3,8,8] x, float16[64,40] v, float16[N,40] y, float16[N,40] y)"
    " { [y_cast] c = Conv <pads = [1, 1, 1, 1]> (x, w)  [x_wide] r = Relu (c)"
    " p = ReduceMean <axes = [2, 3], keepdims = 0> (r)  y = MatMul (p, v) }"
)
TEXTS = {"inside": INSIDE, "ends": ENDS, "constants": CONSTANTS, "body": BODY, "odd ends": ODD_ENDS}


def _model(text: str) -> onnx.ModelProto:
    """The parser has no numbers of half precision: constants are given it here."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    for node in [node for graph in graphs_of(model.graph) for node in graph.node]:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                values = numpy_helper.to_array(attribute.t).astype(np.float16)
                attribute.t.CopyFrom(numpy_helper.from_array(values))
    random = np.random.default_rng(0)
    for name, shape in (("w", (64, 3, 3, 3)), ("v", (64, 40))):
        values = random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float16), name))
    return model


def _feeds(model: onnx.ModelProto, sign: float = 1.0) -> dict[str, np.ndarray]:
    kind = onnx.helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type)
    x = np.random.default_rng(1).standard_normal((16, 3, 8, 8)) + sign * 0.1
    return {"x": x.astype(kind)}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_widened_model_computes_the_same_but_for_rounding(name: str, sign: float) -> None:
    model = _model(TEXTS[name])
    wide = to_model(widened(from_model(model)))
    if name != "odd ends":  # of which the checker says it is not in SSA form, and onnxruntime nothing
        onnx.checker.check_model(wide, full_check=True)
    assert list(wide.graph.input) == list(model.graph.input)
    assert list(wide.graph.output) == list(model.graph.output)
    assert TensorProto.FLOAT16 not in {entry.data_type for entry in wide.graph.initializer}
    feeds = _feeds(model, sign)
    for before, after in zip(*(run(session(each), feeds) for each in (model, wide)), strict=True):
        assert before.dtype == after.dtype
        np.testing.assert_allclose(before.astype("f"), after.astype("f"), rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("mode", ["auto", "static", "dynamic", "weights"])
def test_half_precision_is_quantized(name: str, mode: str) -> None:
    model = _model(TEXTS[name])
    context = context_for(model)
    options = Quantize(mode=mode, guard=False)  # type: ignore[arg-type]  # one of its modes
    result = to_model(options.run(from_model(model), context))
    assert context.record["widened"] is True
    assert context.record["quantized"] or context.record["stored"]
    assert [info.type for info in result.graph.output] == [info.type for info in model.graph.output]
    feeds = _feeds(model)
    errors = []
    for before, after in zip(*(run(session(each), feeds) for each in (model, result)), strict=True):
        assert before.dtype == after.dtype
        difference = np.linalg.norm(before.astype("f") - after.astype("f"))
        errors.append(difference / np.linalg.norm(before.astype("f")))
    assert 0 < max(errors) < 0.1


@pytest.mark.parametrize("end", ["input", "output"])
def test_sequences_at_the_ends_leave_a_model_as_it_is(end: str) -> None:
    ends, body = {
        "input": ("seq(float16[N,4]) s, int64 i) => (float16[N,4] y", "y = SequenceAt (s, i)"),
        "output": ("float16[N,4] x) => (seq(float16[N,4]) s", "s = SequenceConstruct (x, x)"),
    }[end]
    graph = from_model(
        onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g ({ends}) {{ {body} }}')
    )
    assert widened(graph) is graph


def test_what_computes_in_single_precision_stays_the_same_graph() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => (float[N,4] y) { y = Relu (x) }'
    )
    graph = from_model(model)
    assert widened(graph) is graph
