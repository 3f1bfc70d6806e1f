"""Static quantization: activation ranges from calibration data, weights and activations stored with 8 bits (QDQ)."""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True)
class Static:
    """A model with the ranges of its activations, from which quantized models are built.

    Attributes:
        path: The prepared model.
        ranges: The range of every activation that may be quantized.
        types: Operators onnxruntime may touch.
        per_channel: One scale per output channel of a weight instead of one for all.
        symmetric: int8 activations around zero instead of uint8 ones.
        reduce_range: 7-bit weights, for processors whose sums would saturate.
        samples: How many samples the ranges come from.
    """

    path: Path
    ranges: Any
    types: tuple[str, ...]
    per_channel: bool
    symmetric: bool
    reduce_range: bool
    samples: int

    @staticmethod
    def calibrated(
        model: onnx.ModelProto,
        choice: Choice,
        data: Dataset,
        folder: Path,
        *,
        calibration: str,
        per_channel: bool,
        activation: str,
        reduce_range: bool,
        threads: int,
    ) -> Static:
        """Run the model over the calibration samples.

        Args:
            model: A prepared model in opset 13 or newer.
            choice: All that may be quantized.
            data: Calibration samples; one batch is in memory at a time.
            folder: A temporary folder.
            calibration: minmax, percentile (99.999 %) or entropy.
            per_channel: One scale per output channel of a weight instead of one for all.
            activation: uint8 (asymmetric) or int8 (symmetric).
            reduce_range: Whether weights take 7 bits.
            threads: Threads to run the model with.

        Raises:
            DataError: There are no samples, or they do not fit the model.
        """
        path = folder / "prepared.onnx"
        onnx.save(model, str(path))
        types = tuple(sorted({node.op_type for node in model.graph.node if node.name in set(choice.nodes)}))
        symmetric = activation == "int8"
        ranges, samples = _ranges(path, list(types), data, calibration, symmetric=symmetric, threads=threads)
        return Static(path, ranges, types, per_channel, symmetric, reduce_range, samples)

    def build(self, choice: Choice) -> onnx.ModelProto:
        """Quantize what is chosen: weights stored with 8 bits, activations rounded at constant scales (QDQ)."""
        quantizer = QDQQuantizer(
            load_model_with_shape_infer(self.path),
            self.per_channel,
            self.reduce_range,
            QuantType.QInt8,
            QuantType.QInt8 if self.symmetric else QuantType.QUInt8,
            self.ranges,
            choice.nodes,
            [],
            self.types,
            {
                "ActivationSymmetric": self.symmetric,
                # a float result straight from the integer product is more accurate and saves a rounding
                "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],
            },
        )
        quantizer.quantize_model()
        result: onnx.ModelProto = quantizer.model.model
        return result


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
