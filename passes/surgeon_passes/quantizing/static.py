"""Static quantization: activation ranges from calibration data, weights and activations stored with 8 bits (QDQ)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

from surgeon.stats.data import Dataset
from surgeon.stats.ranges import PERCENTILE
from surgeon_passes.quantizing.activations import UNROUNDED, Activations
from surgeon_passes.quantizing.calibrate import Calibration, calibrate
from surgeon_passes.quantizing.choose import Choice
from surgeon_passes.quantizing.clipped import keep_integer
from surgeon_passes.quantizing.keep import keep_float
from surgeon_passes.quantizing.promised import with_one_scale


@dataclass(frozen=True)
class Static:
    """A model with the ranges of its activations, from which quantized models are built.

    Attributes:
        path: The prepared model.
        calibration: The ranges of its activations.
        activations: Its activations.
        types: Operators onnxruntime may touch.
        per_channel: One scale per output channel of a weight instead of one for all.
        symmetric: int8 activations around zero instead of uint8 ones.
        reduce_range: 7-bit weights, for processors whose sums would saturate.
        single: Weights with one scale in any case, for few values are all that they have.
    """

    path: Path
    calibration: Calibration
    activations: Activations
    types: tuple[str, ...]
    per_channel: bool
    symmetric: bool
    reduce_range: bool
    single: tuple[str, ...] = ()

    @staticmethod
    def calibrated(
        model: onnx.ModelProto,
        choice: Choice,
        data: Dataset,
        folder: Path,
        *,
        calibration: str,
        percentile: float = PERCENTILE,
        per_channel: bool,
        activation: str,
        reduce_range: bool,
        threads: int,
    ) -> Static:
        """Run the model over the calibration samples.

        Args:
            model: A prepared model in opset 13 or newer.
            choice: All that may be quantized.
            data: Calibration samples; one small batch is in memory at a time.
            folder: A temporary folder.
            calibration: auto, minmax, moving-average, percentile, entropy or mse.
            percentile: Per cent of the values that a range of method percentile covers.
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
        inferred = load_model_with_shape_infer(path)
        activations = Activations.of(inferred, choice)
        found = calibrate(
            inferred,
            activations,
            activations.needed(model, choice),
            data,
            method=calibration,
            percentile=percentile,
            symmetric=symmetric,
            threads=threads,
        )
        single = tuple(with_one_scale(model, set(choice.nodes))) if per_channel else ()
        return Static(path, found, activations, types, per_channel, symmetric, reduce_range, single)

    def possible(self, choice: Choice) -> Choice:
        """Returns the choice without the nodes that read or make an activation without a range."""
        nodes = {node.name: node for node in onnx.load(str(self.path), load_external_data=False).graph.node}
        kept = Choice(left=dict(choice.left))
        for name in choice.nodes:
            reason = self._why_not(nodes[name])
            if reason is None:
                kept.nodes.append(name)
                if name in choice.weighted:
                    kept.weighted[name] = choice.weighted[name]
            elif name in choice.weighted:
                kept.left[name] = (choice.weighted[name], reason)
        return kept

    def build(self, choice: Choice) -> onnx.ModelProto:
        """Quantize what is chosen: weights stored with 8 bits, activations rounded at constant scales (QDQ)."""
        nodes = self.possible(choice).nodes
        if not nodes:  # to onnxruntime, none means all
            return onnx.load(str(self.path))
        quantizer = QDQQuantizer(
            load_model_with_shape_infer(self.path),
            self.per_channel,
            self.reduce_range,
            QuantType.QInt8,
            QuantType.QInt8 if self.symmetric else QuantType.QUInt8,
            self._tensors(),
            nodes,
            [],
            self.types,
            {
                "ActivationSymmetric": self.symmetric,
                "OpTypesToExcludeOutputQuantization": list(UNROUNDED),
                "TensorQuantOverrides": {name: [{"symmetric": True}] for name in self.single},
            },
        )
        quantizer.quantize_model()
        result: onnx.ModelProto = quantizer.model.model
        keep_float(result)
        keep_integer(result)
        return result

    def _why_not(self, node: onnx.NodeProto) -> str | None:
        for name in self.activations.rounded(node):
            leader = self.activations.leader(name)
            if leader not in self.calibration.ranges:
                reason = self.calibration.unusable.get(leader, "it was not calibrated")
                return f"no range for tensor {name}: {reason}"
        return None

    def _tensors(self) -> TensorsData:
        """Ranges as onnxruntime's quantizer takes them, which changes them."""
        data = {}
        for name, element in self.activations.types.items():
            found = self.calibration.ranges.get(self.activations.leader(name))
            if found is not None:
                dtype = onnx.helper.tensor_dtype_to_np_dtype(element)
                data[name] = TensorData(lowest=np.array(found[0], dtype), highest=np.array(found[1], dtype))
        return TensorsData(CalibrationMethod.MinMax, data)
