"""The oracle of scaling: with any factors at all, everywhere they are free, a graph computes what it did."""

from __future__ import annotations

import numpy as np
import onnx

from surgeon.engine import analyse
from surgeon.graph.load import from_model
from surgeon.graph.save import to_model
from surgeon.graph.sessions import session, with_outputs
from surgeon.probes import probe_feeds
from surgeon.scaling import Scaling
from surgeon.scaling.apply import scaled


def solved(model: onnx.ModelProto):
    """The analysed model and what may be scaled in it."""
    found = analyse(from_model(model))
    return found, Scaling(found.analysis, lambda _: False)


def free(scaling: Scaling, name: str) -> int:
    """How many factors of a tensor may be chosen."""
    return len(np.unique(scaling.labels[name][scaling.labels[name] != 0])) if name in scaling.labels else 0


def check(model: onnx.ModelProto, seed: int = 0, tolerance: float = 1e-5) -> Scaling:
    """Scale everything that is free by random factors; outputs stay, and tensors become what their factors say."""
    found, scaling = solved(model)
    random = np.random.default_rng(seed)
    factors = np.exp(random.uniform(-1.5, 1.5, scaling.size))
    factors[0] = 1.0
    changed = scaled(found, scaling, factors)
    outputs = [tensor.name for tensor in found.original.outputs]
    floats = {k for k, kind in found.analysis.shapes.dtypes.items() if kind == onnx.TensorProto.FLOAT}
    present = {t.name for graph in (found.original, changed) for node in graph.nodes for t in node.outputs}
    inside = [name for name in scaling.labels if name in present & floats and name not in outputs]
    runners = [
        session(with_outputs(to_model(graph), inside), optimize=False) for graph in (found.original, changed)
    ]
    names = [output.name for output in runners[0].get_outputs()]
    assert names == [output.name for output in runners[1].get_outputs()]
    feeds = next(iter(probe_feeds(found.analysis)))
    before, after = (dict(zip(names, runner.run(None, feeds), strict=True)) for runner in runners)
    for name in names:
        wanted = before[name] * scaling.factors(name, factors) if name in inside else before[name]
        size = np.abs(wanted).max() + 1e-6
        assert np.abs(after[name] - wanted).max() / size <= tolerance, name
    return scaling
