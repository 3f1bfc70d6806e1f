"""What a pass says of the weights it has given other values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from surgeon.sizes import weigh
from surgeon.stats.recurrent import GATES
from surgeon.stats.sequences import name_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from surgeon.passes import Context, Graph
    from surgeon.refit.settle import Settled
    from surgeon.stats.matrices import Weight


def label_of(weight: Weight) -> str:
    """What reports call the operator of a weight; recurrent ones have two."""
    name = name_of(weight.node)
    return f"{name}[{weight.index}]" if weight.node.op in GATES else name


def describe(
    graph: Graph,
    weights: Iterable[tuple[Weight, Mapping[str, Any]]],
    found: Settled,
    errors: tuple[float, float] | None,
    context: Context,
    *,
    name: str,
    plain: str,
) -> None:
    """Put what was done into the report, and what the user should know into the warnings.

    Args:
        graph: The result.
        weights: Its weights, each with what else is to be said of it.
        found: What was fitted; nothing where that was not better than nothing.
        errors: Of the outputs, fitted and not; None where that was not compared.
        context: The run.
        name: Of the pass.
        plain: What it does without data.
    """
    sizes = weigh(graph).to_json()
    measured = {entry["name"]: entry for entry in sizes["tensors"]}
    tensors = []
    for weight, more in weights:
        before, after = found.errors.get(label_of(weight), (None, None))
        tensors.append(
            {
                "node": label_of(weight),
                **measured.get(weight.name, {"name": weight.name}),
                **more,
                "error_before": before,
                "error_after": after,
            }
        )
    context.record["tensors"] = tensors
    context.record["total"] = sizes["total"]
    context.record["left"] = [{"node": node, "reason": reason} for node, reason in found.left.items()]
    if errors is not None:
        context.record["output_error"] = {"fitted": errors[0], "plain": errors[1]}
        if not errors[0] <= errors[1]:
            context.warn(f"{name}: what the data say is no better here than {plain}, which was done")
    if found.spilled:
        context.warn(
            f"activations took more than {name}.memory and went to temporary files, which takes longer; "
            "fewer samples or more memory avoid it"
        )
