"""What a graph is said to take is what it holds at once, and near what onnxruntime takes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ops.oracle import build

from surgeon.grad.memory import activation_bytes, samples_within
from surgeon.graph.load import from_model

MEGABYTE = 2**20


def taken(body, weights=None, *, size=3, result="float[N,10] y"):
    return activation_bytes(from_model(build("float[N,10] x", result, body, weights)), "N", size)


def test_a_chain_holds_two_tensors_at_once():
    one = 3 * 10 * 4
    assert taken("y = Relu (x)") == one
    assert taken("a = Relu (x)\nb = Exp (a)\nc = Relu (b)\ny = Exp (c)") == 2 * one


def test_what_is_read_later_stays():
    one = 3 * 10 * 4
    assert taken("a = Relu (x)\nb = Exp (a)\nc = Relu (b)\ny = Add (c, a)") == 3 * one


def test_outputs_stay_and_what_nobody_reads_goes():
    one = 3 * 10 * 4
    assert taken("a = Relu (x)\ny = Exp (x)\nb = Exp (a)", result="float[N,10] y, float[N,10] b") == 3 * one
    assert taken("a = Relu (x)\nb = Exp (x)\ny = Relu (x)") == one


def test_types_and_wide_middles_count():
    assert taken("w = MatMul (x, v)\ny = MatMul (w, u)", {"v": (10, 100), "u": (100, 10)}) == 3 * 110 * 4
    assert taken("w = Cast <to=10> (x)\ny = Cast <to=1> (w)") == 3 * 10 * (2 + 4)


def test_what_does_not_grow_with_the_samples_sets_no_limit():
    body = "s = Shape (x)\nf = Cast <to=1> (s)\ny = MatMul (f, w)"
    graph = from_model(build("float[N,10] x", "float[3] y", body, {"w": (2, 3)}))
    assert samples_within(graph, "N", 1000) == 10**9


MEASURED = """
import re, sys
from pathlib import Path
import numpy as np
from grad import structures
from grad.learning import values_of
from ops.oracle import build
from surgeon.grad.objective import Objective
from surgeon.graph.load import from_model

if sys.argv[1] == "images":
    nodes = "\\n".join(f"c{k} = Conv <pads=[1,1,1,1]> (r{k}, w{k})\\nr{k + 1} = Relu (c{k})" for k in range(4))
    text = f"r0 = Identity (x)\\n{nodes}\\ny = Identity (r4)"
    kernels = {f"w{k}": (16, 16, 3, 3) for k in range(4)}
    model, shape = build("float[N,16,64,64] x", "float[N,16,64,64] y", text, kernels), (16, 64, 64)
else:
    model, shape = structures.transformer(2), (500, 8)
graph = from_model(model)
values = {name: value for name, value in values_of(graph).items() if value.ndim}
of = Objective(graph, lambda tape: (tape.find("y") * tape.find("y")).mean(), sorted(values), rows=True)
one = {"x": np.ones((1, *shape), np.float32)}
of.gradients(values, [(1, one)])
most = of.most(one, int(sys.argv[2]))
many = {"x": np.ones((most, *shape), np.float32)}
peak = lambda: int(re.search("VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
of.gradients(values, [(most, many)])
print((peak() - before) * 1024)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measures as Linux does")
@pytest.mark.parametrize("kind", ["images", "sequences"])
def test_onnxruntime_takes_about_as_much(kind):
    limit = 160 * MEGABYTE
    folders = [str(Path(__file__).parents[1]), *sys.path]
    result = subprocess.run(
        [sys.executable, "-c", MEASURED, kind, str(limit)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert 0.3 * limit < int(result.stdout) < 1.2 * limit
