"""The lossless simplifications of the pass ``clean``, one per file."""
