"""Trials: batches that judge are others than those fitted to."""

from __future__ import annotations

import numpy as np

from surgeon.refit.trial import Feeds


def test_batches_judge_that_nothing_was_fitted_to():
    batches = [{"x": np.zeros((10, 2))} for _ in range(12)]
    feeds = Feeds.of(batches, 60)
    assert (len(feeds.trial), len(feeds.judge), len(feeds.fit)) == (3, 2, 10)
    assert not {id(each) for each in feeds.judge} & {id(each) for each in (*feeds.trial, *feeds.fit)}
    few = Feeds.of(batches[:2], 60)
    assert (len(few.trial), len(few.judge), len(few.fit)) == (1, 1, 2)
    one = Feeds.of(batches[:1], 60)
    assert one.trial == one.judge == one.fit == batches[:1]
