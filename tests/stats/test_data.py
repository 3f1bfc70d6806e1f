"""Datasets: every kind of source, every way of not fitting, batches, selections."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from surgeon.errors import DataError, UsageError
from surgeon.stats.data import Dataset, open_data
from surgeon.stats.metrics import top1

IMAGE = [("x", "float32", ("N", 3, 4, 4))]


def saved(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path / "d.npz", **arrays)
    return str(path / "d.npz")


def numbers(count: int, dtype: str = "float32") -> np.ndarray:
    """Samples whose every element is the sample's number."""
    return np.broadcast_to(np.arange(count).reshape(-1, 1, 1, 1), (count, 3, 4, 4)).astype(dtype)


def contents(dataset: Dataset) -> list[int]:
    return [int(value) for feeds, _ in dataset for value in feeds["x"][:, 0, 0, 0]]


def test_npz_batches_with_labels(tmp_path: Path) -> None:
    data = open_data(saved(tmp_path, x=numbers(10), labels=np.arange(10)), IMAGE, batch=4)
    assert data.has_labels
    assert [len(feeds["x"]) for feeds, _ in data] == [4, 4, 2]
    assert [labels.tolist() for _, labels in data if labels is not None] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9],
    ]
    assert data.count == 10
    assert contents(data) == contents(data) == list(range(10))


@pytest.mark.parametrize(("size", "expected"), [(1, [1] * 5), (2, [2, 2])])
def test_a_fixed_batch_is_respected(tmp_path: Path, size: int, expected: list[int]) -> None:
    data = open_data(saved(tmp_path, x=numbers(5)), [("x", "float32", (size, 3, 4, 4))], batch=32)
    assert [len(feeds["x"]) for feeds, _ in data] == expected
    assert data.notes == (() if size == 1 else ("1 samples left out: the model takes exactly 2 at a time",))


@pytest.mark.parametrize("with_batch", [True, False])
def test_states_with_the_batch_behind_the_layers_come_one_by_one(tmp_path: Path, *, with_batch: bool) -> None:
    inputs = [("x", "float32", ("N", 5)), ("state", "float32", (2, "N", 3))]
    x = np.arange(20, dtype="float32").reshape(4, 5)
    state = np.arange(24, dtype="float32").reshape(4, 2, 1, 3)
    data = open_data(saved(tmp_path, x=x[:, None] if with_batch else x, state=state), inputs, batch=4)
    for index, (feeds, _) in enumerate(data):
        assert np.array_equal(feeds["x"], x[index : index + 1])
        assert np.array_equal(feeds["state"], state[index])
    assert data.count == 4


