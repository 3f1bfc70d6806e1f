"""Gradients of whole networks with respect to all of their matrices and kernels agree with differences."""

from __future__ import annotations

import pytest
from grad.whole import compare
from zoo import LIGHT, SHARED, paths

CLOSE = 0.02  # what single precision leaves of differences in networks with many kinks
STEEP = {"yolox_nano": 0.1}  # whose first layers turn so sharply on noise that differences get only so close

# one of each kind
SLICE = (
    *("bert_tiny.dynamo", "eca_resnet.legacy", "fpn_retina.dynamo", "gru_crnn.legacy", "llama_tiny.dynamo"),
    *("lstm_classifier.dynamo", "mamba.dynamo", "mobilenet_v3_small.legacy", "shufflenet_v2_x1_0.dynamo"),
    *("style_transfer_instnorm.dynamo", "swin_v2_t.dynamo", "t5_tiny.dynamo", "unet_convtranspose.dynamo"),
)
# tensors without a gradient, by network: what their reasons say
STOPPED = {"silero_vad": "If"}


def agrees(path):
    """Every weight is reached, but for those known not to be, and the gradients are right."""
    result = compare(path)
    told = {**result.found.stopped, **result.found.partial}
    known = STOPPED.get(path.stem)
    assert all(known is not None and known in reason for reason in told.values()), set(told.values())
    assert result.found.of or known
    assert all(error < STEEP.get(path.stem, CLOSE) for error in result.errors), result.errors


@pytest.mark.parametrize("name", SLICE)
def test_a_network(name, shared):
    agrees(shared / "zoo" / f"{name}.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("path", paths(), ids=lambda path: path.stem)
def test_every_network(path):
    if not SHARED.is_dir() and path.parent != LIGHT:
        pytest.skip("no folder of shared models")
    agrees(path)
