"""Queries and keys of fewer dimensions: the best ones, wherever a linear operator makes them."""

from __future__ import annotations

import numpy as np
import pytest
from ops.oracle import build
from refit import networks

from surgeon.axes import atoms_of
from surgeon.engine import analyse
from surgeon.graph.load import from_model
from surgeon.graph.save import to_model
from surgeon.refit.contraction import contractions
from surgeon.refit.curves import error_curves
from surgeon.refit.project import best, spectrum
from surgeon.refit.sweep import refit
from surgeon.surgery import keep_of

T, D, HEADS, SIZE = 5, 12, 2, 6
X = np.random.default_rng(3).standard_normal((70, T, D)).astype(np.float32)
UNSEEN = np.random.default_rng(4).standard_normal((40, T, D)).astype(np.float32)


def error(q, k, a, b):
    return float(np.square(q @ k.T - (q @ a) @ (k @ b).T).sum())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_no_other_projection_does_better(seed, rank):
    random = np.random.default_rng(seed)
    q, k = (
        random.standard_normal((60, 5)) @ random.standard_normal((5, 5)) + random.standard_normal(5)
        for _ in "qk"
    )
    b, a = best(k.T @ k, q.T @ q, rank)
    least = error(q, k, a, b)
    assert least == pytest.approx(spectrum(k.T @ k, q.T @ q)[rank:].sum(), rel=1e-5)
    for _ in range(5):
        other = random.standard_normal((5, rank))
        for _ in range(60):  # alternating least squares: each side the best for the other
            left = np.linalg.lstsq(q, q @ k.T @ np.linalg.pinv((k @ other).T), rcond=None)[0]
            other = np.linalg.lstsq(k, k @ q.T @ np.linalg.pinv((q @ left).T), rcond=None)[0]
        assert least <= error(q, k, left, other) * (1 + 1e-6)


def test_moments_without_full_rank_are_no_problem():
    q, k = np.zeros((9, 4)), np.ones((9, 4))
    b, a = best(k.T @ k, q.T @ q, 2)
    assert np.isfinite(a).all()
    assert np.isfinite(b).all()
    assert error(k, k, *best(k.T @ k, k.T @ k, 1)[::-1]) < 1e-6


SPLIT = """
q = Add (qm, bq) k = MatMul (x, wk) v = MatMul (x, wv)
qr = Reshape (q, sq) kr = Reshape (k, sk) vr = Reshape (v, sv)
"""
SCORES = """
qt = Transpose <perm=[0,2,1,3]> (qr) kt = Transpose <perm=[0,2,3,1]> (kr) vt = Transpose <perm=[0,2,1,3]> (vr)
"""
TAIL = """
p = Softmax <axis=-1> (s) o = MatMul (p, vt) ot = Transpose <perm=[0,2,1,3]> (o)
oo = Reshape (ot, flat) y = MatMul (oo, wo)
"""


