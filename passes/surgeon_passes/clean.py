"""The pass ``clean``: what can be simplified without changing any output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from surgeon.errors import UsageError
from surgeon.passes import Pass

if TYPE_CHECKING:
    from surgeon.passes import Context, Graph


@dataclass(frozen=True)
class Clean(Pass):
    """Lossless simplification: outputs equal the original's up to floating-point rounding.

    Nodes that lead to no output are always removed.

    Attributes:
        fold_batchnorm: Fold inference-time BatchNormalization into the layer before it.
        remove_noops: Remove Identity, inference Dropout, Reshape to the same shape and the like.
        merge_constants: Let equal integer constants (shapes, indices) be one.
        remove_dead_channels: Remove channels that nothing reads or that are the same constant for every input.
        channel_multiple: Where dead channels go, what is left is rounded up to a multiple of this; kernels of
            onnxruntime work on blocks of 16, so fewer would save bytes but no time. Heads are not rounded.
    """

    name: ClassVar[str] = "clean"

    fold_batchnorm: bool = True
    remove_noops: bool = True
    merge_constants: bool = True
    remove_dead_channels: bool = True
    channel_multiple: int = 16

    def __post_init__(self) -> None:
        if self.channel_multiple < 1:
            raise UsageError(
                f"must be at least 1, got {self.channel_multiple}", where="clean.channel_multiple"
            )

    def run(self, graph: Graph, context: Context) -> Graph:
        """Simplify ``graph`` in place and record how much of what went away."""
        from surgeon.graph.shapes import infer
        from surgeon_passes.cleaning.batchnorm import fold_batchnorm
        from surgeon_passes.cleaning.constants import merge_constants
        from surgeon_passes.cleaning.dead import remove_dead_nodes
        from surgeon_passes.cleaning.dead_channels import remove_dead_channels
        from surgeon_passes.cleaning.noops import remove_noops
        from surgeon_passes.cleaning.wiring import Wiring

        wiring, nodes = Wiring(graph), len(graph.nodes)
        remove_dead_nodes(wiring)
        shapes = infer(graph)
        facts = {"noops_removed": 0, "batchnorm_folded": 0, "constants_merged": 0}
        if self.remove_noops:
            facts["noops_removed"] = remove_noops(wiring, shapes)
        if self.fold_batchnorm:
            facts["batchnorm_folded"] = fold_batchnorm(wiring, shapes)
        remove_dead_nodes(wiring)
        if self.merge_constants:
            facts["constants_merged"] = merge_constants(wiring)
        if self.remove_dead_channels:
            graph, facts["channels_removed"] = remove_dead_channels(graph, context, self.channel_multiple)
        context.record.update(facts, nodes_removed=nodes - len(graph.nodes))
        return graph
