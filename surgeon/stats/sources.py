"""Where samples come from: ``.npz``, folders of ``.npy`` or images, and callables in Python files."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

from surgeon.errors import DataError, UsageError
from surgeon.stats import images
from surgeon.stats.chunks import Array, Chunk, Input
from surgeon.suggest import did_you_mean

#: Makes varied samples of a batch: called with the feeds, first axis samples, and a seeded generator ``random``.
Augment: TypeAlias = "Callable[..., Mapping[str, Array]]"

_PYTHON = re.compile(r"(?P<path>.+\.py)(?::(?P<name>\w+))?")
_IMAGES = {".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_ROWS = 64  # samples read at a time from a memory-mapped array


@dataclass(frozen=True)
class Source:
    """Something that yields chunks from the start each time it is read; ``augment`` varies what it yields."""

    read: Callable[[], Iterator[Chunk]]
    count: int | None = None
    augment: Augment | None = None


def open_source(spec: str, inputs: Sequence[Input], preprocess: str | None) -> Source:
    """Opens what ``spec`` names.

    Raises:
        DataError: It does not exist or cannot be read.
        UsageError: It is of no known kind, or ``preprocess`` does not go with it.
    """
    script = _PYTHON.fullmatch(spec)
    path = Path(script["path"] if script else spec)
    if not path.exists():
        raise DataError("no such file or folder", where=str(path))
    pictures = [] if script or path.is_file() else _list_images(path)
    if preprocess and not pictures:
        raise UsageError("preprocessing is for folders of images", where=spec)
    if script:
        return _open_callable(path, script["name"], inputs)
    if path.suffix == ".npz" and path.is_file():
        return Source(lambda: _read_npz(path, inputs))
    if path.is_dir() and any(path.glob("*.npy")):
        return _open_folder(path, inputs)
    if pictures:
        recipe = images.parse(preprocess, inputs, spec)
        return Source(lambda: images.read(path, pictures, recipe), len(pictures))
    raise UsageError(
        "not a kind of data surgeon reads",
        where=spec,
        hint=".npz, a folder of .npy or of images, or file.py:name",
    )


def load_script(path: Path) -> ModuleType:
    """Imports a Python file under a private name, its own folder first on the import path.

    Raises:
        DataError: The file raises while it is imported.
    """
    name = f"_surgeon_data_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise DataError("not a Python file", where=str(path))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles of the script look themselves up there
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        with _told_as_theirs("cannot be imported:", str(path)):
            spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module


def find_name(module: ModuleType, name: str, path: Path) -> Any:
    """Returns an attribute of a script; a UsageError with the nearest names otherwise."""
    if hasattr(module, name):
        return getattr(module, name)
    public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    hint = did_you_mean(name, public, what="it has")
    raise UsageError(f"no function named {name!r}", where=str(path), hint=hint)


@contextmanager
def _told_as_theirs(what: str, where: str) -> Iterator[None]:
    """Whatever the user's own code raises becomes a DataError that says where it came from."""
    try:
        yield
    except DataError:  # says so already
        raise
    except Exception as error:  # the script is the user's: no type can be ruled out; re-raised with its cause
        raise DataError(f"{what} {_said(error)}", where=where) from error


