"""The options of the pass ``prune``: what may be cut, how much, and which mistakes are refused before any work."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import numpy as np
import onnx
import prunable
import pytest
from onnx import helper, numpy_helper

from surgeon.cost import count
from surgeon.errors import GateError, UsageError
from surgeon.graph.load import load
from surgeon.passes import Context
from surgeon_passes import prune as module
from surgeon_passes.prune import Prune


def kept_sizes(context):
    return {group.id: len(group.kept) for group in context.plan.groups}


@pytest.mark.parametrize("option", ["ratio", "macs", "params", "size"])
@pytest.mark.parametrize("value", [0.0, 1.0, -0.5, 2.0, float("nan"), float("inf")])
def test_fractions_lie_between_0_and_1(option, value):
    with pytest.raises(UsageError, match="between 0 and 1") as caught:
        Prune(**{option: value})
    assert caught.value.where == f"prune.{option}"
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("options", "where", "hint"),
    [
        ({"score": "l3"}, "prune.score", "l1"),
        ({"score": "geometric_mean"}, "prune.score", "geometric_median"),
        ({"reduce": "men"}, "prune.reduce", "mean"),
        ({"keep": ("w1",)}, "prune.keep", "conv1.weight"),
        ({"drop": ("w1:0=3-1",)}, "prune.drop", None),
        ({"drop": ("w1:0=",)}, "prune.drop", "conv1.weight"),
        ({"ratio": 0.5, "macs": 0.5}, "prune.ratio", None),
        ({"max_ratio": 0.0}, "prune.max_ratio", None),
        ({"max_ratio": 1.5}, "prune.max_ratio", None),
        ({"min_keep": 0}, "prune.min_keep", None),
        ({"multiple_of": 0}, "prune.multiple_of", None),
    ],
)
def test_wrong_options_are_refused_when_they_are_given(options, where, hint):
    with pytest.raises(UsageError) as caught:
        Prune(**options)
    assert caught.value.where == where
    assert hint is None or hint in (caught.value.hint or "")


def test_options_are_checked_without_heavy_modules():
    code = (
        "import sys; from surgeon_passes.prune import Prune; Prune(score='l1')\n"
        "print([name for name in ('numpy', 'onnx', 'onnxruntime') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_names_in_the_options_are_those_that_exist():
    from surgeon.scores import REDUCTIONS, SCORES

    assert set(module.SCORES) == {*SCORES, "random", "auto", "obs"}
    assert set(module.REDUCTIONS) == set(REDUCTIONS)


def test_a_ratio_holds_for_every_group(tmp_path):
    _, context = prunable.prune(prunable.chain(), tmp_path, ratio=0.5)
    assert kept_sizes(context) == {"w1:0": 8, "w2:0": 12}
    assert context.record["groups"] == {"total": 2, "cut": 2, "whole": []}
    assert context.record["certificate"]["status"] == "exact"


@pytest.mark.parametrize(
    ("ratio", "multiple", "expected"), [(0.5, 1, 8), (0.55, 1, 8), (0.55, 4, 8), (0.4, 4, 12)]
)
def test_what_is_kept_is_rounded_up(ratio, multiple, expected, tmp_path):
    _, context = prunable.prune(prunable.chain(), tmp_path, ratio=ratio, multiple_of=multiple)
    assert kept_sizes(context)["w1:0"] == expected


def test_a_group_of_three_loses_one_at_half_and_none_at_a_third_less_a_little(tmp_path):
    shapes = {"w1": (3, 3, 3, 3), "b1": (3,), "w2": (24, 3, 3, 3)}
    model = prunable.build(prunable.CHAIN, prunable.CHAIN_SHAPES | shapes)
    _, context = prunable.prune(model, tmp_path, ratio=0.5)
    assert kept_sizes(context)["w1:0"] == 2
    _, context = prunable.prune(model, tmp_path, ratio=0.33)
    assert "w1:0" not in kept_sizes(context)
    reason = next(w["reason"] for w in context.record["groups"]["whole"] if w["group"] == "w1:0")
    assert "cannot lose" in reason


def test_the_default_is_half_of_the_macs(tmp_path):
    weights, context = prunable.prune(prunable.chain(), tmp_path)
    left = weights["w1"].size * 64 + weights["w2"].size * 64 + weights["w3"].size
    assert 0.4 <= left / (64 * 16 * 27 + 64 * 24 * 144 + 240) <= 0.5
    assert {len(group.kept) % 4 for group in context.plan.groups} == {0}


def test_the_targets_of_the_run_hold_unless_the_pass_has_its_own(tmp_path):
    context = Context(tmp_path / "m.onnx", targets={"params": 0.7, "size": 0.9})
    assert Prune().targets(context) == {"params": 0.7, "file": 0.9}
    assert Prune(size=0.3).targets(context) == {"size": 0.3}
    assert Prune().targets(Context(tmp_path / "m.onnx")) == {"macs": 0.5}


@pytest.mark.parametrize("ranking", ["global", "local"])
@pytest.mark.parametrize("kind", ["macs", "params", "size"])
def test_targets_are_met(ranking, kind, tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(prunable.concat(), str(path))
    graph = load(path)
    before = count(load(path))
    after = count(Prune(ranking=ranking, score="l2", **{kind: 0.6}).run(graph, Context(path)))
    name = "bytes" if kind == "size" else kind
    assert getattr(after, name) <= 0.6 * getattr(before, name)


def test_the_size_of_the_file_is_met_as_well(tmp_path):
    from surgeon.graph.save import save

    path, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    shapes = {
        "w1": (64, 3, 3, 3),
        "b1": (64,),
        "w2": (96, 64, 3, 3),
        "b2": (96,),
        "w3": (10, 96),
        "b3": (10,),
    }
    onnx.save(prunable.build(prunable.CHAIN, shapes), str(path))
    save(Prune().run(load(path), Context(path, targets={"size": 0.5})), out)
    assert 0.4 <= out.stat().st_size / path.stat().st_size <= 0.5


def test_what_is_out_of_reach_says_what_is_reachable(tmp_path):
    with pytest.raises(GateError, match=r"leaves macs=0\.583") as caught:
        prunable.prune(prunable.chain(), tmp_path, macs=0.3, max_ratio=0.25)
    assert caught.value.exit_code == 1


def test_a_file_target_below_what_is_no_weight(tmp_path):
    with pytest.raises(GateError, match="no weight"):
        prunable.prune(prunable.chain(), tmp_path, targets={"size": 0.01})


@pytest.mark.parametrize(
    ("options", "cut"),
    [
        ({"include": ("w2",)}, {"w1:0", "w2:0"}),
        ({"include": ("b2",)}, {"w2:0"}),
        ({"include": ("Gemm*",)}, {"w2:0"}),
        ({"include": ("Relu_1",)}, {"w1:0"}),
        ({"exclude": ("b2",)}, {"w1:0"}),
        ({"exclude": ("Conv_0",)}, {"w2:0"}),
        ({"include": ("Conv*",), "exclude": ("r1",)}, {"w2:0"}),
        ({"exclude": ("w1:0",)}, {"w2:0"}),
    ],
)
def test_patterns_choose_groups_by_node_tensor_or_id(options, cut, tmp_path):
    _, context = prunable.prune(prunable.chain(), tmp_path, ratio=0.5, **options)
    assert kept_sizes(context).keys() == cut


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_is_an_error(option, tmp_path):
    with pytest.raises(UsageError) as caught:
        prunable.prune(prunable.chain(), tmp_path, ratio=0.5, **{option: ("Conw_1",)})
    assert caught.value.where == f"prune.{option}"
    assert "Conv_" in caught.value.hint


def test_including_what_belongs_to_no_group_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="belongs to a channel group"):
        prunable.prune(prunable.chain(), tmp_path, ratio=0.5, include=("b3",))


def test_excluding_what_belongs_to_no_group_is_harmless(tmp_path):
    _, context = prunable.prune(prunable.chain(), tmp_path, ratio=0.5, exclude=("b3",))
    assert context.record["groups"]["cut"] == 2


def test_excluding_everything_leaves_the_graph_and_says_why(tmp_path):
    _, context = prunable.prune(prunable.chain(), tmp_path, ratio=0.5, exclude=("Conv*",))
    assert context.plan is None
    assert {w["reason"] for w in context.record["groups"]["whole"]} == {"excluded by 'Conv*'"}
    assert context.record["certificate"]["status"] == "none"


@pytest.mark.parametrize(
    ("product", "lost"), [("outer", (0.5, 0.5)), ("inner", (0.5, 0.5)), ("both", (0.75, 0.75))]
)
def test_an_axis_of_a_product_loses_the_share_of_one_factor(product, lost, tmp_path):
    weights, context = prunable.prune(prunable.grouped(), tmp_path, ratio=0.5, product=product)
    assert 1 - weights["w1"].shape[0] / 24 == lost[0]
    assert 1 - weights["w3"].shape[1] / 32 == lost[1]
    whole = {w["group"]: w["reason"] for w in context.record["groups"]["whole"]}
    assert all("shrinks instead" in reason for reason in whole.values())
    assert bool(whole) == (product != "both")


@pytest.mark.parametrize("product", ["outer", "inner"])
def test_heads_or_their_dimensions_shrink_and_not_both(product, tmp_path):
    weights, context = prunable.prune(prunable.attention(), tmp_path, ratio=0.5, product=product)
    assert {weights[name].shape for name in ("wq", "wk", "wv")} == {(16, 16)}
    assert weights["wo"].shape == (16, 16)
    kinds = {group.kind for group in context.plan.groups}
    assert kinds == ({"head"} if product == "outer" else {"head_dim"})


def test_where_the_outer_factor_cannot_shrink_the_inner_one_does(tmp_path):
    _, context = prunable.prune(prunable.attention(), tmp_path, ratio=0.2)  # four heads cannot lose a fifth
    assert {group.kind for group in context.plan.groups} == {"head_dim"}


def normalised():
    """A LayerNormalization runs over the group between the two products."""
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], name="up"),
        helper.make_node("LayerNormalization", ["h", "scale"], ["n"], name="norm"),
        helper.make_node("MatMul", ["n", "w2"], ["y"], name="down"),
    ]
    random = np.random.default_rng(0)
    weights = {"w1": (4, 16), "scale": (16,), "w2": (16, 3)}
    tensors = [
        numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), name)
        for name, shape in weights.items()
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "g", [value("x", 1, ["N", 4])], [value("y", 1, ["N", 3])], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_groups_under_a_norm_are_cut_only_when_asked_for(tmp_path):
    _, context = prunable.prune(normalised(), tmp_path, ratio=0.5)
    assert context.plan is None
    assert "allow_structural" in context.record["groups"]["whole"][0]["reason"]
    _, context = prunable.prune(normalised(), tmp_path, ratio=0.5, allow_structural=True)
    assert kept_sizes(context) == {"w1:1": 8}
    assert context.record["certificate"]["status"] == "structural"


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"macs": 0.5}, {"params": 0.5}, {"params": 0.5, "ranking": "local"}])
def test_targets_of_real_architectures(options, shared, tmp_path):
    from test_cost import filled

    missed = {}
    kind, target = next(iter(options.items()))
    for source in sorted((shared / "zoo").glob("*.onnx")):
        path = tmp_path / source.name
        onnx.save(filled(shared)(source), str(path))
        before = getattr(count(load(path)), kind)
        with contextlib.suppress(GateError):  # some cannot shrink that far
            smaller = Prune(score="l2", allow_structural=True, **options).run(load(path), Context(path))
            left = getattr(count(smaller), kind) / before
            if not 0.9 * target <= left <= target:
                missed[source.name] = left
        path.unlink()
    assert missed == {}
