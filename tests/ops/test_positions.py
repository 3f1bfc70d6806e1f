"""Operators for which positions have a meaning, and a decision about every standard operator."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from ops.oracle import build, check, check_cut, drop, features, only, reasons, solved

from surgeon.ops import RULES

# what becomes a constant when a model is loaded
NOT_NODES = {"Constant"}


def test_every_standard_operator_is_decided():
    known = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    assert known - {rule.name for rule in RULES if rule.domain == ""} - NOT_NODES == set()


def around(middle: str, weights=None, *, outputs="float[N,7,3] y", result: int = 12):
    """``middle`` makes ``b`` of ``a`` ``[N, 7, 12]``."""
    text = f"a = MatMul (x, w_in)\n{middle}\ny = MatMul (b, w_out)"
    every = {"w_in": (5, 12), **(weights or {}), "w_out": (result, 3)}
    return build("float[N,7,5] x", outputs, text, every)


WHOLE = {
    "Unique": "q, i, j, k = Unique <axis=2> (a)",
    "Multinomial": "f = Flatten (a)\nq = Multinomial <sample_size=2, seed=0.0> (f)",
    "Bernoulli": "q = Bernoulli <seed=0.0> (a)",
    "RandomNormalLike": "q = RandomNormalLike <seed=0.0> (a)",
    "RandomUniformLike": "q = RandomUniformLike <seed=0.0> (a)",
    "NegativeLogLikelihoodLoss": "t = Transpose <perm=[0,2,1]> (a)\nq = NegativeLogLikelihoodLoss (t, classes)",
    "SoftmaxCrossEntropyLoss": "t = Transpose <perm=[0,2,1]> (a)\nq = SoftmaxCrossEntropyLoss (t, classes)",
    "EyeLike": "f = Flatten <axis=2> (a)\nq = EyeLike (f)",
    "NonMaxSuppression": "q = NonMaxSuppression (boxes, a)",
}


@pytest.mark.parametrize("op", WHOLE)
def test_nothing_can_go(op):
    weights = {"w_in": (5, 12), "classes": np.zeros((2, 7), np.int64), "boxes": (2, 12, 4)}
    model = build("float[2,7,5] x", "float[2,7,12] a", f"a = MatMul (x, w_in)\n{WHOLE[op]}", weights)
    del model.graph.output[:]
    last = model.graph.node[-1].output[0]
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(last))
    found = solved(model)
    assert found.groups == []
    assert op in reasons(found)


@pytest.mark.parametrize("op", ["RandomNormal", "RandomUniform"])
def test_random_constants(op):
    """They do not hold what they are added to free, since others would be drawn."""
    found = solved(around(f"r = {op} <shape=[12], seed=1.0> ()\nb = Add (a, r)"))
    assert found.groups == []
    assert "other random numbers" in reasons(found)


@pytest.mark.parametrize("op", ["HannWindow", "HammingWindow", "BlackmanWindow"])
def test_windows(op):
    found = solved(around(f"r = {op} (n)\nb = Mul (a, r)", {"n": np.int64(12)}))
    assert found.groups == []


def test_a_table_of_frequencies():
    body = "m = MelWeightMatrix (n, l, r, f, t)\nb = MatMul (a, m)"
    weights = {
        "n": np.int64(4),
        "l": np.int64(22),
        "r": np.int64(8000),
        "f": np.float32(0),
        "t": np.float32(4000),
    }
    assert solved(around(body, weights, result=4)).groups == []


BARRIERS = {
    "SequenceConstruct": ("s = SequenceConstruct (a, a)\nq = SequenceAt (s, zero)", "SequenceAt"),
    "SplitToSequence": (
        "s = SplitToSequence <axis=2> (a, four)\nq = ConcatFromSequence <axis=2> (s)",
        "ConcatFromSequence",
    ),
    "Optional": ("s = Optional (a)\nq = OptionalGetElement (s)", "OptionalGetElement"),
    "SequenceInsert": (
        "r = SequenceEmpty ()\ns = SequenceInsert (r, a)\nt = SequenceErase (s)\nn = SequenceLength (s)\nq = SequenceAt (s, zero)",
        "",
    ),
    "SequenceMap": ("s = SequenceConstruct (a, a)\nq = SequenceAt (s, zero)", ""),
}


@pytest.mark.parametrize("op", BARRIERS)
def test_sequences_are_barriers_that_say_why(op):
    body, _ = BARRIERS[op]
    weights = {"w_in": (5, 12), "zero": np.int64(0), "four": np.int64(4)}
    found = solved(build("float[2,7,5] x", "float[2,7,12] q", f"a = MatMul (x, w_in)\n{body}", weights))
    assert found.groups == []
    assert "sequence of tensors" in reasons(found) or "may be missing" in reasons(found)


STRINGS = ["StringNormalizer", "StringConcat", "StringSplit", "RegexFullMatch", "ImageDecoder"]


@pytest.mark.parametrize("op", [*STRINGS, "SequenceMap", "OptionalHasElement", "TfIdfVectorizer"])
def test_what_is_no_tensor_of_numbers_has_a_reason(op):
    assert RULES.find(op, "", 21).function.__name__ in ("unknown", "whole")


def test_determinants_of_matrices():
    body = """
    a = MatMul (x, w_in)
    t = Transpose <perm=[2,0,1]> (a)
    d = Det (t)
    y = MatMul (d, w_out)
    """
    check(build("float[7,7,5] x", "float[3] y", body, {"w_in": (5, 12), "w_out": (12, 3)}), [12])


@pytest.mark.parametrize("opset", [17, 20])
def test_transform_of_one_axis(opset):
    call = "DFT <axis=1> (u)" if opset == 17 else "DFT (u, , one)"
    body = f"""
    a = MatMul (x, w_in)
    u = Unsqueeze (a, last)
    f = {call}
    m = ReduceL2 <keepdims=0{", axes=[-1]" if opset == 17 else ""}> (f{"" if opset == 17 else ", last"})
    y = MatMul (m, w_out)
    """
    weights = {"w_in": (5, 12), "last": np.int64([-1]), "one": np.int64(1), "w_out": (12, 3)}
    check(build("float[N,7,5] x", "float[N,7,3] y", body, weights, opset=opset), [12])


def test_frames_of_a_signal():
    """The signal stays, whatever comes of it."""
    body = """
    a = MatMul (x, w_in)
    s = STFT (a, step, window)
    q = ReduceL2 <keepdims=0> (s, last)
    y = MatMul (q, w_out)
    """
    weights = {
        "w_in": (16, 20),
        "step": np.int64(4),
        "window": np.ones(8, np.float32),
        "last": np.int64([-1]),
        "w_out": (5, 3),
    }
    text = "float[N,16] x", "float[N,4,3] y"
    body = body.replace("STFT (a", "STFT (u").replace("s = STFT", "u = Unsqueeze (a, last)\n    s = STFT")
    found = solved(build(*text, body, weights))
    assert found.groups == []
    assert "a signal" in reasons(found)


def test_sequences_turned_around():
    body = """
    t = Transpose <perm=[1,0,2]> (a)
    r = ReverseSequence (t, lengths)
    b = Transpose <perm=[1,0,2]> (r)
    """
    text = f"a = MatMul (x, w_in)\n{body}\ny = MatMul (b, w_out)"
    weights = {"w_in": (5, 12), "w_out": (12, 3)}
    check(build("float[2,7,5] x", "float[2,7,3] y", text, {**weights, "lengths": np.int64([5, 7])}), [12])
    check(build("float[N,T,5] x, int64[N] lengths", "float[N,T,3] y", text, weights), [12])


def test_flags_select_positions():
    body = "m = Compress <axis=1> (a, flags)\nb = ReduceSum (m, one)"
    weights = {"flags": np.arange(7) % 3 != 1, "one": np.int64([1])}
    text = f"a = MatMul (x, w_in)\n{body}\ny = MatMul (b, w_out)"
    model = build("float[N,7,5] x", "float[N,1,3] y", text, {"w_in": (5, 12), **weights, "w_out": (12, 3)})
    check(model, [12])
    found = solved(features("b = Compress <axis=2> (a, m)", 8, {"m": np.arange(12) % 3 != 1}))
    assert found.groups == []


def test_selected_from_the_flat_tensor():
    middle = "c = Compress (a, m)\nb = Expand (c, shape)"
    flags = np.arange(84) % 2 == 0
    found = solved(features(middle, 42, {"m": flags, "shape": np.int64([1, 7, 42])}))
    assert found.groups == []


def test_a_cache_that_is_written():
    body = """
    a = MatMul (x, w_in)
    c = TensorScatter <axis=1> (cache, a, at)
    y = MatMul (c, w_out)
    """
    weights = {"w_in": (5, 12), "cache": (2, 9, 12), "at": np.int64([0, 2]), "w_out": (12, 3)}
    found = check(build("float[2,7,5] x", "float[2,9,3] y", body, weights, opset=24), [12])
    smaller = check_cut(found, {found.groups[0].id: drop(12, 0)})
    assert tuple(only(smaller, "TensorScatter").inputs[0].shape) == (2, 9, 11)


def test_bits_read_as_another_type():
    middle = "i = BitCast <to=6> (a)\nb = BitCast <to=1> (i)"
    check(features(middle, 12, opset=26), [12])


def test_gates():
    """onnxruntime has no kernel for it yet, so the axes are all there is to check."""
    middle = "c = MatMul (x, w2)\nb = SwiGLU (a, c)"
    found = solved(features(middle, 12, {"w2": (5, 12)}, opset=28))
    assert [group.size for group in found.groups] == [12]
