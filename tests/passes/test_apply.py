"""Plans by the names of a model file, and the pass ``apply`` that cuts other checkpoints of it by them."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
import tiny
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper, parser
from random_graphs import head, network
from random_images import conv
from random_parts import SIDE, Network, Stream
from random_sequences import SEQUENCE_BLOCKS, linear, tokens

import surgeon
from surgeon.cli import main
from surgeon.graph.sessions import run as infer
from surgeon.graph.sessions import session
from surgeon.graph.weights import peek
from surgeon.masks import Mask, weights_of
from surgeon.passes import Context, Pass
from surgeon.plan import Plan
from surgeon.replay import verify_files
from surgeon.stats.synthetic import synthetic

NETWORK = """
<ir_version: 8, opset_import: ["" : 17]>
mixed (float["N",3,8,8] x) => (float["N",5] y)
{
  c1 = Conv <kernel_shape = [3,3], pads = [1,1,1,1]> (x, w1)
  n1 = BatchNormalization (c1, g1, s1, m1, v1)
  r1 = Relu (n1)
  c2 = Conv <kernel_shape = [3,3], pads = [1,1,1,1]> (r1, w2)
  n2 = BatchNormalization (c2, g2, s2, m2, v2)
  i2 = Identity (n2)
  sum = Add (r1, i2)
  r2 = Relu (sum)
  c3 = Conv <kernel_shape = [1,1]> (r2, w3)
  c4 = Conv <kernel_shape = [3,3], pads = [1,1,1,1]> (r2, w4)
  both = Concat <axis = 1> (c3, c4)
  r3 = Relu (both)
  p = GlobalAveragePool (r3)
  f = Flatten (p)
  y = Gemm <transB = 1> (f, w5, b5)
}
"""
SHAPES = {
    "w1": (16, 3, 3, 3), "w2": (16, 16, 3, 3), "w3": (6, 16, 1, 1), "w4": (10, 16, 3, 3), "w5": (5, 16), "b5": (5,),
    **{f"{kind}{k}": (16,) for kind in "gsmv" for k in (1, 2)},
}  # fmt: skip
PRUNE = "prune{ratio=0.5 score=l2 reconstruct=false}"


@dataclass(frozen=True)
class Sparse(Pass):
    """Zeroes the smallest entries of every matrix and filter."""

    name: ClassVar[str] = "sparse"
    learns: ClassVar[bool] = True
    sparsity: float = 0.75

    def run(self, graph: Any, context: Context) -> Any:
        for weight in weights_of(graph).values():
            values = peek(weight)
            bound = np.quantile(np.abs(values), self.sparsity)
            weight.values = np.where(np.abs(values) > bound, values, np.float32(0))
        return graph


def mixed(path: Path, seed: int = 0) -> Path:
    """Batch normalization that is not folded, a residual sum, and a concatenation."""
    random = np.random.default_rng(seed)
    model = parser.parse_model(NETWORK)
    for name, shape in SHAPES.items():
        values = random.standard_normal(shape) * np.prod(shape[1:]) ** -0.5
        values = np.abs(values) + 0.5 if name[0] in "vg" else values
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    onnx.save(model, path)
    return path


def other(model: onnx.ModelProto, seed: int = 7) -> onnx.ModelProto:
    """The same graph with all its float weights shuffled; the scales of a Resize are no weights."""
    result, random = onnx.ModelProto(), np.random.default_rng(seed)
    result.CopyFrom(model)
    sizes = {name for node in model.graph.node if node.op_type == "Resize" for name in node.input}
    for weight in result.graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.dtype.kind == "f" and weight.name not in sizes:
            shuffled = random.permutation(values.reshape(-1)).reshape(values.shape)
            weight.CopyFrom(numpy_helper.from_array(shuffled, weight.name))
    return result


def arrays(model: Any) -> dict[str, np.ndarray]:
    model = model if isinstance(model, onnx.ModelProto) else onnx.load(model)
    return {weight.name: numpy_helper.to_array(weight) for weight in model.graph.initializer}


def left(array: np.ndarray, axes: dict[int, tuple[int, ...]]) -> np.ndarray:
    for axis, kept in axes.items():
        array = np.take(array, kept, axis)
    return array


def check_applied(before: onnx.ModelProto, after: onnx.ModelProto, plan: Plan) -> None:
    """Every float weight is the checkpoint's own, masked and cut, and the model computes what the zeroed one does."""
    own, found = arrays(before), arrays(after)
    zeroed = onnx.ModelProto()
    zeroed.CopyFrom(before)
    for weight in zeroed.graph.initializer:
        values = own[weight.name].copy()
        if weight.name in plan.masks:
            values[~plan.masks[weight.name].array()] = 0
        shared = (
            values.ndim < 2 and sum(list(node.input).count(weight.name) for node in before.graph.node) > 1
        )
        if weight.name in found and values.dtype.kind == "f" and not shared:
            np.testing.assert_array_equal(found[weight.name], left(values, plan.tensors.get(weight.name, {})))
        for axis, kept in plan.tensors.get(weight.name, {}).items():
            if values.dtype.kind == "f":
                values[(slice(None),) * axis + (np.setdiff1d(np.arange(values.shape[axis]), kept),)] = 0
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    if any(array.dtype.name in ("int8", "uint8") for array in own.values()):
        return  # a quantized weight is not zeroed by zeros; the certificate knows its zero point
    feeds = feeds_of(before)
    expected = infer(session(zeroed, optimize=False), feeds)
    for wanted, given_ in zip(expected, infer(session(after, optimize=False), feeds), strict=True):
        np.testing.assert_allclose(given_, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


def feeds_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    from surgeon.graph.load import from_model
    from surgeon.measure import inputs_of

    return synthetic(inputs_of(from_model(model)), 3)


def planned(path: Path, passes: Any, plan: Path, **options: Any) -> tuple[surgeon.Result, Plan]:
    result = surgeon.run(path, passes, plan_file=plan, threads=1, **options)
    return result, Plan.load(plan)


def test_the_same_indices_go_by_the_names_of_the_file(tmp_path):
    path, plan_path = mixed(tmp_path / "a.onnx"), tmp_path / "a.plan.json"
    run, plan = planned(path, PRUNE, plan_path)
    assert run.plan.after == ("clean",)
    assert plan.after == ()
    assert set(plan.tensors) == {
        "w1",
        "w2",
        "w3",
        "w4",
        "w5",
        *(f"{kind}{k}" for kind in "gsmv" for k in (1, 2)),
    }
    assert {group.id: group.kept for group in plan.groups} == {
        group.id: group.kept for group in run.plan.file_groups
    }
    # what the folded graph lost is what the file loses
    assert plan.tensors["w1"] == run.plan.tensors["w1"]
    assert plan.tensors["w5"] == run.plan.tensors["w5"]
    checkpoint = other(onnx.load(path))
    for source in (plan_path, plan, run.plan):
        applied = surgeon.apply(checkpoint, source)
        check_applied(checkpoint, applied.model, plan)
        assert [node.op_type for node in applied.model.graph.node].count("BatchNormalization") == 2
        assert applied.report["certificate"]["status"] == "exact"
        assert applied.report["groups"]["cut"] == run.report["groups"]["cut"]
        assert (applied.plan.groups, applied.plan.tensors) == (plan.groups, plan.tensors)


def test_applied_to_the_original_it_is_the_run_s_cut(tmp_path):
    path = mixed(tmp_path / "a.onnx")
    run, plan = planned(path, PRUNE, tmp_path / "p.json")
    applied = surgeon.apply(path, plan).model
    feeds = feeds_of(onnx.load(path))
    for a, b in zip(
        infer(session(run.model, optimize=False), feeds),
        infer(session(applied, optimize=False), feeds),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_files_and_verification(tmp_path):
    path, out = mixed(tmp_path / "a.onnx"), tmp_path / "small.onnx"
    planned(path, PRUNE, tmp_path / "p.json")
    onnx.save(other(onnx.load(path)), tmp_path / "b.onnx")
    raw = (tmp_path / "b.onnx").read_bytes()
    surgeon.apply(tmp_path / "b.onnx", tmp_path / "p.json", destination=out)
    assert (tmp_path / "b.onnx").read_bytes() == raw
    assert {name.name for name in tmp_path.glob("small*")} == {
        "small.onnx", "small.plan.json", "small.recipe.toml", "small.report.json",
    }  # fmt: skip
    found = verify_files(tmp_path / "b.onnx", out, tmp_path / "small.plan.json")
    assert (found.certificate.status, found.weights, found.masks) == ("exact", "original", {})
    again = tmp_path / "again.onnx"
    surgeon.run(tmp_path / "b.onnx", recipe=tmp_path / "small.recipe.toml", destination=again)
    assert again.read_bytes() == out.read_bytes()


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32 - 1))
def test_random_networks(seed):
    model = network(Random(seed))
    try:
        result = surgeon.run(model, [PRUNE, Sparse(0.5)], threads=1)
    except surgeon.GateError:
        assume(False)
    checkpoint = other(model)
    applied = surgeon.apply(checkpoint, result.plan)
    assert applied.plan.masks == result.plan.masks
    if applied.report["certificate"]["status"] == "exact":
        check_applied(checkpoint, applied.model, applied.plan)
    sizes = {name: array.shape for name, array in arrays(result.model).items() if array.dtype.kind == "f"}
    for name, array in arrays(applied.model).items():
        if name in sizes and array.ndim > 1:
            assert array.shape == sizes[name]


