"""Folding channels: copies with noise of their own are better as their mean, and deletion is never beaten by worse."""

from __future__ import annotations

import numpy as np
import pytest
from ops.oracle import build
from refit import networks
from refit.test_sweep import refitted

from surgeon.refit.fit import Effort
from surgeon.refit.merge import clusters

ALONE = Effort(joint=0)  # fitted together with the operator before it, what was deleted catches up
X = networks.images()
UNSEEN = networks.images(100, seed=9)


def noisy_copies(noise=0.3, seed=0):
    """A convolution whose last six channels are its first six, each with noise in its weights."""
    random = np.random.default_rng(seed)
    weight, bias = random.standard_normal((6, 3, 3, 3)), random.standard_normal(6)
    both = np.concatenate([weight, weight]) + noise * random.standard_normal((12, 3, 3, 3))
    reader = random.standard_normal((5, 6, 3, 3))
    weights = {
        "w1": both.astype(np.float32), "b1": np.concatenate([bias, bias]).astype(np.float32),
        "w2": np.concatenate([reader, reader], 1).astype(np.float32), "b2": (5,),
    }  # fmt: skip
    body = "c = Conv <pads=[1,1,1,1]> (x, w1, b1) r = Relu (c) y = Conv (r, w2, b2)"
    return build("float[N,3,6,6] x", "float[N,5,4,4] y", body, weights, seed=seed)


def first_half(found):
    return {group.id: np.arange(group.size) < group.size // 2 for group in found.groups}


@pytest.mark.parametrize("seed", range(3))
def test_means_of_noisy_copies_beat_either_copy(seed):
    model = noisy_copies(seed=seed)
    _, folded, result = refitted(model, first_half, merge=True, effort=ALONE)
    _, deleted, _ = refitted(model, first_half, effort=ALONE)
    (outcome,) = result.folded.values()
    assert outcome.folded < 0.6 * outcome.deleted
    errors = [networks.relative_error(model, each, UNSEEN) for each in (folded, deleted)]
    assert errors[0] < 0.6 * errors[1]
    assert networks.widths(folded) == networks.widths(deleted)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("middle", ["r = Relu (c) y = Conv (r, w2)", "y = Conv (c, w2)"])
def test_what_is_folded_is_better_than_deleted_and_the_rest_is_deleted(middle, seed):
    random = np.random.default_rng(seed)
    turned, _ = np.linalg.qr(random.standard_normal((27, 27)))
    weights = {"w1": turned[:12].reshape(12, 3, 3, 3).astype(np.float32), "w2": (5, 12, 3, 3)}
    body = f"c = Conv (x, w1) {middle}"
    model = build("float[N,3,6,6] x", "float[N,5,2,2] y", body, weights)
    _, folded, result = refitted(model, first_half, merge=True, effort=ALONE)
    _, deleted, _ = refitted(model, first_half, effort=ALONE)
    assert result.folded
    if not any(each.better for each in result.folded.values()):
        assert folded == deleted
    errors = [networks.relative_error(model, each, UNSEEN) for each in (folded, deleted)]
    assert errors[0] <= errors[1]


def test_the_same_every_time():
    runs = [refitted(noisy_copies(), first_half, merge=True, effort=ALONE)[1] for _ in range(2)]
    assert runs[0] == runs[1]
    moments = np.cov(np.random.default_rng(0).standard_normal((12, 40)))
    kept = np.arange(12) % 2 == 0
    first, second = clusters(moments, kept), clusters(moments, kept)
    assert all((one == two).all() for one, two in zip(first, second, strict=True))
    for labels in first:
        assert set(labels) - {-1} == set(range(6))


def test_channels_are_folded_through_depthwise_convolutions():
    random = np.random.default_rng(0)
    model = noisy_copies()
    weights = networks.weights(model)
    kernels = random.standard_normal((6, 1, 3, 3))
    weights |= {
        "wd": np.concatenate([kernels, kernels]).astype(np.float32),
        "bd": np.tile(random.standard_normal(6), 2).astype(np.float32),
    }
    body = """
    c = Conv <pads=[1,1,1,1]> (x, w1, b1) r = Relu (c)
    d = Conv <group=12, pads=[1,1,1,1]> (r, wd, bd) e = Relu (d) y = Conv (e, w2, b2)
    """
    model = build("float[N,3,6,6] x", "float[N,5,4,4] y", body, weights)
    _, folded, result = refitted(model, first_half, merge=True, effort=ALONE)
    _, deleted, _ = refitted(model, first_half, effort=ALONE)
    (outcome,) = result.folded.values()
    assert outcome.folded < 0.8 * outcome.deleted
    errors = [networks.relative_error(model, each, UNSEEN) for each in (folded, deleted)]
    assert errors[0] < 0.8 * errors[1]


def test_streams_are_left_alone():
    _, _, result = refitted(
        networks.mixed(), lambda f: {g.id: np.arange(g.size) % 2 == 0 for g in f.groups}, merge=True
    )
    assert list(result.folded) == [
        "h"
    ]  # the residual stream runs through two producers and a depthwise convolution
