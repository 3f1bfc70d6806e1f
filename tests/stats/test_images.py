"""Folders of images: decoding, normalising, labels, and preprocessing that is not understood."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from surgeon.errors import DataError, UsageError
from surgeon.stats.data import open_data

Image = pytest.importorskip("PIL.Image")
NCHW = [("x", "float32", ("N", 3, 4, 6))]


def write(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (12, 8)) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.new("RGB", size, colour).save(path)


def first(folder: Path, inputs: list[tuple[str, str, tuple[object, ...]]], text: str) -> np.ndarray:
    return next(iter(open_data(str(folder), inputs, text)))[0]["x"]  # type: ignore[arg-type]  # shapes vary


def test_pixels_are_scaled_normalised_and_ordered(tmp_path: Path) -> None:
    write(tmp_path / "a.png", (255, 0, 51))
    made = first(tmp_path, NCHW, "scale=255,mean=0.5:0.0:0.2,std=0.5:1:1")
    assert made.shape == (1, 3, 4, 6)
    assert made[0, :, 0, 0] == pytest.approx([1, 0, 0], abs=1e-6)
    assert first(tmp_path, NCHW, "order=bgr")[0, :, 0, 0].tolist() == [51, 0, 255]
    nhwc = first(tmp_path, [("x", "float32", ("N", 4, 6, 3))], "layout=nhwc")
    assert nhwc.shape == (1, 4, 6, 3)
    gray = first(tmp_path, [("x", "float32", ("N", 1, None, None))], "order=gray,size=5x7")
    assert gray.shape == (1, 1, 5, 7)


def test_cropping_keeps_the_aspect_and_stretching_does_not(tmp_path: Path) -> None:
    image = Image.new("RGB", (60, 20), (0, 0, 0))
    image.paste((255, 255, 255), (20, 0, 40, 20))
    image.save(tmp_path / "a.png")
    square = [("x", "float32", ("N", 3, 20, 20))]
    assert first(tmp_path, square, "fit=crop").min() == 255
    assert first(tmp_path, square, "fit=stretch").min() == 0


def test_labels_from_numbered_folders_or_a_list(tmp_path: Path) -> None:
    write(tmp_path / "folders" / "3" / "a.png", (0, 0, 0))
    write(tmp_path / "folders" / "7" / "b.jpg", (0, 0, 0))
    data = open_data(str(tmp_path / "folders"), NCHW, "scale=255")
    assert data.count == 2
    assert [label for _, labels in data if labels is not None for label in labels] == [3, 7]
    write(tmp_path / "list" / "a.png", (0, 0, 0))
    (tmp_path / "list" / "labels.csv").write_text("file,label\na.png,5\n")
    assert open_data(str(tmp_path / "list"), NCHW, "scale=255").has_labels
    (tmp_path / "list" / "labels.csv").write_text("file,label\nb.png,5\n")
    with pytest.raises(DataError, match="no integer label"):
        open_data(str(tmp_path / "list"), NCHW, "scale=255")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "need --preprocess"),
        ("sise=4", "did you mean 'size'"),
        ("size=four", "not 'four'"),
        ("size=0", "not '0'"),
        ("mean=a:b:c", "numbers separated by colons"),
        ("mean=1:2", "1 or 3 values"),
        ("std=0", "no divisor is zero"),
        ("layout=chw", "one of nchw, nhwc"),
    ],
)
def test_preprocessing_that_is_not_understood(tmp_path: Path, text: str | None, message: str) -> None:
    write(tmp_path / "a.png", (0, 0, 0))
    with pytest.raises(UsageError, match=message):
        open_data(str(tmp_path), NCHW, text)


def test_what_cannot_be_fed_or_decoded(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("not an image")
    with pytest.raises(DataError, match="not a readable image"):
        open_data(str(tmp_path), NCHW, "scale=255")
    with pytest.raises(DataError, match="one input of four axes"):
        open_data(str(tmp_path), [("x", "float32", ("N", 3))], "scale=255")
    with pytest.raises(UsageError, match="image size open"):
        open_data(str(tmp_path), [("x", "float32", ("N", 3, "h", "w"))], "scale=255")
    write(tmp_path / "a.png", (0, 0, 0))
    with pytest.raises(DataError, match="axis 2"):
        open_data(str(tmp_path), NCHW, "size=5")
