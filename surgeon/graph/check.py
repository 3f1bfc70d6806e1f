"""Everything that must hold of a model before anything is computed from it."""

from __future__ import annotations

from pathlib import Path

import onnx


def check(model: onnx.ModelProto, path: Path | None) -> onnx.ModelProto:
    """Placeholder."""
    return model
