"""What a whole model takes: its files, its weights, its parameters and its multiply-accumulates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surgeon.sizes.files import FileSizes
    from surgeon.sizes.weights import WeightSizes


@dataclass(frozen=True)
class ModelSize:
    """What a model takes.

    Attributes:
        files: Bytes of the model's file and of its external data, also compressed.
        weights: What the weights of its operators take, one by one and in total.
        params: Elements of all constants of rank ≥ 1 that are not int64 (those are shapes and indices).
        macs: Multiply-accumulates of one sample.
    """

    files: FileSizes
    weights: WeightSizes
    params: int
    macs: int

    def to_json(self) -> dict[str, Any]:
        """``{bytes, gzip_bytes, zstd_bytes, params, nonzeros, distinct_values, macs, weights, tensors}``.

        ``nonzeros`` and ``distinct_values`` are of all weights together, as in ``weights``.
        """
        weights = self.weights.to_json()
        return {
            **vars(self.files),
            "params": self.params,
            "nonzeros": self.weights.total.nonzeros,
            "distinct_values": self.weights.total.distinct_values,
            "macs": self.macs,
            "weights": weights["total"],
            "tensors": weights["tensors"],
        }
