"""The files of a run: where they go, checked before work starts, and how they appear together or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from surgeon.errors import UsageError


@dataclass(frozen=True)
class Destination:
    """Where the result of a run goes.

    Attributes:
        model: The ONNX file.
        report_folder: An extra folder for the readable report, or None.
    """

    model: Path
    report_folder: Path | None = None

    def beside(self, suffix: str) -> Path:
        """Returns the file next to the model that ends in ``suffix``: ``a.surgeon.onnx`` gives ``a.surgeon.plan.json``."""
        return self.model.with_name(self.model.with_suffix("").name + suffix)

    @property
    def plan(self) -> Path:
        """The plan file."""
        return self.beside(".plan.json")

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.beside(".recipe.toml")

    @property
    def report(self) -> Path:
        """The JSON report."""
        return self.beside(".report.json")

    @property
    def summary(self) -> Path | None:
        """The readable report."""
        return self.report_folder / self.beside(".report.md").name if self.report_folder else None


def default_output(model: Path) -> Path:
    """Returns MODEL with ``.surgeon.onnx``."""
    return model.with_name((model.stem if model.suffix == ".onnx" else model.name) + ".surgeon.onnx")


def default_plan(model: Path) -> Path:
    """Returns MODEL with ``.plan.json``."""
    return model.with_name((model.stem if model.suffix == ".onnx" else model.name) + ".plan.json")


def check(destination: Destination, source: Path) -> None:
    """Makes sure that the files can be written and the input is not among them, before any work is done.

    Raises:
        UsageError: The output is the input, a folder, or in a folder that is missing or cannot be written.
    """
    for path in (destination.model, destination.plan, destination.recipe, destination.report):
        _check_file(path, source)
    folder = destination.report_folder
    if folder is not None:
        existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        if not existing.is_dir():
            raise UsageError("is not a folder", where=str(existing), hint="choose another --report")
        _check_writable(existing)
        if destination.summary is not None:
            _check_file(destination.summary, source, parent=False)
    _check_writable(destination.model.absolute().parent)


def check_file(path: Path, source: Path) -> None:
    """Makes sure that one file can be written and is not the input.

    Raises:
        UsageError: It is the input, a folder, or in a folder that is missing or cannot be written.
    """
    _check_file(path, source)
    _check_writable(path.absolute().parent)


def _check_file(path: Path, source: Path, *, parent: bool = True) -> None:
    if not path.name:
        raise UsageError("output has no file name", where=str(path))
    if path.is_dir():
        raise UsageError(
            "output is a folder", where=str(path), hint="give the name of a file, such as out.onnx"
        )
    if path.exists() and not path.is_file():
        raise UsageError("output is not an ordinary file", where=str(path))
    if path.exists() and source.exists() and path.samefile(source):
        raise UsageError("output would overwrite the input model", where=str(path), hint="choose another -o")
    if parent and not path.absolute().parent.is_dir():
        raise UsageError("output folder does not exist", where=str(path.absolute().parent))


def _check_writable(folder: Path) -> None:
    # permission bits lie (root, read-only mounts, /proc), so ask the file system itself
    try:
        Path(tempfile.mkdtemp(prefix=".surgeon-", dir=folder)).rmdir()
    except OSError as error:
        raise UsageError(f"cannot write here: {error.strerror}", where=str(folder)) from error


class Staging:
    """A hidden folder beside the output in which everything is prepared."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._moves: list[tuple[Path, Path]] = []

    def text(self, destination: Path, text: str) -> None:
        """Prepares a text file for ``destination``."""
        path = self.folder / f"{len(self._moves)}.text"
        with path.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        self.add(path, destination)

    def add(self, staged: Path, destination: Path) -> None:
        """Notes that a prepared file belongs at ``destination``; the last one noted appears last."""
        self._moves.append((staged, destination))

    def commit(self) -> None:
        """Moves every prepared file into place; an interrupt waits until all are there."""
        with _uninterrupted():
            for staged, destination in self._moves:
                if staged.stat().st_dev != destination.parent.stat().st_dev:
                    near = destination.with_name(f".{destination.name}.surgeon")
                    shutil.copyfile(staged, near)
                    staged = near  # noqa: PLW2901  # a rename is atomic only within one file system
                staged.replace(destination)


@contextlib.contextmanager
def staging(folder: Path | None) -> Iterator[Staging]:
    """Opens a staging folder inside ``folder`` (or the system's temporary one) and removes it in any case."""
    path = Path(tempfile.mkdtemp(prefix=".surgeon-", dir=folder))
    try:
        yield Staging(path)
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