@pytest.mark.parametrize("block", SEQUENCE_BLOCKS, ids=lambda block: block.__name__)
def test_every_sequence_block(block):
    """Attention in its forms, recurrent layers, and what else random networks are made of."""
    net = Network(Random(1), 21)
    x = conv(net, Stream("x", 3, SIDE), 12)
    x = linear(net, block(net, linear(net, tokens(net, x), 12)), 8)
    model = head(net, x, image=False)
    result = surgeon.run(model, [PRUNE, Sparse(0.5)], threads=1)
    checkpoint = other(model)
    applied = surgeon.apply(checkpoint, result.plan)
    check_applied(checkpoint, applied.model, applied.plan)
    assert applied.report["groups"]["cut"] == result.report["groups"]["cut"]


def test_an_lstm_is_cut_and_masked_alike(tmp_path):
    random = np.random.default_rng(0)
    model = parser.parse_model("""
<ir_version: 8, opset_import: ["" : 17]>
recurrent (float[7,"N",6] x) => (float["N",3] y)
{
  all, last, cell = LSTM <hidden_size = 8> (x, w, r, b)
  f = Squeeze (last, zero)
  y = Gemm (f, v)
}""")
    shapes = {"w": (1, 32, 6), "r": (1, 32, 8), "b": (1, 64), "v": (8, 3)}
    for name, shape in shapes.items():
        values = random.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "zero"))
    result = surgeon.run(model, [PRUNE, Sparse(0.5)])
    plan = surgeon.apply(model, result.plan).plan
    assert set(plan.masks) == {"w", "r", "b", "v"}
    assert set(plan.tensors) == {"w", "r", "b", "v"}
    kept = plan.tensors["r"][2]
    assert plan.tensors["r"][1] == tuple(8 * gate + k for gate in range(4) for k in kept)
    checkpoint = other(model)
    applied = surgeon.apply(checkpoint, result.plan)
    check_applied(checkpoint, applied.model, plan)


