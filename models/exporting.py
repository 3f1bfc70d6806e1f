"""Writing a trained network of a recipe as an ONNX file."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn


def export(model: nn.Module, shape: tuple[int, ...], name: str, path: Path) -> None:
    """Writes the ONNX file with a dynamic batch and batch normalization left as its own operator.

    Args:
        model: The network; it takes ``input`` and gives ``logits``.
        shape: Of one sample.
        name: Of the graph.
        path: The file.
    """
    import onnx
    import torch

    model.eval()
    buffer = BytesIO()
    torch.onnx.export(
        model,
        (torch.zeros(2, *shape),),
        buffer,
        dynamo=False,
        # PRESERVE exports the evaluation network but, unlike EVAL, does not fold batch normalization.
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=True,
        opset_version=17,
        input_names=["input"],
        output_names=["logits"],
        dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
    )
    proto = onnx.load_from_string(buffer.getvalue())
    proto.graph.name = name
    onnx.checker.check_model(proto)
    path.write_bytes(proto.SerializeToString(deterministic=True))
