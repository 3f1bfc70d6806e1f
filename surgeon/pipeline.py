"""Runs passes one after the other: facts checked first, each pass on its own copy, verified, timed and recorded."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from surgeon.errors import PassError, PluginError, SurgeonError, UsageError
from surgeon.graph.copy import copy_of
from surgeon.passes import Context, Graph, Pass, SilentMonitor
from surgeon.reference import Reference
from surgeon.syntax import Call, format_passes

if TYPE_CHECKING:
    from surgeon.plan import Plan

_WEAKEST_FIRST = ("none", "structural", "exact")


@dataclass
class Outcome:
    """What the passes made of a graph.

    Attributes:
        graph: The final graph.
        passes: One JSON object per pass, in order.
        groups: ``{total, cut, whole}`` of the pass that cut, or None where none did.
        certificate: ``{status, max_rel_err, probes}``, the weakest of all passes.
    """

    graph: Graph
    passes: list[dict[str, object]] = field(default_factory=list)
    groups: dict[str, Any] | None = None
    certificate: dict[str, Any] | None = None


def check_facts(passes: Sequence[Pass], graph: Graph) -> None:
    """Checks before anything runs that each pass will find what it requires.

    Raises:
        UsageError: A pass requires a fact that the model does not have or an earlier pass removed.
    """
    facts = starting_facts(graph)
    removed_by: dict[str, str] = {}
    for position, each in enumerate(passes):
        missing = sorted(each.requires - facts)
        if missing:
            fact = missing[0]
            if fact in removed_by:
                message = (
                    f"needs a model that is {fact!r}, but {removed_by[fact]} runs before it and ends that"
                )
                again = removed_by[fact] == each.name
                hint = "once is enough" if again else f"put {each.name} before {removed_by[fact]}"
            else:
                makers = [other.name for other in passes[position:] if fact in other.ensures]
                message = (
                    f"needs a model that is {fact!r}, this one is {', '.join(sorted(facts)) or 'neither'}"
                )
                makers = makers or _makers(fact, facts)
                hint = f"put {makers[0]} before {each.name}" if makers else "start from the original model"
            raise UsageError(message, where=f"pass {each.name}", hint=hint)
        removed_by.update(dict.fromkeys(each.removes & facts, each.name))
        facts = (facts - each.removes) | each.ensures


def _makers(fact: str, facts: frozenset[str]) -> list[str]:
    """Names of installed passes that could run now and would make ``fact`` true."""
    from surgeon.entries import PASSES, available
    from surgeon.plugins import load_pass

    installed = []
    for name in available(PASSES):
        try:
            loaded = load_pass(name)
        except PluginError:  # a hint is not worth failing for
            continue
        if fact in loaded.ensures and fact not in facts and loaded.requires <= facts:
            installed.append(name)
    return installed


def starting_facts(graph: Graph) -> frozenset[str]:
    """Returns ``qdq`` for a graph that is quantized already, otherwise ``float``; and ``prunable`` for any.

    What is quantized when the run starts can be cut. What the run quantizes itself should have been cut before.
    """
    from surgeon.quantized import is_quantized

    return frozenset({"prunable", "qdq" if is_quantized(graph) else "float"})


def run_passes(graph: Graph, passes: Sequence[Pass], context: Context, *, debug: bool = False) -> Outcome:
    """Runs passes in order; the graph that comes in is left as it is.

    Args:
        graph: The model.
        passes: What runs.
        context: What the passes may ask of the run.
        debug: Whether onnxruntime loads the graph after every pass, and not only the final one.

    Raises:
        GateError: A pass could not do what was asked of it.
        PassError: A pass failed inside or broke its contract.
    """
    from surgeon.names import names_known

    outcome = Outcome(graph)
    if context.reference is None:
        context.reference = Reference(copy_of(graph))
    for position, each in enumerate(passes):
        if not context.trial:  # what is tried may lack what the same passes make of another graph
            each.check_names(names_known(outcome.graph, context.kept))
        context.record = {}
        context.later = later_of(passes[position + 1 :], context)
        context.trains = any(other.trains for other in passes[position + 1 :])
        plan = context.plan
        started = time.perf_counter()
        result = _run_one(each, copy_of(outcome.graph), context)
        elapsed = time.perf_counter() - started
        _check_result(each, outcome.graph, result, _declared(context.record), debug=debug)
        if context.plan is not plan:
            _warn_of_patterns(each, outcome.graph, result, context)
        _note(outcome, each, context.record, result, elapsed)
        outcome.graph = result
        if context.plan is not None and plan is None:
            earlier = tuple(as_text(other) for other in passes[: len(outcome.passes) - 1])
            context.plan = replace(context.plan, after=earlier)
    _finish(outcome, passes, context)
    return outcome


def _warn_of_patterns(each: Pass, before: Graph, after: Graph, context: Context) -> None:
    """Say which weights had N of every M input channels, and have not after a cut."""
    from surgeon.refit.keeping import lost_patterns

    lost = lost_patterns(before, after)
    if lost:
        name, pattern = next(iter(lost.items()))
        context.warn(
            f"{each.name}: {name} had at most {pattern.n} of every {pattern.m} input channels, and has not after the cut"
            + (f" (and {len(lost) - 1} more)" if len(lost) > 1 else "")
            + f"; with data it would have again, and sparsify{{pattern={pattern.n}:{pattern.m}}} makes it so"
        )


def _finish(outcome: Outcome, passes: Sequence[Pass], context: Context) -> None:
    """Let the passes that care say how the result is stored; what they note is added to what they noted before."""
    context.unrounded = (
        context.unrounded or outcome.graph
    )  # a plan speaks of weights, however they are stored
    for each, facts in zip(passes, outcome.passes, strict=True):
        if type(each).finish is not Pass.finish:
            context.record = {}
            before = outcome.graph
            outcome.graph = each.finish(copy_of(before), context)
            _check_result(each, before, outcome.graph, {}, debug=False)
            facts.update(context.record)


class Rest:
    """The passes after one of a run, tried on graphs that pass may return.

    Attributes:
        names: What they are called.
    """

    def __init__(self, passes: Sequence[Pass], context: Context) -> None:
        self._passes, self._context = tuple(passes), context
        self.names = tuple(each.name for each in passes)

    def __call__(
        self,
        graph: Graph,
        *,
        plan: Plan | None = None,
        reference: Reference | None = None,
        settle: bool = False,
    ) -> Graph:
        """Returns what the passes make of a graph; the graph, the record and the warnings of the run stay as they are."""
        context = self._context
        joined = plan if plan is None or context.plan is None else context.plan.then(plan)
        trial = replace(
            context,
            record={},
            warnings=[],
            monitor=SilentMonitor(),
            plan=joined or context.plan,
            reference=reference or context.reference,
            later=None,
            trial=not settle,
        )
        return run_passes(graph, self._passes, trial).graph


def later_of(passes: Sequence[Pass], context: Context) -> Rest | None:
    """The passes that a trial runs: all but those that learn, which take too long for that; None where none are left."""
    tried = [each for each in passes if not each.learns]
    return Rest(tried, context) if tried else None


def as_text(each: Pass) -> str:
    """Writes a pass with its options, the way `surgeon.syntax.parse_passes` reads it."""
    return format_passes([Call(each.name, each.changed_options())])


def _run_one(each: Pass, graph: Graph, context: Context) -> Graph:
    try:
        with context.progress(each.name):
            return each.run(graph, context)
    except SurgeonError:
        raise
    except MemoryError as error:
        message = f"needs more memory than there is: {error}"
        raise PassError(
            message, where=f"pass {each.name}", hint="check the sizes the model declares"
        ) from error
    except (
        Exception
    ) as error:  # a pass may be a third party's; whatever it raised, the user must learn whose it was
        message = f"failed inside: {type(error).__name__}: {error}"
        raise PassError(message, where=f"pass {each.name}", hint="run with --debug and report it") from error


def _declared(record: dict[str, object]) -> dict[str, tuple[object, ...]]:
    """The inputs and outputs whose shape the pass was asked to change, and their shapes now."""
    changed: Any = record.get("interface", {})
    return {name: tuple(shapes["after"]) for name, shapes in changed.items()}


def _check_result(
    each: Pass, before: Graph, after: object, declared: dict[str, tuple[object, ...]], *, debug: bool
) -> None:
    import onnx_graphsurgeon as gs

    where = f"pass {each.name}"
    if not isinstance(after, gs.Graph):
        raise PassError(f"returned {type(after).__name__} instead of a graph", where=where)
    for kind in ("inputs", "outputs"):
        old, new = (list(signature(getattr(graph, kind))) for graph in (before, after))
        old = [(name, dtype, declared.get(str(name), shape)) for name, dtype, shape in old]
        if old != new:
            changed = next(
                (pair for pair in zip(old, new, strict=False) if pair[0] != pair[1]), (len(old), len(new))
            )
            raise PassError(f"changed the model's {kind}: {changed[0]} became {changed[1]}", where=where)
    if debug:
        from surgeon.graph.save import to_model
        from surgeon.graph.sessions import session

        session(to_model(after), optimize=False)


def signature(tensors: Sequence[Any]) -> Iterator[tuple[object, ...]]:
    """Yields name, type, and rank with sizes and symbols."""
    for tensor in tensors:
        shape = getattr(tensor, "shape", None)
        yield tensor.name, str(tensor.dtype), None if shape is None else tuple(shape)


def _note(outcome: Outcome, each: Pass, record: dict[str, object], result: Graph, elapsed: float) -> None:
    """Adds a pass's record to the outcome and lifts what concerns the whole run."""
    facts = dict(record)
    groups, certificate = facts.pop("groups", None), facts.pop("certificate", None)
    proof = facts.get("proof_seconds", 0.0)
    seconds = elapsed - float(proof) if isinstance(proof, int | float) else elapsed
    if isinstance(groups, dict):
        outcome.groups = groups
        facts.setdefault("changed", bool(groups.get("cut")))
    if isinstance(certificate, dict):
        outcome.certificate = weaker(outcome.certificate, certificate)
    if "changed" not in facts:
        facts["changed"] = not same(outcome.graph, result)
    outcome.passes.append(
        {"name": each.name, "seconds": max(seconds, 0.0), "options": each.options(), **facts}
    )


