"""Passes and operator rules that are installed, loaded and checked."""

from __future__ import annotations

import functools
from collections.abc import Callable

from surgeon.entries import OPS, PASSES, available, find
from surgeon.errors import PluginError
from surgeon.passes import Pass


@functools.cache
def load_pass(name: str) -> type[Pass]:
    """Imports the pass of that name and checks that it keeps the contract of passes.

    Raises:
        UsageError: No such pass is installed.
        PluginError: It cannot be imported, is provided twice or is not a pass.
    """
    plugin = find(PASSES, name)
    loaded = plugin.load()
    fault = _fault(loaded, name)
    if fault or not isinstance(loaded, type):
        raise PluginError(f"pass {name!r}: {plugin.entry.value} {fault}", where=plugin.origin)
    return loaded


def load_rules(warn: Callable[[str], None]) -> None:
    """Imports the operator rules of all plugins, which declare themselves with `surgeon.rule`.

    A broken one costs a warning and not the run: an operator without a rule is left alone, which is always safe.
    """
    for message in _broken_rules():
        warn(message)


def forget() -> None:
    """Forgets what was loaded, for programs that change their import path."""
    load_pass.cache_clear()
    _broken_rules.cache_clear()


@functools.cache
def _broken_rules() -> tuple[str, ...]:
    broken = []
    for name in available(OPS):
        try:
            find(OPS, name, what="operator rule").load()
        except PluginError as error:
            broken.append(f"{error}; its operators are left as they are")
    return tuple(broken)


def _fault(loaded: object, name: str) -> str | None:
    """Says what keeps an object from being a pass, or None."""
    if not isinstance(loaded, type) or not issubclass(loaded, Pass):
        return "is not a subclass of surgeon.Pass"
    parameters = getattr(loaded, "__dataclass_params__", None)
    if parameters is None or not parameters.frozen or "__dataclass_fields__" not in vars(loaded):
        return "is not a frozen dataclass"
    if getattr(loaded, "name", None) != name:
        return f"calls itself {getattr(loaded, 'name', None)!r}, its entry point {name!r}"
    if getattr(loaded, "__abstractmethods__", None):
        return "does not define run()"
    return None
