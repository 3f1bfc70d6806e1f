"""The small evaluator agrees with onnxruntime, operator by operator."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from surgeon.graph.evaluate import ARITHMETIC, MOVEMENT, Call, evaluate
from surgeon.graph.load import from_model

INT = np.int64
F = np.float32
A = np.arange(24, dtype=INT).reshape(2, 3, 4)
B = np.array([[3, -5, 7], [2, 4, -1]], dtype=INT)


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=INT)


# operator text (inputs a, b, c, ...; outputs y, z), opset, inputs
CASES: dict[str, tuple[str, int, list[np.ndarray]]] = {
    "Div truncates": ("y = Div(a, b)", 17, [ints(7, -7, 7, -7), ints(2, 2, -2, -2)]),
    "Div of floats": ("y = Div(a, b)", 17, [np.array([7, 1], F), np.array([2, 3], F)]),
    "Mod": ("y = Mod(a, b)", 17, [ints(7, -7, 7, -7), ints(3, 3, -3, -3)]),
    "Mod like C": ("y = Mod <fmod = 1> (a, b)", 17, [ints(7, -7, 7, -7), ints(3, 3, -3, -3)]),
    "Add": ("y = Add(a, b)", 17, [B, ints(1, 2, 3)]),
    "Sub": ("y = Sub(a, b)", 17, [B, ints(1, 2, 3)]),
    "Mul": ("y = Mul(a, b)", 17, [B, ints(1, 2, 3)]),
    "Pow": ("y = Pow(a, b)", 17, [B, ints(2)]),
    "Neg": ("y = Neg(a)", 17, [B]),
    "Abs": ("y = Abs(a)", 17, [B]),
    "Sign": ("y = Sign(a)", 17, [B]),
    "Min": ("y = Min(a, b)", 17, [B, ints(1, 2, 3)]),
    "Max": ("y = Max(a, b)", 17, [B, ints(1, 2, 3)]),
    "Sum": ("y = Sum(a, b)", 17, [B.astype(F), np.ones(3, F)]),
    "Clip": ("y = Clip(a, b, c)", 17, [B, np.array(-2, INT), np.array(3, INT)]),
    "Clip before 11": ("y = Clip <min = -2.0, max = 3.0> (a)", 10, [B.astype(F)]),
    "Floor": ("y = Floor(a)", 17, [B.astype(F) / 2]),
    "Ceil": ("y = Ceil(a)", 17, [B.astype(F) / 2]),
    "Round": ("y = Round(a)", 17, [B.astype(F) / 2]),
    "Sqrt": ("y = Sqrt(a)", 17, [np.abs(B).astype(F)]),
    "Reciprocal": ("y = Reciprocal(a)", 17, [B.astype(F)]),
    "Equal": ("y = Equal(a, b)", 17, [B, ints(3, 4, -1)]),
    "Greater": ("y = Greater(a, b)", 17, [B, ints(3, 4, -1)]),
    "Less": ("y = Less(a, b)", 17, [B, ints(3, 4, -1)]),
    "GreaterOrEqual": ("y = GreaterOrEqual(a, b)", 17, [B, ints(3, 4, -1)]),
    "LessOrEqual": ("y = LessOrEqual(a, b)", 17, [B, ints(3, 4, -1)]),
    "Not": ("y = Not(a)", 17, [B > 0]),
    "And": ("y = And(a, b)", 17, [B > 0, B > 2]),
    "Or": ("y = Or(a, b)", 17, [B > 0, B > 2]),
    "Xor": ("y = Xor(a, b)", 17, [B > 0, B > 2]),
    "Cast": ("y = Cast <to = 7> (a)", 17, [np.array([1.9, -1.9, 0.2], F)]),
    "CastLike": ("y = CastLike(a, b)", 17, [np.array([1.9, -1.9], F), ints(0)]),
    "ReduceProd": ("y = ReduceProd <axes = [1], keepdims = 0> (a)", 17, [B]),
    "ReduceMax": ("y = ReduceMax <axes = [-1]> (a)", 17, [B]),
    "ReduceMin": ("y = ReduceMin(a)", 17, [B]),
    "ReduceSum": ("y = ReduceSum(a, b)", 17, [B, ints(0)]),
    "ReduceSum of nothing": ("y = ReduceSum <noop_with_empty_axes = 1> (a)", 17, [B]),
    "CumSum": ("y = CumSum(a, b)", 17, [B, np.array(1, INT)]),
    "CumSum exclusive": ("y = CumSum <exclusive = 1, reverse = 1> (a, b)", 17, [B, np.array(1, INT)]),
    "Identity": ("y = Identity(a)", 17, [B]),
    "Gather": ("y = Gather <axis = 1> (a, b)", 17, [B, ints(-1, 0)]),
    "Gather a scalar": ("y = Gather(a, b)", 17, [ints(5, 6), np.array(1, INT)]),
    "GatherElements": ("y = GatherElements <axis = 1> (a, b)", 17, [B, np.array([[0, -1], [1, 1]], INT)]),
    "GatherND": ("y = GatherND(a, b)", 17, [B, np.array([[0, 1], [1, -1]], INT)]),
    "Slice": ("y = Slice(a, b, c, d, e)", 17, [A, ints(-1, 0), ints(-9, 2**62), ints(1, 2), ints(-1, 2)]),
    "Slice without axes": ("y = Slice(a, b, c)", 17, [A, ints(1, 1), ints(5, -1)]),
    "Slice before 10": ("y = Slice <starts = [1], ends = [-1], axes = [2]> (a)", 9, [A.astype(F)]),
    "Concat": ("y = Concat <axis = -1> (a, b)", 17, [B, B]),
    "Unsqueeze": ("y = Unsqueeze(a, b)", 17, [B, ints(0, -1)]),
    "Unsqueeze before 13": ("y = Unsqueeze <axes = [1]> (a)", 11, [B]),
    "Squeeze": ("y = Squeeze(a, b)", 17, [B[None], ints(0)]),
    "Squeeze everything": ("y = Squeeze(a)", 17, [B[None]]),
    "Reshape": ("y = Reshape(a, b)", 17, [A, ints(0, -1)]),
    "Flatten": ("y = Flatten <axis = -1> (a)", 17, [A]),
    "Transpose": ("y = Transpose <perm = [2, 0, 1]> (a)", 17, [A]),
    "Transpose reversed": ("y = Transpose(a)", 17, [A]),
    "Expand": ("y = Expand(a, b)", 17, [B[:, None], ints(4, 1, 1, 3)]),
    "Tile": ("y = Tile(a, b)", 17, [B, ints(2, 1)]),
    "Split": ("y, z = Split <axis = 1> (a, b)", 17, [A, ints(1, 2)]),
    "Split evenly": ("y, z = Split <axis = 2> (a)", 17, [A]),
    "Split unevenly": ("y, z = Split <axis = 1, num_outputs = 2> (a)", 18, [A]),
    "Trilu": ("y = Trilu(a, b)", 17, [A, np.array(1, INT)]),
    "Trilu lower": ("y = Trilu <upper = 0> (a)", 17, [A]),
    "Where": ("y = Where(a, b, c)", 17, [B > 0, B, ints(0)]),
    "ScatterND": ("y = ScatterND(a, b, c)", 17, [ints(1, 2, 3, 4), np.array([[0], [2]], INT), ints(8, 9)]),
    "ScatterElements": (
        "y = ScatterElements <axis = 1> (a, b, c)",
        17,
        [B, np.array([[-1]], INT), np.array([[9]], INT)],
    ),
    "Range": ("y = Range(a, b, c)", 17, [np.array(10, INT), np.array(3, INT), np.array(-3, INT)]),
    "Range of floats": ("y = Range(a, b, c)", 17, [np.array(v, F) for v in (0, 1, 0.3)]),
    "ConstantOfShape": ("y = ConstantOfShape <value = int64[1] {7}> (a)", 17, [ints(2, 3)]),
    "ConstantOfShape of zeros": ("y = ConstantOfShape(a)", 17, [ints(2)]),
    "OneHot": ("y = OneHot <axis = 0> (a, b, c)", 17, [ints(1, -1, 7), ints(4), ints(2, 5)]),
    "NonZero": ("y = NonZero(a)", 17, [B > 2]),
}


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_onnxruntime(name: str, run) -> None:
    text, opset, inputs = CASES[name]
    names = "abcde"[: len(inputs)]
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}]> net (float q) => (float y) {{ {text} }}'
    )
    del model.graph.input[:], model.graph.output[:]
    for letter, array in zip(names, inputs, strict=True):
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        model.graph.input.append(onnx.helper.make_tensor_value_info(letter, kind, array.shape))
    model.graph.output.extend(onnx.ValueInfoProto(name=output) for output in model.graph.node[0].output)
    expected = run(onnx.shape_inference.infer_shapes(model), **dict(zip(names, inputs, strict=True)))

    node = from_model(model).nodes[0]
    found = evaluate(Call(node.op, node.attrs, inputs, len(node.outputs)))
    assert found is not None
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == theirs.dtype
        assert mine.shape == theirs.shape
        np.testing.assert_array_equal(mine, theirs)


def test_every_function_has_a_case() -> None:
    covered = {text.split("(")[0].split("=")[1].split("<")[0].strip() for text, _, _ in CASES.values()}
    assert covered == set(ARITHMETIC) | set(MOVEMENT)


@pytest.mark.parametrize(
    "call",
    [
        Call("Gather", {}, [ints(1, 2), ints(5)]),
        Call("Reshape", {}, [ints(1, 2), ints(3)]),
        Call("Div", {}, [ints(1), ints(0)]),
        Call("Concat", {"axis": 3}, [ints(1), ints(2)]),
        Call("Softmax", {}, [np.ones(2, F)]),
        Call("Add", {}, [ints(1), None]),
    ],
)
def test_what_cannot_be_computed_has_no_value(call: Call) -> None:
    assert evaluate(call) is None
