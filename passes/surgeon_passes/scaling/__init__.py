"""What the passes ``equalize`` and ``smooth`` share: what rounding will cost, and how factors are chosen."""
