"""Which places are looked at: of variants only where the samples have too few, held out together with what they vary."""

from __future__ import annotations

import numpy as np
import pytest

from surgeon.refit.sampling import RUN, Draw, Places

WIDTH = (1, 10, 5)


def draw(wanted: int, batches: int, more: int) -> Draw:
    return Draw(np.random.default_rng(0), Places(per_input=1, fewest=wanted), batches, more)


@pytest.mark.parametrize("wanted", [40, 400, 1_000, 4_000])
def test_variants_fill_up_what_is_missing(wanted):
    batches, variants, total = 4, 2, 100
    found = draw(wanted, batches, batches * variants)
    counts = [len(found.places_of(k, total, WIDTH)) for k in range(batches * (1 + variants))]
    own, first, second = (sum(counts[k : k + batches]) for k in range(0, len(counts), batches))
    assert own == min(wanted + batches, batches * total)
    assert first == (0 if own < batches * total else min(wanted + batches - own, batches * total))
    assert second == min(max(wanted + batches - own - first, 0), batches * total)


def test_runs_are_drawn_of_what_is_missing():
    found = draw(1_000, 4, 4)
    for batch in range(8):
        places = found.runs_of(batch, 3 * RUN, WIDTH)
        assert len(places) == (3 * RUN if batch < 4 else RUN)
        assert set(np.diff(places)) == {1}


def test_without_variants_nothing_else_is_drawn():
    alone, filled = draw(40, 4, 0), draw(40, 4, 8)
    for batch in range(4):
        np.testing.assert_array_equal(alone.places_of(batch, 100, WIDTH), filled.places_of(batch, 100, WIDTH))


@pytest.mark.parametrize("total", [1, 2, 50])
@pytest.mark.parametrize("batches", [1, 2, 6, 8, 20])
def test_what_is_held_out_is_so_with_its_variants(batches, total):
    found = draw(10_000, batches, 2 * batches)
    places = np.arange(total)
    flags = np.array([found.held_out(batch, places, total) for batch in range(3 * batches)])
    own, *variants = np.split(flags, 3)
    assert all((each == own).all() for each in variants)
    assert batches * total == 1 or 0 < own.sum() < own.size
    some = np.arange(0, total, 2)
    assert (found.held_out(batches, some, total) == own[0, ::2]).all()


def test_variants_of_other_lengths_are_drawn_from_where_originals_lack_places():
    found = draw(1_000, 2, 2)
    counts = [0, 400, 30, 20]
    assert list(found.visits(WIDTH, counts.__getitem__)) == [(0, 0, 0), (1, 400, 400), (3, 400, 20)]
    assert [batch for batch, _, _ in found.visits(WIDTH, lambda _: 600)] == [0, 1]
    assert found.places_of(2, 30, WIDTH).max() < 30
