"""Prints how much memory a prune takes, as a multiple of the model's size.

    python tests/benchmarks/memory.py [GIGABYTES]

Each row is one process of ``surgeon run MODEL --passes prune{ratio=0.5 reconstruct=false}``: a network that comes with onnx at
full width, and a stack of layers with external data of GIGABYTES (default 0.5). "idle" is what the interpreter and the
libraries take before anything is read; "peak" includes it. With latency, onnxruntime's own optimized sessions of both
models are open side by side. Needs Linux.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from large_models import filled, stack

WIDTH = 4096
PEAK = """
import sys
from pathlib import Path
def peak():
    return next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line).split()[1]
"""
RUN = """
from surgeon.cli import main
try:
    main()
finally:
    print(peak(), file=sys.stderr)
"""
IDLE = """
import surgeon.job, surgeon.engine, surgeon.verify, surgeon_passes.prune
print(peak(), file=sys.stderr)
"""


def peak_of(program: str, *arguments: object) -> int:
    """The largest resident memory of a fresh process, in bytes."""
    command = [sys.executable, "-c", PEAK + program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stderr.strip().splitlines()[-1]) * 1024


def row(label: str, path: Path, size: int, idle: int, *options: str) -> None:
    output = path.with_name("out.onnx")
    passes = "prune{ratio=0.5 reconstruct=false}"
    arguments = ("run", path, "-o", output, "--passes", passes, *options)
    start = time.perf_counter()
    peak = peak_of(RUN, *arguments)
    print(
        f"{label:28s} {size / 1e6:8.0f} {idle / 1e6:8.0f} {peak / 1e6:8.0f} {peak / size:8.2f}"
        f" {(peak - idle) / size:10.2f} {time.perf_counter() - start:8.1f}"
    )


def main(gigabytes: float) -> None:
    idle = peak_of(IDLE)
    print(f"{'':28s} {'MB':>8s} {'idle':>8s} {'peak':>8s} {'x':>8s} {'x, no idle':>10s} {'s':>8s}")
    with tempfile.TemporaryDirectory() as folder:
        for name in ("resnet50", "densenet121"):
            path = filled(name, Path(folder) / f"{name}.onnx")
            size = path.stat().st_size
            row(name, path, size, idle, "--no-latency")
            row(f"{name}, with latency", path, size, idle)
        layers = max(2, int(gigabytes * 1e9 / (4 * WIDTH**2)))
        path = Path(folder) / "stack.onnx"
        size = stack(path, layers, WIDTH)
        row(f"{layers} layers of {WIDTH}", path, size, idle, "--no-latency")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 0.5)
