"""MNIST's data: 70,000 handwritten digits from a file of yours, split once and for all into training, search and test.

The environment variable ``MNIST_NPZ`` names the file, an npz archive with ``train_x`` (uint8 ``[60000, 28, 28]``),
``train_y``, ``test_x`` (uint8 ``[10000, 28, 28]``) and ``test_y``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np

VARIABLE = "MNIST_NPZ"
BATCH = 128
CALIBRATION, SEARCH = 1024, 5000  # of the 60,000 training images; those for search are not trained on
KEYS = {"train_x": (60000, 28, 28), "train_y": (60000,), "test_x": (10000, 28, 28), "test_y": (10000,)}


def training_arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images ``[55000, 1, 28, 28]`` in [0, 1] and their labels: what ``mnist_cnn.py`` trains on."""
    return _part(path, "train", slice(SEARCH, None))


def test_arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images ``[10000, 1, 28, 28]`` in [0, 1] and their labels."""
    return _part(path, "test", slice(None))


def calibration() -> Iterator[dict[str, np.ndarray]]:
    """1,024 training images without labels: what calibration may look at."""
    images, _ = _part(_file(), "train", slice(SEARCH, SEARCH + CALIBRATION))
    yield from ({"input": batch["input"]} for batch in _batches(images, np.empty(len(images))))


def search() -> Iterator[dict[str, np.ndarray]]:
    """5,000 images for choosing between alternatives; neither trained on nor part of the test."""
    yield from _batches(*_part(_file(), "train", slice(SEARCH)))


def test() -> Iterator[dict[str, np.ndarray]]:
    """The 10,000 test images that accuracy is reported on."""
    yield from _batches(*test_arrays(_file()))


def _batches(images: np.ndarray, labels: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    for first in range(0, len(images), BATCH):
        chosen = slice(first, first + BATCH)
        yield {"input": images[chosen], "labels": labels[chosen]}


def _part(path: Path, name: str, chosen: slice) -> tuple[np.ndarray, np.ndarray]:
    arrays = _arrays(path)
    pixels, labels = arrays[f"{name}_x"], arrays[f"{name}_y"]
    if name == "train":
        # RandomState's stream is frozen by NumPy, so this split is the same on every machine and version.
        order = np.random.RandomState(0).permutation(len(pixels))[chosen]
        pixels, labels = pixels[order], labels[order]
    images = (pixels / np.float32(255)).astype(np.float32)[:, None]
    return images, labels.astype(np.int64)


@cache
def _arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads the archive.

    Raises:
        ValueError: It has other arrays than MNIST's.
    """
    with np.load(path) as archive:
        arrays = {key: archive[key] for key in KEYS if key in archive}
    shapes = {key: array.shape for key, array in arrays.items()}
    if shapes != KEYS:
        raise ValueError(f"{path} should hold MNIST as {KEYS}, but of these it has {shapes}")
    return arrays


def _file() -> Path:
    """Returns the archive that the environment names.

    Raises:
        FileNotFoundError: It names none, or there is no such file.
    """
    named = os.environ.get(VARIABLE)
    if not named:
        raise FileNotFoundError(f"set {VARIABLE} to the npz file of MNIST: {VARIABLE}=mnist.npz surgeon ...")
    if not Path(named).is_file():
        raise FileNotFoundError(f"there is no file {named}, which {VARIABLE} names")
    return Path(named)
