"""The pass ``sparsify``: sets the least useful weights to zero, in patterns, and lets the others make up for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from surgeon.errors import UsageError
from surgeon.passes import Pass
from surgeon_passes.pruning.schedule import ConstantSparsity, PolynomialDecay, check_schedule

if TYPE_CHECKING:
    from surgeon.passes import Context, Graph
    from surgeon.refit.pattern import Pattern
    from surgeon.refit.settle import Settled
    from surgeon_passes.sparsifying.zeros import Job, Work

FEWEST, MOST = 0.0, 0.985
SHORT = 1e-6


@dataclass(frozen=True)
class Sparsify(Pass):
    """Zeros in the weights of Conv, ConvTranspose, Gemm, MatMul, LSTM, GRU and RNN; shapes stay as they are.

    With data, each operator is given the weights that best do what the original does, reading what the operators before
    it now put out, among those with zeros in as many places. Zeros make a file smaller when it is packed; onnxruntime
    does not run faster for them. Channels of which nothing is left are removed by ``clean``.

    Attributes:
        sparsity: The fraction of the weights that are zero afterwards; N:M patterns have a fraction of their own.
        pattern: Where zeros may be: unstructured; N:M, as 2:4, at most N of every M input channels next to one another;
            block-OUTPUTSxINPUTS, as block-4x1, whole blocks of the weight as a matrix of outputs and inputs, at each tap of
            a kernel.
        pooling: What a block's score is of the scores in it: average or max.
        score: How it is chosen which weights stay: auto (alternating with data, else magnitude); alternating, by
            optimisation of zeros and weights together; wanda, by weight times size of the input; obs, input by
            input, each passing on what it loses; magnitude.
        scope: Whether every weight gets the same fraction of zeros (layer), or those get more that lose less by it
            (global); auto is global with data and layer without, or where the pattern has a fraction of its own.
        refit: Whether the weights that stay make up for the others; needs data.
        schedule: How the zeros are spread over the steps: polynomial, 1 - (1 - initial) * (1 - t)^power of the fraction
            after the part t of the steps (PolynomialDecay); constant, all in the first (ConstantSparsity).
        steps: In how many steps zeros are made, with a refit after each.
        initial: The share of the zeros that a polynomial schedule starts from.
        power: The power of a polynomial schedule: 1 for equal steps.
        samples: Calibration samples used at most.
        memory: Megabytes of activations held in memory, per model; the rest goes to temporary files.
        include: Only operators whose name, or that of their weight, matches one of these patterns.
        exclude: Operators whose name, or that of their weight, matches one of these patterns stay as they are.
    """

    name: ClassVar[str] = "sparsify"
    requires: ClassVar[frozenset[str]] = frozenset({"float"})
    learns: ClassVar[bool] = True
    sizes: ClassVar[bool] = True

    sparsity: float = 0.5
    pattern: str = "unstructured"
    pooling: Literal["average", "max"] = "average"
    score: Literal["auto", "alternating", "wanda", "obs", "magnitude"] = "auto"
    scope: Literal["auto", "layer", "global"] = "auto"
    refit: bool = True
    schedule: Literal["polynomial", "constant"] = "polynomial"
    steps: int = 1
    initial: float = 0.0
    power: float = 3.0
    samples: int = 1024
    memory: int = 2048
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not FEWEST < self.sparsity <= MOST:
            raise UsageError(
                f"must be more than {FEWEST:g} and at most {MOST:g}, got {self.sparsity}",
                where="sparsify.sparsity",
            )
        pattern = self._pattern()
        if pattern.sparsity is not None and self.scope == "global":
            raise UsageError(
                f"{self.pattern} leaves no choice of how many zeros a weight gets",
                where="sparsify.scope",
                hint="take scope=layer",
            )
        if not self.refit and self.score not in ("auto", "magnitude"):
            raise UsageError(
                f"{self.score} finds the weights that stay by fitting them",
                where="sparsify.refit",
                hint="take score=magnitude, or refit=true",
            )
        for option in ("steps", "samples", "memory"):
            if getattr(self, option) < 1:
                raise UsageError(
                    f"must be at least 1, got {getattr(self, option)}", where=f"sparsify.{option}"
                )
        check_schedule(self.initial, self.power, "sparsify")

    def schedule_of(self) -> ConstantSparsity | PolynomialDecay:
        """The schedule that the options describe."""
        if self.schedule == "constant":
            return ConstantSparsity()
        return PolynomialDecay(self.initial, self.power)

    def run(self, graph: Graph, context: Context) -> Graph:
        """Returns ``graph`` with zeros; raises UsageError where no weight matches."""
        from surgeon.graph.canonical import drop_dead
        from surgeon.graph.copy import copy_of
        from surgeon.refit.settle import Settled
        from surgeon_passes.sparsifying.zeros import all_zeros

        work = self._work(graph, context)
        jobs, plain = self._jobs(graph, context), copy_of(graph)
        chosen = work.material is not None and work.pattern.sparsity is None
        if self.scope == "global" or (self.scope == "auto" and chosen):
            with context.progress("sparsify: where", len(jobs)) as advance:
                work.allocate(graph, jobs, advance)
        with context.progress("sparsify", len(jobs) * self.steps) as advance:
            found = all_zeros(work, graph, jobs, advance)
        errors = None
        if work.material is not None:
            simple = self._jobs(plain, context)
            for job in simple:
                job.shrink(work.pattern, 1.0)
            errors = work.material.errors(graph, plain)
            if errors is not None and not errors[0] <= errors[1]:
                graph, jobs, found = plain, simple, Settled(left=found.left)
        drop_dead(graph)  # what made weights that are constants now
        self._describe(graph, jobs, found, errors, context)
        return graph

    def _describe(
        self,
        graph: Graph,
        jobs: list[Job],
        found: Settled,
        errors: tuple[float, float] | None,
        context: Context,
    ) -> None:
        from surgeon_passes.valuing.describe import describe

        pattern = self._pattern()
        kept = [job.weight.matrices() != 0 for job in jobs]
        fits = [pattern.fits(each, job.sparsity) for each, job in zip(kept, jobs, strict=True)]
        weights = [(job.weight, {"pattern_ok": ok}) for job, ok in zip(jobs, fits, strict=True)]
        plain = "to keep the largest weights as they are"
        describe(graph, weights, found, errors, context, name=self.name, plain=plain)
        context.record["pattern_ok"] = all(fits)
        reached = 1 - sum(each.sum() for each in kept) / sum(each.size for each in kept)
        if pattern.sparsity is None and reached < self.sparsity - SHORT:
            context.warn(
                f"sparsify: {reached:.3f} of the weights are zero: the pattern leaves no more that may be"
            )
        if all(each.all() for each in kept):
            context.warn("sparsify: the pattern leaves no weight of this model to make zero")

    def _pattern(self) -> Pattern:
        from surgeon.refit.pattern import parse_pattern

        return parse_pattern(self.pattern, self.pooling, "sparsify.pattern")

    def _work(self, graph: Graph, context: Context) -> Work:
        from surgeon_passes.sparsifying.zeros import Work
        from surgeon_passes.valuing.material import Material

        material = None
        if self.refit and (context.data is not None or self.score in ("alternating", "wanda", "obs")):
            material = Material.of(graph, context, self.name, self.samples, self.memory)
        elif self.refit:
            context.warn(
                "no --data: the smallest weights become zero and nothing makes up for them; "
                "a few hundred real samples without labels are enough for that"
            )
        score = "alternating" if self.score == "auto" else self.score
        shares = self.schedule_of().shares(self.steps)
        return Work(self._pattern(), "magnitude" if material is None else score, shares, material)

    def _jobs(self, graph: Graph, context: Context) -> list[Job]:
        from surgeon_passes.sparsifying.zeros import Job
        from surgeon_passes.valuing.chosen import chosen_weights

        own = self._pattern().sparsity
        fraction = self.sparsity if own is None else own
        weights = chosen_weights(graph, context, self.name, self.include, self.exclude)
        return [Job(weight, fraction) for weight in weights]
