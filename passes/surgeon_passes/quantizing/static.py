"""Static quantization: activation ranges from calibration data, weights and activations stored with 8 bits (QDQ)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

from surgeon.graph import sessions
from surgeon.stats.data import Dataset, runnable
from surgeon_passes.quantizing.choose import Choice

_METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}


class _OneBatch:
    """A calibration reader of a single batch: the calibrator condenses it before it sees the next."""

    def __init__(self, feeds: dict[str, Any]) -> None:
        self._feeds: dict[str, Any] | None = feeds

    def get_next(self) -> dict[str, Any] | None:
        """Returns the batch, then None."""
        feeds, self._feeds = self._feeds, None
        return feeds


def quantize_static(
    model: onnx.ModelProto,
    choice: Choice,
    data: Dataset,
    folder: Path,
    *,
    calibration: str,
    per_channel: bool,
    activation: str,
    threads: int,
) -> tuple[onnx.ModelProto, int]:
    """Quantizes with constant scales.

    Args:
        model: A prepared model in opset 13 or newer.
        choice: What to quantize.
        data: Calibration samples; one batch is in memory at a time.
        folder: A temporary folder.
        calibration: minmax, percentile (99.999 %) or entropy.
        per_channel: One scale per output channel of a weight instead of one for all.
        activation: uint8 (asymmetric) or int8 (symmetric).
        threads: Threads to run the model with.

    Returns:
        The quantized model, and the number of samples that were used.

    Raises:
        DataError: There are no samples, or they do not fit the model.
    """
    path = folder / "prepared.onnx"
    onnx.save(model, str(path))
    types = sorted({node.op_type for node in model.graph.node if node.name in set(choice.nodes)})
    symmetric = activation == "int8"
    ranges, samples = _ranges(path, types, data, calibration, symmetric=symmetric, threads=threads)
    quantizer = QDQQuantizer(
        load_model_with_shape_infer(path),
        per_channel,
        False,  # reduce_range: 7-bit weights, for CPUs without VNNI
        QuantType.QInt8,
        QuantType.QInt8 if symmetric else QuantType.QUInt8,
        ranges,
        choice.nodes,
        [],
        types,
        {
            "ActivationSymmetric": symmetric,
            # a float result straight from the integer product is more accurate and saves a rounding
            "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],
        },
    )
    quantizer.quantize_model()
    result: onnx.ModelProto = quantizer.model.model
    return result, samples


def _ranges(
    path: Path, types: list[str], data: Dataset, calibration: str, *, symmetric: bool, threads: int
) -> tuple[Any, int]:
    augmented = path.with_name("augmented.onnx")
    calibrator = create_calibrator(
        path,
        types,
        augmented_model_path=str(augmented),
        calibrate_method=_METHODS[calibration],
        extra_options={"symmetric": symmetric},
    )
    calibrator.infer_session = sessions.session(augmented, threads=threads, optimize=False)
    fitting = runnable(data, calibrator.infer_session)
    samples = 0
    for feeds, _ in fitting:
        calibrator.collect_data(_OneBatch(feeds))
        samples += 1 if fitting.batch == 1 else len(next(iter(feeds.values())))
    return calibrator.compute_data(), samples
