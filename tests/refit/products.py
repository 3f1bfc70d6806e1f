"""Small least-squares problems, and samples made of them."""

from __future__ import annotations

import numpy as np

from surgeon.refit.fit import Sample
from surgeon.refit.through import Activation


def problem(seed: int, inputs: int = 6, outputs: int = 3, places: int = 200):
    """Correlated inputs, and a target that is not quite linear in them."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((places, inputs)) @ random.standard_normal((inputs, inputs))
    x += random.standard_normal(inputs)
    w = random.standard_normal((inputs + 1, outputs))
    t = x @ w[:-1] + w[-1] + 0.1 * random.standard_normal((places, outputs))
    return x, t, w


def extended(x: np.ndarray) -> np.ndarray:
    """With a 1 appended to every place."""
    return np.concatenate([x, np.ones((*x.shape[:-1], 1))], axis=-1)


def every_fourth(places: int) -> np.ndarray:
    return np.arange(places) % 4 == 3


def sample_of(x, t, held_out=None, *, other=None, through: Activation | None = None) -> Sample:
    """One group ``[places, ...]``, or several ``[groups, places, ...]``; a quarter is held out."""
    x, t, other = (
        None if each is None else np.asarray(each, np.float32).reshape(-1, *each.shape[-2:])
        for each in (extended(x), t, other)
    )
    return Sample(x, t, other, every_fourth(x.shape[1]) if held_out is None else held_out, through)
