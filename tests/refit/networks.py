"""Small networks for measuring and refitting: some whose channels depend on each other, and how runs are compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from ops.oracle import build

import surgeon
from surgeon.graph.sessions import run, session

NEEDED = 6


def images(count: int = 200, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, 6, 6)).astype(np.float32)


def redundant_convolutions(*, dependent: bool, seed: int = 0) -> onnx.ModelProto:
    """A convolution whose last six of twelve channels are copies of, or linear in, its first six.

    Copies may pass a Relu; mixtures of channels stay linear only without one.
    """
    random = np.random.default_rng(seed)
    weight, bias = random.standard_normal((NEEDED, 3, 3, 3)), random.standard_normal(NEEDED)
    mix = (
        random.standard_normal((NEEDED, NEEDED)) if dependent else np.eye(NEEDED)[random.permutation(NEEDED)]
    )
    weights = {
        "w1": np.concatenate([weight, np.einsum("ij,j...->i...", mix, weight)]).astype(np.float32),
        "b1": np.concatenate([bias, mix @ bias]).astype(np.float32),
        "w2": (5, 2 * NEEDED, 3, 3),
        "b2": (5,),
    }
    middle = "Identity" if dependent else "Relu"
    body = f"c = Conv <pads=[1,1,1,1]> (x, w1, b1) r = {middle} (c) y = Conv (r, w2, b2)"
    return build("float[N,3,6,6] x", "float[N,5,4,4] y", body, weights, seed=seed)


def mixed(seed: int = 0) -> onnx.ModelProto:
    """Strided, depthwise and residual convolutions and a classifier: every operator has something to make up for."""
    body = """
    a = Conv <pads=[1,1,1,1], strides=[2,2]> (x, w1, b1)
    r = Relu (a)
    d = Conv <group=12, pads=[1,1,1,1]> (r, wd, bd)
    e = Relu (d)
    p = Conv (e, w2)
    s = Add (p, r)
    t = Relu (s)
    g = GlobalAveragePool (t)
    f = Flatten (g)
    h = Gemm <transB=1> (f, w3, b3)
    i = Relu (h)
    m = MatMul (i, w4)
    y = Add (m, b4)
    """
    weights = {
        "w1": (12, 3, 3, 3), "b1": (12,), "wd": (12, 1, 3, 3), "bd": (12,), "w2": (12, 12, 1, 1),
        "w3": (16, 12), "b3": (16,), "w4": (16, 5), "b4": (5,),
    }  # fmt: skip
    return build("float[N,3,6,6] x", "float[N,5] y", body, weights, seed=seed)


def pruned(model: onnx.ModelProto, passes: str, data: Any, **options: Any) -> surgeon.Result:
    return surgeon.run(model, passes, data=data, **options)


def outputs(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return run(session(model), {"x": x})[0]


def relative_error(first: onnx.ModelProto, second: onnx.ModelProto, x: np.ndarray) -> float:
    """The squared difference of two models' outputs over the energy of the first's."""
    one, two = outputs(first, x), outputs(second, x)
    return float(np.square(one - two).sum() / np.square(one - one.mean(axis=0)).sum())


def widths(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}


def weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def layers(kind: str, direction: str = "forward", *, outputs: str = "s, ", seed: int = 0) -> onnx.ModelProto:
    """A sequence ``[steps, N, 6]`` through two recurrent layers of eight units, and a product behind them.

    Args:
        kind: LSTM, GRU or RNN.
        direction: As ONNX has it.
        outputs: Whether the second layer gives its states, or its last ones only (', l').
        seed: Seed of the weights.
    """
    rows, directions = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind] * 8, 2 if direction == "bidirectional" else 1
    attributes = f'<hidden_size=8, direction="{direction}">'
    last = outputs.startswith(",")
    turn = "i = Unsqueeze (l, front)" if last else "i = Identity (s)"
    body = f"""
    a = MatMul (x, w1)
    f = Relu (a)
    r = {kind} {attributes} (f, wa, ra, ba)
    t = Transpose <perm=[0,2,1,3]> (r)
    q = Reshape (t, flat)
    {outputs.strip(", ") if not last else outputs} = {kind} {attributes} (q, wb, rb, bb)
    {turn}
    u = Transpose <perm=[0,2,1,3]> (i)
    v = Reshape (u, flat)
    y = MatMul (v, w2)
    """
    weights = {
        "w1": (6, 10), "wa": (directions, rows, 10), "ra": (directions, rows, 8), "ba": (directions, 2 * rows),
        "wb": (directions, rows, 8 * directions), "rb": (directions, rows, 8), "bb": (directions, 2 * rows),
        "w2": (8 * directions, 5), "flat": np.array([0, 0, -1]), "front": np.array([0]),
    }  # fmt: skip
    return build("float[T,N,6] x", "float[S,N,5] y", body, weights, seed=seed)


def sequences(count: int = 120, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((5, count, 6)).astype(np.float32)