@pytest.mark.parametrize("symbols", [("T", "N"), (None, "N"), (None, None)])
def test_a_fixed_batch_of_one_input_is_that_of_all(
    tmp_path: Path, symbols: tuple[str | None, str | None]
) -> None:
    inputs = [("x", "float32", (2, symbols[0])), ("lengths", "float32", (symbols[1],))]
    data = open_data(saved(tmp_path, x=np.zeros((4, 5), "float32"), lengths=np.ones(4, "float32")), inputs)
    assert [[len(array) for array in feeds.values()] for feeds, _ in data] == [[2, 2], [2, 2]]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"input": numbers(2)}, "no array named 'x'"),
        ({"x": numbers(2)[0]}, "has 3 axes"),
        ({"x": numbers(2)[:, :2]}, "axis 1 of 'x' is 2 long, the model wants 3"),
        ({"x": numbers(2).astype("complex64")}, "is complex64"),
        ({"x": numbers(2, "int64") * 2**40 + 1}, "is int64"),
        ({"x": np.full((2, 3, 4, 4), np.nan, "float32")}, "NaN or infinity in sample 0"),
        ({"x": np.full((2, 3, 4, 4), np.inf)}, "NaN or infinity in sample 0"),
        ({"x": np.full((2, 3, 4, 4), -np.inf)}, "a large negative number"),
        ({"x": np.full((2, 3, 4, 4), 1e300)}, "is float64"),
        ({"x": numbers(0)}, "no samples"),
        ({"x": numbers(2), "labels": np.arange(3)}, "different numbers of samples"),
        ({"x": np.array([object(), None])}, "cannot be read"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_data(saved(tmp_path, **arrays), IMAGE)


def test_a_mistyped_array_name_is_suggested(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="did you mean 'imges'"):
        open_data(saved(tmp_path, imges=numbers(2)), [("images", "float32", ("N", 3, 4, 4))])


@pytest.mark.parametrize("dtype", ["float64", "float16", "uint8", "int64"])
def test_harmless_casts_are_noted(tmp_path: Path, dtype: str) -> None:
    data = open_data(saved(tmp_path, x=numbers(3, dtype), extra=np.ones(3)), IMAGE)
    assert next(iter(data))[0]["x"].dtype == np.float32
    assert f"'x' was cast from {dtype} to float32" in data.notes
    assert any("ignored: extra" in note for note in data.notes)


def test_floats_never_become_integers(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is float32, the model wants int64"):
        open_data(saved(tmp_path, x=numbers(2)), [("x", "int64", ("N", 3, 4, 4))])


def test_callable_runs_anew_each_time_and_is_rebatched(tmp_path: Path) -> None:
    script = tmp_path / "d.py"
    script.write_text(
        "import numpy as np\n"
        "def data():\n"
        "    for start in (0, 3, 6):\n"
        "        x = np.arange(start, start + 3).reshape(-1, 1, 1, 1) * np.ones((3, 3, 4, 4))\n"
        "        yield {'x': x.astype('float32'), 'labels': np.arange(start, start + 3)}\n"
        "def bad():\n    yield 3\n"
        "def raising():\n    raise KeyError('no')\n"
        "ready = ({'x': np.ones((1, 3, 4, 4), 'float32')} for _ in range(2))\n"
    )
    data = open_data(str(script), IMAGE, batch=4)
    assert data.count is None
    assert [len(feeds["x"]) for feeds, _ in data] == [4, 4, 1]
    assert data.count == 9
    assert contents(data) == list(range(9))
    with pytest.raises(UsageError, match="did you mean 'data'"):
        open_data(f"{script}:dat", IMAGE)
    for name, message in (("bad", "yields int"), ("raising", "KeyError"), ("ready", "only once")):
        with pytest.raises(DataError, match=message):
            open_data(f"{script}:{name}", IMAGE)


def test_a_script_that_does_not_import(tmp_path: Path) -> None:
    (tmp_path / "d.py").write_text("import no_such_module_anywhere\n")
    with pytest.raises(DataError, match="ModuleNotFoundError"):
        open_data(str(tmp_path / "d.py"), IMAGE)


def test_samples_of_different_lengths_never_share_a_batch(tmp_path: Path) -> None:
    script = tmp_path / "d.py"
    script.write_text(
        "import numpy as np\n"
        "def data():\n"
        "    for length in (4, 4, 7):\n"
        "        yield {'ids': np.zeros((1, length), 'int64')}\n"
    )
    data = open_data(str(script), [("ids", "int64", ("batch", "length"))])
    assert [feeds["ids"].shape for feeds, _ in data] == [(2, 4), (1, 7)]


def test_inputs_without_a_common_batch_axis_are_fed_one_sample_at_a_time(tmp_path: Path) -> None:
    inputs = [("x", "float32", (1, 5)), ("state", "float32", (2, 1, 8)), ("rate", "int64", ())]
    arrays = {"x": np.ones((3, 5), "f"), "state": np.ones((3, 2, 1, 8), "f"), "rate": np.arange(3)}
    data = open_data(saved(tmp_path, **arrays), inputs)
    assert data.total() == 3
    shapes = [{name: array.shape for name, array in feeds.items()} for feeds, _ in data]
    assert shapes == [{"x": (1, 5), "state": (2, 1, 8), "rate": ()}] * 3
    assert all(isinstance(array, np.ndarray) for feeds, _ in data for array in feeds.values())
    single = saved(tmp_path, x=arrays["x"][:1], state=arrays["state"][0], rate=np.array(1))
    assert len(list(open_data(single, inputs))) == 1


def test_folders_of_npy(tmp_path: Path) -> None:
    for index in range(3):
        np.save(tmp_path / f"sample{index}.npy", numbers(3)[index])
    np.save(tmp_path / "labels.npy", np.array([7, 8, 9]))
    data = open_data(str(tmp_path), IMAGE)
    assert contents(data) == [0, 1, 2]
    assert data.has_labels
    np.save(tmp_path / "x.npy", numbers(100))
    np.save(tmp_path / "labels.npy", np.arange(100))
    assert contents(open_data(str(tmp_path), IMAGE)) == list(range(100))


def test_take_and_split_are_deterministic_and_disjoint(tmp_path: Path) -> None:
    data = open_data(saved(tmp_path, x=numbers(50)), IMAGE, batch=8)
    assert contents(data.take(5)) == [0, 1, 2, 3, 4]
    assert data.take(500).total() == 50
    rest, held = data.split(0.1, seed=3)
    assert (rest.count, held.count) == (45, 5)
    assert sorted(contents(rest) + contents(held)) == list(range(50))
    assert contents(held) == contents(data.split(0.1, seed=3)[1]) != contents(data.split(0.1, seed=4)[1])
    assert contents(rest.take(3)) == contents(rest)[:3]
    inner, outer = rest.split(0.5, seed=0)
    assert sorted(contents(inner) + contents(outer)) == sorted(contents(rest))
    with pytest.raises(DataError, match="cannot be split"):
        data.take(1).split(0.5, seed=0)
    with pytest.raises(UsageError):
        data.split(1.0, seed=0)


def test_taking_stops_reading(tmp_path: Path) -> None:
    script = tmp_path / "d.py"
    script.write_text(
        "import numpy as np\n"
        "def data():\n"
        "    for index in range(3):\n"
        "        yield {'x': np.ones((2, 3, 4, 4), 'float32')}\n"
        "    raise RuntimeError('read too far')\n"
    )
    assert len(contents(open_data(str(script), IMAGE, batch=2).take(6))) == 6


@pytest.mark.parametrize("spec", ["absent.npz", "absent", "absent.py:data"])
def test_what_is_not_there(tmp_path: Path, spec: str) -> None:
    with pytest.raises(DataError, match="no such file"):
        open_data(str(tmp_path / spec), IMAGE)


def test_what_is_no_data(tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text("x")
    (tmp_path / "d.npz").write_text("not a zip")
    with pytest.raises(UsageError, match="not a kind of data"):
        open_data(str(tmp_path / "d.txt"), IMAGE)
    with pytest.raises(DataError, match="cannot be read"):
        open_data(str(tmp_path / "d.npz"), IMAGE)
    with pytest.raises(UsageError, match="folders of images"):
        open_data(saved(tmp_path, x=numbers(2)), IMAGE, "size=4")


def test_the_shared_data_fit_the_shared_model(shared: Path) -> None:
    from surgeon.graph.sessions import run, session

    runner = session(shared / "models" / "cifar10_resnet8.onnx")
    inputs = [(entry.name, "float32", tuple(entry.shape)) for entry in runner.get_inputs()]
    data = open_data(str(shared / "data" / "cifar10.py:test_raw"), inputs, batch=100).take(300)
    hits = [top1(run(runner, feeds), labels) for feeds, labels in data if labels is not None]
    assert np.concatenate(hits).mean() > 0.8
