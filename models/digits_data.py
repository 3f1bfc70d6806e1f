"""The demo's data: scikit-learn's handwritten digits, split once and for all into training, search and test."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from sklearn.datasets import load_digits

BATCH = 100
TRAINING, SEARCH = 1000, 197  # the other 600 of the 1,797 images are the test set


def training_arrays() -> tuple[np.ndarray, np.ndarray]:
    """Images ``[1000, 1, 8, 8]`` in [-1, 1] and their labels: what ``digits.py`` trains on."""
    return _part(0, TRAINING)


def calibration() -> Iterator[dict[str, np.ndarray]]:
    """The training images: what calibration may look at."""
    yield from _batches(0, TRAINING)


def search() -> Iterator[dict[str, np.ndarray]]:
    """Images for choosing between alternatives; neither trained on nor part of the test."""
    yield from _batches(TRAINING, TRAINING + SEARCH)


def test() -> Iterator[dict[str, np.ndarray]]:
    """The held-out images that accuracy is reported on."""
    yield from _batches(TRAINING + SEARCH, None)


def _batches(start: int, stop: int | None) -> Iterator[dict[str, np.ndarray]]:
    images, labels = _part(start, stop)
    for first in range(0, len(images), BATCH):
        chosen = slice(first, first + BATCH)
        yield {"input": images[chosen], "labels": labels[chosen]}


def _part(start: int, stop: int | None) -> tuple[np.ndarray, np.ndarray]:
    pixels, labels = load_digits(return_X_y=True)
    # RandomState's stream is frozen by NumPy, so this split is the same on every machine and version.
    chosen = np.random.RandomState(0).permutation(len(pixels))[start:stop]
    images = (pixels[chosen] / 8.0 - 1.0).astype(np.float32).reshape(-1, 1, 8, 8)
    return images, labels[chosen].astype(np.int64)
