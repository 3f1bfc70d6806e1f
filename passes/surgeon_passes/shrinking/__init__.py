"""The parts of the pass ``shrink``."""
