"""The parts of the pass ``drop``."""
