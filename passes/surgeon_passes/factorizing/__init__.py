"""The parts of the pass ``factorize``."""
