"""Zeros and few values are counted on what later passes return, however the weights are stored there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper as nh
from ops.oracle import build
from quantizable import context_for, quantized

import surgeon
from surgeon.graph.load import from_model
from surgeon.graph.save import to_model
from surgeon.passes import Context
from surgeon.refit.pattern import parse_pattern
from surgeon.stats.matrices import weights_of
from surgeon_passes.dequantize import Dequantize
from surgeon_passes.equalize import Equalize
from surgeon_passes.quantizing import maker
from surgeon_passes.quantizing.processor import Numbers

Matrices = list[np.ndarray]

PICTURES = (
    "float[N,16,8,8] x",
    """
    a = Conv <pads=[1,1,1,1]> (x, w1, b1)
    b = Relu (a)
    c = Conv <group=32, pads=[1,1,1,1]> (b, w2)
    d = Relu (c)
    e = ConvTranspose <strides=[2,2]> (d, w3)
    f = Relu (e)
    g = GlobalAveragePool (f)
    h = Flatten (g)
    i = MatMul (h, w4)
    j = Relu (i)
    y = Gemm <transB=1> (j, w5, b5)
    """,
    {
        "w1": (32, 16, 3, 3), "b1": (32,), "w2": (32, 1, 3, 3), "w3": (32, 16, 2, 2),
        "w4": (16, 1024), "w5": (16, 1024), "b5": (16,),
    },
)  # fmt: skip
SEQUENCES = (
    "float[5,N,16] x",
    """
    a, h, c = LSTM <hidden_size=24, direction="bidirectional"> (x, w1, w2, b)
    t = Transpose <perm=[2,0,1,3]> (a)
    u = Reshape (t, shape)
    y = MatMul (u, w3)
    """,
    {
        "w1": (2, 96, 16), "w2": (2, 96, 24), "b": (2, 192), "w3": (240, 128),
        "shape": np.array([0, -1]),
    },
)  # fmt: skip
MODES = {
    "static": {"mode": "static"},
    "static, percentile": {"mode": "static", "calibration": "percentile", "activation": "int8"},
    "static, one scale": {"mode": "static", "per_channel": False},
    "static, equalized": {"mode": "static", "equalize": True, "smooth": True},
    "static, gptq": {"mode": "static", "rounding": "gptq"},
    "static, learned": {"mode": "static", "rounding": "learned"},
    "dynamic": {"mode": "dynamic"},
    "dynamic, one scale": {"mode": "dynamic", "per_channel": False},
    "weights": {"mode": "weights"},
    "weights, symmetric": {"mode": "weights", "symmetric": True},
    "weights, 4 bits": {"mode": "weights", "bits": 4},
    "weights, 4 bits, symmetric": {"mode": "weights", "bits": 4, "symmetric": True, "block": 16},
    "fp16": {"mode": "fp16"},
    "auto": {"mode": "auto"},
}


def model_of(parts, *, zeros: float = 0.0, table: int = 0, per_channel: bool = False) -> onnx.ModelProto:
    """A model with so many zeros and so many other values in its weights."""
    model = build(parts[0], "float y", parts[1], parts[2])
    for k, node in enumerate(model.graph.node):
        node.name = f"n{k}"
    graph, random = from_model(model), np.random.default_rng(1)
    for weight in weights_of(graph):
        values = weight.matrices()
        if table:
            shape = (values.shape[0], 1, 1, values.shape[3]) if per_channel else (1, 1, 1, 1)
            tables = random.standard_normal((*shape, table)) * values.std()
            values = (
                np.take_along_axis(tables, random.integers(0, table, (*values.shape, 1)), axis=-1)[..., 0]
                if per_channel
                else tables.ravel()[random.integers(0, table, values.shape)]
            )
        weight.set(np.where(random.random(values.shape) < zeros, 0, values))
    return to_model(graph)


def matrices(model: onnx.ModelProto) -> Matrices:
    return [weight.matrices() for weight in weights_of(from_model(model))]


def floats(model: onnx.ModelProto) -> Matrices:
    """The numbers that the stored integers stand for, as matrices."""
    if any(entry.data_type == onnx.TensorProto.FLOAT16 for entry in model.graph.initializer):
        return matrices(model)
    return matrices(to_model(Dequantize().run(from_model(model), Context(None))))  # type: ignore[arg-type]


def most_values(weight: np.ndarray, *, per_channel: bool) -> int:
    weight = weight.astype(np.float32)  # numpy does not always sort half precision right
    if not per_channel:
        return len(np.unique(weight))
    return max(len(np.unique(weight[g, ..., o])) for g, o in np.ndindex(len(weight), weight.shape[-1]))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("parts", [PICTURES, SEQUENCES], ids=["pictures", "sequences"])
def test_zeros_stay_in_every_mode(parts, mode, monkeypatch):
    seven = "one scale" in mode or "percentile" in mode
    monkeypatch.setattr(maker, "this_processor", lambda: Numbers("uint8", reduce_range=seven))
    model = model_of(parts, zeros=0.6)
    context = context_for(model)
    result = floats(quantized(model, context, samples=16, **MODES[mode]))
    before = matrices(model)
    assert [each.shape for each in result] == [each.shape for each in before]
    for ours, theirs in zip(result, before, strict=True):
        assert (ours[theirs == 0] == 0).all()
        assert (ours[theirs != 0] != 0).any()
    noted = context.record["kept"]
    assert [each["zeros"] for each in noted] == [int((each == 0).sum()) for each in before]  # type: ignore[attr-defined,index]
    assert all(each["values"] is None for each in noted)  # type: ignore[attr-defined,index]


@pytest.mark.parametrize("zeros", [0.0, 0.6])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("parts", [PICTURES, SEQUENCES], ids=["pictures", "sequences"])
def test_few_values_stay_few_in_every_mode(parts, mode, zeros):
    model = model_of(parts, zeros=zeros, table=12)
    result = quantized(model, context_for(model), samples=16, **MODES[mode])
    emitted = [nh.to_array(each) for each in result.graph.initializer if each.data_type in (2, 3)]
    for ours, theirs in zip(floats(result), matrices(model), strict=True):
        assert most_values(ours, per_channel=False) <= most_values(theirs, per_channel=False) <= 13
        assert (ours[theirs == 0] == 0).all()
    if "4 bits" not in mode:  # two of which are in a byte
        assert all(len(np.unique(each)) <= 13 for each in emitted if each.size > 512)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("parts", [PICTURES, SEQUENCES], ids=["pictures", "sequences"])
def test_few_values_of_every_channel(parts, mode):
    model = model_of(parts, zeros=0.2, table=4, per_channel=True)
    result = floats(quantized(model, context_for(model), samples=16, **MODES[mode]))
    for ours, theirs in zip(result, matrices(model), strict=True):
        assert most_values(ours, per_channel=True) <= most_values(theirs, per_channel=True) <= 5
        assert (ours[theirs == 0] == 0).all()


def test_scaling_leaves_tables_alone_and_says_why():
    model = model_of(PICTURES, table=12)
    context = context_for(model)
    result = to_model(Equalize().run(from_model(model), context))
    for ours, theirs in zip(matrices(result), matrices(model), strict=True):
        assert np.array_equal(ours, theirs)
    reasons = {each["tensor"]: each["reason"] for each in context.record["left"]}  # type: ignore[attr-defined,index]
    assert reasons["a"] == "Conv n0: its weights have 12 values, and would have more"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    """A model and labelled samples."""
    folder = tmp_path_factory.mktemp("keeping")
    onnx.save(model_of(PICTURES), str(folder / "model.onnx"))
    random = np.random.default_rng(0)
    x = random.standard_normal((96, 16, 8, 8)).astype(np.float32)
    np.savez(folder / "data.npz", x=x, labels=random.integers(0, 16, 96))
    return folder / "model.onnx", folder / "data.npz"


def run(files: tuple[Path, Path], passes: str) -> surgeon.Result:
    return surgeon.run(files[0], passes, data=str(files[1]), force=True)  # of tiny models none is slow


SPARSE = "sparsify{{sparsity=0.75 refit=false scope=layer score=magnitude pattern={}}}"
TRAINED = [
    "reconstruct{steps=20 rate=0.01}",
    "distill{steps=50 rate=0.0003}",
    "finetune{steps=30 rate=0.003}",
]


@pytest.mark.parametrize("later", [*TRAINED, "equalize"])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "block-4x2"])
def test_zeros_and_patterns_stay(files, later, pattern):
    first = run(files, SPARSE.format(pattern))
    result = run(files, f"{SPARSE.format(pattern)},{later}")
    moved = 0
    for mine, theirs in zip(matrices(result.model), matrices(first.model), strict=True):
        assert ((mine == 0) >= (theirs == 0)).all()
        assert parse_pattern(pattern).fits(mine != 0, 0.5) or not parse_pattern(pattern).fits(
            theirs != 0, 0.5
        )
        moved += int((mine != theirs).any())
    assert moved or later == "equalize"
    if later != "equalize":
        facts = result.report["passes"][-1]
        assert facts["changed"]
        assert [each["zeros"] for each in facts["kept"]] == [
            count for each in matrices(result.model) if (count := int((each == 0).sum()))
        ]


@pytest.mark.parametrize("options", ["", " merge=true steps=2", " score=l2 ranking=local"])
def test_what_prune_leaves_has_its_zeros(files, options):
    """The plan says what was cut; what is left of a weight is zero where it was."""
    first, prune = run(files, SPARSE.format("unstructured")), "prune{{macs=0.6{}}}"
    result = run(files, f"{SPARSE.format('unstructured')},{prune.format(options)}")
    ours, before = matrices(result.model), matrices(first.model)
    assert sum(each.size for each in ours) < sum(each.size for each in before)
    assert result.plan is not None
    cut = surgeon.apply(first.model, result.plan)
    moved = 0
    for mine, theirs in zip(ours, matrices(cut.model), strict=True):
        assert mine.shape == theirs.shape
        assert ((mine == 0) >= (theirs == 0)).all()
        moved += int((mine != theirs).any())
    assert moved > 1
    assert result.report["passes"][-1]["kept"]


@pytest.mark.parametrize("table", ["", ",cluster{clusters=8 refit=false}"])
def test_two_of_four_are_two_of_four_again_when_input_channels_go(files, table):
    first = f"{SPARSE.format('2:4')}{table}"
    result = run(files, f"{first},prune{{ratio=0.4 multiple_of=1}}")
    before, pattern = matrices(run(files, first).model), parse_pattern("2:4")
    smaller = 0
    for mine, theirs in zip(matrices(result.model), before, strict=True):
        assert pattern.fits(mine != 0, 0.5) or not pattern.fits(theirs != 0, 0.5)
        smaller += mine.shape[1] < theirs.shape[1]
        if table:
            assert np.isin(mine, theirs).all()
    assert smaller > 1


@pytest.mark.parametrize("later", TRAINED)
@pytest.mark.parametrize("per_channel", [False, True])
def test_training_moves_what_is_one_value_together(files, later, per_channel):
    cluster = f"cluster{{clusters=4 refit=false per_channel={str(per_channel).lower()}}}"
    first, result = run(files, cluster), run(files, f"{cluster},{later}")
    assert result.report["passes"][-1]["changed"]
    moved = 0
    for mine, theirs in zip(matrices(result.model), matrices(first.model), strict=True):
        assert most_values(mine, per_channel=per_channel) <= most_values(theirs, per_channel=per_channel) <= 4
        moved += int((mine != theirs).any())
    assert moved > 1


def test_values_that_are_left_after_a_cut_are_those_of_the_table(files):
    first = run(files, "cluster{clusters=8 refit=false}")
    result = run(files, "cluster{clusters=8 refit=false},prune{macs=0.7}")
    for mine, theirs in zip(matrices(result.model), matrices(first.model), strict=True):
        assert np.isin(mine, theirs).all()
    assert sum(each.size for each in matrices(result.model)) < sum(
        each.size for each in matrices(first.model)
    )


def test_all_three_together(files):
    passes = "sparsify{sparsity=0.6 scope=layer},cluster{clusters=16 refit=false}"
    first = run(files, passes)
    result = run(files, f"{passes},quantize{{mode=static guard=false}}")
    emitted = {
        entry.name: nh.to_array(entry)
        for entry in result.model.graph.initializer
        if entry.data_type == onnx.TensorProto.INT8 and len(entry.dims) > 1
    }
    assert len(emitted) == 5
    for values in emitted.values():
        assert len(np.unique(values)) <= 16
        assert (values == 0).mean() >= 0.6
    for mine, theirs in zip(floats(result.model), matrices(first.model), strict=True):
        assert (mine[theirs == 0] == 0).all()


def test_models_without_zeros_have_nothing_to_keep(files):
    for passes in ("prune{macs=0.7},reconstruct{steps=2}", "quantize{guard=false}"):
        assert "kept" not in run(files, passes).report["passes"][-1]


@pytest.mark.parametrize("later", ["drop{macs=0.7}", "factorize{macs=0.9}"])
def test_what_is_refitted_behind_others_keeps_its_zeros(demo, later):
    """Of weights that only some have been made sparse, others go; the sparse ones stay as sparse."""
    options = {"data": f"{demo.parent}/digits_data.py:calibration", "force": True}
    sparse = "sparsify{sparsity=0.3 refit=false scope=layer exclude=/3/*}"
    first = surgeon.run(demo, sparse, **options)
    result = surgeon.run(demo, f"{sparse},{later}", **options)
    before = {weight.name: weight.matrices() for weight in weights_of(from_model(first.model))}
    moved = 0
    for weight in weights_of(from_model(result.model)):
        mine, theirs = weight.matrices(), before.get(weight.name)
        if theirs is not None and mine.shape == theirs.shape and (theirs == 0).mean() > 0.2:
            assert ((mine == 0) >= (theirs == 0)).all()
            moved += int((mine != theirs).any())
    assert moved > 1


@pytest.mark.parametrize("refit", ["true", "false"])
def test_more_zeros_leave_patterns_and_tables(files, refit):
    first = run(files, f"{SPARSE.format('2:4')},cluster{{clusters=8 refit=false}}")
    more = f"sparsify{{sparsity=0.7 scope=layer refit={refit}}}"
    result = run(files, f"{SPARSE.format('2:4')},cluster{{clusters=8 refit=false}},{more}")
    for mine, theirs in zip(matrices(result.model), matrices(first.model), strict=True):
        assert (mine == 0).mean() >= 0.7
        assert ((mine == 0) >= (theirs == 0)).all()
        assert np.isin(mine, [*np.unique(theirs), 0]).all()


def test_a_pattern_that_a_cut_without_data_breaks_is_named(files):
    first = SPARSE.format("2:4")
    prune = "prune{ratio=0.4 multiple_of=1 score=l2 reconstruct=false}"
    warnings = surgeon.run(files[0], f"{first},{prune}", force=True).report["warnings"]
    assert any(
        "had at most 2 of every 4 input channels, and has not after the cut" in each for each in warnings
    )
    with_data = run(files, f"{first},prune{{ratio=0.4 multiple_of=1}}").report["warnings"]
    assert not any("after the cut" in each for each in with_data)
    unstructured = surgeon.run(files[0], f"{SPARSE.format('unstructured')},{prune}", force=True)
    assert not any("after the cut" in each for each in unstructured.report["warnings"])
