"""The oracle of operator rules: cutting through the ties equals deleting the same indices from the full result.

A test writes a few nodes as ONNX text, feeds the operator from weights so that its channels are free, and contracts
its outputs again so that nothing is pinned from behind. :func:`check` removes indices from every group that the
engine found and compares all intermediate tensors of the cut model with those of the masked original.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import helper, numpy_helper, parser

from surgeon.axes import atoms_of, mask
from surgeon.engine import Model, analyse
from surgeon.graph.load import from_model
from surgeon.graph.save import to_model
from surgeon.graph.sessions import session, with_outputs
from surgeon.groups import Group
from surgeon.plan import Plan
from surgeon.probes import probe_feeds
from surgeon.surgery import keep_of
from surgeon.verify import masked, prove, relative_error

Weight = Sequence[int] | NDArray[Any] | np.generic
Kept = dict[str, NDArray[np.bool_]]
IR_VERSION = 10


def build(
    inputs: str,
    outputs: str,
    body: str,
    weights: Mapping[str, Weight] | None = None,
    *,
    opset: int = 21,
    domains: Mapping[str, int] | None = None,
    seed: int = 0,
) -> onnx.ModelProto:
    """A model from the text of its nodes.

    Args:
        inputs: Graph inputs as ONNX text (``float[N,3,8,8] x``).
        outputs: Graph outputs as ONNX text.
        body: Nodes as ONNX text.
        weights: Initializers: an array, or a shape for seeded random values.
        opset: Version of the standard operators.
        domains: Further opset imports.
        seed: Seed of the random values.
    """
    imports = ", ".join(f'"{name}" : {version}' for name, version in {"": opset, **(domains or {})}.items())
    text = (
        f"<ir_version: {IR_VERSION}, opset_import: [{imports}]>\ng ({inputs}) => ({outputs}) {{\n{body}\n}}"
    )
    model = parser.parse_model(text)
    random = np.random.default_rng(seed)
    for name, weight in (weights or {}).items():
        model.graph.initializer.append(numpy_helper.from_array(_values(random, weight), name))
    return model


def nodes(
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Mapping[str, Sequence[int | str]],
    made: Sequence[onnx.NodeProto],
    weights: Mapping[str, Weight] | None = None,
    *,
    opset: int = 21,
    seed: int = 0,
) -> onnx.ModelProto:
    """The same from node messages, for what is awkward to write as text; all inputs and outputs are floats."""
    random = np.random.default_rng(seed)
    graph = helper.make_graph(
        list(made),
        "g",
        [
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
            for name, shape in inputs.items()
        ],
        [
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
            for name, shape in outputs.items()
        ],
        [numpy_helper.from_array(_values(random, weight), name) for name, weight in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION)


def _values(random: np.random.Generator, weight: Weight) -> NDArray[Any]:
    """Seeded weights of that shape, far enough from zero that a wrong cut shows; arrays stay as they are."""
    if isinstance(weight, np.ndarray | np.generic):
        return np.asarray(weight)
    fan_in = int(np.prod(weight[1:])) if len(weight) > 1 else 1
    signs = random.choice([-1, 1], weight)
    return (random.uniform(0.3, 1.0, weight) * signs / np.sqrt(fan_in)).astype(np.float32)


def features(
    middle: str,
    result: int,
    weights: Mapping[str, Weight] | None = None,
    *,
    channels: int = 12,
    opset: int = 21,
) -> onnx.ModelProto:
    """``middle`` maps ``a`` ``[N, 7, channels]`` to ``b`` ``[N, 7, result]``, both free, between two MatMuls."""
    return build(
        "float[N,7,5] x",
        "float[N,7,3] y",
        f"a = MatMul (x, w_in)\n{middle}\ny = MatMul (b, w_out)",
        {"w_in": (5, channels), **(weights or {}), "w_out": (result, 3)},
        opset=opset,
    )


def images(
    middle: str,
    result: int,
    weights: Mapping[str, Weight] | None = None,
    *,
    channels: int = 12,
    spatial: Sequence[int] = (8, 6),
    opset: int = 21,
) -> onnx.ModelProto:
    """``middle`` maps ``a`` ``[N, channels, ...]`` to ``b`` ``[N, result, ...]``, both free, between two Convs."""
    taps = (1,) * len(spatial)
    return build(
        f"float[N,5,{','.join(map(str, spatial))}] x",
        f"float[N,3,{','.join(f'out{k}' for k in range(len(spatial)))}] y",
        f"a = Conv (x, w_in, b_in)\n{middle}\ny = Conv (b, w_out)",
        {"w_in": (channels, 5, *taps), "b_in": (channels,), **(weights or {}), "w_out": (3, result, *taps)},
        opset=opset,
    )


def ints(*values: int) -> NDArray[np.int64]:
    """A vector of int64, for bounds, sizes and indices."""
    return np.array(values, dtype=np.int64)


def solved(model: onnx.ModelProto) -> Model:
    """The analysed model."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return analyse(from_model(copy))


