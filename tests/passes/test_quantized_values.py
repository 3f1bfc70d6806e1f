"""The passes gptq and correct_bias, and what quantize does with them by default."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper as nh
from passes.test_quantize import context_for, difference, network, quantized

import surgeon
from surgeon.errors import UsageError
from surgeon.graph.load import from_model
from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session, with_outputs
from surgeon.passes import Context
from surgeon.refit.correct import correct_biases as correct
from surgeon.stats.data import graph_inputs
from surgeon.stats.synthetic import synthetic, synthetic_dataset
from surgeon_passes.correct_bias import CorrectBias
from surgeon_passes.gptq import Gptq
from surgeon_passes.learn_rounding import LearnRounding
from surgeon_passes.quantize import Quantize

PLAIN = {"rounding": "nearest", "correct_bias": False, "guard": False}


def integers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {e.name: nh.to_array(e) for e in model.graph.initializer if e.name.endswith("_quantized")}


def kernels(model: onnx.ModelProto, path: Path) -> dict[str, int]:
    """How often onnxruntime runs which operator."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    counts: dict[str, int] = {}
    for node in onnx.load(path).graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts


def test_quantize_does_both_and_each_can_be_switched_off() -> None:
    model = network()
    results = {}
    for rounding, bias in (("nearest", False), ("nearest", True), ("gptq", False), ("gptq", True)):
        context = context_for(model)
        results[rounding, bias] = quantized(model, context, rounding=rounding, correct_bias=bias)
        assert ("rounding" in context.record) == (rounding == "gptq")
        assert ("biases" in context.record) == bias
    weights = {key: integers(each)["w2_quantized"] for key, each in results.items()}
    assert np.array_equal(weights["nearest", False], weights["nearest", True])
    assert not np.array_equal(weights["nearest", False], weights["gptq", False])
    assert np.array_equal(weights["gptq", False], weights["gptq", True])
    assert np.abs(weights["gptq", True].astype(int)).max() <= 127
    default = quantized(model, context_for(model))
    assert default.SerializeToString() == results["nearest", True].SerializeToString()


@pytest.mark.parametrize(("asked", "taken"), [(None, 512), (700, 512), (100, 100)])
def test_biases_take_512_samples_at_most(monkeypatch, asked: int | None, taken: int) -> None:
    model = network()
    context = context_for(model)
    context.data = synthetic_dataset(graph_inputs(from_model(model)), seed=1, samples=800)
    read = []

    def spy(graph, reference, feeds, **options):
        kept = list(feeds)
        read.append(sum(len(each["x"]) for each in kept))
        return correct(graph, reference, kept, **options)

    monkeypatch.setattr("surgeon.refit.correct.correct_biases", spy)
    quantized(model, context, guard=False, **({} if asked is None else {"samples": asked}))
    assert read == [taken]
    assert context.record["samples"] == (asked or 512)


def test_passes_after_quantize_do_the_same_as_quantize() -> None:
    model = network()
    inside = quantized(model, context_for(model), rounding="gptq")
    context = context_for(model)
    graph = Quantize(**PLAIN).run(from_model(model), context)  # type: ignore[arg-type]  # options vary
    plain = to_model(graph)
    for each in (Gptq(), CorrectBias()):
        context.record = {}
        graph = each.run(graph, context)
    outside = to_model(graph)
    feeds = synthetic(graph_inputs(from_model(model)), seed=9, batch=4)
    ours, theirs = (run(session(each), feeds)[0] for each in (inside, outside))
    assert np.array_equal(integers(inside)["w1_quantized"], integers(outside)["w1_quantized"])
    assert np.array_equal(ours, theirs)
    assert not np.array_equal(integers(plain)["w1_quantized"], integers(outside)["w1_quantized"])


