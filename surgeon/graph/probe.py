"""Choosing concrete sizes for the dimensions a model leaves open.

A probe size should coincide with no size written in the model, or two axes that only happen to be equal would
look related; it should be small, since proofs run the model at it; and the model must accept it. No single choice
does for all models, so there is a list of recipes, tried in turn.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain, count
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from surgeon.graph.symbols import evaluate_symbol, is_expression

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

_PRIMES = (13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109)
_BATCH = (3, 5, 7, 11, *_PRIMES)
_LARGE = (137, 139, 149, 151, 157, 163, 167, 173, 179, 181, 191, 193, 197, 199, 211, 223, 227, 229, 233, 239)
_FRAMES = (512, 1024, 256, 2048, 480, 960, 768, 1536)
_LONG = (16001, 17011, 18013, 19013, 20011, 21011, 22003, 23003, 24001, 25013, 26003, 27011, 28001, 29009)
_MULTIPLES = tuple(32 * factor for factor in (5, 7, 3, 9, 11, 13, 6, 10, 15, 17, 19, 21, 22, 23, 25, 26))
_SQUARES = (224, 32, 28, 64, 112, 128, 256, 299, 320, 416, 512, 640)

Sizes = dict[str, int]


@dataclass
class Dimension:
    """An open dimension, and the (input, axis) pairs that have it.

    ``kind`` is ``"batch"`` for a first axis, ``"image"`` for a spatial axis of images, else ``"other"``.
    """

    key: str
    uses: list[tuple[str, int]] = field(default_factory=list)
    kind: str = "other"


@dataclass(frozen=True)
class Recipe:
    """How to pick sizes: the candidates for each kind, and which dimensions share a size.

    ``tie`` is ``"none"``, ``"batch"`` (all first axes are equal) or ``"axis"`` (dimensions with the same axis
    number are equal); ``only`` restricts the recipe to models that have a dimension of that kind.
    """

    other: Sequence[int] = _PRIMES
    image: Sequence[int] = _PRIMES
    tie: str = "none"
    only: str = ""


RECIPES = (
    Recipe(),
    Recipe(image=_MULTIPLES, only="image"),
    Recipe(tie="batch"),
    Recipe(tie="axis"),
    Recipe(other=_FRAMES, only="other"),
    Recipe(other=_LONG, only="other"),
    Recipe(image=_MULTIPLES, tie="axis", only="image"),
    *(Recipe(image=(size,), tie="axis", only="image") for size in _SQUARES),
)


def dynamic_dims(graph: gs.Graph) -> dict[str, list[tuple[str, int]]]:
    """Every open dimension of the graph's inputs, and the (input, axis) pairs that have it.

    The key is the symbol's name, or ``"input:axis"`` for a dimension without one.
    """
    return {key: dimension.uses for key, dimension in open_dimensions(graph).items()}


def open_dimensions(graph: gs.Graph) -> dict[str, Dimension]:
    """The open dimensions of the graph's inputs by key, in order of appearance."""
    found: dict[str, Dimension] = {}
    for tensor in graph.inputs:
        shape = tensor.shape or ()
        for axis, size in enumerate(shape):
            if isinstance(size, int) and size > 0:
                continue
            key = dimension_key(tensor.name, axis, size)
            dimension = found.setdefault(key, Dimension(key))
            dimension.uses.append((tensor.name, axis))
            if axis == 0:
                dimension.kind = "batch"
            elif len(shape) >= 4 and dimension.kind == "other" and _is_float(tensor):
                dimension.kind = "image"
    return found


def dimension_key(name: str, axis: int, size: object) -> str:
    """The key of one open dimension: its symbol, or the input's name and the axis."""
    return size if isinstance(size, str) and size not in ("", "?") else f"{name}:{axis}"


def _is_float(tensor: gs.Tensor) -> bool:
    return tensor.dtype is not None and np.dtype(tensor.dtype).kind not in "iub"