def test_masks_are_the_zeros_of_the_run(tmp_path):
    path, plan_path = mixed(tmp_path / "a.onnx"), tmp_path / "p.json"
    run, plan = planned(path, [PRUNE, Sparse(0.75)], plan_path)
    final = arrays(run.model)
    assert set(plan.masks) == {"w1", "w2", "w3", "w4", "w5"}
    for name, mask in plan.masks.items():
        assert mask.shape == SHAPES[name]
        np.testing.assert_array_equal(left(mask.array(), plan.tensors[name]), final[name] != 0)
    checkpoint = other(onnx.load(path))
    applied = surgeon.apply(checkpoint, plan_path)
    check_applied(checkpoint, applied.model, plan)
    facts = applied.report["passes"][0]
    assert facts["masks"] == {
        "weights": 5,
        "zeros": sum(int((~m.array()).sum()) for m in plan.masks.values()),
    }
    for name, array in arrays(applied.model).items():
        if name in plan.masks:
            np.testing.assert_array_equal(array == 0, final[name] == 0)


def test_masks_alone(tmp_path):
    path, out = tiny.convnet(tmp_path / "a.onnx"), tmp_path / "o.onnx"
    _, plan = planned(path, [Sparse(0.9)], tmp_path / "p.json")
    assert (plan.groups, plan.tensors, set(plan.masks)) == ((), {}, {"w1", "w2", "w3"})
    checkpoint = tiny.convnet(tmp_path / "b.onnx", seed=1)
    result = surgeon.apply(checkpoint, tmp_path / "p.json", destination=out)
    assert result.report["certificate"]["status"] == "none"
    check_applied(onnx.load(checkpoint), onnx.load(out), plan)
    found = verify_files(checkpoint, out, tmp_path / "o.plan.json")
    assert (found.weights, found.masks) == ("original", {"weights": 3, "checked": 3})
    model = onnx.load(out)
    values = numpy_helper.to_array(model.graph.initializer[0]).copy()
    values.reshape(-1)[np.flatnonzero(values == 0)[0]] = 0.5
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, model.graph.initializer[0].name))
    onnx.save(model, out)
    with pytest.raises(surgeon.GateError, match=r"1 entries of w1 are not zero"):
        verify_files(checkpoint, out, tmp_path / "o.plan.json")


