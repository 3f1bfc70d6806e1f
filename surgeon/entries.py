"""Entry points: what other distributions provide, by group and name.

Nothing is imported until it is asked for by name, so a broken plugin harms only those who use it.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any, TypeVar

from surgeon.errors import PluginError, UsageError
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
        except Exception as error:  # their module runs, and may raise any type; re-raised as theirs
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


def find(group: str, name: str, *, what: str = "pass", own: Iterable[str] = ()) -> Plugin:
    """Returns the one plugin of that name; the hint where there is none knows the names of our ``own`` too.

    Raises:
        UsageError: There is none.
        PluginError: Several distributions provide it.
    """
    known = available(group)
    if name not in known:
        several = f"{what}es" if what == "pass" else f"{what}s"
        hint = did_you_mean(name, {*known, *own}, what=f"installed {several}")
        raise UsageError(f"no such {what}", where=name, hint=hint)
    if len(known[name]) > 1:
        origins = " and ".join(plugin.origin for plugin in known[name])
        raise PluginError(f"{what} {name!r} is provided twice", where=origins, hint="uninstall one of them")
    return known[name][0]


def load_one(group: str, name: str, own: Mapping[str, T], *, what: str) -> T | object:
    """Returns something by name: one of our ``own``, or what a plugin registers in ``group``.

    Raises:
        UsageError: There is none of that name.
        PluginError: It is provided twice or cannot be imported.
    """
    registered = available(group).get(name, ())
    if name not in own:
        return find(group, name, what=what, own=own).load()
    if registered:
        origins = " and ".join(["onnx-surgeon", *(plugin.origin for plugin in registered)])
        raise PluginError(f"{what} {name!r} is provided twice", where=origins, hint="uninstall one of them")
    return own[name]


def load_function(
    group: str, name: str, own: Mapping[str, Callable[..., Any]], *, what: str
) -> Callable[..., Any]:
    """Returns a function by name; see `load_one`.

    Raises:
        UsageError: There is none of that name.
        PluginError: It is provided twice, cannot be imported or cannot be called.
    """
    loaded = load_one(group, name, own, what=what)
    if not callable(loaded):
        plugin = find(group, name, what=what)
        raise PluginError(f"{what} {name!r}: {plugin.entry.value} cannot be called", where=plugin.origin)
    return loaded
