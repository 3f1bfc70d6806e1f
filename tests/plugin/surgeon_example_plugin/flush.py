"""A pass that sets tiny weights to zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import surgeon


@dataclass(frozen=True)
class Flush(surgeon.Pass):
    """Sets weights that are nearly zero to zero.

    Values below the threshold cost time on processors that are slow with denormal numbers.

    Attributes:
        below: Weights of a smaller magnitude become zero.
        keep: Patterns of weights that are left alone.
    """

    name: ClassVar[str] = "flush"
    requires: ClassVar[frozenset[str]] = frozenset({"float"})

    below: float = 1e-30
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.below <= 0:
            raise surgeon.UsageError(f"must be positive, got {self.below}", where="flush.below")

    def run(self, graph: Any, context: surgeon.Context) -> Any:
        """Replaces the weights that change; arrays are shared with the original and never written into."""
        import fnmatch

        import numpy as np
        import onnx_graphsurgeon as gs

        flushed = 0
        for tensor in graph.tensors().values():
            kept = context.excluded(tensor.name) or any(
                fnmatch.fnmatchcase(tensor.name, each) for each in self.keep
            )
            if not isinstance(tensor, gs.Constant) or tensor.dtype != np.float32 or kept:
                continue
            tiny = (np.abs(tensor.values) < self.below) & (tensor.values != 0)
            if tiny.any():
                tensor.values = np.where(tiny, np.float32(0), tensor.values)
                flushed += int(tiny.sum())
        context.record["flushed"] = flushed
        return graph