def attention(kind="plain", rank=SIZE, seed=0):
    """An attention layer whose queries and keys, in every head, span ``rank`` dimensions in a random basis."""
    random = np.random.default_rng(seed)

    def spanning(heads):
        return np.concatenate(
            [random.standard_normal((D, rank)) @ random.standard_normal((rank, SIZE)) for _ in range(heads)],
            1,
        ).astype(np.float32)

    keys = 1 if kind == "grouped" else HEADS
    wq, wk, wv = (
        spanning(HEADS),
        # where keys are shared it is them that span few, for queries of different heads span different ones
        spanning(1) if keys == 1 else random.standard_normal((D, keys * SIZE)).astype(np.float32),
        random.standard_normal((D, HEADS * 4)).astype(np.float32),
    )
    bq = (random.standard_normal(D) @ wq).astype(np.float32)
    weights = {
        "wq": wq, "bq": bq, "wk": wk, "wv": wv, "wo": (HEADS * 4, 3), "two": np.float32(2),
        "sq": np.array([0, T, HEADS, SIZE]), "sk": np.array([0, T, keys, SIZE]), "sv": np.array([0, T, HEADS, 4]),
        "flat": np.array([0, T, HEADS * 4]),
    }  # fmt: skip
    body = "qm = MatMul (x, wq)" + SPLIT + SCORES + "qs = Div (qt, two) s = MatMul (qs, kt)" + TAIL
    if kind == "fused":
        weights |= {
            "wqkv": np.concatenate([wq, wk, random.standard_normal(wq.shape)], 1).astype(np.float32),
            "bqkv": np.concatenate([bq, np.zeros(2 * len(bq))]).astype(np.float32),
            "s3": np.array([0, T, 3, HEADS, SIZE]), "flat": np.array([0, T, HEADS * SIZE]), "wo": (HEADS * SIZE, 3),
            "zero": np.array(0), "one": np.array(1), "both": np.array(2),
        }  # fmt: skip
        body = (
            "m = MatMul (x, wqkv) f = Add (m, bqkv) r = Reshape (f, s3)"
            " qr = Gather <axis=2> (r, zero) kr = Gather <axis=2> (r, one) vr = Gather <axis=2> (r, both)"
            + SCORES
            + "s = MatMul (qt, kt)"
            + TAIL
        )
    if kind == "scaled":
        weights["each"] = random.standard_normal(SIZE).astype(np.float32)
        body = body.replace("qs = Div (qt, two)", "qs = Mul (qt, each)")
    if kind == "rotary":
        weights |= {"cos": (T, SIZE // 2), "sin": (T, SIZE // 2), "halves": np.array([SIZE // 2] * 2)}
        body = body.replace(
            "qs = Div (qt, two)",
            "q1, q2 = Split <axis=-1> (qt, halves) a = Mul (q1, cos) b = Mul (q2, sin) c = Sub (a, b)"
            " d = Mul (q1, sin) e = Mul (q2, cos) g = Add (d, e) qs = Concat <axis=-1> (c, g)",
        )
    used = {name: value for name, value in weights.items() if f"{name})" in body or f"{name}," in body}
    return build(f"float[N,{T},{D}] x", f"float[N,{T},3] y", body, used, seed=seed)


def halved(model, left, x=X):
    """The model with ``left`` of the dimensions of its scores, before and after a refit."""
    found = analyse(from_model(model))
    kept = {}
    for each in contractions(found.analysis):
        for group in found.groups:
            if group.atom in set(atoms_of(each.axis)):
                kept[group.id] = np.arange(group.size) < left
    smaller, plan = found.cut(kept)
    before = to_model(smaller)
    keep = keep_of(plan.kept(), {group.id: group.atom for group in found.groups})
    result = refit(found.analysis, smaller, keep, [{"x": part} for part in np.array_split(x, 5)])
    return before, to_model(smaller), result


@pytest.mark.parametrize("kind", ["plain", "grouped"])
def test_nothing_is_lost_at_the_true_rank(kind):
    model = attention(kind, rank=3)
    before, after, result = halved(model, 3)
    (outcome,) = result.products.values()
    assert outcome.projected < 1e-8 < 0.01 < outcome.selected
    assert networks.relative_error(model, before, UNSEEN) > 1e-3
    assert networks.relative_error(model, after, UNSEEN) < 1e-8


@pytest.mark.parametrize("kind", ["plain", "grouped", "fused"])
def test_the_best_dimensions_beat_some(kind):
    model = attention(kind)
    _, _, result = halved(model, 3)
    (outcome,) = result.products.values()
    assert outcome.projected < 0.8 * outcome.selected


def test_fused_heads_lose_nothing_but_their_values():
    model = attention("fused", rank=3)
    _, _, result = halved(model, 3)
    (outcome,) = result.products.values()
    assert outcome.projected < 1e-8


@pytest.mark.parametrize("kind", ["rotary", "scaled"])
def test_what_treats_channels_differently_is_left_alone(kind):
    model = attention(kind)
    found = analyse(from_model(model))
    (scores,) = [each for each in contractions(found.analysis) if each.softmax]
    assert scores.factors is None
    before, after, result = halved(model, 2)
    assert not result.products
    for name in ("wq", "wk"):
        np.testing.assert_array_equal(networks.weights(before)[name], networks.weights(after)[name])


@pytest.mark.parametrize("kind", ["plain", "grouped", "rotary", "fused"])
def test_curves_know_products_of_activations(kind):
    model = attention(kind, rank=3)
    found = analyse(from_model(model))
    feeds = [{"x": part} for part in np.array_split(X, 5)]
    curves = error_curves(found.analysis, found.groups, feeds)
    groups = {a for each in contractions(found.analysis) if each.softmax for a in atoms_of(each.axis)}
    mine = [curves[group.id] for group in found.groups if group.atom in groups]
    assert mine
    if kind in ("plain", "grouped"):
        (curve,) = mine
        assert sum(curve.steps[:3]) < 1e-4
        assert sum(curve.steps) == pytest.approx(1, abs=0.05)


def test_a_curve_is_the_error_of_selecting():
    model = attention("rotary")
    found = analyse(from_model(model))
    curves = error_curves(found.analysis, found.groups, [{"x": X}])
    (scores,) = [each for each in contractions(found.analysis) if each.softmax]
    (group,) = [g for g in found.groups if g.atom in set(atoms_of(scores.axis))]
    assert sum(curves[group.id].steps) == pytest.approx(1)


def test_pruning_reports_products():
    model = attention("plain", rank=3)
    result = networks.pruned(model, "prune{ratio=0.5 product=inner}", {"x": X})
    record = next(each for each in result.report["passes"] if each["name"] == "prune")
    (product,) = record["reconstruct"]["products"]
    assert product["error_projected"] < product["error_selected"]
    assert not record.get("ranked_by_l2")
