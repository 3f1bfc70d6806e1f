"""The recipe and the data for MNIST, on made-up images; the real ones are not part of the repository."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from surgeon.errors import DataError
from surgeon.stats.data import open_data
from surgeon.stats.sources import load_script

INPUTS = [("input", np.float32, ("batch", 1, 28, 28))]


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Images that say in their first pixels which one they are."""
    path = tmp_path_factory.mktemp("mnist") / "mnist.npz"
    arrays = {}
    for name, count in (("train", 60000), ("test", 10000)):
        images = np.zeros((count, 28, 28), np.uint8)
        number = np.arange(count)
        images[:, 0, 0], images[:, 0, 1] = number // 250, number % 250
        arrays |= {f"{name}_x": images, f"{name}_y": (number % 10).astype(np.uint8)}
    np.savez_compressed(path, **arrays)
    return path


@pytest.fixture
def data(repository, archive, monkeypatch):
    monkeypatch.setenv("MNIST_NPZ", str(archive))
    return load_script(repository / "models" / "mnist_data.py")


def numbers(images):
    first = np.rint(images[:, 0, 0, :2] * 255).astype(int)
    return first[:, 0] * 250 + first[:, 1]


def read(function):
    batches = list(function())
    images = np.concatenate([batch["input"] for batch in batches])
    labels = [batch["labels"] for batch in batches if "labels" in batch]
    return images, np.concatenate(labels) if labels else None


def test_the_parts_do_not_overlap(data, archive):
    training, labels = data.training_arrays(archive)
    assert training.dtype == np.float32
    assert (training.shape, labels.dtype) == ((55000, 1, 28, 28), np.int64)
    searched, search_labels = read(data.search)
    assert sorted({*numbers(training), *numbers(searched)}) == list(range(60000))
    assert len(searched) == 5000
    for images, known in ((training, labels), (searched, search_labels)):
        np.testing.assert_array_equal(known, numbers(images) % 10)
    calibration, none = read(data.calibration)
    assert none is None
    np.testing.assert_array_equal(calibration, training[:1024])


def test_the_test_images_are_all_and_in_order(data):
    images, labels = read(data.test)
    np.testing.assert_array_equal(numbers(images), np.arange(10000))
    np.testing.assert_array_equal(labels, np.arange(10000) % 10)
    assert 0 <= images.min() <= images.max() <= 1


def test_the_parts_are_data_for_surgeon(data, repository):
    path = repository / "models" / "mnist_data.py"
    assert open_data(f"{path}:test", INPUTS).total() == 10000
    assert not open_data(f"{path}", INPUTS).has_labels  # calibration, where nothing is named


@pytest.mark.parametrize(
    ("named", "said"), [(None, "set MNIST_NPZ"), ("none.npz", "there is no file none.npz")]
)
def test_a_missing_file_is_explained(data, repository, monkeypatch, named, said):
    if named is None:
        monkeypatch.delenv("MNIST_NPZ")
    else:
        monkeypatch.setenv("MNIST_NPZ", named)
    with pytest.raises(DataError, match=said):
        open_data(f"{repository / 'models' / 'mnist_data.py'}:test", INPUTS).total()


def test_another_archive_is_explained(data, tmp_path):
    np.savez(tmp_path / "other.npz", train_x=np.zeros((3, 28, 28), np.uint8))
    with pytest.raises(
        ValueError, match=r"should hold MNIST as .* of these it has \{'train_x': \(3, 28, 28\)\}"
    ):
        data.test_arrays(tmp_path / "other.npz")


def test_the_recipe_says_what_it_needs(repository, archive, tmp_path):
    code = (
        "import sys, runpy; sys.modules['torch'] = None;"
        f"sys.argv = ['mnist_cnn.py', '--data', {str(archive)!r}, '--out', 'out'];"
        f"sys.path.insert(0, {str(repository / 'models')!r}); runpy.run_module('mnist_cnn', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 1
    assert done.stderr.startswith("the recipe trains with torch and onnx, install them first: ")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_recipe_names_a_missing_file(repository, tmp_path):
    script = repository / "models" / "mnist_cnn.py"
    arguments = [sys.executable, script, "--data", tmp_path / "none.npz", "--out", tmp_path / "out"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"there is no file {tmp_path / 'none.npz'}")
    assert not (tmp_path / "out").exists()


def test_what_the_recipe_exports(repository, tmp_path, monkeypatch):
    """The architecture, without training: parameters, shapes, and the numbers that torch computes."""
    torch = pytest.importorskip("torch")
    import onnx
    import onnxruntime as ort

    monkeypatch.syspath_prepend(repository / "models")
    script = load_script(repository / "models" / "mnist_cnn.py")
    torch.manual_seed(0)
    model = script.network()
    model.train()(torch.rand(8, 1, 28, 28))  # statistics that are not the first ones
    script.exporting.export(model, (1, 28, 28), "mnist_cnn", tmp_path / "m.onnx")
    proto = onnx.load(str(tmp_path / "m.onnx"))
    assert [node.op_type for node in proto.graph.node] == [
        "Conv", "Relu", "MaxPool", "BatchNormalization", "Conv", "Relu", "MaxPool", "Flatten", "Gemm", "Relu", "Gemm",
    ]  # fmt: skip
    assert sum(int(np.prod(each.dims)) for each in proto.graph.initializer) == 3_274_762
    images = torch.rand(3, 1, 28, 28)
    (logits,) = ort.InferenceSession(tmp_path / "m.onnx").run(None, {"input": images.numpy()})
    assert logits.shape == (3, 10)
    np.testing.assert_allclose(logits, model.eval()(images).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_what_is_shown_in_training_is_the_same_digit_moved_a_little(repository, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.syspath_prepend(repository / "models")
    script = load_script(repository / "models" / "mnist_cnn.py")
    torch.manual_seed(0)
    images = torch.zeros(200, 1, 28, 28)
    images[:, :, 12:16, 12:16] = 1  # in the middle, so that it stays inside
    moved = script.augment(images)
    assert moved.shape == images.shape
    assert 0 <= float(moved.min()) <= float(moved.max()) <= 1
    places = torch.arange(28, dtype=torch.float32)
    for axis in (2, 3):
        mass = moved.sum((1, 2, 3))
        centre = (moved.sum((1, 5 - axis)) * places).sum(1) / mass - 13.5
        assert 1 < float(centre.abs().max()) < 2.5
    assert 0.75 < float((mass / 16).min()) < float((mass / 16).max()) < 1.3


def test_the_rate_rises_and_falls_to_nothing(repository, monkeypatch):
    monkeypatch.syspath_prepend(repository / "models")
    script = load_script(repository / "models" / "mnist_cnn.py")
    rates = [script.rate(step, 1000) for step in range(1001)]
    assert max(rates) == pytest.approx(script.rate(script.WARM_UP, 1000), rel=0.05)
    assert rates[0] < 0.01
    assert rates[-1] == pytest.approx(0, abs=1e-9)
