"""What ``surgeon passes`` lists: installed passes, where they come from, and their options."""

from __future__ import annotations

import inspect
from typing import Any

from surgeon import entries, plugins
from surgeon.errors import PluginError
from surgeon.options import options_of, type_name


def describe_all() -> list[dict[str, Any]]:
    """Describes every installed pass; a broken or doubled one has ``error`` in place of its options."""
    described = []
    for name, found in entries.available(entries.PASSES).items():
        try:
            described.append(describe_one(name))
        except PluginError as error:
            origin = {"distribution": found[0].distribution, "version": found[0].version}
            described.append({"name": name, **origin, "error": str(error)})
    return described


def describe_one(name: str) -> dict[str, Any]:
    """Describes one pass.

    Raises:
        UsageError: There is no such pass.
        PluginError: It is broken or provided twice.
    """
    plugin = entries.find(entries.PASSES, name)
    loaded = plugins.load_pass(name)
    summary, _, details = inspect.cleandoc(loaded.__doc__ or "").partition("\n")
    options = [
        {
            "name": option.name,
            "type": type_name(option.hint, f"{name}.{option.name}"),
            "default": None if option.required else option.default,
            "required": option.required,
            "doc": option.doc,
        }
        for option in options_of(loaded).values()
    ]
    return {
        "name": name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "summary": summary,
        "details": details.partition("Attributes:")[0].strip(),
        "requires": sorted(loaded.requires),
        "ensures": sorted(loaded.ensures),
        "removes": sorted(loaded.removes),
        "options": options,
    }
