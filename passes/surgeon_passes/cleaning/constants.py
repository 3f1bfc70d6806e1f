"""Merges constants that hold the same sizes, indices or flags.

Floating-point constants are left alone: two equal weights that become one would have to be cut together.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from surgeon_passes.cleaning.wiring import fixed_values, move_consumers

if TYPE_CHECKING:
    from collections.abc import Hashable

    from surgeon_passes.cleaning.wiring import Wiring

MERGED_TYPES = frozenset({np.dtype(np.int64), np.dtype(np.int32), np.dtype(np.bool_)})
LARGEST = 1024  # elements; larger ones are tables, not shapes, and may be worth cutting apart


def merge_constants(wiring: Wiring) -> int:
    """Let equal integer constants be one, and return how many went away."""
    first: dict[Hashable, gs.Constant] = {}
    seen: set[int] = set()
    merged = 0
    for node in wiring.graph.nodes:
        for tensor in list(node.inputs):
            if not isinstance(tensor, gs.Constant) or id(tensor) in seen:
                continue
            seen.add(id(tensor))
            key = _key(tensor)
            if key is None or wiring.is_bound(tensor):
                continue
            kept = first.setdefault(key, tensor)
            if kept is not tensor:
                move_consumers(tensor, kept)
                merged += 1
    return merged


def _key(constant: gs.Constant) -> Hashable | None:
    """What makes two constants the same, or None where they are not to be merged."""
    if math.prod(constant.shape) > LARGEST:
        return None
    values = fixed_values(constant)
    if values is None or values.dtype not in MERGED_TYPES:
        return None
    return values.dtype.str, values.shape, values.tobytes()
