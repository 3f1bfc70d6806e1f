"""Operator rules: how the axes of each operator's inputs and outputs relate. One family a file, found by itself."""

from importlib import import_module
from pkgutil import iter_modules

from surgeon.ops.emit import Emitter
from surgeon.ops.op import Axes, Op, Ref
from surgeon.ops.operator import Barrier
from surgeon.ops.registry import RULES, Rule, rule

__all__ = ["RULES", "Axes", "Barrier", "Emitter", "Op", "Ref", "Rule", "rule"]

for _family in iter_modules(__path__):
    import_module(f"{__name__}.{_family.name}")
