"""Checking a certificate again, from the files alone: the plan is replayed on the original and the result compared."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Any

from surgeon.engine import analyse
from surgeon.errors import DataError, GateError, SurgeonError, UnsupportedModelError
from surgeon.graph.copy import copy_of
from surgeon.graph.load import from_model, load
from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session
from surgeon.graph.source import source_of
from surgeon.masks import violations
from surgeon.measure import inputs_of
from surgeon.narrow import narrowed
from surgeon.passes import Context
from surgeon.pipeline import run_passes, signature
from surgeon.plan import Plan
from surgeon.probes import probe_feeds
from surgeon.recipe import instantiate
from surgeon.syntax import parse_passes
from surgeon.trace import imposed, kept_in, named
from surgeon.verify import TOLERANCE, Certificate, prove, relative_error

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import onnx
    import onnx_graphsurgeon as gs

    from surgeon.engine import Model
    from surgeon.narrow import Kept

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Verified:
    """What was checked again.

    Attributes:
        certificate: The proof that the cut the plan describes equals the masked original.
        weights: ``original`` when the file computes what that cut computes; ``changed`` when it has its interface and
            its weights' shapes, but other values (refitted, sparse, quantized), so that nothing more can be said.
        difference: The largest relative difference between the file's outputs and the cut's; None if they cannot be
            compared number by number.
        masks: How many weights the plan has masks for, and how many of them the file has as floats, with zeros where it
            says; empty for a plan without masks.
    """

    certificate: Certificate
    weights: str
    difference: float | None
    masks: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The object that ``surgeon verify --json`` prints."""
        after: dict[str, Any] = {"weights": self.weights, "max_rel_err": self.difference}
        if self.masks:
            after["masks"] = dict(self.masks)
        return {"schema": 1, "certificate": self.certificate.to_json(), "output": after}


def verify_files(before: Path, after: Path, plan_path: Path) -> Verified:
    """Replays a plan on the original and checks the cut model against it.

    The lossless passes that ran before the cut are replayed first, and have to leave all outputs as they were. Where no pass
    but `clean` cut anything, the cut is the one that the plan describes of the original itself.

    Args:
        before: The original model.
        after: The model a run wrote for it.
        plan_path: The plan that run wrote.

    Raises:
        GateError: The plan was tampered with or is for another model, the cut does not equal the masked original,
            or ``after`` is not a model with that cut.
        UsageError: The plan cannot be read.
        UnsupportedModelError: A model cannot be read.
    """
    plan = Plan.load(plan_path)
    original, result = load(before), load(after)
    source = source_of(original)
    if source is None or source.sha256 != plan.model_sha256:
        raise GateError("is not the model that the plan is for: their hashes differ", where=str(before))
    listed = bool(plan.groups) or plan.file_groups is None
    if not plan.groups:
        plan = named(plan, plan_path)
    graph = _replayed(original, plan, before) if plan.after else imposed(original, plan, plan_path)
    model = analyse(copy_of(graph), cut_cache=bool(plan.interface))
    smaller, again = model.cut(kept_in(plan, model, plan_path), plan.model_sha256)
    if listed and (again.tensors, again.interface) != (plan.tensors, plan.interface):
        raise GateError("the tensors it lists do not follow from its groups", where=str(plan_path))
    certificate = Certificate("none", None, 0)
    if plan.groups:
        cut = {group.id for group in plan.groups}
        structural = any(group.structural for group in model.groups if group.id in cut)
        certificate = prove(
            model.analysis, smaller, again.tensors, structural=structural, interface=again.interface
        )
    expected = to_model(smaller)
    _check_interface(smaller if plan.interface else original, result, after)
    _check_shapes(from_model(expected), result, after)
    difference = _difference(model, expected, after, plan.interface)
    return Verified(
        certificate,
        "original" if difference <= TOLERANCE else "changed",
        None if difference == inf else difference,
        _check_masks(original, plan, again, result, after),
    )


def _check_masks(original: gs.Graph, plan: Plan, again: Plan, result: gs.Graph, path: Path) -> dict[str, int]:
    """Zeros are where the plan says, in every weight that the file holds as floats.

    Args:
        original: The original.
        plan: The plan.
        again: Its cut, made again.
        result: The cut model.
        path: Its file.

    Raises:
        GateError: There is something else.
    """
    if not plan.masks:
        return {}
    tensors = again.tensors
    if plan.after:  # the masks are in the shapes of the file, which these passes may have changed
        cut = named(plan, path)
        model = analyse(copy_of(original), cut_cache=bool(plan.interface))
        _, whole = model.cut(kept_in(cut, model, path))
        tensors = whole.tensors
    checked = 0
    for name, wrong in violations(result, plan.masks, tensors):
        if wrong:
            raise GateError(
                f"{wrong} entries of {name} are not zero, as the plan says they are", where=str(path)
            )
        checked += wrong is not None
    return {"weights": len(plan.masks), "checked": checked}


