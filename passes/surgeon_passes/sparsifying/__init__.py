"""What the pass `sparsify` is made of."""
