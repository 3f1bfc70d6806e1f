"""Channels can be scaled: which may be, by factors of their own, without any change of what the model computes.

A tensor's channels divided by positive factors are made up for wherever they come from and wherever they go to: in
weights that write them and weights that read them. What lies between has to pass factors on: a Relu does, a Gelu does
not. Every operator has a small rule that says how the factors of its inputs and outputs relate; what no rule forbids
is free.
"""

from surgeon.scaling import rules, weighted  # the rules declare themselves
from surgeon.scaling.fields import Scaling
from surgeon.scaling.registry import SCALINGS, scaling

__all__ = ["SCALINGS", "Scaling", "rules", "scaling", "weighted"]
