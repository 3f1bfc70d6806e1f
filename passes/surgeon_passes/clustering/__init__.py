"""What the pass `cluster` is made of."""
