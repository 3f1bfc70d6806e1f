"""Folders of images as model inputs: decoded, resized, normalised as ``--preprocess`` says (needs Pillow)."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from surgeon.errors import DataError, UsageError
from surgeon.stats.chunks import Array, Chunk, Input
from surgeon.suggest import did_you_mean

if TYPE_CHECKING:
    from PIL.Image import Image

_EXAMPLE = "size=224,scale=255,mean=0.485:0.456:0.406,std=0.229:0.224:0.225,layout=nchw,order=rgb"
_ROWS = 8  # images decoded at a time


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes an array: resize, ``(pixels / scale - mean) / std``, axes in order.

    Attributes:
        name: The model input to fill.
        size: Height and width of the result.
        mean: Subtracted per channel, after scaling.
        std: Divided by per channel.
        scale: What pixel values 0…255 are divided by.
        layout: ``nchw`` or ``nhwc``.
        order: ``rgb``, ``bgr`` or ``gray``.
        fit: ``crop`` keeps the aspect ratio and cuts the centre out, ``stretch`` does not.
    """

    name: str
    size: tuple[int, int]
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float = 1.0
    layout: str = "nchw"
    order: str = "rgb"
    fit: str = "crop"


_CHOICES = {"layout": ("nchw", "nhwc"), "order": ("rgb", "bgr", "gray"), "fit": ("crop", "stretch")}
_KEYS = ("size", "mean", "std", "scale", *_CHOICES)


def parse(text: str | None, inputs: Sequence[Input], where: str) -> Preprocess:
    """Reads ``size=224,mean=0.5:0.5:0.5,…``; the size defaults to what the model's input fixes.

    Raises:
        UsageError: A key or value is not understood, or the text is missing.
        DataError: The model does not take one image input.
    """
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        raise DataError("a folder of images feeds a model with one input of four axes", where=where)
    if not text:
        raise UsageError("images need --preprocess", where=where, hint=f"for example {_EXAMPLE}")
    values: dict[str, str] = {}
    for part in text.split(","):
        key, separator, value = (piece.strip() for piece in part.partition("="))
        if not separator or key not in _KEYS:
            hint = did_you_mean(key, _KEYS, what="keys")
            raise UsageError(f"unknown preprocessing {part!r}", where="--preprocess", hint=hint)
        values[key] = value
    for key, allowed in _CHOICES.items():
        if key in values and values[key] not in allowed:
            raise UsageError(
                f"{key} is one of {', '.join(allowed)}, not {values[key]!r}", where="--preprocess"
            )
    layout = values.get("layout", "nchw")
    recipe = Preprocess(
        name=inputs[0].name,
        size=_size(values.get("size"), inputs[0], layout),
        mean=_numbers(values.get("mean", "0"), "mean"),
        std=_numbers(values.get("std", "1"), "std"),
        scale=_numbers(values.get("scale", "1"), "scale")[0],
        layout=layout,
        order=values.get("order", "rgb"),
        fit=values.get("fit", "crop"),
    )
    channels = 1 if recipe.order == "gray" else 3
    if {len(recipe.mean), len(recipe.std)} - {1, channels} or not recipe.scale or not all(recipe.std):
        raise UsageError(
            f"mean and std have 1 or {channels} values, no divisor is zero", where="--preprocess"
        )
    return recipe


def read(folder: Path, files: Sequence[Path], recipe: Preprocess) -> Iterator[Chunk]:
    """Decodes images a few at a time.

    Labels come from ``labels.csv`` (columns ``file`` and ``label``) in the folder, or from sub-folders that
    are all named by a number; otherwise there are none.

    Raises:
        DataError: Pillow is missing, or an image or the list of labels cannot be read.
    """
    labels = _labels(folder, files)
    for start in range(0, len(files), _ROWS):
        part = files[start : start + _ROWS]
        images = np.stack([_decode(file, recipe) for file in part])
        yield Chunk({recipe.name: images}, None if labels is None else labels[start : start + _ROWS])


def _decode(file: Path, recipe: Preprocess) -> Array:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise DataError("reading images needs Pillow", hint="pip install onnx-surgeon[images]") from error
    try:
        with Image.open(file) as opened:
            image = opened.convert("L" if recipe.order == "gray" else "RGB")
    except (OSError, UnidentifiedImageError, ValueError) as error:
        raise DataError("not a readable image", where=str(file)) from error
    pixels = np.asarray(_resize(image, recipe), np.float32).reshape(*recipe.size, -1)
    if recipe.order == "bgr":
        pixels = pixels[..., ::-1]
    mean, std = np.asarray(recipe.mean, np.float32), np.asarray(recipe.std, np.float32)
    pixels = (pixels / np.float32(recipe.scale) - mean) / std
    return np.ascontiguousarray(pixels.transpose(2, 0, 1) if recipe.layout == "nchw" else pixels)


def _resize(image: Image, recipe: Preprocess) -> Image:
    """Scales an image to the size, bilinear; ``crop`` covers the size and cuts the centre out."""
    height, width = recipe.size
    if recipe.fit == "stretch":
        return image.resize((width, height), 2)
    ratio = max(width / image.width, height / image.height)
    cover = max(round(image.width * ratio), width), max(round(image.height * ratio), height)
    left, top = (cover[0] - width) // 2, (cover[1] - height) // 2
    return image.resize(cover, 2).crop((left, top, left + width, top + height))


def _size(text: str | None, entry: Input, layout: str) -> tuple[int, int]:
    if text is None:
        height, width = entry.shape[2:] if layout == "nchw" else entry.shape[1:3]
        if isinstance(height, int) and isinstance(width, int):
            return height, width
        raise UsageError("the model leaves the image size open", where="--preprocess", hint="add size=224")
    parts = text.split("x")
    if len(parts) > 2 or not all(part.isdigit() and int(part) for part in parts):
        raise UsageError(f"size is 224 or 224x320 (height x width), not {text!r}", where="--preprocess")
    return int(parts[0]), int(parts[-1])


def _numbers(text: str, key: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(":"))
    except ValueError:
        raise UsageError(
            f"{key} takes numbers separated by colons, not {text!r}", where="--preprocess"
        ) from None


def _labels(folder: Path, files: Sequence[Path]) -> Array | None:
    listing = folder / "labels.csv"
    if listing.exists():
        try:
            with listing.open(newline="", encoding="utf-8") as handle:
                known = {row["file"]: int(row["label"]) for row in csv.DictReader(handle)}
            return np.array([known[file.relative_to(folder).as_posix()] for file in files], np.int64)
        except (KeyError, ValueError, TypeError, OSError) as error:
            raise DataError(f"no integer label for every image: {error}", where=str(listing)) from error
    parents = [file.parent.name for file in files]
    if all(file.parent != folder for file in files) and all(name.isdigit() for name in parents):
        return np.array([int(name) for name in parents], np.int64)
    return None
