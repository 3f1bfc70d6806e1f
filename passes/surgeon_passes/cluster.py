"""The pass ``cluster``: weights share a few values, so that a file holds a table and small indices, or packs well."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from surgeon.errors import UsageError
from surgeon.passes import Pass

if TYPE_CHECKING:
    from surgeon.passes import Context, Graph
    from surgeon.refit.settle import Settled
    from surgeon_passes.clustering.shared import Shared
    from surgeon_passes.valuing.material import Material

MOST = 256


@dataclass(frozen=True)
class Cluster(Pass):
    """Weight sharing in the weights of Conv, ConvTranspose, Gemm, MatMul, LSTM, GRU and RNN.

    With data, each operator is given the values, and each weight the one of them, that together best do what the original
    does, reading what the operators before it now put out.

    Attributes:
        clusters: How many different values a weight has at most, 2 to 256.
        per_channel: Whether every output channel has values of its own.
        keep_zeros: Whether what is zero stays zero; then zero is one of the values.
        encode: Whether the file holds indices of 1, 2, 4 or 8 bits and a table, which onnxruntime decodes when it loads
            the model; otherwise floats. Done at the end of the run, to what has few values then.
        init: How k-means starts: k-means++; linear, evenly from the smallest to the largest; density, with as many weights
            between each two; random, some of the weights.
        refit: Whether values and places are fitted to data.
        samples: Calibration samples used at most.
        memory: Megabytes of activations held in memory, per model; the rest goes to temporary files.
        include: Only operators whose name, or that of their weight, matches one of these patterns.
        exclude: Operators whose name, or that of their weight, matches one of these patterns stay as they are.
    """

    name: ClassVar[str] = "cluster"
    requires: ClassVar[frozenset[str]] = frozenset({"float"})
    learns: ClassVar[bool] = True
    sizes: ClassVar[bool] = True

    clusters: int = 16
    per_channel: bool = False
    keep_zeros: bool = True
    encode: bool = False
    init: Literal["k-means++", "linear", "density", "random"] = "k-means++"
    refit: bool = True
    samples: int = 1024
    memory: int = 2048
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 2 <= self.clusters <= MOST:
            raise UsageError(f"must be from 2 to {MOST}, got {self.clusters}", where="cluster.clusters")
        for option in ("samples", "memory"):
            if getattr(self, option) < 1:
                raise UsageError(
                    f"must be at least 1, got {getattr(self, option)}", where=f"cluster.{option}"
                )

    def run(self, graph: Graph, context: Context) -> Graph:
        """Returns ``graph`` with few values; raises UsageError where no weight matches."""
        from surgeon.graph.canonical import drop_dead
        from surgeon.graph.copy import copy_of
        from surgeon.refit.settle import Settled

        before, plain = copy_of(graph), copy_of(graph)
        material = self._material(graph, context)
        shared, simple = self._shared(graph, context), self._shared(plain, context)
        found, errors = Settled(), None
        constrain = shared.constrain()  # knows the weights as they were
        shared.share()
        if material is not None:
            with context.progress("cluster", len(shared.weights)) as advance:
                found = material.settle(graph, before, constrain, advance)
            simple.share()
            errors = material.errors(graph, plain)
            if errors is not None and not errors[0] <= errors[1]:
                graph, shared, found = plain, simple, Settled(left=found.left)
        drop_dead(graph)  # what made weights that are constants now
        self._describe(graph, shared, found, errors, context)
        return graph

    def finish(self, graph: Graph, context: Context) -> Graph:
        """Returns ``graph`` with indices and tables, if that is asked for."""
        from surgeon.stats.encode import encode
        from surgeon_passes.valuing.chosen import matching_weights

        if self.encode:  # later passes may have left no such weight
            weights = matching_weights(graph, context, self.include, self.exclude)
            context.record["encoded"] = encode(graph, weights, self.clusters)
        return graph

    def _material(self, graph: Graph, context: Context) -> Material | None:
        from surgeon_passes.valuing.material import Material

        if not self.refit:
            return None
        if context.data is None:
            context.warn(
                "no --data: weights take the nearest of the values that k-means finds, and nothing makes up for that; "
                "a few hundred real samples without labels are enough"
            )
            return None
        return Material.of(graph, context, self.name, self.samples, self.memory)

    def _shared(self, graph: Graph, context: Context) -> Shared:
        from surgeon_passes.clustering.shared import Shared
        from surgeon_passes.valuing.chosen import chosen_weights

        weights = chosen_weights(graph, context, self.name, self.include, self.exclude)
        seed = context.seed_for("clusters")
        return Shared(weights, self.clusters, self.per_channel, self.keep_zeros, self.init, seed)

    def _describe(
        self,
        graph: Graph,
        shared: Shared,
        found: Settled,
        errors: tuple[float, float] | None,
        context: Context,
    ) -> None:
        from surgeon_passes.valuing.describe import describe

        weights = [(weight, {"values": count}) for weight, count in shared.counted()]
        plain = "to give each weight the nearest of the values that k-means finds"
        describe(graph, weights, found, errors, context, name=self.name, plain=plain)
        alone = [weight.name for weight, count in shared.counted() if count > self.clusters]
        if alone:
            context.warn(f"{len(alone)} weights have more values than were asked for, the first: {alone[0]}")
