"""The engine's front door: a graph becomes channel groups, a choice of indices becomes a smaller graph with a plan."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from surgeon.analysis import Analysis, solve
from surgeon.cost import CostModel, constants_of
from surgeon.graph.canonical import canonicalize
from surgeon.graph.copy import copy_of
from surgeon.graph.restore import restore
from surgeon.graph.rewrite import drop_identity_gathers, fold_shuffles, has_shuffles
from surgeon.graph.shapes import Shapes, infer
from surgeon.groups import Group, Pinned, find_groups, find_pinned
from surgeon.plan import GroupPlan, Plan
from surgeon.states import find_states
from surgeon.surgery import axis_masks, cut, interface_cuts, keep_of, tensor_cuts, without_empty_axes

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Model:
    """A graph in canonical form with its solved axes.

    Attributes:
        analysis: The canonical graph, its shapes and axes.
        groups: What can be removed.
        original: The graph before it was brought to canonical form.
    """

    analysis: Analysis
    groups: list[Group]
    original: gs.Graph

    @cached_property
    def pinned(self) -> list[Pinned]:
        """Axes that must keep their size, and why."""
        return find_pinned(self.analysis)

    @cached_property
    def cost(self) -> CostModel:
        """Parameters, MACs and bytes as polynomials of the group sizes."""
        return CostModel(self.analysis, constants_of(self.original))

    def ceiling(self, kind: str = "params") -> float:
        """The fraction of the cost that is left when every group keeps one index."""
        least = self.cost.evaluate({group.atom: 1.0 for group in self.groups})
        return float(getattr(least, kind) / max(getattr(self.cost.evaluate(), kind), 1.0))

    def cut(self, kept: Mapping[str, NDArray[np.bool_]], model_sha256: str = "") -> tuple[gs.Graph, Plan]:
        """Remove everything that is not kept.

        Args:
            kept: Boolean array ``[size]`` per group id; groups not named stay whole.
            model_sha256: Hash of the model file, for the plan.

        Returns:
            The smaller graph, and the plan that says what was kept.
        """
        keep = keep_of(kept, {group.id: group.atom for group in self.groups})
        keep = without_empty_axes(self.analysis, keep)
        groups = tuple(
            GroupPlan(g.id, g.kind, g.size, tuple(keep[g.atom].nonzero()[0].tolist()))
            for g in self.groups
            if g.atom in keep
        )
        changed = interface_cuts(self.analysis, keep)
        plan = Plan(model_sha256, groups, tensor_cuts(self.analysis, keep), interface=changed)
        smaller = cut(self.analysis, keep)
        restore(smaller, self.original, lambda name: bool(axis_masks(self.analysis.axes.get(name), keep)))
        return smaller, plan


def analyse(graph: gs.Graph, *, cut_cache: bool = False) -> Model:
    """Bring ``graph`` to canonical form, in place, and find its channel groups.

    A channel shuffle can be seen as a transposed product, which ties rows to columns, or as a permutation, which ties
    nothing but leaves a Gather in the model: where there are any, the view that lets more parameters go is taken.

    Args:
        graph: The graph.
        cut_cache: Whether caches and recurrent states, which are graph inputs and outputs, may shrink as well.
    """
    original = copy_of(graph)
    shapes = infer(graph)
    canonicalize(graph, shapes)
    drop_identity_gathers(graph, shapes)
    model = _solved(graph, shapes, original, cut_cache)
    if has_shuffles(graph, shapes):
        permuted = copy_of(graph)
        fold_shuffles(permuted, shapes)
        other = _solved(permuted, shapes, original, cut_cache)
        if other.ceiling() < model.ceiling():
            return other
    return model


def _solved(graph: gs.Graph, shapes: Shapes, original: gs.Graph, cut_cache: bool) -> Model:
    analysis = solve(graph, shapes)
    tied = find_states(analysis) if cut_cache else []
    if tied:
        analysis = solve(graph, shapes, tied)
    return Model(analysis, find_groups(analysis), original)
