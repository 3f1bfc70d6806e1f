"""Broken files are understood or refused in one line: no other error, no hang, no file left behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from fuzzing import Worker, attempt, mutant
from ops.oracle import build

import surgeon

LSTM = """
z = LSTM <hidden_size=8, direction="bidirectional"> (x, w, r, b)
t = Transpose <perm=[0,2,1,3]> (z)
f = Reshape (t, shape)
m = MatMul (f, v)
n = Relu (m)
y = MatMul (n, u)
"""
BRANCHES = """
a = Conv (x, w1, b1)
s = ReduceMean <keepdims=0> (a)
c = Greater (s, zero)
b = If (c) <
    then_branch = yes () => (float[N,8,6,6] p) { p = Relu (a) },
    else_branch = no () => (float[N,8,6,6] q) { u = Conv <group=8, pads=[1,1,1,1]> (a, wd) q = Add (u, a) }
>
g = GlobalAveragePool (b)
k = Constant <value_ints = [0, -1]> ()
f = Reshape (g, k)
y = Gemm <transB=1> (f, w2, b2)
"""


@pytest.fixture(scope="module")
def seeds(tmp_path_factory, demo) -> list[bytes]:
    """Small models: the demo pruned to a skeleton, a recurrent one, and one with branches."""
    small = tmp_path_factory.mktemp("seeds") / "digits.onnx"
    surgeon.run(demo, "prune{ratio=0.9 min_keep=2}", destination=small)
    weights = {"w": (2, 32, 5), "r": (2, 32, 8), "b": (2, 64), "v": (16, 12), "u": (12, 3)}
    recurrent = build(
        "float[S,N,5] x", "float[S,N,3] y", LSTM, {**weights, "shape": np.array([0, 0, 16])}, opset=17
    )
    weights = {"w1": (8, 3, 1, 1), "b1": (8,), "wd": (8, 1, 3, 3), "w2": (4, 8), "b2": (4,)}
    branches = build(
        "float[N,3,6,6] x", "float[N,4] y", BRANCHES, {**weights, "zero": np.float32(0)}, opset=17
    )
    return [small.read_bytes(), recurrent.SerializeToString(), branches.SerializeToString()]


def wrong(seeds: list[bytes], numbers: range, folder: Path) -> dict[int, str]:
    found = {}
    with Worker() as worker:
        for number in numbers:
            path = folder / "mutant.onnx"
            path.write_bytes(mutant(seeds[number % len(seeds)], seeds, number))
            problem = worker.attempt(path)
            if problem:
                found[number] = problem
    return found


def test_the_models_themselves_work(seeds, tmp_path):
    for content in seeds:
        path = tmp_path / "m.onnx"
        path.write_bytes(content)
        assert attempt(path) == ""
        before = onnx.load_from_string(content)
        result = surgeon.run(path, "prune{ratio=0.5}").model
        assert result.ByteSize() < before.ByteSize()


def test_mutants_are_repeatable_and_differ(seeds):
    for content in seeds:
        mutants = [mutant(content, seeds, number) for number in range(20)]
        assert mutants == [mutant(content, seeds, number) for number in range(20)]
        assert sum(each != content for each in mutants) > 15


def test_mutants(seeds, tmp_path):
    assert wrong(seeds, range(60), tmp_path) == {}


@pytest.mark.slow
def test_many_mutants(seeds, tmp_path):
    assert wrong(seeds, range(1000, 3100), tmp_path) == {}
