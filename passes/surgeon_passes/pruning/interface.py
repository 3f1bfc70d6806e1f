"""Says which inputs and outputs of a model a cut has changed, where that was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from surgeon.passes import Context, Graph
    from surgeon.plan import Plan


def note_interface(before: Graph, after: Graph, plan: Plan, context: Context) -> None:
    """Records the shapes of inputs and outputs that changed, before and after, and warns of them."""
    shapes = [
        {
            tensor.name: list(tensor.shape)
            for tensor in (*graph.inputs, *graph.outputs)
            if tensor.name in plan.interface and tensor.shape is not None
        }
        for graph in (before, after)
    ]
    changed = {
        name: {"before": shape, "after": shapes[1][name]}
        for name, shape in shapes[0].items()
        if shape != shapes[1][name]
    }
    if changed:
        said = ", ".join(f"{name} {shape['before']} → {shape['after']}" for name, shape in changed.items())
        context.record["interface"] = changed
        context.warn(f"the model's interface has changed: {said}")
