"""Prints how small a convolutional network for MNIST gets without training, as Markdown, each row as soon as it is finished.

    python models/mnist_cnn.py --data mnist.npz --out FOLDER
    MNIST_NPZ=mnist.npz python tests/benchmarks/mnist.py FOLDER/mnist_cnn.onnx [--rows PATTERN] [--threads N]

The network is that of the tutorials of TensorFlow Model Optimization. Accuracy is top-1 on the 10,000 test images, calibration sees
1,024 unlabelled training images. Sizes are those of the file as it is and packed by gzip -9 and zstd -19; speed is the ratio
of medians against the original, measured in turns on one thread.
"""

from __future__ import annotations

import argparse
import fnmatch
import tempfile
from pathlib import Path
from typing import Any

import surgeon
from surgeon.errors import SurgeonError
from surgeon.graph.load import load
from surgeon.stats.data import graph_inputs, open_data
from surgeon.stats.latency import compare

DATA = Path(__file__).resolve().parents[2] / "models" / "mnist_data.py"
SPARSE = "sparsify{sparsity=0.9}"
ROWS = {
    "90 % zeros": SPARSE,
    "90 % zeros, 16 values": f"{SPARSE},cluster",
    "90 % zeros, 16 values, encoded": f"{SPARSE},cluster{{encode=true}}",
    "90 % zeros, int8": f"{SPARSE},quantize",
    "90 % zeros, 16 values, int8": f"{SPARSE},cluster,quantize",
    "structurally pruned, int8": "prune{size=0.026 macs=0.13},reconstruct{effort=thorough},quantize",
}
RUNS = 500
HEAD = "| | passes | top-1 | file | gzip | zstd | MACs | speed | seconds |"
RULE = "|---|---|---|---|---|---|---|---|---|"


def kilobytes(size: int | None) -> str:
    """As a person reads it."""
    return "" if size is None else f"{size / 1000:,.0f} kB"


def speed(before: Path, after: Path) -> float:
    """How many times faster a model is, on one image and one thread: medians of runs in turns."""
    (feeds, _), *_ = open_data(f"{DATA}:calibration", tuple(graph_inputs(load(before)))).take(1)
    return 1 / compare([before, after], feeds, runs=RUNS)[1].ratio


def row(title: str, passes: str, figures: dict[str, Any], seconds: float, faster: float | None = None) -> str:
    """One line of the table."""
    ratio = "" if faster is None else f"{faster:.1f} ×"
    sizes = " | ".join(kilobytes(figures[key]) for key in ("bytes", "gzip_bytes", "zstd_bytes"))
    macs = f"{figures['macs'] / 1e6:.1f} M"
    return (
        f"| {title} | {passes} | {100 * figures['metric']:.2f} | {sizes} | {macs} | {ratio} | {seconds:.0f} |"
    )


def main() -> None:
    """Runs the rows and prints them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help="what models/mnist_cnn.py has written")
    parser.add_argument("--rows", default="*", help="only rows whose title matches")
    parser.add_argument("--threads", type=int, default=2, help="threads of onnxruntime, but for latency")
    asked = parser.parse_args()
    print(HEAD, RULE, sep="\n", flush=True)
    first = True
    for title, passes in ROWS.items():
        if not fnmatch.fnmatchcase(title, asked.rows):
            continue
        with tempfile.TemporaryDirectory() as folder:
            small = Path(folder) / "small.onnx"
            try:
                report = surgeon.run(
                    asked.model,
                    passes,
                    data=f"{DATA}:calibration",
                    evaluation=f"{DATA}:test",
                    destination=small,
                    threads=asked.threads,
                    sizes=True,
                    force=True,
                ).report
            except SurgeonError as error:
                print(f"| {title} | {passes} | {error} | | | | | | |", flush=True)
                continue
            faster = speed(asked.model, small)
        if first:
            print(row("original", "", report["before"], 0), flush=True)
            first = False
        print(row(title, passes, report["after"], report["seconds"], faster), flush=True)


if __name__ == "__main__":
    main()