def test_the_kernels_stay_integer_ones(tmp_path: Path) -> None:
    plain = quantized(network(), context_for(network()), **PLAIN)
    better = quantized(network(), context_for(network()), rounding="gptq")
    before, after = (kernels(each, tmp_path / "optimized.onnx") for each in (plain, better))
    assert after == before
    assert [after["QLinearConv"], after["QGemm"]] == [2, 1]
    second = next(node for node in better.graph.node if node.name == "second")
    assert len(second.input) == 3  # it had no bias


def test_the_report() -> None:
    context = context_for(network())
    quantized(network(), context, rounding="gptq")
    for key in ("rounding", "biases"):
        found = context.record[key]
        assert [each["node"] for each in found["operators"]] == ["first", "second", "head"]  # type: ignore[index]
        assert all(each["error_after"] <= each["error_before"] for each in found["operators"])  # type: ignore[index]
        assert found["left"] == []  # type: ignore[index]


def test_a_model_from_elsewhere_needs_its_original(tmp_path: Path) -> None:
    model = network()
    plain = quantized(model, context_for(model), **PLAIN)
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    onnx.save(model, tmp_path / "float.onnx")
    for each in (Gptq, CorrectBias):
        with pytest.raises(UsageError, match="the float model that this one was made of is not known"):
            each().run(from_model(plain), context_for(model))
    context = context_for(model)
    graph = from_model(plain)
    for each in (Gptq, CorrectBias):
        graph = each(original=str(tmp_path / "float.onnx")).run(graph, context)
    assert np.array_equal(
        integers(to_model(graph))["w2_quantized"],
        integers(quantized(model, context_for(model), rounding="gptq"))["w2_quantized"],
    )


def test_through_the_pipeline(tmp_path: Path) -> None:
    data = synthetic(graph_inputs(from_model(network())), seed=1, batch=64)
    passes = "quantize{rounding=nearest correct_bias=false guard=false},gptq,correct_bias"
    result = surgeon.run(network(), passes, data=data, seed=0, force=True)
    names = [each["name"] for each in result.report["passes"]]
    assert names[-3:] == ["quantize", "gptq", "correct_bias"]
    assert result.report["passes"][-2]["changed"]
    with pytest.raises(UsageError, match="needs a model that is 'qdq'"):
        surgeon.run(network(), "gptq", data=data)


def test_learned_rounding() -> None:
    model = network()
    context = context_for(model)
    graph = Quantize(**PLAIN).run(from_model(model), context)  # type: ignore[arg-type]  # options vary
    before = integers(to_model(graph))
    context.record = {}
    after = integers(to_model(LearnRounding(steps=20, rate=0.05).run(graph, context)))
    found = context.record["learned"]
    assert [each["block"] for each in found["blocks"] if each["kept"]]  # type: ignore[index]
    assert all(each["error_after"] <= each["error_before"] for each in found["blocks"])  # type: ignore[index]
    weights = [name for name in before if name.startswith("w")]
    assert found["changed"] == sum(int((before[name] != after[name]).sum()) for name in weights) > 0  # type: ignore[index]
    assert found["of"] == sum(before[name].size for name in weights)  # type: ignore[index]
    context = context_for(model)
    quantized(model, context, rounding="learned")
    assert {"rounding", "learned", "biases"} <= context.record.keys()
    for options in ({"steps": 0}, {"rate": 0.0}, {"batch": 0}):
        with pytest.raises(UsageError, match=r"learn_rounding\."):
            LearnRounding(**options)  # type: ignore[arg-type]  # options vary


def test_nothing_to_round_is_said() -> None:
    model = network()
    context = context_for(model)
    context.unrounded = from_model(model)
    Gptq().run(from_model(model), context)
    assert context.warnings == ["no weights were rounded anew: first: its weight is not rounded"]