def test_a_run_s_own_plan_has_masks_that_are_verified(tmp_path):
    path, out = mixed(tmp_path / "a.onnx"), tmp_path / "o.onnx"
    surgeon.run(path, [PRUNE, Sparse(0.75)], destination=out)
    found = verify_files(path, out, tmp_path / "o.plan.json")
    assert (found.certificate.status, found.weights) == ("exact", "changed")
    assert found.masks == {"weights": 5, "checked": 5}


def test_a_run_without_zeros_writes_no_masks(tmp_path):
    path = mixed(tmp_path / "a.onnx")
    _, plan = planned(path, "prune{ratio=0.5}", tmp_path / "p.json")
    assert plan.masks == {}
    assert "masks" not in plan.to_json()


def test_what_clean_removed_is_removed_from_the_other(tmp_path):
    """Channels that are dead in one checkpoint are part of what it lost, and need not be dead in another."""
    path = tiny.convnet(tmp_path / "a.onnx")
    model = onnx.load(path)
    weight = model.graph.initializer[2]
    values = numpy_helper.to_array(weight).copy()
    assert (weight.name, values.shape) == ("w2", (24, 16, 3, 3))
    values[:, [1, 4, 9]] = 0
    weight.CopyFrom(numpy_helper.from_array(values, "w2"))
    onnx.save(model, path)
    run, plan = planned(path, [PRUNE], tmp_path / "p.json", sets=["clean.channel_multiple=1"])
    assert run.report["passes"][0]["channels_removed"] == 3
    size = arrays(run.model)["w1"].shape[0]
    assert len(plan.tensors["w1"][0]) == size
    assert not set(plan.tensors["w1"][0]) & {1, 4, 9}
    checkpoint = tiny.convnet(tmp_path / "b.onnx", seed=1)
    applied = surgeon.apply(checkpoint, run.plan)
    check_applied(onnx.load(checkpoint), applied.model, plan)


def test_channels_that_became_empty_are_part_of_the_plan(tmp_path):
    path, out = tiny.convnet(tmp_path / "a.onnx"), tmp_path / "o.onnx"
    clean = "clean{channel_multiple=1}"
    result = surgeon.run(
        path, ["prune{ratio=0.25 score=l2 reconstruct=false}", Emptied(), clean], destination=out
    )
    applied = surgeon.apply(tiny.convnet(tmp_path / "b.onnx", seed=1), result.plan)
    assert {n: a.shape for n, a in arrays(applied.model).items()} == {
        n: a.shape for n, a in arrays(out).items()
    }
    assert verify_files(path, out, tmp_path / "o.plan.json").certificate.status == "exact"
    result = surgeon.run(path, [Emptied(), clean], destination=out)
    assert result.plan.groups == ()
    applied = surgeon.apply(tiny.convnet(tmp_path / "b.onnx", seed=1), tmp_path / "o.plan.json")
    assert {n: a.shape for n, a in arrays(applied.model).items()} == {
        n: a.shape for n, a in arrays(out).items()
    }
    assert verify_files(path, out, tmp_path / "o.plan.json").certificate.status == "exact"


