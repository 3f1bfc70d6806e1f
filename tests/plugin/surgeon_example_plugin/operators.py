"""The axis rule and the derivative of an operator of our own: ``example.ChannelScale(x [N, C, …], scale [C])``."""

from __future__ import annotations

from typing import Any

import surgeon


@surgeon.rule("ChannelScale", domain="example")
def channel_scale(op: Any, x: Any, scale: Any) -> list[Any]:
    """Scales channels: the scale has the axis 1 of x."""
    op.unify(x[1], scale[0])
    return [x]


@surgeon.derivative("ChannelScale", domain="example", parameters=(1,))
def channel_scale_derivative(op: Any, x: Any, scale: Any) -> list[Any]:
    """d(x scale) = dx scale + x dscale, the latter summed over all but channels."""
    others = [axis for axis in range(len(op.dims(0))) if axis != 1]
    return [op.dy() * scale.unsqueeze(*others), (op.dy() * x).sum(others)]
