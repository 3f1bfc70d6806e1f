"""Sessions: quiet, loading what loads, saying in one line what does not, tapping tensors inside."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from surgeon.errors import DataError, UnsupportedModelError
from surgeon.graph.halves import is_half, survives
from surgeon.graph.sessions import run, session, with_outputs

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
twice (float[N, 2] x) => (float[N, 2] y) {
  s = Add(x, x)
  y = Relu(s)
}
"""


def model() -> onnx.ModelProto:
    return onnx.parser.parse_model(TEXT)


def test_a_model_runs_from_a_message_its_bytes_and_its_path(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(model(), str(path))
    feeds = {"x": np.array([[1, -2]], np.float32)}
    for given in (model(), model().SerializeToString(), path):
        assert run(session(given), feeds)[0].tolist() == [[2, 0]]


def test_feeds_the_model_does_not_know_are_ignored() -> None:
    feeds = {"x": np.ones((1, 2), np.float32), "other": np.ones(3)}
    assert run(session(model(), threads=2, optimize=False), feeds)[0].tolist() == [[2, 2]]


def test_tapped_tensors_follow_the_outputs_and_the_model_stays_as_it_was() -> None:
    original = model()
    tapped = with_outputs(original, ["s", "y", "s", "x"])
    assert [output.name for output in tapped.graph.output] == ["y", "s", "x"]
    assert [output.name for output in original.graph.output] == ["y"]
    outputs = run(session(tapped), {"x": np.array([[1, -2]], np.float32)})
    assert [output.tolist() for output in outputs] == [[[2, 0]], [[2, -4]], [[1, -2]]]


def test_tapping_a_tensor_that_does_not_exist() -> None:
    with pytest.raises(UnsupportedModelError, match="'z'"):
        with_outputs(model(), ["z"])


def test_what_does_not_load_is_told_in_one_line(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    broken = model()
    broken.graph.node[0].op_type = "NoSuchOperator"
    for given in (broken, b"garbage", tmp_path / "absent.onnx"):
        with pytest.raises(UnsupportedModelError) as caught:
            session(given)
        assert "\n" not in str(caught.value)
        assert "ONNXRuntimeError" not in str(caught.value)
    assert capfd.readouterr().err == ""


HALF = """
<ir_version: 8, opset_import: ["" : 17]>
products (float16[5, N, 8] x) => (float16[N, 5, 8] y) {
  t = Transpose <perm = [1, 0, 2]> (x)
  m = MatMul (t, w)
  y = Add (b, m)
}
"""


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("stored", ["initializer", "Constant"])
def test_half_precision_that_crashes_an_optimizer_of_onnxruntime(
    tmp_path: Path, stored: str, *, timed: bool
) -> None:
    model = onnx.parser.parse_model(HALF)
    for name, shape in (("w", (8, 8)), ("b", (8,))):
        values = onnx.numpy_helper.from_array(np.ones(shape, np.float16), name)
        if stored == "initializer":
            model.graph.initializer.append(values)
        else:
            model.graph.node.insert(0, onnx.helper.make_node("Constant", [], [name], value=values))
    path = tmp_path / "half.onnx"
    onnx.save(model, str(path))
    for given in ("path", "path.read_bytes()", "onnx.load(path)"):
        # in a process of its own, for it is the process that would die
        code = (
            "import sys, onnx, pathlib, numpy; from surgeon.graph.sessions import run, session\n"
            f"path = pathlib.Path(sys.argv[1]); runner = session({given}, timed={timed})\n"
            "assert (run(runner, {'x': numpy.ones((5, 2, 8), numpy.float16)})[0] == 9).all()"
        )
        done = subprocess.run(  # our own code
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_time_is_taken_with_all_optimizers_where_none_crashes() -> None:
    """Convolutions in float16 that onnxruntime computes in float32, in blocks of channels."""
    text = TEXT.replace("float[N, 2]", "float[N, 16, 4, 4]").replace(
        "s = Add(x, x)", "h = Cast <to = 10> (x)  c = Conv (h, w)  s = Cast <to = 1> (c)"
    )
    model = onnx.parser.parse_model(text)
    weights = np.ones((16, 16, 1, 1), np.float16)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    assert is_half(model)
    assert survives(model)
    assert not is_half(onnx.parser.parse_model(TEXT))


def test_data_that_do_not_fit() -> None:
    runner = session(model())
    with pytest.raises(DataError, match="no data: x"):
        run(runner, {"y": np.ones(2)})
    with pytest.raises(DataError, match="do not fit"):
        run(runner, {"x": np.ones((1, 2), np.float64)})
    with pytest.raises(DataError, match="do not fit"):
        run(runner, {"x": np.ones((1, 3), np.float32)})