def test_exclusions() -> None:
    model = network()
    context = context_for(model, exclude=("first",))
    graph = Quantize(**PLAIN).run(from_model(model), context_for(model))  # type: ignore[arg-type]  # options vary
    context.unrounded = from_model(model)
    before = integers(to_model(graph))["w1_quantized"]
    after = integers(to_model(Gptq(exclude=("head",)).run(graph, context)))
    assert np.array_equal(after["w1_quantized"], before)
    left = context.record["rounding"]["left"]  # type: ignore[index]
    assert {each["node"]: each["reason"] for each in left} == {"first": "excluded", "head": "excluded"}


@pytest.mark.parametrize(
    ("options", "message"),
    [({"samples": 0}, "gptq.samples"), ({"memory": 0}, "gptq.memory"), ({"sweeps": -1}, "gptq.sweeps")],
)
def test_options_are_checked(options: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Gptq(**options)  # type: ignore[arg-type]  # options vary
    with pytest.raises(UsageError, match=r"correct_bias\.samples"):
        CorrectBias(samples=0)
    with pytest.raises(UsageError, match=r"quantize\.memory"):
        Quantize(memory=0)


@pytest.mark.parametrize("samples", [32, 64])
def test_the_mean_error_goes_into_the_bias(samples: int) -> None:
    """Of as many samples as are held at once all but a step of the bias, of more of them most of it."""
    model = network()

    def context() -> Context:
        result = context_for(model)
        result.data = result.calibration().take(samples)
        return result

    feeds = [feeds for feeds, _ in context().calibration()]
    made = quantized(model, context(), rounding="nearest")
    plain = quantized(model, context(), **PLAIN)

    def heads(each: onnx.ModelProto) -> np.ndarray:
        runner = session(with_outputs(each, ["g"]), optimize=False)
        return np.concatenate([run(runner, batch)[-1] for batch in feeds])

    before, after = (np.abs((heads(each) - heads(model)).mean(axis=0)) for each in (plain, made))
    makers = {output: node for node in made.graph.node for output in node.output}
    values = {e.name: nh.to_array(e) for e in made.graph.initializer}
    head = next(node for node in made.graph.node if node.name == "head")
    step = values[makers[head.input[2]].input[1]]
    assert before.max() > 5 * step.max()
    if samples == 32:
        assert (after < step).all()
    assert after.max() < before.max() / 10


def test_what_the_model_computes_is_what_its_integers_say() -> None:
    """Rounding, clipping and sums written out in numpy."""
    model = network()
    result = quantized(model, context_for(model))
    feeds = synthetic(graph_inputs(from_model(model)), seed=9, batch=4)
    values = {e.name: nh.to_array(e) for e in result.graph.initializer} | feeds
    for node in result.graph.node:
        given = [values[name] for name in node.input]
        values[node.output[0]] = _SIMULATED[node.op_type](node, *given)
    assert np.allclose(run(session(result), feeds)[0], values["y"], atol=2e-3)
    assert difference(model, result) < 0.1


def _quantize(node, x, scale, zero):
    limits = np.iinfo(zero.dtype)
    return np.clip(np.rint(x / scale) + zero.astype(int), limits.min, limits.max).astype(zero.dtype)


def _dequantize(node, x, scale, zero=None):
    zero = np.zeros_like(scale) if zero is None else zero
    shape = [-1, *[1] * (x.ndim - 1)] if scale.size > 1 else [1] * x.ndim
    return (x.astype(np.float32) - zero.astype(np.float32).reshape(shape)) * scale.reshape(shape)


def _convolve(node, x, w, b):
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    seen = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    return np.einsum("ncijkl,ockl->noij", seen, w) + b[:, None, None]


_SIMULATED = {
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "Conv": _convolve,
    "Add": lambda node, a, b: a + b,
    "GlobalAveragePool": lambda node, x: x.mean(axis=(2, 3), keepdims=True),
    "Flatten": lambda node, x: x.reshape(len(x), -1),
    "Gemm": lambda node, x, w, b: x @ w.T + b,
    "Softmax": lambda node, x: np.exp(x) / np.exp(x).sum(axis=1, keepdims=True),
}