def weaker(first: dict[str, Any] | None, second: dict[str, Any]) -> dict[str, Any]:
    """Joins two certificates: the weaker status, the larger error, all probes."""
    if first is None:
        return second
    errors = [each["max_rel_err"] for each in (first, second) if each.get("max_rel_err") is not None]
    return {
        "status": min(first["status"], second["status"], key=_WEAKEST_FIRST.index),
        "max_rel_err": max(errors, default=None),
        "probes": first.get("probes", 0) + second.get("probes", 0),
    }


def same(first: Graph, second: Graph) -> bool:
    """Tells whether two graphs have the same nodes, attributes and weights, whatever their order."""
    nodes, others = (
        {tuple(out.name for out in node.outputs): node for node in graph.nodes} for graph in (first, second)
    )
    if nodes.keys() != others.keys() or len(first.nodes) != len(second.nodes):
        return False
    return all(_same_node(nodes[key], others[key]) for key in nodes)


def _same_node(first: Any, second: Any) -> bool:
    import onnx_graphsurgeon as gs

    if (first.op, first.domain, first.name) != (second.op, second.domain, second.name):
        return False
    if first.attrs.keys() != second.attrs.keys() or len(first.inputs) != len(second.inputs):
        return False
    for one, other in zip(first.inputs, second.inputs, strict=True):
        if one.name != other.name or isinstance(one, gs.Constant) != isinstance(other, gs.Constant):
            return False
        if isinstance(one, gs.Constant) and not _same_values(one, other):
            return False
    return all(_same_attribute(value, second.attrs[key]) for key, value in first.attrs.items())


def _same_attribute(first: Any, second: Any) -> bool:
    import numpy as np
    import onnx_graphsurgeon as gs

    if first is second:
        return True
    if isinstance(first, gs.Graph) and isinstance(second, gs.Graph):
        return same(first, second)
    if isinstance(first, gs.Constant) and isinstance(second, gs.Constant):
        return _same_values(first, second)
    return type(first) is type(second) and bool(np.array_equal(first, second))


def _same_values(first: Any, second: Any) -> bool:
    import numpy as np

    from surgeon.graph.weights import peek

    # identity first: weights nobody touched are compared without being read
    if vars(first)["_values"] is vars(second)["_values"]:
        return True
    if tuple(first.shape) != tuple(second.shape) or first.dtype != second.dtype:
        return False
    one, other = peek(first), peek(second)
    return one is other or bool(np.array_equal(one, other))
