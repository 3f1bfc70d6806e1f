"""How an operator can become two: which inputs of its product the first of them sees, and what that costs.

A convolution is split by its taps: those along some axes go to the first convolution, those along the others to the
second. All of them in the first gives k×k then 1×1, none of them 1×1 then k×k, those of one axis k×1 then 1×k. A matrix
product is split into two.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from surgeon.stats.convolution import Convolution, TransposedConvolution
from surgeon.stats.linear import linear_views
from surgeon.stats.matrices import WEIGHTED
from surgeon.stats.product import Product
from surgeon.stats.weight import is_shared, weight_chain

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from numpy.typing import NDArray

    from surgeon.graph.shapes import Shapes
    from surgeon.ops import Op
    from surgeon.stats.linear import Linear

    Dims: TypeAlias = tuple[int, ...]

KINDS = ("outputs", "inputs", "spatial")


@dataclass(frozen=True)
class Split:
    """One way to make two operators of one.

    Attributes:
        kind: One of `KINDS`.
        first: For each spatial axis of a convolution whether the first one has its taps; empty for a product.
        order: ``[rows, columns]``, the number of each input of the product; columns are the second's.
        reading: Multiply-accumulates of the first, of one sample, for each channel in between.
        writing: The same of the second.
        words: What reports call it.
    """

    kind: str
    first: tuple[bool, ...]
    order: NDArray[np.int64]
    reading: float
    writing: float
    words: str

    @property
    def per_rank(self) -> float:
        """Multiply-accumulates of both, of one sample, for each channel in between."""
        return self.reading + self.writing


@dataclass(frozen=True)
class Divisible:
    """An operator that can be split.

    Attributes:
        view: Its product.
        splits: Ways to split it.
        macs: Its multiply-accumulates for one sample.
        outputs: Columns of its matrices.
        inputs_axis: Of the weight.
        outputs_axis: Of the weight.
    """

    view: Linear
    splits: tuple[Split, ...]
    macs: float
    outputs: int
    inputs_axis: int = 1
    outputs_axis: int = 0

    @property
    def label(self) -> str:
        """What reports call it."""
        node = self.view.op.node
        return str(node.name or node.outputs[0].name)

    def full_rank(self, split: Split) -> int:
        """The rank at which nothing is lost."""
        return min(len(split.order), int(split.order.shape[1]) * self.outputs)


_ORIGINAL_DOMAIN = (None, "", "ai.onnx")


def divisible(
    op: Op,
    sample: Shapes,
    kinds: Sequence[str],
    excluded: Callable[[str], bool],
    outputs: Collection[str] = (),
) -> Divisible | str | None:
    """How an operator can be split, or why not; None for one without weights.

    Args:
        op: The operator.
        sample: Shapes for one sample.
        kinds: The kinds of splits that are asked for.
        excluded: Whether a node or tensor, by name, is to be left alone.
        outputs: Names of the graph's outputs.
    """
    node = op.node
    weighted = node.op in WEIGHTED and node.domain in _ORIGINAL_DOMAIN
    if not weighted or all(weight_chain(tensor) is None for tensor in node.inputs[:2]):
        return None
    if any(excluded(t.name) for t in (node, *node.inputs[:2], *node.outputs) if t.name):
        return "excluded"
    if node.op not in ("Conv", "Gemm", "MatMul"):
        return f"a {node.op} has no split of this kind"
    tensors = [*node.inputs[:2], node.outputs[0]]
    unknown = [t.name for t in tensors if any(s.dims.get(t.name) is None for s in (op.shapes, sample))]
    if unknown:
        return f"the shape of {unknown[0]} is not known"
    views = linear_views(op)
    if len(views) != 1:
        return "its bias is computed, or it is no product with one weight"
    view = views[0]
    if is_shared(node.inputs[view.weight]):
        return "its weight is shared"
    if node.outputs[0].name in outputs and view.output != node.outputs[0].name:
        return "the model puts out its result before the bias is added"
    dims = [sample.dims.get(t.name) or () for t in tensors]
    if isinstance(view, Convolution) and not isinstance(view, TransposedConvolution):
        found = _convolution(view, dims, kinds)
    elif isinstance(view, Product):
        found = _product(view, dims)
    else:
        return "it has no split of this kind"
    return found


def _product(view: Product, dims: Sequence[Dims]) -> Divisible | str:
    if view.channel_axis is None:
        return "its weight is a vector"
    result, weight = dims[2], dims[view.weight]
    outputs, inputs = (weight[-2], weight[-1]) if view.turned else (weight[-1], weight[-2])
    places = prod(result) / outputs
    order = np.arange(inputs)[:, None]
    split = Split("outputs", (), order, places * inputs, places * outputs, "two products")
    axes = (-1, -2) if view.turned else (-2, -1)
    return Divisible(view, (split,), places * inputs * outputs, outputs, *axes)


def _convolution(view: Convolution, dims: Sequence[Dims], kinds: Sequence[str]) -> Divisible | str:
    data, weight, result = dims
    if view.groups(view.op.node) != 1:
        return "its channels are in groups"
    outputs, inputs, *kernel = weight
    samples, seen, made = data[0], data[2:], result[2:]
    wide = [size > 1 for size in kernel]
    splits = []
    for choice in product(*([(True, False) if several else (True,) for several in wide])):
        kind = "outputs" if all(choice) else "spatial" if _shares(choice, wide) else "inputs"
        if kind not in kinds:
            continue
        own = [size if mine else 1 for size, mine in zip(kernel, choice, strict=True)]
        other = [1 if mine else size for size, mine in zip(kernel, choice, strict=True)]
        between = [after if mine else before for before, after, mine in zip(seen, made, choice, strict=True)]
        reading = float(samples * prod(between) * inputs * prod(own))
        writing = float(samples * prod(made) * prod(other) * outputs)
        words = f"{_times(own)} then {_times(other)}"
        splits.append(Split(kind, choice, _order(inputs, kernel, choice), reading, writing, words))
    if not splits:
        return f"it has no split of the kinds {' and '.join(kinds)}"
    return Divisible(
        view, tuple(splits), float(samples * prod(made) * outputs * inputs * prod(kernel)), outputs
    )


def _shares(choice: Sequence[bool], wide: Sequence[bool]) -> bool:
    """Whether either convolution has taps along some axis."""
    return any(mine for mine, several in zip(choice, wide, strict=True) if several)


def _times(sizes: Sequence[int]) -> str:
    return "×".join(map(str, sizes))


def _order(inputs: int, kernel: Sequence[int], choice: Sequence[bool]) -> NDArray[np.int64]:
    """Inputs of the product are numbered channel by channel, tap by tap."""
    numbers: NDArray[Any] = np.arange(inputs * prod(kernel)).reshape(inputs, *kernel)
    mine = [k + 1 for k, first in enumerate(choice) if first]
    others = [k + 1 for k, first in enumerate(choice) if not first]
    turned = numbers.transpose(0, *mine, *others)
    return turned.reshape(inputs * prod(kernel[k - 1] for k in mine), -1).astype(np.int64)
