"""Files appear whole or not at all, are the same every time, and stream what does not fit."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from surgeon.errors import InternalError, UsageError
from surgeon.graph import save as saving
from surgeon.graph.load import from_model, load
from surgeon.graph.save import save, to_model
from surgeon.graph.weights import peek

TEXT = "net (float[N, 64] x) => (float[N, 64] y) { a = MatMul(x, w)  b = Add(a, v)  y = MatMul(b, u) }"


@pytest.fixture
def model(parse) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    w, u, v = (rng.standard_normal(shape).astype(np.float32) for shape in ((64, 64), (64, 64), (64,)))
    return parse(TEXT, w=w, u=u, v=v)


def test_the_file_is_the_message(model: onnx.ModelProto, tmp_path: Path) -> None:
    graph = from_model(model)
    save(graph, tmp_path / "m.onnx")
    saved = onnx.load(tmp_path / "m.onnx")
    assert saved == to_model(graph)
    onnx.checker.check_model(saved, full_check=True)


def test_the_same_graph_gives_the_same_bytes(model: onnx.ModelProto, tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        save(from_model(model), tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_changed_values_are_written(model: onnx.ModelProto, tmp_path: Path) -> None:
    graph = from_model(model)
    graph.nodes[0].inputs[1].values = np.zeros((64, 64), np.float16)
    save(graph, tmp_path / "m.onnx")
    tensor = next(t for t in onnx.load(tmp_path / "m.onnx").graph.initializer if t.name == "w")
    assert tensor.data_type == onnx.TensorProto.FLOAT16
    assert not onnx.numpy_helper.to_array(tensor).any()


@pytest.mark.parametrize(("declared", "expected"), [(3, 8), (8, 8), (10, 10), (14, 13)])
def test_the_version_of_the_file(declared: int, expected: int, model: onnx.ModelProto) -> None:
    model.ir_version = declared
    assert to_model(from_model(model)).ir_version == expected


def external(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "in.onnx"
    onnx.save(model, path, save_as_external_data=True, location="in.bin", size_threshold=100)
    return path


def test_external_weights_are_read_when_needed(model: onnx.ModelProto, tmp_path: Path) -> None:
    path = external(onnx.ModelProto.FromString(model.SerializeToString()), tmp_path)
    graph = load(path)
    expected = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert np.array_equal(peek(graph.nodes[0].inputs[1]), expected["w"])
    save(graph, tmp_path / "out.onnx")  # small: it all goes into the file
    for tensor in onnx.load(tmp_path / "out.onnx", load_external_data=False).graph.initializer:
        assert np.array_equal(onnx.numpy_helper.to_array(tensor), expected[tensor.name])


def test_large_models_get_a_data_file(model: onnx.ModelProto, tmp_path: Path, run, monkeypatch) -> None:
    monkeypatch.setattr(saving, "LARGEST_FILE", 1000)
    out = tmp_path / "out.onnx"
    for _ in range(2):
        save(from_model(model), out)
    files = sorted((path.name for path in tmp_path.iterdir()), key=len, reverse=True)
    assert len(files) == 2
    assert files[0].startswith("out.onnx.")
    assert files[0].endswith(".data")
    x = np.ones((2, 64), np.float32)
    np.testing.assert_array_equal(run(out, x=x)[0], run(model, x=x)[0])
    changed = from_model(model)
    changed.nodes[0].inputs[1].values = np.zeros((64, 64), np.float32)
    save(changed, out)
    assert len(list(tmp_path.iterdir())) == 2  # the data file nothing refers to any more is gone
    assert files[0] not in {path.name for path in tmp_path.iterdir()}
    np.testing.assert_array_equal(peek(load(out).nodes[0].inputs[1]), 0)


def test_killed_while_writing_leaves_nothing(model: onnx.ModelProto, tmp_path: Path) -> None:
    onnx.save(model, tmp_path / "in.onnx")
    script = f"""
        import os
        from surgeon.graph import save as saving
        from surgeon.graph.load import load
        graph = load({str(tmp_path / "in.onnx")!r})
        saving.payload = lambda constant: os._exit(9)
        saving.save(graph, {str(tmp_path / "out.onnx")!r})
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False, env=environment)
    assert done.returncode == 9
    assert not (tmp_path / "out.onnx").exists()


def test_a_failed_write_leaves_the_old_file(model: onnx.ModelProto, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "out.onnx"
    out.write_bytes(b"old")

    def full(_constant: object) -> list[bytes]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving, "payload", full)
    with pytest.raises(UsageError, match="No space left"):
        save(from_model(model), out)
    assert [path.name for path in tmp_path.iterdir()] == ["out.onnx"]
    assert out.read_bytes() == b"old"


def test_places_that_cannot_be_written(model: onnx.ModelProto, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        save(from_model(model), tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="cannot be written"):
        save(from_model(model), tmp_path / "file" / "m.onnx")


def test_unused_initializers_are_left_out(parse) -> None:
    graph = from_model(parse("net (float[2] x) => (float[2] y) { y = Relu(x) }", w=np.ones(4, np.float32)))
    assert not to_model(graph).graph.initializer


def test_what_takes_the_place_of_a_constant_that_is_an_output_gets_a_name_of_its_own(parse) -> None:
    text = "net (float[N,4] x) => (float[N,4] y, float[4] w) <float[4] w = {1, 2, 3, 4}> { z = Add (x, w)  y = Mul (z, w) }"
    graph = from_model(parse(text))
    (add, mul) = graph.nodes
    add.inputs[1] = gs.Constant("w", np.full(4, 7, np.float32))
    stored = {
        entry.name: onnx.numpy_helper.to_array(entry).tolist() for entry in to_model(graph).graph.initializer
    }
    assert stored == {"w": [1, 2, 3, 4], "w__read": [7, 7, 7, 7]}
    assert add.inputs[1].name == "w__read"
    mul.inputs[1] = gs.Constant("w__read", np.full(4, 8, np.float32))
    with pytest.raises(InternalError, match="w__read"):
        to_model(graph)
