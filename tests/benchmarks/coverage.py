"""Prints, for every graph outside the repository, how much of it goes at half of every channel axis, and what stops the rest.

    SURGEON_SHARED=FOLDER python tests/benchmarks/coverage.py [PATTERN]

The table of docs/reference/coverage.md. Each graph is cut at ``ratio=0.5 allow_structural=true`` with a proof; "removed"
is the fraction of its parameters, and "what stays" names the reasons behind the largest weights that kept more than a
quarter.
"""

from __future__ import annotations

import sys
from collections import Counter
from math import prod
from pathlib import Path

import onnx
import onnx_graphsurgeon as gs

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from zoo import every

from surgeon.axes import atoms_of, is_fixed
from surgeon.engine import Model, analyse
from surgeon.errors import SurgeonError
from surgeon.graph.load import from_model
from surgeon.measure import parameters
from surgeon.passes import Context
from surgeon_passes.prune import Prune

QUARTER = 0.25
NAMED = 2


def stops(model: Model, smaller: gs.Graph) -> str:
    """Reasons by the parameters they hold back: of each weight that keeps more than a quarter, its pinned axes."""
    left = {t.name: prod(t.shape) for t in smaller.tensors().values() if isinstance(t, gs.Constant)}
    held: Counter[str] = Counter()
    for name, tensor in model.analysis.graph.tensors().items():
        axes = model.analysis.axes.get(name)
        if not isinstance(tensor, gs.Constant) or not axes or tensor.dtype == "int64":
            continue
        kept = left.get(name, 0)
        if kept <= QUARTER * prod(tensor.shape) or kept < 64:
            continue
        pinned = [atom for axis in axes if is_fixed(axis) for atom in atoms_of(axis) if atom.pinned]
        if pinned:
            reason = max(pinned, key=lambda atom: atom.size).pinned
            words = f"{reason.op.split(' ')[0]}: {reason.why}"
            held[words] += int(kept - QUARTER * prod(tensor.shape))
    return "; ".join(reason for reason, _ in held.most_common(NAMED))


def row(name: str, proto: onnx.ModelProto) -> str:
    """One line of the table."""
    graph = from_model(proto)
    whole, context = parameters(graph), Context(Path(name))
    try:
        smaller = Prune(ratio=0.5, allow_structural=True, score="l2").run(graph, context)
    except SurgeonError as error:
        return f"| {name} | - | - | {error} |"
    model = analyse(from_model(proto))
    certificate = context.record["certificate"]
    assert isinstance(certificate, dict)
    removed = 1 - parameters(smaller) / max(whole, 1)
    return f"| {name} | {removed:.1%} | {certificate['status']} | {stops(model, smaller)} |"


def main() -> None:
    """Prints the table."""
    print("| graph | removed | certificate | what stays, and why |\n|---|---|---|---|")
    for name, proto in every(sys.argv[1] if len(sys.argv) > 1 else "*"):
        print(row(name, proto), flush=True)


if __name__ == "__main__":
    main()
