"""Large files are parsed without their weights, and nobody can tell the difference."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import numpy_helper

from surgeon.errors import UnsupportedModelError
from surgeon.graph import load as loading
from surgeon.graph.load import load
from surgeon.graph.save import save, to_model
from surgeon.graph.source import source_of
from surgeon.graph.weights import StoredValues, peek
from surgeon.graph.wire import read_light

BODY = "y = Identity(x)"
BIG = (64, 48)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file counts as large."""
    monkeypatch.setattr(loading, "LARGE_FILE", 0)


def weights(*kinds: object) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {f"w{k}": (random.standard_normal(BIG) * 5).astype(kind) for k, kind in enumerate(kinds)}


def model_with(parse, **arrays: np.ndarray) -> onnx.ModelProto:
    """A model whose outputs are its weights."""
    outputs = ", ".join(
        f"{onnx.TensorProto.DataType.Name(onnx.helper.np_dtype_to_tensor_dtype(a.dtype)).lower()}"
        f"[{', '.join(map(str, a.shape))}] y_{name}"
        for name, a in arrays.items()
    )
    body = "\n".join(f"y_{name} = Identity({name})" for name in arrays)
    return parse(f"net (float[1] x) => ({outputs}) {{ {body} }}", opset=21, **arrays)


def stored(graph: gs.Graph) -> dict[str, StoredValues]:
    return {
        name: tensor._values for name, tensor in graph.tensors().items() if isinstance(tensor, gs.Constant)
    }


def written(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize(
    "kind",
    [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int8, np.int64, np.bool_, ml_dtypes.int4],
)
def test_weights_of_every_type_stay_in_the_file(parse, tmp_path: Path, kind: object) -> None:
    arrays = {"w": (np.arange(128 * 128).reshape(128, 128) % 7).astype(kind), "small": np.ones(3, kind)}
    graph = load(written(model_with(parse, **arrays), tmp_path / "m.onnx"))
    values = stored(graph)
    assert values["w"].place is not None
    assert values["small"].place is None
    for name, array in arrays.items():
        assert np.array_equal(peek(graph.tensors()[name]), array)
        assert values[name].kind == onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))


def test_what_is_saved_is_the_same_to_the_byte(parse, tmp_path: Path, monkeypatch) -> None:
    path = written(model_with(parse, **weights(np.float32, np.float16, np.int8)), tmp_path / "m.onnx")
    save(load(path), tmp_path / "simple.onnx")
    monkeypatch.setattr(loading, "LARGE_FILE", 0)
    graph = load(path)
    save(graph, tmp_path / "light.onnx")
    assert (tmp_path / "light.onnx").read_bytes() == (tmp_path / "simple.onnx").read_bytes()
    assert to_model(graph).SerializeToString(deterministic=True) == onnx.load(
        tmp_path / "simple.onnx"
    ).SerializeToString(deterministic=True)


@pytest.mark.usefixtures("large")
def test_graphsurgeon_can_export_it(parse, tmp_path: Path) -> None:
    arrays = weights(np.float32)
    exported = gs.export_onnx(load(written(model_with(parse, **arrays), tmp_path / "m.onnx")))
    assert np.array_equal(numpy_helper.to_array(exported.graph.initializer[0]), arrays["w0"])


@pytest.mark.usefixtures("large")
def test_the_model_does_not_count_as_external(parse, tmp_path: Path) -> None:
    graph = load(written(model_with(parse, **weights(np.float32)), tmp_path / "m.onnx"))
    source = source_of(graph)
    assert source is not None
    assert not source.external


@pytest.mark.usefixtures("large")
def test_a_link_is_followed(parse, tmp_path: Path) -> None:
    arrays = weights(np.float32)
    (tmp_path / "blobs").mkdir()
    written(model_with(parse, **arrays), tmp_path / "blobs" / "a:b\\c")
    (tmp_path / "m.onnx").symlink_to(tmp_path / "blobs" / "a:b\\c")
    assert np.array_equal(peek(load(tmp_path / "m.onnx").tensors()["w0"]), arrays["w0"])


@pytest.mark.usefixtures("large")
def test_a_file_that_changes_afterwards_is_noticed(parse, tmp_path: Path) -> None:
    path = written(model_with(parse, **weights(np.float32)), tmp_path / "m.onnx")
    graph = load(path)
    path.write_bytes(path.read_bytes() + b"\0\0")
    with pytest.raises(UnsupportedModelError, match="has changed since"):
        peek(graph.tensors()["w0"])


def test_initializers_outside_the_file_stay_where_they_are(parse, tmp_path: Path, monkeypatch) -> None:
    arrays = weights(np.float32, np.float32)
    model = model_with(parse, **arrays)
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "w.bin")
    onnx.save(model, tmp_path / "m.onnx")
    monkeypatch.setattr(loading, "LARGE_FILE", 0)
    graph = load(tmp_path / "m.onnx")
    assert [stored(graph)[name].place.path.name for name in ("w0", "w1")] == ["w.bin", "m.onnx"]
    assert all(np.array_equal(peek(graph.tensors()[name]), array) for name, array in arrays.items())


@pytest.mark.usefixtures("large")
def test_a_shape_that_does_not_fit_is_said_as_ever(parse, tmp_path: Path) -> None:
    model = model_with(parse, **weights(np.float32))
    model.graph.initializer[0].dims[0] += 1
    with pytest.raises(UnsupportedModelError, match="bytes, but 12288 are there"):
        load(written(model, tmp_path / "m.onnx"))


@pytest.mark.usefixtures("large")
def test_two_initializers_of_one_name_are_refused(parse, tmp_path: Path) -> None:
    model = model_with(parse, **weights(np.float32))
    model.graph.initializer.append(model.graph.initializer[0])
    with pytest.raises(UnsupportedModelError, match="two initializers"):
        load(written(model, tmp_path / "m.onnx"))


def test_every_cut_of_a_file_is_as_broken_as_for_the_ordinary_parser(parse, tmp_path: Path) -> None:
    """Wherever the file ends, the parser that skips says nothing the other would not say."""
    whole = model_with(parse, **weights(np.float32)).SerializeToString()
    path = tmp_path / "m.onnx"
    for length in [*range(1, 60), *range(len(whole) - 160, len(whole))]:
        path.write_bytes(whole[:length])
        found = read_light(path)
        if found is not None:
            expected = onnx.ModelProto.FromString(whole[:length])
            assert len(found[0].graph.node) == len(expected.graph.node)
            assert [t.name for t in found[0].graph.initializer] == [
                t.name for t in expected.graph.initializer
            ]


def test_noise_is_not_a_model(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for size in (1, 7, 100, 5000):
        (tmp_path / "noise").write_bytes(random.bytes(size))
        assert read_light(tmp_path / "noise") is None


def test_parts_of_a_message_may_come_in_pieces(parse, tmp_path: Path) -> None:
    """A graph in two pieces is their union, as for any protobuf message."""
    model = model_with(parse, **weights(np.float32, np.float32))
    second = onnx.ModelProto()
    second.graph.initializer.append(model.graph.initializer.pop())
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString() + second.SerializeToString())
    found = read_light(path)
    assert found is not None
    assert [tensor.name for tensor in found[0].graph.initializer] == ["w0", "w1"]
    assert set(found[1]) == {"w0", "w1"}
