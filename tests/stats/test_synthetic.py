"""Synthetic inputs: reproducible, of the right types and sizes, plausible for integers and masks."""

from __future__ import annotations

import numpy as np
import pytest

from surgeon.errors import UnsupportedModelError
from surgeon.stats.synthetic import synthetic, synthetic_dataset

INPUTS = [
    ("image", "float16", ("N", 3, "h", None)),
    ("ids", "int64", ("N", "length")),
    ("attention_mask", "int32", ("N", "length")),
    ("flag", "bool", (2,)),
    ("rate", "int64", ()),
]


def test_types_sizes_and_values() -> None:
    feeds = synthetic(INPUTS, seed=1, batch=3, sizes={"length": 50, "h": 5}, bounds={"ids": (2, 4)})
    assert feeds["image"].shape == (3, 3, 5, 8)
    assert feeds["image"].dtype == np.float16
    assert set(np.unique(feeds["ids"])) == {2, 3}
    assert feeds["attention_mask"].all()
    assert feeds["attention_mask"].dtype == np.int32
    assert feeds["flag"].all()
    assert 0 <= int(feeds["rate"]) < 40


def test_the_batch_is_as_large_wherever_its_symbol_occurs() -> None:
    inputs = [("x", "float32", ("N", "T", 5)), ("state", "float32", (2, "N", 3))]
    assert [feeds.shape for feeds in synthetic(inputs, seed=0).values()] == [(1, 8, 5), (2, 1, 3)]
    assert [feeds.shape for feeds in synthetic(inputs, 0, 4, {"N": 6}).values()] == [(6, 8, 5), (2, 6, 3)]
    (whole, *_) = synthetic_dataset(inputs, seed=0, samples=8, batch=4)
    assert [feeds.shape for feeds in whole[0].values()] == [(4, 8, 5), (2, 4, 3)]


def test_the_seed_decides() -> None:
    one, same, other = (synthetic(INPUTS, seed=seed)["image"] for seed in (1, 1, 2))
    assert (one == same).all()
    assert not (one == other).all()


def test_types_that_cannot_be_made_up() -> None:
    with pytest.raises(UnsupportedModelError, match="text"):
        synthetic([("text", "O", (1,))], seed=0)


def test_a_dataset_of_them() -> None:
    data = synthetic_dataset(INPUTS[:1], seed=0, samples=20, batch=8)
    batches = [feeds["image"] for feeds, _ in data]
    assert [len(batch) for batch in batches] == [8, 8, 8]
    assert not (batches[0] == batches[1]).all()
    assert not data.has_labels