def sizes(model: Model) -> list[int]:
    """Sizes of the groups, ascending."""
    return sorted(group.size for group in model.groups)


def of_size(model: Model, size: int) -> Group:
    """The only group of that size."""
    (group,) = [group for group in model.groups if group.size == size]
    return group


def only(graph: gs.Graph, op: str) -> gs.Node:
    """The only node of that type."""
    (node,) = [node for node in graph.nodes if node.op == op]
    return node


def drop(size: int, *removed: int) -> NDArray[np.bool_]:
    """Flags that keep everything but ``removed``."""
    kept = np.ones(size, bool)
    kept[list(removed)] = False
    return kept


def reasons(model: Model) -> str:
    """Everything that is pinned and why, as one text."""
    return "\n".join(f"{each.size}: {each.reason}" for each in model.pinned)


def check(
    model: onnx.ModelProto,
    groups: Iterable[int] | None = None,
    structural: Iterable[int] = (),
    *,
    taps: bool = True,
) -> Model:
    """Cut every group in several ways; each cut must be exact, or structural for groups of the sizes named.

    Args:
        model: The model under test.
        groups: Sizes of all groups that must be found.
        structural: Sizes of those that cannot be cut exactly.
        taps: Whether to compare every intermediate tensor too.
    """
    found = solved(model)
    if groups is not None:
        assert sizes(found) == sorted(groups), f"{[(g.id, g.size) for g in found.groups]}\n{reasons(found)}"
    assert sorted(g.size for g in found.groups if g.structural) == sorted(structural), [
        (g.id, g.size, g.structural) for g in found.groups
    ]
    for kept in choices(found.groups):
        check_cut(found, kept, taps=taps)
    return found


def choices(groups: Sequence[Group], seed: int = 0) -> Iterable[Kept]:
    """One index of each group removed, a random half of each, all but one, and half of all at once."""
    random = np.random.default_rng(seed)
    for group in groups:
        one = np.ones(group.size, bool)
        one[int(random.integers(group.size))] = False
        yield {group.id: one}
        yield {group.id: half(group.size, random)}
        yield {group.id: np.arange(group.size) == random.integers(group.size)}
    if len(groups) > 1:
        yield {group.id: half(group.size, random) for group in groups}


def half(size: int, random: np.random.Generator) -> NDArray[np.bool_]:
    """A random half is kept, the larger one for an odd size."""
    kept = np.zeros(size, bool)
    kept[random.permutation(size)[: (size + 1) // 2]] = True
    return kept


def check_cut(model: Model, kept: Kept, *, taps: bool = True) -> gs.Graph:
    """Cut ``model``, prove it, and compare what is left of every intermediate tensor; returns the cut graph."""
    smaller, plan = model.cut(kept)
    structural = any(group.structural for group in model.groups if group.id in kept)
    certificate = prove(model.analysis, smaller, plan.tensors, structural=structural)
    assert certificate.probes >= 1
    if not structural:
        assert certificate.status == "exact", (kept, certificate)
        if taps:
            compare_taps(model, smaller, plan)
    return smaller


def compare_taps(model: Model, smaller: gs.Graph, plan: Plan) -> int:
    """Every float tensor of the cut model equals the one of the masked original without the removed positions."""
    keep = keep_of(plan.kept(), {group.id: group.atom for group in model.groups})
    whole, cut = to_model(masked(model.analysis, plan.tensors)), to_model(smaller)
    names = _shared(model, whole, cut)
    feeds = next(iter(probe_feeds(model.analysis)))
    full, left = (dict(zip(names, _run(each, names, feeds), strict=True)) for each in (whole, cut))
    for name in names:
        expected = full[name]
        axes = model.analysis.axes.get(name) or []
        if expected.ndim != len(axes):
            continue
        for k, axis in enumerate(axes):
            if any(atom in keep for atom in atoms_of(axis)):
                expected = np.compress(mask(axis, keep), expected, axis=k)
        assert relative_error([expected], [left[name]]) < 1e-4, name
    return len(names)


def _shared(model: Model, whole: onnx.ModelProto, cut: onnx.ModelProto) -> list[str]:
    """Float tensors that both models compute."""
    left = {name for node in cut.graph.node for name in node.output}
    floats = {
        name
        for name, kind in model.analysis.shapes.dtypes.items()
        if kind in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)
    }
    return [name for node in whole.graph.node for name in node.output if name in left & floats]


def _run(
    model: onnx.ModelProto, names: Sequence[str], feeds: Mapping[str, NDArray[Any]]
) -> list[NDArray[Any]]:
    tapped = session(with_outputs(model, names), optimize=False)
    known = {argument.name for argument in tapped.get_inputs()}
    result: list[NDArray[Any]] = tapped.run(list(names), {k: v for k, v in feeds.items() if k in known})
    return result
