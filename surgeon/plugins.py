"""Finds what is installed: passes, operator rules, metrics, scores and reductions, by entry point.

Nothing is imported until it is asked for by name, so a broken plugin harms only those who use it.
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import TypeVar

from surgeon.errors import PluginError, UsageError
from surgeon.passes import Pass
from surgeon.suggest import did_you_mean

PASSES = "surgeon.passes"
OPS = "surgeon.ops"
METRICS = "surgeon.metrics"
SCORES = "surgeon.scores"
REDUCTIONS = "surgeon.reductions"

T = TypeVar("T")


@dataclass(frozen=True)
class Plugin:
    """One entry point and the distribution it comes from."""

    name: str
    group: str
    entry: EntryPoint
    distribution: str
    version: str

    @property
    def origin(self) -> str:
        """The distribution and its version, as shown to people."""
        return f"{self.distribution} {self.version}".strip()

    def load(self) -> object:
        """Imports the object.

        Raises:
            PluginError: The import failed; the distribution is named.
        """
        try:
            return self.entry.load()
        except Exception as error:  # whatever a third party's module does while it is imported
            message = f"{self.group} plugin {self.name!r} cannot be imported: {type(error).__name__}: {error}"
            hint = f"reinstall or remove {self.distribution}"
            raise PluginError(message, where=self.origin, hint=hint) from error


def available(group: str) -> dict[str, tuple[Plugin, ...]]:
    """Lists the entry points of a group by name; more than one under a name is a conflict.

    The same distribution seen twice on the path (an editable install and its source folder) counts once.
    """
    found: dict[str, dict[tuple[str, str], Plugin]] = {}
    for entry in importlib.metadata.entry_points(group=group):
        distribution = entry.dist
        name, version = (distribution.name, distribution.version) if distribution else ("unknown", "")
        key = (name.lower().replace("_", "-"), entry.value)
        found.setdefault(entry.name, {}).setdefault(key, Plugin(entry.name, group, entry, name, version))
    return {name: tuple(plugins.values()) for name, plugins in sorted(found.items())}


def find(group: str, name: str, *, what: str = "pass") -> Plugin:
    """Returns the one plugin of that name.

    Raises:
        UsageError: There is none.
        PluginError: Several distributions provide it.
    """
    known = available(group)
    if name not in known:
        hint = did_you_mean(
            name, known, what=f"installed {what}es" if what == "pass" else f"installed {what}s"
        )
        raise UsageError(f"no such {what}", where=name, hint=hint)
    if len(known[name]) > 1:
        origins = " and ".join(plugin.origin for plugin in known[name])
        raise PluginError(f"{what} {name!r} is provided twice", where=origins, hint="uninstall one of them")
    return known[name][0]


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


def load_function(group: str, name: str, own: Mapping[str, T], *, what: str) -> T | Callable[..., object]:
    """Returns a function by name: one of our ``own``, or one that a plugin registers in ``group``.

    Raises:
        UsageError: There is none of that name.
        PluginError: It is provided twice, cannot be imported or cannot be called.
    """
    registered = available(group).get(name, ())
    if name in own:
        if registered:
            origins = " and ".join(["onnx-surgeon", *(plugin.origin for plugin in registered)])
            raise PluginError(
                f"{what} {name!r} is provided twice", where=origins, hint="uninstall one of them"
            )
        return own[name]
    plugin = find(group, name, what=what)
    loaded = plugin.load()
    if not callable(loaded):
        raise PluginError(f"{what} {name!r}: {plugin.entry.value} cannot be called", where=plugin.origin)
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
