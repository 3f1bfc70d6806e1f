"""Random networks: half of every group is removed, and the result equals the masked original."""

from __future__ import annotations

from collections import Counter
from random import Random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ops.oracle import check_cut, half, sizes, solved
from random_graphs import head, network
from random_images import IMAGE_BLOCKS, conv
from random_parts import SIDE, Network, Stream
from random_sequences import SEQUENCE_BLOCKS, linear, tokens


def check_network(random: Random, blocks: int | None = None) -> int:
    """Cut what is exact, then everything; returns the number of groups."""
    model = network(random, blocks)
    found = solved(model)
    flags = np.random.default_rng(random.randrange(2**32))
    kept = {group.id: half(group.size, flags) for group in found.groups}
    check_cut(found, {group.id: kept[group.id] for group in found.groups if not group.structural})
    check_cut(found, kept)
    return len(found.groups)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32 - 1))
def test_random_networks_are_cut_exactly(seed):
    check_network(Random(seed))


@pytest.mark.slow
def test_hundreds_of_random_networks_are_cut_exactly():
    groups = [check_network(Random(seed)) for seed in range(600)]
    assert sum(count > 0 for count in groups) > 550


@pytest.mark.parametrize(
    "block", [*dict.fromkeys([*IMAGE_BLOCKS, *SEQUENCE_BLOCKS])], ids=lambda b: b.__name__
)
def test_each_block_leaves_something_to_remove(block):
    net = Network(Random(1), 21)
    x = conv(net, Stream("x", 3, SIDE), 12)
    if block in SEQUENCE_BLOCKS and block not in IMAGE_BLOCKS:
        x = linear(net, block(net, linear(net, tokens(net, x), 12)), 8)
        found = solved(head(net, x, image=False))
    else:
        x = conv(net, block(net, x), 8)
        found = solved(head(net, x, image=True))
    assert len(sizes(found)) >= 2


def test_the_generator_mixes_many_operators():
    used = Counter(node.op_type for seed in range(40) for node in network(Random(seed)).graph.node)
    assert len(used) >= 35, sorted(used)
