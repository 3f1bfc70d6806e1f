"""The constraint of zeros: as many as asked for, where the pattern lets them be, and no worse than the simple choice."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from surgeon.refit.pattern import Blocks, Few, Pattern, Unstructured
from surgeon.refit.rounding import distance
from surgeon.refit.sparse import Score, Sparse
from surgeon.refit.support import on_support

PATTERNS: list[Pattern] = [Unstructured(), Few(2, 4), Blocks(2, 2)]
SCORES: list[Score] = ["alternating", "wanda", "obs", "magnitude"]


def problem(rows: int, outputs: int, groups: int = 1, seed: int = 0):
    """Inputs that go together, so that it matters which weights stay."""
    random = np.random.default_rng(seed)
    mixed = random.standard_normal((groups, rows, rows)) * 0.5 + np.eye(rows)
    x = random.standard_normal((groups, 20 * rows, rows)) @ mixed
    x = np.concatenate([x, np.ones((*x.shape[:2], 1))], axis=2)
    hessian = x.swapaxes(1, 2) @ x + 1e-3 * np.eye(rows + 1)
    return random.standard_normal((groups, rows + 1, outputs)), hessian


def constraint(
    pattern: Pattern, score: Score, ideal, taps: int = 1, sparsity: float = 0.5, allowed=None
) -> Sparse:
    return Sparse(pattern, sparsity, taps, score, np.abs(ideal[:, :-1]), allowed)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("taps", [1, 3])
def test_zeros_are_as_asked_for(pattern: Pattern, score: Score, taps: int) -> None:
    ideal, hessian = problem(24, 6, groups=2)
    found = constraint(pattern, score, ideal, taps)(ideal, hessian)
    kept = found[:, :-1].reshape(2, 24 // taps, taps, 6) != 0
    assert pattern.fits(kept, 0.5)
    assert kept.mean() == 0.5
    # nothing on this support is better
    support = np.concatenate([found[:, :-1] != 0, np.ones((2, 1, 6), bool)], axis=1)
    best = on_support(ideal, hessian, support, np.zeros_like(ideal))
    assert (distance(found, ideal, hessian) <= distance(best, ideal, hessian) * (1 + 1e-5)).all()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_default_is_no_worse_than_the_simple_choice(pattern: Pattern) -> None:
    gains = []
    for seed in range(5):
        ideal, hessian = problem(32, 8, seed=seed)
        lost = {
            score: distance(constraint(pattern, score, ideal)(ideal, hessian), ideal, hessian).sum()
            for score in SCORES
        }
        assert lost["alternating"] <= lost["wanda"]
        gains.append(lost["alternating"] / lost["wanda"])
    assert np.mean(gains) < 0.95


def test_it_comes_nearer_to_the_best_of_all_choices_than_the_simple_one() -> None:
    ratios: dict[Score, list[float]] = {"alternating": [], "wanda": []}
    for seed in range(12):
        ideal, hessian = problem(8, 1, seed=seed)
        every = []
        for zeros in itertools.combinations(range(8), 4):
            support = np.ones((1, 9, 1), bool)
            support[0, list(zeros)] = False
            every.append(distance(on_support(ideal, hessian, support, ideal), ideal, hessian).sum())
        for score, found in ratios.items():
            weights = constraint(Unstructured(), score, ideal)(ideal, hessian)
            found.append(distance(weights, ideal, hessian).sum() / min(every))
            assert found[-1] >= 1 - 1e-6
    assert np.median(ratios["alternating"]) < 1.3 < 1.5 < np.median(ratios["wanda"])


def test_elimination_of_one_weight_is_the_best_there_is() -> None:
    ideal, hessian = problem(8, 5)
    found = constraint(Few(7, 8), "obs", ideal)(ideal, hessian)
    lost = distance(found, ideal, hessian)
    for k in range(8):
        support = np.ones(ideal.shape, bool)
        support[:, k] = False
        assert (
            lost <= distance(on_support(ideal, hessian, support, ideal), ideal, hessian) * (1 + 1e-6)
        ).all()


@pytest.mark.parametrize("score", SCORES)
def test_zeros_stay_zero(score: Score) -> None:
    ideal, hessian = problem(16, 4)
    allowed = np.random.default_rng(1).random((1, 16, 4)) < 0.7
    found = constraint(Unstructured(), score, ideal, sparsity=0.5, allowed=allowed)(ideal, hessian)
    assert (found[:, :-1][~allowed] == 0).all()
    assert (found[:, :-1] == 0).mean() == 0.5
