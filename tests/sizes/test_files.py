"""What files take, against the compressors themselves; and what whole models take."""

from __future__ import annotations

import gzip
import io
import tracemalloc

import numpy as np
import onnx
import pytest
import tiny
import zstandard

import surgeon
from surgeon.sizes import FileSizes, files_of, measure_files
from surgeon.sizes.files import zstd_packer


def packed(*contents: bytes) -> FileSizes:
    """Whole files at once; zstd from a stream, which now and then takes a few bytes more than a buffer."""

    def zstd(content: bytes) -> int:
        source, sink = io.BytesIO(content), io.BytesIO()
        zstandard.ZstdCompressor(level=19).copy_stream(source, sink, size=len(content), read_size=1 << 26)
        assert zstandard.ZstdDecompressor().decompress(sink.getvalue()) == content
        return len(sink.getvalue())

    return FileSizes(
        bytes=sum(map(len, contents)),
        gzip_bytes=sum(len(gzip.compress(each, 9, mtime=0)) for each in contents),
        zstd_bytes=sum(map(zstd, contents)),
    )


@pytest.mark.parametrize("length", [0, 1, 1000, (1 << 22) + 17, 9_000_000])
def test_pieces_take_what_the_whole_takes(tmp_path, length):
    content = (
        np.random.default_rng(0).integers(0, 3, length, np.uint8).tobytes()
        if length < 1e6
        else b"ab" * (length // 2)
    )
    path = tmp_path / "file"
    path.write_bytes(content)
    read = []
    assert measure_files([path], read.append) == packed(content)
    assert sum(read) == len(content)


def test_what_is_compressed_can_be_read_again():
    content = np.random.default_rng(0).integers(0, 3, 5000, np.uint8).tobytes()
    packer = zstd_packer(len(content))
    assert zstandard.ZstdDecompressor().decompress(packer.compress(content) + packer.flush()) == content


def test_files_add_up(tmp_path):
    contents = b"one" * 50, b"two" * 70
    for name, content in zip("ab", contents, strict=True):
        (tmp_path / name).write_bytes(content)
    assert measure_files([tmp_path / "a", tmp_path / "b"]) == packed(*contents)


def test_large_files_do_not_fill_the_memory(tmp_path):
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(100_000_000)
    tracemalloc.start()
    try:
        assert measure_files([path]).bytes == 100_000_000
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def outside(path):
    """The tiny network with its weights in two files of their own."""
    model = onnx.load(str(tiny.convnet(path)))
    for tensor in model.graph.initializer:
        location = f"{path.name}.{'first' if tensor.name == 'w1' else 'others'}"
        onnx.external_data_helper.set_external_data(tensor, location)
    onnx.save(model, str(path))
    return path


def test_external_data_belong_to_a_model(tmp_path):
    path = outside(tmp_path / "m.onnx")
    files = [path, tmp_path / "m.onnx.first", tmp_path / "m.onnx.others"]
    (tmp_path / "unrelated").write_bytes(b"no")
    assert files_of(path, surgeon.load(path)) == files
    assert surgeon.size(path).files == packed(*(each.read_bytes() for each in files))


def test_a_model(tmp_path):
    path = tiny.convnet(tmp_path / "m.onnx")
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(str(path)).graph.initializer}
    found = surgeon.size(path)
    assert found.files == packed(path.read_bytes())
    assert found.params == sum(each.size for each in weights.values())
    assert found.macs == 16 * 27 * 64 + 24 * 144 * 64 + 240
    facts = found.to_json()
    matrices = [weights[name] for name in ("w1", "w2", "w3")]
    assert (
        facts["nonzeros"] == facts["weights"]["nonzeros"] == sum(int((each != 0).sum()) for each in matrices)
    )
    assert facts["distinct_values"] == len(set(np.concatenate([each.ravel() for each in matrices])))
    assert [each["name"] for each in facts["tensors"]] == ["w1", "w2", "w3"]
    assert facts["weights"]["elements"] == sum(each.size for each in matrices)


def test_a_model_in_memory_takes_what_its_file_takes(tmp_path):
    path = tiny.convnet(tmp_path / "m.onnx")
    graph = surgeon.load(path)
    surgeon.save(graph, tmp_path / "saved.onnx")
    assert surgeon.size(graph) == surgeon.size(tmp_path / "saved.onnx")
    model = onnx.load(str(path))
    assert surgeon.size(model).weights == surgeon.size(path).weights
