"""One choice per operator: within the limit, and near to the best of all combinations."""

from __future__ import annotations

from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from surgeon.allocate.choices import Choice, choose

CHOICES = st.lists(
    st.builds(Choice, st.integers(1, 20).map(float), st.integers(0, 50).map(float)), min_size=1, max_size=4
)


@given(st.lists(CHOICES, min_size=1, max_size=5), st.integers(1, 80))
@settings(max_examples=200, deadline=None)
def test_against_all_combinations(options, limit):
    found = choose(options, float(limit))
    every = [
        (sum(e.error for e in some), sum(e.cost for e in some))
        for some in product(*options)
        if sum(e.cost for e in some) <= limit
    ]
    if not every:
        assert found is None
        return
    assert found is not None
    taken = [some[k] for some, k in zip(options, found, strict=True)]
    assert sum(each.cost for each in taken) <= limit + 1e-6
    # a Lagrangian solution misses the best by less than one operator's largest step
    step = max(max(e.error for e in some) - min(e.error for e in some) for some in options)
    assert sum(each.error for each in taken) <= min(every)[0] + step


def test_without_pressure_nothing_is_lost():
    options = [[Choice(10.0, 0.0), Choice(5.0, 0.1)], [Choice(8.0, 0.0), Choice(1.0, 0.5)]]
    assert choose(options, 18.0) == [0, 0]
    assert choose(options, 17.0) == [1, 0]
    assert choose(options, 6.0) == [1, 1]
    assert choose(options, 5.9) is None
