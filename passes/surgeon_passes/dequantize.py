"""The pass ``dequantize``: a quantized model as the float model it stands for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from surgeon.passes import Pass

if TYPE_CHECKING:
    from surgeon.passes import Context, Graph


@dataclass(frozen=True)
class Dequantize(Pass):
    """Turns quantized operators back into float ones, with the weights that the integers stand for.

    Activations are not rounded any more. A Relu that was only the lower end of a range becomes an operator again.
    """

    name: ClassVar[str] = "dequantize"
    requires: ClassVar[frozenset[str]] = frozenset({"qdq"})
    ensures: ClassVar[frozenset[str]] = frozenset({"float", "prunable"})
    removes: ClassVar[frozenset[str]] = frozenset({"qdq"})

    def run(self, graph: Graph, context: Context) -> Graph:
        """Write ``graph`` in floats, and record how many nodes of each operator that took.

        Raises:
            UnsupportedModelError: An operator has no rule, or its integers mean nothing that is known here.
        """
        from surgeon.graph.shapes import infer
        from surgeon.masks import ROUNDED, zeros_of
        from surgeon_passes.cleaning.dead import remove_dead_nodes
        from surgeon_passes.cleaning.wiring import Wiring
        from surgeon_passes.dequantizing import integer, linear, moving, packed, qlinear
        from surgeon_passes.dequantizing.writer import Writer

        del integer, linear, moving, packed, qlinear  # their rules are declared now
        writer = Writer(None, dict(infer(graph).dims), graph.opset)
        writer.rewrite(graph)
        remove_dead_nodes(Wiring(graph))
        context.kept[ROUNDED] = zeros_of(graph)
        context.record["dequantized"] = dict(sorted(writer.counts.items()))
        return graph
