"""surgeon makes trained ONNX models smaller and faster without their training code, and proves what it cut.

Example:
    >>> import surgeon
    >>> result = surgeon.run("model.onnx", passes=["prune"], target={"macs": 0.5})  # doctest: +SKIP
    >>> surgeon.save(result.graph, "model.small.onnx")  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from surgeon.api import Result, apply, load, run, save, size
    from surgeon.errors import (
        DataError,
        GateError,
        InternalError,
        PassError,
        PluginError,
        SurgeonError,
        UnsupportedModelError,
        UsageError,
    )
    from surgeon.grad.registry import derivative
    from surgeon.ops.registry import rule
    from surgeon.passes import Context, Pass

__version__ = "0.1.0"

__all__ = [
    "Context",
    "DataError",
    "GateError",
    "InternalError",
    "Pass",
    "PassError",
    "PluginError",
    "Result",
    "SurgeonError",
    "UnsupportedModelError",
    "UsageError",
    "apply",
    "derivative",
    "load",
    "rule",
    "run",
    "save",
    "size",
]

# names are fetched when they are first used, so that `import surgeon` and `surgeon --help` stay light
_HOMES = {
    **dict.fromkeys(("Result", "apply", "load", "run", "save", "size"), "surgeon.api"),
    **dict.fromkeys(("Context", "Pass"), "surgeon.passes"),
    "derivative": "surgeon.grad.registry",
    "rule": "surgeon.ops.registry",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "surgeon.errors")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