@dataclass(frozen=True)
class Emptied(Pass):
    """Zeroes what reads the last channels of the first convolution."""

    name: ClassVar[str] = "emptied"
    learns: ClassVar[bool] = True

    def run(self, graph: Any, context: Context) -> Any:
        weight = graph.tensors()["w2"]
        values = peek(weight).copy()
        values[:, -3:] = 0
        weight.values = values
        return graph


def changed(path: Path, change: Any) -> Path:
    model = onnx.load(path)
    change(model.graph)
    onnx.save(model, path)
    return path


def reshaped(graph: onnx.GraphProto) -> None:
    for name, shape in {"w4": (12, 16, 3, 3), "w5": (5, 18)}.items():
        weight = next(each for each in graph.initializer if each.name == name)
        weight.CopyFrom(numpy_helper.from_array(np.ones(shape, np.float32), name))


def renamed(graph: onnx.GraphProto) -> None:
    next(each for each in graph.initializer if each.name == "w3").name = "other"
    next(each for each in graph.node if "w3" in each.input).input[1] = "other"


def without_relu(graph: onnx.GraphProto) -> None:
    node = next(each for each in graph.node if each.output[0] == "r3")
    next(each for each in graph.node if each.input[0] == "r3").input[0] = node.input[0]
    graph.node.remove(node)


