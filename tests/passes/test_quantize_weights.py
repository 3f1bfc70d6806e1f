"""The mode weights: blocks as onnxruntime reads them, weights that become floats at loading, and what stays as it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper as nh

from surgeon.errors import GateError, UsageError
from surgeon.graph.load import from_model, load
from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session
from surgeon.passes import Context
from surgeon.stats.data import graph_inputs
from surgeon.stats.synthetic import synthetic, synthetic_dataset
from surgeon_passes.quantize import Quantize
from surgeon_passes.quantizing.blocks import in_blocks, pack
from surgeon_passes.quantizing.weights import Storage, store_weights


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def model_of(nodes, inputs, output, weights, opset: int = 17) -> onnx.ModelProto:
    graph = oh.make_graph(
        nodes,
        "g",
        [oh.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs],
        [oh.make_tensor_value_info(*output)],
        [nh.from_array(value, name) for name, value in weights.items()],
    )
    return oh.make_model(graph, ir_version=8, opset_imports=[oh.make_opsetid("", opset)])


def stored(model: onnx.ModelProto, **options) -> tuple[onnx.ModelProto, dict]:
    inputs = graph_inputs(from_model(model))
    context = Context(Path("m.onnx"), inputs=tuple(inputs))
    if options.get("mode") == "auto":
        context.data = synthetic_dataset(inputs, seed=1, samples=16)
    options = {"mode": "weights", "guard": False, **options}
    result = to_model(Quantize(**options).run(from_model(model), context))
    return result, context.record


def outputs(model: onnx.ModelProto, feeds) -> np.ndarray:
    return run(session(model), feeds)[0]


def unpack_by_hand(values: np.ndarray, count: int) -> np.ndarray:
    """Two numbers from every byte, the low half first."""
    flat = []
    for byte in values.tolist():
        flat += [byte % 16, byte // 16]
    return np.array(flat[:count])


@given(st.integers(1, 40), st.integers(0, 9))
def test_two_steps_in_a_byte(length: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 16, length).astype(np.uint8)
    packed = pack(values, 4)
    assert packed.shape == (-(-length // 2),)
    assert unpack_by_hand(packed, length).tolist() == values.tolist()


@given(st.sampled_from([4, 8]), st.booleans(), st.integers(1, 70), st.integers(0, 9))
def test_no_number_is_further_from_its_step_than_a_plain_grid_allows(
    bits: int, symmetric: bool, length: int, seed: int
) -> None:
    rows = normal(3, length, seed=seed)
    found = in_blocks(rows, 16, bits, symmetric=symmetric)
    padded = np.zeros((3, -(-length // 16) * 16), np.float32)
    padded[:, :length] = rows
    blocks = padded.reshape(3, -1, 16)
    if symmetric:
        steps = np.abs(blocks).max(-1) / 2 ** (bits - 1)
        # the number furthest from zero has a step of its own, its opposite would be one step too far
        worst = 16 * steps**2
    else:
        steps = (np.maximum(blocks.max(-1), 0) - np.minimum(blocks.min(-1), 0)) / (2**bits - 1)
        worst = 16 * steps**2
    errors = np.zeros_like(padded)
    errors[:, :length] = found.numbers(length) - rows
    assert (np.sum(errors.reshape(blocks.shape) ** 2, -1) <= worst + 1e-9).all()


def test_fitted_scales_are_better_than_those_of_the_largest_number() -> None:
    rows = normal(64, 256)
    largest = np.take_along_axis(
        rows.reshape(64, 8, 32), np.abs(rows.reshape(64, 8, 32)).argmax(-1)[..., None], -1
    )
    scales = largest / -8
    plain = np.clip(np.rint(rows.reshape(64, 8, 32) / scales), -8, 7) * scales
    error = np.sum((plain.reshape(64, 256) - rows) ** 2)
    assert np.sum((in_blocks(rows, 32, 4, symmetric=True).numbers(256) - rows) ** 2) < 0.95 * error


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("size", [1e-45, 1e-43, 1e-39])
def test_numbers_too_small_for_a_scale_count_as_zeros(size: float, symmetric: bool) -> None:
    rows = np.full((2, 16), size, np.float32)
    rows[1, ::2] = 1.0
    with np.errstate(divide="raise", invalid="raise"):
        found = in_blocks(rows, 16, 8, symmetric=symmetric).numbers(16)
    assert np.abs(found - rows).max() <= 1 / 255
    assert np.abs(found[0]).max() <= 2 * size


def test_what_fits_the_grid_is_kept_exactly() -> None:
    mask = np.where(np.tri(64, dtype=bool), 0, -1e9).astype(np.float32)
    assert (in_blocks(mask, 64, 8, symmetric=True).numbers(64) == mask).all()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("shape", [(160,), (3, 160), (2, 3, 160), (2, 2, 3, 160)])
def test_onnxruntime_reads_blocks_as_they_are_meant(bits: int, symmetric: bool, shape) -> None:
    weight = normal(160, 136)
    model = model_of(
        [oh.make_node("MatMul", ["x", "w"], ["y"], name="m")],
        [("x", 1, list(shape))],
        ("y", 1, None),
        {"w": weight},
    )
    result, record = stored(model, bits=bits, symmetric=symmetric)
    assert [node.op_type for node in result.graph.node] == ["MatMulNBits"]
    assert record["quantized"] == {"MatMul": 1}
    x = normal(*shape, seed=3)
    meant = in_blocks(np.ascontiguousarray(weight.T), 32, bits, symmetric=symmetric).numbers(160).T
    ours = outputs(result, {"x": x})
    assert ours.shape == (x @ weight).shape
    # activations are rounded to 8 bits per block inside the kernel
    assert np.linalg.norm(ours - x @ meant) < 0.01 * np.linalg.norm(x @ meant)
    assert len(result.SerializeToString()) < len(model.SerializeToString()) * (0.2 if bits == 4 else 0.35)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_gemm_is_a_product_and_a_sum(bits: int, transposed: int, alpha: float) -> None:
    weight, bias = normal(192, 128), normal(128)
    model = model_of(
        [oh.make_node("Gemm", ["x", "w", "b"], ["y"], name="m", transB=transposed, alpha=alpha)],
        [("x", 1, ["N", 192])],
        ("y", 1, ["N", 128]),
        {"w": weight.T.copy() if transposed else weight, "b": bias},
    )
    result, _ = stored(model, bits=bits)
    assert [node.op_type for node in result.graph.node] == ["MatMulNBits", "Add"]
    x = normal(5, 192, seed=3)
    want = alpha * (x @ weight) + bias
    assert np.linalg.norm(outputs(result, {"x": x}) - want) < (0.12 if bits == 4 else 0.015) * np.linalg.norm(
        want
    )


def test_small_products_are_computed_with_folded_weights() -> None:
    model = model_of(
        [oh.make_node("MatMul", ["x", "w"], ["y"], name="m")],
        [("x", 1, ["N", 48])],
        ("y", 1, ["N", 48]),
        {"w": normal(48, 48)},
    )
    result, record = stored(model)
    assert [node.op_type for node in result.graph.node] == ["Cast", "Mul", "MatMul"]
    assert record["stored"] == {"MatMul": 1}
    optimized = session(result)
    assert optimized is not None


OPERATORS = {
    "Conv": (["x", "w"], [1, 16, 9, 9], {"w": (24, 16, 3, 3)}, {}),
    "ConvTranspose": (["x", "w"], [1, 16, 9, 9], {"w": (16, 12, 3, 3)}, {"group": 2}),
    "LSTM": (["x", "w", "r"], [5, 2, 24], {"w": (1, 64, 24), "r": (1, 64, 16)}, {"hidden_size": 16}),
    "GRU": (["x", "w", "r"], [5, 2, 24], {"w": (1, 72, 24), "r": (1, 72, 24)}, {"hidden_size": 24}),
    "RNN": (
        ["x", "w", "r"],
        [5, 2, 48],
        {"w": (2, 32, 48), "r": (2, 32, 32)},
        {"hidden_size": 32, "direction": "bidirectional"},
    ),
    "Einsum": (["x", "w"], [3, 48], {"w": (48, 40)}, {"equation": "nk,km->nm"}),
}


@pytest.mark.parametrize("operator", OPERATORS)
def test_other_weights_become_floats_at_loading(operator: str, tmp_path: Path) -> None:
    inputs, shape, weights, attributes = OPERATORS[operator]
    values = {name: normal(*size, seed=k) / 4 for k, (name, size) in enumerate(weights.items())}
    model = model_of(
        [oh.make_node(operator, inputs, ["y"], name="node", **attributes)],
        [("x", 1, shape)],
        ("y", 1, None),
        values,
    )
    result, record = stored(model)
    assert record["stored"] == {operator: 1}
    assert record["left_float"] == []
    kinds = {entry.data_type for entry in result.graph.initializer if len(entry.dims) >= 2 and entry.raw_data}
    assert onnx.TensorProto.INT8 in kinds
    before = sum(value.nbytes for value in values.values())
    after = sum(nh.to_array(entry).nbytes for entry in result.graph.initializer)
    assert after < 0.36 * before
    x = normal(*shape, seed=9)
    want, ours = outputs(model, {"x": x}), outputs(result, {"x": x})
    assert np.linalg.norm(ours - want) < 0.02 * np.linalg.norm(want)
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    ort.InferenceSession(result.SerializeToString(), options, providers=["CPUExecutionProvider"])
    loaded = {node.op_type for node in onnx.load(tmp_path / "loaded.onnx").graph.node}
    assert not loaded & {"Cast", "Mul", "DequantizeLinear"}  # nothing is computed again in every run


@pytest.mark.parametrize("bits", [4, 8])
def test_embeddings(bits: int) -> None:
    table = normal(50, 64)
    model = model_of(
        [oh.make_node("Gather", ["table", "ids"], ["y"], name="embedding")],
        [("ids", 7, ["N", "length"])],
        ("y", 1, None),
        {"table": table},
    )
    result, record = stored(model, bits=bits)
    assert record["quantized"] == {"Gather": 1}
    ids = np.array([[0, 49, 7]])
    ours = outputs(result, {"ids": ids})
    assert ours.shape == (1, 3, 64)
    assert np.linalg.norm(ours - table[ids]) < (0.09 if bits == 4 else 0.01) * np.linalg.norm(table[ids])


def test_a_table_that_is_a_weight_as_well() -> None:
    table = normal(160, 128)
    nodes = [
        oh.make_node("Gather", ["table", "ids"], ["e"], name="embedding"),
        oh.make_node("Gemm", ["e", "table"], ["y"], name="head", transB=1),
    ]
    model = model_of(nodes, [("ids", 7, ["N"])], ("y", 1, None), {"table": table})
    for bits in (4, 8):
        result, record = stored(model, bits=bits)
        assert record["left_float"] == []
        assert all(
            entry.data_type != 1 or len(entry.dims) < 2 or entry.dims[1] < 128
            for entry in result.graph.initializer
        )
        ids = np.arange(9)
        want = table[ids] @ table.T
        assert np.linalg.norm(outputs(result, {"ids": ids}) - want) < 0.13 * np.linalg.norm(want)


def branches() -> onnx.ModelProto:
    """A product in either branch: with a weight of its own, and with one from outside."""
    out = [oh.make_tensor_value_info(name, 1, None) for name in ("a", "b")]
    then = oh.make_graph(
        [oh.make_node("MatMul", ["x", "inner"], ["a"], name="then")],
        "then",
        [],
        out[:1],
        [nh.from_array(normal(144, 144), "inner")],
    )
    other = oh.make_graph([oh.make_node("MatMul", ["x", "outer"], ["b"], name="else")], "else", [], out[1:])
    nodes = [oh.make_node("If", ["c"], ["y"], name="if", then_branch=then, else_branch=other)]
    return model_of(
        nodes,
        [("c", 9, []), ("x", 1, ["N", 144])],
        ("y", 1, None),
        {"outer": normal(144, 144, seed=1)},
    )


@pytest.mark.parametrize("options", [{"bits": 4}, {"bits": 8}, {"mode": "auto"}])
def test_bodies(options) -> None:
    model = branches()
    result, record = stored(model, **options)
    assert record["quantized"] == {"MatMul": 2}
    assert len(result.SerializeToString()) < len(model.SerializeToString()) / 3
    for condition in (True, False):
        feeds = {"c": np.array(condition), "x": normal(3, 144, seed=2)}
        want, ours = outputs(model, feeds), outputs(result, feeds)
        assert np.linalg.norm(ours - want) < 0.12 * np.linalg.norm(want)


def test_a_name_that_a_body_computes_is_no_weight() -> None:
    body = oh.make_graph(
        [oh.make_node("Relu", ["x"], ["w"]), oh.make_node("MatMul", ["x", "w"], ["a"], name="inside")],
        "body",
        [],
        [oh.make_tensor_value_info("a", 1, None)],
    )
    model = model_of([], [("x", 1, [40, 40])], ("y", 1, None), {"v": normal(40, 40)})
    model.graph.node.extend([oh.make_node("If", ["c"], ["y"], name="if", then_branch=body, else_branch=body)])
    assert store_weights(model, lambda _: False, Storage()).kernels == {}


def test_what_stays_float_and_why() -> None:
    table = np.abs(normal(40, 40)) ** 3
    weight = normal(48, 48)
    weight[0, 0] = np.inf
    nodes = [
        oh.make_node("Add", ["x", "table"], ["s"], name="sum"),
        oh.make_node("MatMul", ["s", "v"], ["h"], name="kept"),
        oh.make_node("MatMul", ["h", "w"], ["y"], name="endless"),
    ]
    model = model_of(
        nodes, [("x", 1, [40, 40])], ("y", 1, None), {"table": table, "v": normal(40, 48), "w": weight}
    )
    with pytest.raises(GateError, match="nothing can be quantized"):
        stored(model, exclude=("kept",))
    _, record = stored(model)
    assert {entry["node"]: entry["reason"] for entry in record["left_float"]} == {
        "sum": "its constant is not a weight, as Add is no operator with weights",
        "endless": "its weights are not finite",
    }
    choice = store_weights(model, lambda name: name == "v", Storage())
    assert choice.left["kept"] == ("MatMul", "excluded")


def test_options() -> None:
    with pytest.raises(UsageError, match="16, 32, 64, 128, 256"):
        Quantize(block=24)


def test_the_same_bytes_every_time() -> None:
    texts = {stored(branches(), bits=4)[0].SerializeToString(deterministic=True) for _ in range(2)}
    assert len(texts) == 1


@pytest.mark.parametrize("name", ["g2p_gru_decoder_step", "dtln_model_2"])
def test_real_models_get_smaller_and_stay_close(shared: Path, name: str) -> None:
    graph = load(shared / "models" / f"{name}.onnx")
    inputs = graph_inputs(graph)
    feeds = {tensor.name: value for tensor, value in zip(graph.inputs, _feeds(inputs), strict=True)}
    result = to_model(
        Quantize(mode="weights", guard=False).run(graph, Context(Path("m.onnx"), inputs=tuple(inputs)))
    )
    assert len(result.SerializeToString()) * 2.5 < (shared / "models" / f"{name}.onnx").stat().st_size
    for want, ours in zip(
        run(session(shared / "models" / f"{name}.onnx"), feeds), run(session(result), feeds), strict=True
    ):
        assert np.vdot(want, ours) > 0.999 * np.linalg.norm(want) * np.linalg.norm(ours)


def _feeds(inputs):
    feeds = synthetic(inputs, seed=4, batch=1)
    for each in inputs:
        if each.name == "sr":
            feeds[each.name] = np.array(16000)
        elif np.issubdtype(feeds[each.name].dtype, np.integer):
            feeds[each.name] = np.zeros_like(feeds[each.name])
    return [feeds[each.name] for each in inputs]
