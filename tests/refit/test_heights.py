"""Sensitivities that were not measured: from neighbours, or from gradients where they foretell more."""

from __future__ import annotations

import numpy as np

from surgeon_passes.pruning.heights import between

PLACES = list(range(0, 40, 5))
ERRORS = np.random.default_rng(0).normal(size=40)
NONE = np.full(40, np.nan)


def test_without_slopes_heights_are_between_their_neighbours():
    outputs = ERRORS + np.linspace(-1, 2, 40)
    found = between(PLACES, outputs[PLACES], ERRORS, NONE)
    np.testing.assert_allclose(found[:36], outputs[:36])


def test_slopes_are_used_where_they_foretell_what_was_tried():
    slopes = np.random.default_rng(1).normal(size=40)
    outputs = 0.6 * slopes - 3
    np.testing.assert_allclose(between(PLACES, outputs[PLACES], ERRORS, slopes), outputs)


def test_slopes_that_say_nothing_are_left_out():
    outputs = ERRORS + np.linspace(-1, 2, 40)
    slopes = np.random.default_rng(2).normal(size=40)
    found = between(PLACES, outputs[PLACES], ERRORS, slopes)
    np.testing.assert_array_equal(found, between(PLACES, outputs[PLACES], ERRORS, NONE))


def test_groups_without_slopes_are_read_off_their_neighbours():
    slopes = np.random.default_rng(1).normal(size=40)
    outputs = 0.6 * slopes - 3
    slopes[[5, 7]] = np.nan
    found = between(PLACES, outputs[PLACES], ERRORS, slopes)
    assert found[5] == outputs[5]
    assert found[7] == between(PLACES, outputs[PLACES], ERRORS, NONE)[7]
    np.testing.assert_allclose(np.delete(found, [5, 7]), np.delete(outputs, [5, 7]))


def test_few_groups_are_too_few_for_a_line():
    slopes = np.random.default_rng(1).normal(size=40)
    tried = [0, 10, 39]
    np.testing.assert_array_equal(
        between(tried, slopes[tried], ERRORS, slopes), between(tried, slopes[tried], ERRORS, NONE)
    )