def strided(graph: onnx.GraphProto) -> None:
    node = next(each for each in graph.node if each.output[0] == "c4")
    node.attribute.append(onnx.helper.make_attribute("dilations", [1, 1]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (reshaped, "constant w4 is float[12,16,3,3], in the plan's graph float[10,16,3,3]"),
        (renamed, "it has no constant w3, which is float[6,16,1,1] in the plan's graph"),
        (without_relu, "it has no node r3, which is Relu(both) in the plan's graph"),
        (strided, 'node c4 is Conv(r2, w4) {"dilations": [1, 1]'),
        (
            lambda graph: graph.input[0].type.tensor_type.shape.dim[2].__setattr__("dim_value", 12),
            "input x is float[?,3,12,8], in the plan's graph float[?,3,8,8]",
        ),
    ],
)
def test_another_graph_is_refused_by_name(tmp_path, capsys, change, said):
    path = mixed(tmp_path / "a.onnx")
    planned(path, PRUNE, tmp_path / "p.json")
    b = changed(mixed(tmp_path / "b.onnx", 1), change)
    before = sorted(tmp_path.iterdir())
    assert main(["apply", str(b), "--plan", str(tmp_path / "p.json")]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"{b}: is not a checkpoint of the plan's graph: " in err
    assert said in err
    assert sorted(tmp_path.iterdir()) == before


def test_names_of_nodes_and_dimensions_do_not_matter(tmp_path):
    path = mixed(tmp_path / "a.onnx")
    _, plan = planned(path, PRUNE, tmp_path / "p.json")

    def rename(graph):
        for node in graph.node:
            node.name = f"another {node.output[0]}"
        graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"

    b = changed(mixed(tmp_path / "b.onnx", 1), rename)
    check_applied(onnx.load(b), surgeon.apply(b, plan).model, plan)


def test_shape_arithmetic_is_structure(tmp_path):
    body = """
<ir_version: 8, opset_import: ["" : 17]>
up (float["N",3,4,4] x) => (float["N",5,8,8] y)
{
  c = Conv <kernel_shape = [1,1]> (x, w1)
  u = Resize (c, , scales)
  y = Conv <kernel_shape = [1,1]> (u, w2)
}"""
    model = parser.parse_model(body)
    random = np.random.default_rng(0)
    for name, shape in {"w1": (8, 3, 1, 1), "w2": (5, 8, 1, 1)}.items():
        values = random.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales"))
    plan = surgeon.run(model, PRUNE).plan
    model.graph.initializer[-1].CopyFrom(
        numpy_helper.from_array(np.array([1, 1, 2, 4], np.float32), "scales")
    )
    model.graph.output[0].type.tensor_type.shape.dim[3].dim_value = 16
    with pytest.raises(
        surgeon.UsageError, match=r"constant scales is float\[4\] = \[1.0, 1.0, 2.0, 4.0\], in"
    ):
        surgeon.apply(model, plan)


@pytest.mark.parametrize(
    "kind", ["edited", "forged indices", "forged mask", "unknown group", "no plan", "no graph"]
)
def test_wrong_plans(tmp_path, capsys, kind):
    path, plan_path = mixed(tmp_path / "a.onnx"), tmp_path / "p.json"
    _, plan = planned(path, [PRUNE, Sparse(0.75)], plan_path)
    first = plan.groups[0]
    code, said = 1, ""
    if kind == "edited":
        plan_path.write_text(plan_path.read_text().replace('"kept":[', '"kept":[0,', 1))
        said = "the plan was changed after it was written"
    elif kind == "forged indices":
        replace(plan, groups=(replace(first, kept=first.kept[:-1]), *plan.groups[1:])).save(plan_path)
        said = "the tensors it lists do not follow from its groups"
    elif kind == "forged mask":
        replace(plan, masks={"w1": Mask.of(np.ones((2, 2), bool))}).save(plan_path)
        said = "the model has no weight w1 of shape [2, 2], as its mask"
    elif kind == "unknown group":
        replace(plan, groups=(replace(first, id="none:0"), *plan.groups[1:])).save(plan_path)
        said = "no channel group none:0"
    elif kind == "no plan":
        plan_path.write_text('{"schema": 1}')
        code, said = 1, "changed"
    else:
        replace(plan, structure=None).save(plan_path)
        code, said = 2, "does not say what graph it is for"
    before = sorted(tmp_path.iterdir())
    assert main(["apply", str(path), "--plan", str(plan_path), "-o", str(tmp_path / "o.onnx")]) == code
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_the_commands(tmp_path, capsys):
    path, checkpoint = mixed(tmp_path / "a.onnx"), mixed(tmp_path / "b.onnx", 1)
    assert main(["plan", str(path), "--passes", PRUNE, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["output"] is None
    assert facts["files"] == {"plan": str(tmp_path / "a.plan.json")}
    assert {each.name for each in tmp_path.iterdir()} == {"a.onnx", "b.onnx", "a.plan.json"}
    assert main(["apply", str(checkpoint), "--plan", str(tmp_path / "a.plan.json"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["output"] == str(tmp_path / "b.surgeon.onnx")
    assert facts["certificate"]["status"] == "exact"
    assert main(["plan", str(path), "--passes", PRUNE, "-o", str(tmp_path / "two.json")]) == 0
    assert "wrote" in capsys.readouterr().out
    assert (tmp_path / "two.json").read_bytes() == (tmp_path / "a.plan.json").read_bytes()


def test_nothing_to_plan_and_bad_places(tmp_path, capsys):
    path = mixed(tmp_path / "a.onnx")
    assert main(["plan", str(path), "--passes", "quantize{mode=weights}", "--force"]) == 1
    assert "nothing to plan" in capsys.readouterr().err
    for where in (path, tmp_path, tmp_path / "none" / "p.json"):
        assert main(["plan", str(path), "-o", str(where)]) == 2
    assert [each.name for each in tmp_path.iterdir()] == ["a.onnx"]


@pytest.mark.parametrize("command", ["plan", "apply"])
def test_an_interrupt_leaves_nothing(tmp_path, capsys, monkeypatch, command):
    path = mixed(tmp_path / "a.onnx")
    planned(path, PRUNE, tmp_path / "p.json")
    before = sorted(tmp_path.iterdir())

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("surgeon.measure.check_loads", interrupt)
    more = ["--plan", str(tmp_path / "p.json")] if command == "apply" else []
    more = more or ["--passes", PRUNE]
    assert main([command, str(path), "-o", str(tmp_path / "out"), *more]) == 130
    assert capsys.readouterr().err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_apply_behind_a_pass_that_changed_the_graph_says_so(tmp_path):
    path = mixed(tmp_path / "a.onnx")
    planned(path, PRUNE, tmp_path / "p.json")
    with pytest.raises(surgeon.UsageError, match="not a checkpoint of the plan's graph"):
        surgeon.run(path, [f"apply{{plan={tmp_path / 'p.json'}}}"])


def test_later_passes_aim_at_the_checkpoint_without_masks(tmp_path):
    path = mixed(tmp_path / "a.onnx")
    planned(path, [PRUNE, Sparse(0.75)], tmp_path / "p.json")
    seen: list[np.ndarray] = []

    @dataclass(frozen=True)
    class Look(Pass):
        name: ClassVar[str] = "look"

        def run(self, graph: Any, context: Context) -> Any:
            seen.append(np.array(peek(context.reference.graph.tensors()["w2"])))
            return graph

    surgeon.run(path, [f"apply{{plan={tmp_path / 'p.json'}}}", Look()], clean=False)
    np.testing.assert_array_equal(seen[0], arrays(path)["w2"])


def test_only_masks_that_still_hold_are_handed_on(tmp_path):
    path = tiny.convnet(tmp_path / "a.onnx")
    planned(path, [Sparse(0.75)], tmp_path / "p.json")

    @dataclass(frozen=True)
    class Grow(Pass):
        name: ClassVar[str] = "grow"

        def run(self, graph: Any, context: Context) -> Any:
            weight = graph.tensors()["w2"]
            weight.values = peek(weight) + np.float32(1)
            return graph

    result = surgeon.run(path, [f"apply{{plan={tmp_path / 'p.json'}}}", Grow()], clean=False)
    assert set(result.plan.masks) == {"w1", "w3"}


def test_a_cut_cache_is_cut_in_the_other_as_well(tmp_path):
    """A recurrent state is an input and an output of the model, whose shapes change."""
    model = parser.parse_model("""
<ir_version: 8, opset_import: ["" : 17]>
step (float[1,"N",6] x, float[1,"N",8] before) => (float["N",3] y, float[1,"N",8] after)
{
  all, after = GRU <hidden_size = 8> (x, w, r, b, , before)
  f = Squeeze (after, zero)
  y = MatMul (f, v)
}""")
    random = np.random.default_rng(0)
    for name, shape in {"w": (1, 24, 6), "r": (1, 24, 8), "b": (1, 48), "v": (8, 3)}.items():
        values = random.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "zero"))
    onnx.save(model, tmp_path / "a.onnx")
    onnx.save(other(model), tmp_path / "b.onnx")
    surgeon.run(
        tmp_path / "a.onnx", "prune{ratio=0.5 score=l2 cut_cache=true}", plan_file=tmp_path / "p.json"
    )
    result = surgeon.apply(tmp_path / "b.onnx", tmp_path / "p.json", destination=tmp_path / "o.onnx")
    assert result.report["passes"][0]["interface"] == {
        "before": {"before": [1, "N", 8], "after": [1, "N", 4]},
        "after": {"before": [1, "N", 8], "after": [1, "N", 4]},
    }
    found = verify_files(tmp_path / "b.onnx", tmp_path / "o.onnx", tmp_path / "o.plan.json")
    assert (found.certificate.status, found.weights) == ("exact", "original")


def test_masks_are_taken_before_weights_become_integers(tmp_path):
    path, out = tiny.convnet(tmp_path / "a.onnx"), tmp_path / "q.onnx"
    quantize = "quantize{mode=dynamic guard=false}"
    result = surgeon.run(path, [Sparse(0.75), quantize], force=True, destination=out)
    plain = surgeon.run(path, [Sparse(0.75)])
    assert result.plan.masks == plain.plan.masks
    found = verify_files(path, out, tmp_path / "q.plan.json")
    assert (found.weights, found.masks["weights"]) == ("changed", 3)
