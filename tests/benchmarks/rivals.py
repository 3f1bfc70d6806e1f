"""Quantizes one model with another project's quantizer, in a process of its own.

    python tests/benchmarks/rivals.py WAY MODEL FOLDER OUTPUT

WAY is ort-minmax, ort-percentile, nncf or nncf-transformer; FOLDER holds calibration batches (stored_feeds.py). Prints
one JSON object: what had to be done to get there. Runs in any interpreter that has onnx, numpy and the quantizer.

Every quantizer is used as its own manual says. Models older than opset 13 are converted first, because scales per
channel need it, and onnxruntime's preparation (quant_pre_process) is tried without symbolic shapes where they fail.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
from stored_feeds import Feeds, singles, stored

PER_CHANNEL_OPSET = 13


class Reader:
    """Batches as onnxruntime's calibration asks for them, piece by piece: all of them at once would fill the memory."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.glob("*.npz"))
        self.folder, self.place, self.end = folder, 0, len(self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Restricts what is read to some batches."""
        self.place, self.end = start_index, end_index

    def get_next(self) -> Feeds | None:
        """The next batch, or None."""
        import numpy as np

        if self.place >= self.end:
            return None
        self.place += 1
        with np.load(self.paths[self.place - 1]) as arrays:
            return dict(arrays)


class Samples:
    """Single samples, any number of times, as NNCF asks for them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __iter__(self) -> Iterator[Feeds]:
        yield from singles(stored(self.folder))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def modern(source: Path, target: Path, notes: list[str]) -> None:
    """Writes the model in an opset of at least 13, or as it is where onnx cannot convert it."""
    model = onnx.load(source)
    version = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if version < PER_CHANNEL_OPSET:
        try:
            converted = onnx.version_converter.convert_version(model, PER_CHANNEL_OPSET)
            onnx.checker.check_model(converted)
        except Exception as error:  # noqa: BLE001 - a rival may raise anything, and its row says what
            notes.append(f"opset {version} kept: {first_line(error)}")
        else:
            converted.ir_version = max(model.ir_version, 7)
            model = converted
            notes.append(f"converted from opset {version}")
    onnx.save(model, target)


def onnxruntime_static(source: Path, folder: Path, output: Path, method: str, notes: list[str]) -> None:
    """``quantize_static`` after ``quant_pre_process``: QDQ, per channel, int8 weights, uint8 activations."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = output.with_name("prepared.onnx")
    source, prepared, folder, output = (path.resolve() for path in (source, prepared, folder, output))
    with contextlib.chdir(output.parent):  # where it leaves what it could not finish
        try:
            quant_pre_process(str(source), str(prepared))
        except Exception as error:  # noqa: BLE001 - a rival may raise anything, and its row says what
            notes.append(f"prepared without symbolic shapes: {first_line(error)}")
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    reader: Any = Reader(folder)
    quantize_static(
        str(prepared),
        str(output),
        reader,
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt8,
        calibrate_method=CalibrationMethod[method],
        extra_options={"CalibStridedMinMax": 1},  # a batch at a time; ranges and histograms are merged
    )


def nncf_quantize(source: Path, folder: Path, output: Path, *, transformer: bool) -> None:
    """``nncf.quantize`` for the CPU with its defaults, fast bias correction among them; all samples count."""
    nncf = importlib.import_module("nncf")  # not a dependency of anything here
    samples = Samples(folder)
    model = nncf.quantize(
        onnx.load(source),
        nncf.Dataset(samples),
        target_device=nncf.TargetDevice.CPU,
        subset_size=len(samples),
        model_type=nncf.ModelType.TRANSFORMER if transformer else None,
    )
    onnx.save(model, output)


def first_line(error: BaseException) -> str:
    """What an error says first."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


Way = Callable[[Path, Path, Path, list[str]], None]
WAYS: dict[str, Way] = {
    "ort-minmax": lambda s, f, o, notes: onnxruntime_static(s, f, o, "MinMax", notes),
    "ort-percentile": lambda s, f, o, notes: onnxruntime_static(s, f, o, "Percentile", notes),
    "nncf": lambda s, f, o, notes: nncf_quantize(s, f, o, transformer=False),
    "nncf-transformer": lambda s, f, o, notes: nncf_quantize(s, f, o, transformer=True),
}
PACKAGES = {way: way.split("-", maxsplit=1)[0].replace("ort", "onnxruntime") for way in WAYS}


def version(way: str) -> str:
    """What makes the result: the package and its version."""
    packages = dict.fromkeys((PACKAGES[way], "onnxruntime"))
    return " ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)


def main(way: str, model: str, folder: str, output: str) -> None:
    """Quantizes, and says what was noted on the way; an error ends in its last line on standard error."""
    notes: list[str] = []
    with tempfile.TemporaryDirectory(prefix="rival-") as scratch:
        source = Path(scratch) / "model.onnx"
        modern(Path(model), source, notes)
        try:
            WAYS[way](source, Path(folder), Path(output), notes)
        except Exception as error:  # noqa: BLE001 - a rival may raise anything, and its row says what
            sys.exit(first_line(error))
    print("\n" + json.dumps({"notes": notes}))


if __name__ == "__main__":
    if sys.argv[1] == "--version":
        print(version(sys.argv[2]))
    else:
        main(*sys.argv[1:])
