"""Exact positions to keep or drop: propagated through the algebra, refused where they cannot go alone."""

from __future__ import annotations

import numpy as np
import prunable
import pytest

from surgeon.errors import UsageError
from surgeon_passes.pruning.positions import Positions, parse


def test_positions_are_read():
    assert parse("a/b:0:1=0-7+12", "x") == Positions("a/b:0:1=0-7+12", "a/b:0", 1, ((0, 7), (12, 12)))
    assert parse("w:-1=3", "x").axis == -1


@pytest.mark.parametrize(
    "text", ["w", "w:0", "w:0=", "w:0=1,2", "w:0=a", "w:0=1-", "w=1", ":0=1", "w:x=1", "w:0=5-2"]
)
def test_what_is_no_position_is_refused(text):
    with pytest.raises(UsageError):
        parse(text, "prune.drop")


def test_drop_alone_removes_just_these(tmp_path):
    weights, context = prunable.prune(prunable.chain(), tmp_path, drop=("w1:0=0-3+9",))
    assert prunable.kept(context, "w1:0") == (4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 15)
    assert weights["w2"].shape == (24, 11, 3, 3)
    assert context.record["groups"]["whole"] == [{"group": "w2:0", "size": 24, "reason": "not named by drop"}]
    assert context.record["certificate"]["status"] == "exact"


@pytest.mark.parametrize("entry", ["w1:0=2", "b1:0=2", "c1:1=2", "r1:-3=2", "w2:1=2"])
def test_any_tensor_of_the_group_names_it(entry, tmp_path):
    _, context = prunable.prune(prunable.chain(), tmp_path, drop=(entry,))
    assert prunable.kept(context, "w1:0") == tuple(k for k in range(16) if k != 2)


def test_dropped_ones_count_towards_a_ratio(tmp_path):
    order = np.ones((16, 3, 3, 3), np.float32) * np.arange(1, 17, dtype=np.float32)[:, None, None, None]
    _, context = prunable.prune(
        prunable.chain(w1=order), tmp_path, ratio=0.25, score="l2", include=("b1",), drop=("b1:0=14-15",)
    )
    kept = prunable.kept(context, "w1:0")
    assert len(kept) == 12
    assert not {14, 15} & set(kept)


def test_dropped_ones_count_towards_a_target(tmp_path):
    _, context = prunable.prune(prunable.chain(), tmp_path, macs=0.5, drop=("w2:0=20-23",))
    assert not {20, 21, 22, 23} & set(prunable.kept(context, "w2:0"))
    _, without = prunable.prune(prunable.chain(), tmp_path, macs=0.99, exclude=("w1",), drop=("w2:0=0-11",))
    assert prunable.kept(without, "w2:0") == tuple(range(12, 24))


@pytest.mark.parametrize("options", [{"ratio": 0.9}, {"macs": 0.2, "ranking": "local"}, {"macs": 0.2}])
def test_kept_ones_stay_whatever_their_score(options, tmp_path):
    weak = np.random.default_rng(0).standard_normal((16, 3, 3, 3)).astype(np.float32)
    weak[[3, 8]] = 1e-6
    _, context = prunable.prune(
        prunable.chain(w1=weak), tmp_path, score="l2", reduce="max", keep=("w1:0=3+8",), **options
    )
    assert {3, 8} <= set(prunable.kept(context, "w1:0"))


def test_part_of_a_concatenation(tmp_path):
    weights, context = prunable.prune(prunable.concat(), tmp_path, drop=("j:1=13+15",))
    assert prunable.kept(context, "wb:0") == (0, 2, 4, 5, 6, 7)
    assert weights["wd"].shape == (18, 1, 1, 1)
    assert [group.id for group in context.plan.groups] == ["wb:0"]


def test_a_whole_head_can_go_and_half_of_one_cannot(tmp_path):
    weights, context = prunable.prune(prunable.attention(), tmp_path, drop=("wq:1=8-15",))
    assert [group.kind for group in context.plan.groups] == ["head"]
    assert weights["wv"].shape == (16, 24)
    with pytest.raises(UsageError, match="cannot go without others") as caught:
        prunable.prune(prunable.attention(), tmp_path, drop=("wq:1=8-11",))
    assert "8-15" in caught.value.message
    assert "0, 8, 16, 24" in caught.value.message


def test_the_same_dimension_of_every_head_can_go(tmp_path):
    weights, context = prunable.prune(prunable.attention(), tmp_path, drop=("wv:1=2+10+18+26",))
    assert [(group.kind, group.kept) for group in context.plan.groups] == [
        ("head_dim", (0, 1, 3, 4, 5, 6, 7))
    ]
    assert weights["wo"].shape == (28, 16)
    assert weights["wq"].shape == (16, 32)


def test_a_head_and_a_dimension_together(tmp_path):
    weights, _ = prunable.prune(prunable.attention(), tmp_path, drop=("wv:1=0-7+10+18+26",))
    assert weights["wv"].shape == (16, 21)


def test_keeping_one_position_keeps_all_of_its_coordinates(tmp_path):
    _, context = prunable.prune(prunable.attention(), tmp_path, ratio=0.75, keep=("wv:1=9",))
    assert prunable.kept(context, "wq:1") == (1,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop": ("w1:1=0",)}, "graph input"),
        ({"drop": ("w3:0=0",)}, "graph output"),
        ({"drop": ("w1:0=16",)}, "has 16 positions"),
        ({"drop": ("w1:4=0",)}, "has 4 axes"),
        ({"drop": ("w9:0=0",)}, "no tensor 'w9'"),
        ({"drop": ("w1:0=0-15",)}, "nothing would be left"),
        ({"drop": ("w1:0=1",), "keep": ("b1:0=1",)}, "both kept and dropped"),
        ({"drop": ("w1:0=1",), "exclude": ("b1",)}, "excluded by 'b1'"),
        ({"keep": ("w1:0=99",)}, "has 16 positions"),
    ],
)
def test_impossible_wishes_are_refused(options, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        prunable.prune(prunable.chain(), tmp_path, **options)


def test_an_unknown_tensor_is_answered_with_a_near_one(tmp_path):
    model = prunable.build(
        prunable.CHAIN.replace("w1", "stem_weight"),
        {("stem_weight" if name == "w1" else name): shape for name, shape in prunable.CHAIN_SHAPES.items()},
    )
    with pytest.raises(UsageError) as caught:
        prunable.prune(model, tmp_path, drop=("stem_wieght:0=1",))
    assert "stem_weight" in caught.value.hint