def taken_sizes(graph: gs.Graph, constants: Iterable[np.ndarray]) -> set[int]:
    """Every number that occurs in the model as a size: of a weight, of an input, in an integer constant."""
    taken = {1}
    for tensor in graph.inputs:
        taken.update(size for size in tensor.shape or () if isinstance(size, int))
    for node in graph.nodes:
        for tensor in node.inputs:
            if isinstance(tensor, gs.Constant):
                taken.update(tensor.shape)
    for array in constants:
        if array.dtype.kind == "i" and array.size <= 8:
            taken.update(array.reshape(-1).tolist())
    return taken


def candidates(
    dimensions: Mapping[str, Dimension], taken: set[int], forced: Mapping[str, int]
) -> Iterator[tuple[Sizes, list[Sizes]]]:
    """Assignments to try, the most wanted first, each with alternatives to compare it with.

    Whatever changes between an assignment and its alternative is dynamic. In the second alternative all sizes are
    doubled, for models that only accept multiples of some. In the last only the batch is different, for models that
    accept a single size in all other dimensions. Forced sizes are the same in all assignments, not in their
    alternatives. The last candidates are sizes the model mentions itself, and round ones, for models that declare a
    dimension open but were exported with one length.
    """
    kinds = {dimension.kind for dimension in dimensions.values()}
    mentioned = sorted(
        {size for size in taken if 1 < size <= 4096} | {8, 10, 12, 16, 20, 24, 32, 50, 64, 100, 128}
    )
    for recipe in chain(RECIPES, (Recipe(other=(size,), image=(size,), tie="axis") for size in mentioned)):
        if (recipe.only and recipe.only not in kinds) or (recipe.tie != "none" and not kinds):
            continue
        groups = {key: _group(dimension, recipe.tie) for key, dimension in dimensions.items()}
        used = set(taken) | set(forced.values())
        first = _assign(dimensions, groups, _pools(recipe), used)
        large = _assign(dimensions, groups, dict.fromkeys(("batch", "other", "image"), _LARGE), used)
        near = _assign(dimensions, groups, _pools(recipe), used)
        doubled = {key: 2 * size for key, size in first.items()}
        batch = {
            key: near[key] if dimension.kind == "batch" else first[key]
            for key, dimension in dimensions.items()
        }
        first = complete(first, forced)
        fixed = {key: size for key, size in forced.items() if key not in dimensions}
        yield first, [complete(sizes, fixed) for sizes in (large, doubled, near, batch)]


def _group(dimension: Dimension, tie: str) -> str:
    if tie == "batch" and dimension.kind == "batch":
        return "batch"
    if tie == "axis":
        return "image" if dimension.kind == "image" else f"axis {dimension.uses[0][1]}"
    return f"symbol {dimension.key}"


def _pools(recipe: Recipe) -> dict[str, Sequence[int]]:
    return {"batch": _BATCH, "other": recipe.other, "image": recipe.image}


def _assign(
    dimensions: Mapping[str, Dimension],
    groups: Mapping[str, str],
    pools: Mapping[str, Sequence[int]],
    used: set[int],
) -> Sizes:
    """One size per group from the pool of its kind, none of them used before."""
    chosen: dict[str, int] = {}
    for key, dimension in dimensions.items():
        group = groups[key]
        if group in chosen:
            continue
        pool = pools[dimension.kind]
        wanted = pool if len(set(pool)) == 1 else chain(pool, count(max(pool) + 2, 2))
        chosen[group] = next((size for size in wanted if size not in used), pool[0])
        used.add(chosen[group])
    return {key: chosen[groups[key]] for key in dimensions}


def complete(sizes: Sizes, forced: Mapping[str, int]) -> Sizes:
    """Forced sizes replace chosen ones; expressions and totals follow from the symbols they are made of."""
    result = {**sizes, **forced}
    for key, size in result.items():
        if key in forced or key not in sizes:
            continue
        if is_expression(key):
            value = evaluate_symbol(key, {name: other for name, other in result.items() if name != key})
            result[key] = value if value is not None and value > 0 else size
        elif (
            "total" in key
        ):  # the naming of exported decoders: total_sequence_length counts past and new positions
            parts = [name for name in result if "total" not in name and ("past" in name or "seq" in name)]
            if any("past" in name for name in parts):
                result[key] = sum(result[name] for name in parts)
    return result