def _replayed(original: gs.Graph, plan: Plan, path: Path) -> gs.Graph:
    """The graph that was cut: the original after the passes that ran before the cut."""
    graph = copy_of(original)
    passes = [instantiate(call) for text in plan.after for call in parse_passes(text)]
    learned = [each.name for each in passes if each.learns]
    if learned:
        raise GateError(
            f"{learned[0]} before the cut changes what the model computes",
            where=str(path),
            hint="only a cut that follows lossless passes can be compared with the original",
        )
    context = Context(source_path=path, model_sha256=plan.model_sha256, inputs=inputs_of(original))
    graph = run_passes(graph, passes, context).graph
    names = ", ".join(each.name for each in passes)
    reference, candidate = session(path, optimize=False), session(to_model(graph), optimize=False)
    for probe in probe_feeds(analyse(copy_of(original)).analysis):
        try:
            expected = run(reference, probe)
        except (UnsupportedModelError, DataError):
            continue  # the original does not take these inputs; the proof says so if it takes none
        if relative_error(expected, run(candidate, probe)) > TOLERANCE:
            hint = "only a cut that follows lossless passes can be compared with the original"
            raise GateError(
                f"{names} before the cut changes what the model computes", where=str(path), hint=hint
            )
    return graph


def _check_interface(original: gs.Graph, result: gs.Graph, path: Path) -> None:
    for kind in ("inputs", "outputs"):
        old, new = (list(signature(getattr(graph, kind))) for graph in (original, result))
        if old != new:
            first = next(
                (f"{a} became {b}" for a, b in zip(old, new, strict=False) if a != b), "their number"
            )
            raise GateError(f"its {kind} are not those of the original: {first}", where=str(path))


def _check_shapes(expected: gs.Graph, result: gs.Graph, path: Path) -> None:
    """Every weight of the cut is there with its shape.

    Passes after the cut may store a weight under another name, and transposed (quantization does): matrices are then
    looked for by their sizes, and vectors, which may be merged or recomputed, are not missed.
    """
    wanted, found = dict(_weights(expected)), dict(_weights(result))
    for name in sorted(wanted.keys() & found.keys()):
        if wanted[name] != found[name]:
            said = f"weight {name} has shape {list(found[name])}, the plan's cut {list(wanted[name])}"
            raise GateError(said, where=str(path))
    spare = Counter(tuple(sorted(shape)) for name, shape in found.items() if name not in wanted)
    for name in sorted(wanted.keys() - found.keys()):
        sizes = tuple(sorted(wanted[name]))
        if len(sizes) > 1 and spare[sizes] == 0:
            raise GateError(
                f"has no weight of shape {list(wanted[name])}, as {name} in the plan's cut", where=str(path)
            )
        spare[sizes] -= 1


def _weights(graph: gs.Graph) -> Iterator[tuple[str, Shape]]:
    import onnx
    import onnx_graphsurgeon as gs

    from surgeon.graph.weights import data_type

    for node in graph.nodes:
        for tensor in node.inputs:
            if (
                isinstance(tensor, gs.Constant)
                and data_type(tensor) != onnx.TensorProto.INT64
                and tensor.shape
            ):
                yield tensor.name, tuple(int(size) for size in tensor.shape)


def _difference(model: Model, expected: onnx.ModelProto, path: Path, interface: Kept) -> float:
    """The largest relative difference between the outputs of the file and of the plan's cut.

    Raises:
        GateError: The file does not load or run.
    """
    reference = session(expected, optimize=False)
    try:
        candidate = session(path, optimize=False)
    except SurgeonError as error:
        raise GateError(f"does not load: {error.message}", where=str(path)) from error
    worst = 0.0
    for whole in probe_feeds(model.analysis):
        probe = narrowed(whole, interface)
        try:
            wanted = run(reference, probe)
        except (UnsupportedModelError, DataError):
            continue  # the proof ran on the inputs that the model takes
        try:
            found = run(candidate, probe)
        except (UnsupportedModelError, DataError) as error:
            raise GateError(f"does not run: {error.message}", where=str(path)) from error
        worst = max(worst, relative_error(wanted, found))
    return worst
