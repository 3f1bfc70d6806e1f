"""Patterns: counts are exact, the largest scores stay, blocks are pooled as a plain loop pools them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surgeon.errors import UsageError
from surgeon.refit.pattern import SLACK, Blocks, Few, Unstructured, parse_pattern

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 4), st.integers(1, 7))


def scores_of(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape)


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.floats(0, 1), st.integers(0, 99))
def test_unstructured_counts(shape: tuple[int, ...], sparsity: float, seed: int) -> None:
    scores = scores_of(shape, seed)
    kept = Unstructured().kept(scores, sparsity)
    zeros = int((~kept).sum())
    assert zeros - 1 < sparsity * scores.size <= zeros + 1e-6
    if 0 < zeros < scores.size:
        assert scores[kept].min() > scores[~kept].max()


@pytest.mark.parametrize(
    ("sparsity", "zeros"), [(0.9, 9), (0.1, 1), (0.5, 5), (0.55, 6), (0.0, 0), (1.0, 10)]
)
def test_products_that_are_not_exact(sparsity: float, zeros: int) -> None:
    assert int((~Unstructured().kept(scores_of((1, 10, 1, 1)), sparsity)).sum()) == zeros


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.integers(1, 3), st.integers(1, 3), st.integers(0, 99))
def test_few_of_many(shape: tuple[int, ...], n: int, more: int, seed: int) -> None:
    scores, m = scores_of(shape, seed), n + more
    kept = Few(n, m).kept(scores, 0.123)
    assert Few(n, m).fits(kept, 0.123)
    for start in range(0, shape[1], m):
        part, there = scores[:, start : start + m], kept[:, start : start + m]
        assert (there.sum(axis=1) == min(n, part.shape[1])).all()
        lost = np.where(there, -1.0, part).max(axis=1)
        assert (np.where(there, part, 2.0).min(axis=1) > lost).all()
    assert Few(n, m).fits(np.ones(shape, bool), 0.123) == (shape[1] <= n)


@settings(max_examples=60, deadline=None)
@given(
    SHAPES,
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from(["average", "max"]),
    st.floats(0, 1),
    st.integers(0, 99),
)
def test_blocks_against_a_loop(shape, outputs: int, inputs: int, pooling, sparsity: float, seed: int) -> None:
    scores = scores_of(shape, seed)
    blocks = []
    for g in range(shape[0]):
        for i in range(0, shape[1], inputs):
            for t in range(shape[2]):
                for o in range(0, shape[3], outputs):
                    where = (g, slice(i, i + inputs), t, slice(o, o + outputs))
                    blocks.append(
                        (getattr(scores[where], {"average": "mean", "max": "max"}[pooling])(), where)
                    )
    expected, gone = np.ones(shape, bool), 0
    last = len(blocks) - (sparsity < 1)  # one stays
    for _, where in sorted(blocks, key=lambda block: block[0])[:last]:
        if gone >= sparsity * scores.size - 1e-9:
            break
        expected[where] = False
        gone += scores[where].size
    pattern = Blocks(outputs, inputs, pooling)
    kept = pattern.kept(scores, sparsity)
    assert np.array_equal(kept, expected)
    assert pattern.fits(kept, sparsity)


def test_blocks_and_counts_larger_than_the_weight() -> None:
    scores = scores_of((1, 6, 1, 4))
    assert Blocks(10**9, 10**9).kept(scores, 0.5).all()
    assert Few(1, 10**12).kept(scores, 0.5).sum() == 4


def test_half_a_block_does_not_fit() -> None:
    kept = np.ones((1, 4, 1, 4), bool)
    kept[0, 0, 0, 0] = False
    assert not Blocks(2, 1).fits(kept, 1 / 16)
    assert Unstructured().fits(kept, 1 / 16)
    assert not Unstructured().fits(kept, 2 / 16)
    kept[0, 0, 0, 1] = False
    assert Blocks(2, 1).fits(kept, 2 / 16)
    assert not Blocks(2, 1).fits(kept, 3 / 16)


def test_zeros_that_nobody_asked_for_do_no_harm() -> None:
    kept = np.ones((1, 4, 1, 4), bool)
    kept[0, 0, 0, :2] = kept[0, 1, 0, 3] = False
    assert Blocks(2, 1).fits(kept, 2 / 16)
    assert Blocks(4, 4).fits(kept, 0.9)  # the only block stays


def test_names() -> None:
    assert parse_pattern("unstructured") == Unstructured()
    assert parse_pattern("4:8") == Few(4, 8)
    assert parse_pattern("block-4x1", "max") == Blocks(4, 1, "max")
    for text in ("2:2", "0:4", "block-0x4", "block-4", "blocks", ""):
        with pytest.raises(UsageError, match=r"sparsify\.pattern"):
            parse_pattern(text, where="sparsify.pattern")


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.floats(0, 1), st.integers(1, 5), st.integers(0, 999))
def test_without_a_pattern_the_smallest_go_and_of_equal_ones_the_first(
    size: int, sparsity: float, different: int, seed: int
) -> None:
    scores = np.random.default_rng(seed).integers(0, different, (1, size, 1, 1)).astype(float)
    kept = Unstructured().kept(scores, sparsity).ravel()
    gone = np.argsort(scores.ravel(), kind="stable")[: math.ceil(sparsity * size - SLACK)]
    assert np.array_equal(np.flatnonzero(~kept), np.sort(gone))
