"""Prints how long the steps of a prune take: two full-width networks, and families of graphs of growing length.

    python tests/benchmarks/prune_time.py [LARGEST]

Seconds of processor time, the least of three runs for networks, one run for the families, which end at LARGEST nodes
(default 10000; 100000 takes some minutes). Each family is followed by how the time of each step grows from one length
to the next when the nodes grow fourfold: 4 is linear. Imports are not counted; "prove" runs onnxruntime, whose own
planning is not linear.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from large_models import FAMILIES, filled

from surgeon.engine import analyse
from surgeon.graph.collecting import seldom_collected
from surgeon.graph.load import load
from surgeon.graph.save import save
from surgeon.measure import figures
from surgeon.passes import Context
from surgeon.plugins import load_rules
from surgeon.verify import prove
from surgeon_passes.clean import Clean
from surgeon_passes.prune import Prune
from surgeon_passes.pruning.choose import choose
from surgeon_passes.pruning.rank import Ranking

STEPS = ("load", "count", "clean", "analyse", "choose", "cut", "prove", "save")
FIRST, FACTOR = 625, 4


def timed(path: Path) -> dict[str, float]:
    """Seconds of each step; without clean, pruning starts from the model as it is."""
    seconds: dict[str, float] = {}

    def step(name: str, work: Callable[[], object]) -> object:
        start = time.process_time()
        result = work()
        seconds[name] = time.process_time() - start
        return result

    context = Context(path)
    with seldom_collected():
        graph = step("load", lambda: load(path))
        step("count", lambda: figures(graph, 1))
        graph = step("clean", lambda: Clean().run(graph, context))
        model = step("analyse", lambda: analyse(graph))
        options = Prune(ratio=0.5)
        ranking = Ranking(options, model, context)
        choice = step("choose", lambda: choose(options, model, context, ranking, None, {}))
        kept = {name: flags for name, flags in choice.kept.items() if not flags.all()}
        smaller, plan = step("cut", lambda: model.cut(kept))
        step("prove", lambda: prove(model.analysis, smaller, plan.tensors, threads=1))
        step("save", lambda: save(smaller, path.with_suffix(".out")))
    return seconds


def row(label: str, values: dict[str, float], digits: int) -> None:
    cells = [f"{values[step]:8.{digits}f}" for step in STEPS]
    print(f"{label:22s}", *cells, f"{sum(values.values()):8.{digits}f}" if digits > 1 else "")


def main(largest: int) -> None:
    load_rules(lambda _: None)
    print(f"{'':22s}", *(f"{step:>8s}" for step in STEPS), f"{'all':>8s}")
    with tempfile.TemporaryDirectory() as folder:
        for name in ("resnet50", "densenet121"):
            path = filled(name, Path(folder) / f"{name}.onnx")
            runs = [timed(path) for _ in range(3)]
            row(name, {step: min(run[step] for run in runs) for step in STEPS}, 3)
        for family, (write, per_block) in FAMILIES.items():
            nodes, before = FIRST, None
            while nodes <= largest:
                path = write(Path(folder) / "m.onnx", nodes // per_block)
                seconds = timed(path)
                row(f"{family}, {nodes} nodes", seconds, 2)
                if before is not None:
                    row("  grows by", {step: seconds[step] / max(before[step], 1e-3) for step in STEPS}, 1)
                nodes, before = nodes * FACTOR, seconds


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
