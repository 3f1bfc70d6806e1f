"""Every kind of broken model is refused with an UnsupportedModelError that says what and where."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest

from surgeon.errors import UnsupportedModelError
from surgeon.graph.load import from_model, load

TEXT = "net (float[N, 4] x) => (float[N, M] y) { h = MatMul(x, w)\n r = Relu(h)\n y = Add(r, b) }"


@pytest.fixture
def model(parse) -> onnx.ModelProto:
    return parse(TEXT, w=np.ones((4, 6), np.float32), b=np.ones(6, np.float32))


def external(model: onnx.ModelProto, location: str, **entries: object) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))


def attribute(model: onnx.ModelProto, **values: object) -> None:
    model.graph.node[1].attribute.extend(
        onnx.helper.make_attribute(name, value) for name, value in values.items()
    )


BROKEN: dict[str, tuple[Callable[[onnx.ModelProto], object], str]] = {
    "dangling input": (lambda m: m.graph.node[1].input.__setitem__(0, "gone"), "Relu 'r': reads 'gone'"),
    "missing initializer": (lambda m: m.graph.initializer.pop(), "reads 'b', which nothing makes"),
    "cycle": (lambda m: m.graph.node[0].input.__setitem__(0, "y"), "cycle"),
    "made twice": (
        lambda m: m.graph.node[2].output.__setitem__(0, "h"),
        "makes 'h', which something else makes",
    ),
    "initializer twice": (lambda m: m.graph.initializer.append(m.graph.initializer[0]), "two initializers"),
    "input twice": (lambda m: m.graph.input.append(m.graph.input[0]), "two inputs"),
    "negative size": (lambda m: m.graph.initializer[0].dims.__setitem__(0, -4), "negative size"),
    "absurd size": (
        lambda m: m.graph.initializer[0].dims.__setitem__(0, 2**60),
        "initializer 'w': has shape",
    ),
    "absurd input": (
        lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[1], "dim_value", 2**60),
        "impossible size",
    ),
    "too few bytes": (lambda m: setattr(m.graph.initializer[0], "raw_data", b"1234"), "but 4 are there"),
    "unknown type": (lambda m: setattr(m.graph.initializer[0], "data_type", 99), "unknown data type"),
    "untyped input": (lambda m: m.graph.input[0].ClearField("type"), "input 'x': has no type"),
    "no such output": (lambda m: setattr(m.graph.output[0], "name", "z"), "output 'z': nothing makes it"),
    "no outputs": (lambda m: m.graph.ClearField("output"), "no outputs"),
    "future opset": (lambda m: setattr(m.opset_import[0], "version", 9999), "opset 9999"),
    "old opset": (lambda m: setattr(m.opset_import[0], "version", 3), "older than 7"),
    "no opset": (lambda m: m.ClearField("opset_import"), "which version"),
    "future file": (lambda m: setattr(m, "ir_version", 99), "IR version 99"),
    "unknown operator": (lambda m: setattr(m.graph.node[1], "op_type", "Rellu"), "did you mean 'Relu'"),
    "unknown domain": (lambda m: setattr(m.graph.node[1], "domain", "my.ops"), "does not import"),
    "unknown attribute": (lambda m: attribute(m, slope=0.5), "Unrecognized attribute"),
    "too few inputs": (lambda m: m.graph.node[0].input.pop(), "input size 1"),
    "missing data file": (lambda m: external(m, "gone.bin"), "'gone.bin' is missing"),
    "data outside the folder": (lambda m: external(m, "../w.bin"), "leaves the model's folder"),
    "data at an absolute path": (lambda m: external(m, "/etc/passwd"), "not a relative path"),
    "data at a Windows path": (lambda m: external(m, "C:\\w.bin"), "not a relative path"),
    "data cut short": (lambda m: external(m, "short.bin"), "cut short"),
    "data before the file": (lambda m: external(m, "short.bin", offset=-8), "cut short"),
    "data offset not a number": (lambda m: external(m, "short.bin", offset="x"), "broken offset"),
    "data of another length": (
        lambda m: external(m, "short.bin", length=4),
        "needs 96 bytes, but 4 are stored",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_model(name: str, model: onnx.ModelProto, tmp_path: Path) -> None:
    change, message = BROKEN[name]
    change(model)
    (tmp_path / "short.bin").write_bytes(b"short")
    path = tmp_path / "broken.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UnsupportedModelError) as caught:
        load(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_type_of_attribute(parse) -> None:
    model = parse("net (float[N, 4] x) => (float[N, 4] y) { y = Softmax <axis = 1> (x) }")
    del model.graph.node[0].attribute[:]
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("axis", "one"))
    with pytest.raises(UnsupportedModelError, match=r"Softmax 'y'.*attribute"):
        from_model(model)


def test_the_body_of_an_if_is_checked(parse) -> None:
    model = parse(
        "net (bool c, float[4] x) => (float[4] y) { y = If (c) <then_branch = t () => (float[4] a) { a = Relu(x) },"
        " else_branch = e () => (float[4] b) { b = Neg(x) }> }"
    )
    assert len(from_model(model).nodes) == 1
    model.graph.node[0].attribute[0].g.node[0].input[0] = "gone"
    with pytest.raises(UnsupportedModelError, match="Relu 'a': reads 'gone'"):
        from_model(model)


def test_a_link_out_of_the_folder_is_refused(model: onnx.ModelProto, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(96))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    external(model, "link.bin")
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UnsupportedModelError, match="leaves the model's folder"):
        load(folder / "m.onnx")


@pytest.mark.parametrize("length", [1, 10, 100, -5])
def test_truncated_file(length: int, model: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "cut.onnx"
    path.write_bytes(model.SerializeToString()[:length])
    with pytest.raises(UnsupportedModelError, match="not an ONNX model"):
        load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "not an ONNX"),
        (b"\0\0\0\0ORTM" + bytes(9), "ORT format"),
    ],
)
def test_not_a_model(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file.onnx"
    path.write_bytes(content)
    with pytest.raises(UnsupportedModelError, match=message):
        load(path)


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="no such file"):
        load(tmp_path / "gone.onnx")
    with pytest.raises(UnsupportedModelError, match="is not a file"):
        load(tmp_path)


def test_damaged_names_do_not_crash(model: onnx.ModelProto, tmp_path: Path) -> None:
    content = bytearray(model.SerializeToString())
    rng = np.random.default_rng(0)
    path = tmp_path / "flipped.onnx"
    for _ in range(1000):
        flipped = bytearray(content)
        for place in rng.integers(0, len(content), 2):
            flipped[place] = rng.integers(0, 256)
        path.write_bytes(bytes(flipped))
        with suppress(UnsupportedModelError):  # not every damage can be noticed, but none may crash
            load(path)
