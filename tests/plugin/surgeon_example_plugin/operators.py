"""The axis rule of an operator of our own: ``example.ChannelScale(x [N, C, …], scale [C])``."""

from __future__ import annotations

from typing import Any

import surgeon


@surgeon.rule("ChannelScale", domain="example")
def channel_scale(op: Any, x: Any, scale: Any) -> list[Any]:
    """Scales channels: the scale has the axis 1 of x."""
    op.unify(x[1], scale[0])
    return [x]