def _said(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _open_callable(path: Path, name: str | None, inputs: Sequence[Input]) -> Source:
    module = load_script(path)
    if name is None:
        name = next((known for known in ("calibration", "data") if hasattr(module, known)), "calibration")
    produce = find_name(module, name, path)
    where = f"{path}:{name}"
    if inspect.isgenerator(produce):
        raise DataError("a generator runs only once", where=where, hint="name the function that makes it")
    augment = getattr(module, "augment", None)
    if augment is not None:
        augment = _checked(augment, f"{path}:augment")
    return Source(lambda: _read_callable(produce, where, inputs), augment=augment)


def _checked(augment: Any, where: str) -> Augment:
    """The user's function, whose faults are told as theirs: it may change values and leave out what stays as it is."""
    if not callable(augment):
        raise DataError("is not a function", where=where, hint="define augment(feeds, random)")

    def varied(feeds: Mapping[str, Array], random: np.random.Generator) -> dict[str, Array]:
        with _told_as_theirs("raised", where):
            found = augment(dict(feeds), random=random)
            if not isinstance(found, Mapping):
                raise DataError(f"returns {type(found).__name__}, not a dict of arrays", where=where)
            arrays = {str(name): np.asarray(value) for name, value in found.items()}
        for name, array in arrays.items():
            if name not in feeds:
                raise DataError(f"returns {name!r}, which it was not given", where=where)
            if array.shape[:1] != feeds[name].shape[:1] or array.ndim != feeds[name].ndim:
                raise DataError(
                    f"makes {name!r} {list(array.shape)} of {list(feeds[name].shape)}", where=where
                )
            if name != "labels":
                arrays[name] = array.astype(feeds[name].dtype, copy=False)
        return arrays

    return varied


def _read_callable(produce: Any, where: str, inputs: Sequence[Input]) -> Iterator[Chunk]:
    with _told_as_theirs("raised", where):
        produced = produce() if callable(produce) else produce
        for item in [produced] if isinstance(produced, Mapping) else iter(produced):
            if not isinstance(item, Mapping):
                raise DataError(f"yields {type(item).__name__}, not dicts of arrays", where=where)
            yield _chunk({str(key): np.asarray(value) for key, value in item.items()}, inputs)


def _chunk(arrays: dict[str, Array], inputs: Sequence[Input]) -> Chunk:
    """Separates the labels, unless the model has an input of that name."""
    is_input = any(entry.name == "labels" for entry in inputs)
    labels = None if is_input else arrays.pop("labels", None)
    return Chunk(arrays, labels)


def _read_npz(path: Path, inputs: Sequence[Input]) -> Iterator[Chunk]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"cannot be read: {_said(error)}", where=str(path), hint="plain arrays only"
        ) from error
    yield _chunk(arrays, inputs)


def _load_npy(path: Path, *, mapped: bool) -> Array:
    try:
        array: Array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"cannot be read: {_said(error)}", where=str(path), hint="plain arrays only"
        ) from error
    return array


def _open_folder(path: Path, inputs: Sequence[Input]) -> Source:
    files = {file.stem: file for file in sorted(path.glob("*.npy"))}
    samples = [file for name, file in files.items() if name != "labels"]
    if len(inputs) == 1 and inputs[0].name not in files:
        return Source(lambda: _read_sample_files(samples, files.get("labels"), inputs[0]))
    return Source(lambda: _read_columns(files, inputs))


def _read_columns(files: Mapping[str, Path], inputs: Sequence[Input]) -> Iterator[Chunk]:
    """Streams arrays that hold all samples of one input each."""
    chunk = _chunk({name: _load_npy(file, mapped=True) for name, file in files.items()}, inputs)
    lengths = {len(array) if array.ndim else 0 for array in chunk.feeds.values()}
    if chunk.labels is not None:
        lengths.add(len(chunk.labels) if chunk.labels.ndim else 0)
    if len(lengths) != 1:
        yield chunk  # what is wrong with it is said where chunks are checked
        return
    for start in range(0, lengths.pop(), _ROWS):
        yield chunk.pick(slice(start, start + _ROWS))


def _read_sample_files(files: Sequence[Path], labels: Path | None, entry: Input) -> Iterator[Chunk]:
    """Streams one file per sample, with or without its batch axis."""
    known = None if labels is None else _load_npy(labels, mapped=False)
    if known is not None and len(known) != len(files):
        raise DataError(f"{len(known)} labels for {len(files)} samples", where=str(labels))
    for index, file in enumerate(files):
        array = _load_npy(file, mapped=False)
        sample = array[np.newaxis] if array.ndim == len(entry.shape) - 1 else array
        yield Chunk({entry.name: sample}, None if known is None else known[index : index + 1])


def _list_images(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.suffix.lower() in _IMAGES and file.is_file())
