"""Better values for the weights and biases of a quantized model: what the passes that change them have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from surgeon.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import onnx

    from surgeon.passes import Context, Graph
    from surgeon.reference import Reference
    from surgeon.refit.correct import Corrected
    from surgeon.refit.settle import Settled


MEGABYTE = 2**20


def float_original(context: Context, name: str, path: str | None) -> Reference:
    """The float model that a quantized one was made of.

    Args:
        context: Of the run.
        name: Of the pass that asks.
        path: Where the model is, if it is not of this run.

    Raises:
        UsageError: Nobody knows.
    """
    from surgeon.reference import Reference

    if path is not None:
        return Reference(_loaded(path))
    if context.unrounded is None:
        raise UsageError(
            "the float model that this one was made of is not known",
            where=f"pass {name}",
            hint=f"let quantize run before it, or give {name}.original=FLOAT.onnx",
        )
    return Reference(context.unrounded)


def _loaded(path: str) -> Graph:
    from pathlib import Path

    from surgeon.graph.load import load

    return load(Path(path))


def batches(context: Context, samples: int) -> Iterator[Mapping[str, Any]]:
    """Calibration batches without labels, one at a time."""
    return (feeds for feeds, _ in context.calibration().take(samples))


def describe(found: Settled | Corrected, context: Context, key: str, option: str, memory: int) -> None:
    """Put what was done into the report.

    Args:
        found: What was done.
        context: Of the run.
        key: What the report calls it.
        option: Names the option that bounds the memory.
        memory: Megabytes.
    """
    if found.spilled:
        context.warn(
            f"activations took more than {option} ({memory} MB) and went to temporary files, "
            "which takes longer; fewer samples or more memory avoid it"
        )
    context.record[key] = {
        "operators": [
            {"node": name, "error_before": before, "error_after": after}
            for name, (before, after) in found.errors.items()
        ],
        "left": [{"node": name, "reason": reason} for name, reason in found.left.items()],
    }


def warn_of_nothing(
    errors: Mapping[str, object], left: Mapping[str, str], context: Context, what: str
) -> None:
    """Say so where a pass found nothing to do."""
    if errors:
        return
    why = next(iter(left.items()), None)
    more = f": {why[0]}: {why[1]}" if why else ": it has no weighted operators behind DequantizeLinear"
    context.warn(f"no {what}{more}")


def improved(
    built: onnx.ModelProto,
    original: onnx.ModelProto,
    context: Context,
    *,
    rounding: str,
    correct_bias: bool,
    samples: int,
    memory: int,
) -> onnx.ModelProto:
    """A model that was just quantized, with better values.

    Args:
        built: The quantized model.
        original: The float model it was made of, node for node.
        context: Of the run.
        rounding: nearest, gptq or learned.
        correct_bias: Whether biases are corrected.
        samples: Calibration samples used at most; biases take no more than `correct_bias` does by default.
        memory: Megabytes of activations held in memory, per model.
    """
    from surgeon.graph.load import from_model
    from surgeon.graph.save import to_model
    from surgeon.reference import Reference
    from surgeon.refit.correct import correct_biases
    from surgeon.refit.gptq import round_again
    from surgeon_passes.correct_bias import CorrectBias
    from surgeon_passes.learn_rounding import LearnRounding

    if rounding == "nearest" and not correct_bias:
        return built
    graph, reference = from_model(built), Reference(from_model(original))
    limit = memory * MEGABYTE
    if rounding != "nearest":
        with context.progress("rounding", None) as advance:
            found = round_again(
                graph,
                reference,
                list(batches(context, samples)),
                seed=context.seed_for("gptq"),
                threads=context.threads,
                limit_bytes=limit,
                progress=advance,
            )
        describe(found, context, "rounding", "quantize.memory", memory)
    if rounding == "learned":
        LearnRounding(samples=samples, memory=memory).learn(graph, reference, context)
    if correct_bias:
        with context.progress("biases", None) as advance:
            corrected = correct_biases(
                graph,
                reference,
                batches(context, min(samples, CorrectBias.samples)),
                threads=context.threads,
                limit_bytes=limit,
                progress=advance,
            )
        describe(corrected, context, "biases", "quantize.memory", memory)
    return to_model(graph)
