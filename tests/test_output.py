"""Where files go, and that they appear together or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from surgeon import output
from surgeon.errors import UsageError
from surgeon.output import Destination


def test_names_beside_the_model():
    where = Destination(Path("a/b.v1.onnx"), Path("r"))
    assert [str(path) for path in (where.plan, where.recipe, where.report, where.summary)] == [
        "a/b.v1.plan.json", "a/b.v1.recipe.toml", "a/b.v1.report.json", "r/b.v1.report.md",
    ]  # fmt: skip
    assert output.default_output(Path("a/b.onnx")) == Path("a/b.surgeon.onnx")
    assert output.default_output(Path("a/b.bin")) == Path("a/b.bin.surgeon.onnx")


def test_what_cannot_be_an_output(tmp_path):
    source = tmp_path / "in.onnx"
    source.write_bytes(b"x")
    (tmp_path / "hard.onnx").hardlink_to(source)
    (tmp_path / "soft.onnx").symlink_to(source)
    (tmp_path / "folder.plan.json").mkdir()
    os.mkfifo(tmp_path / "pipe.onnx")
    for name in (
        "in.onnx",
        "hard.onnx",
        "soft.onnx",
        ".",
        "missing/out.onnx",
        "in.onnx/out.onnx",
        "folder.onnx",
        "pipe.onnx",
    ):
        with pytest.raises(UsageError):
            output.check(Destination(tmp_path / name), source)
    with pytest.raises(UsageError):
        output.check(Destination(Path("/proc/nope/x.onnx")), source)
    with pytest.raises(UsageError):
        output.check(Destination(tmp_path / "out.onnx", source), source)
    before = sorted(tmp_path.iterdir())
    output.check(Destination(tmp_path / "out.onnx", tmp_path / "a" / "b"), source)
    assert sorted(tmp_path.iterdir()) == before


def test_a_plan_must_not_overwrite_the_input(tmp_path):
    source = tmp_path / "x.plan.json"
    source.write_bytes(b"x")
    with pytest.raises(UsageError, match="overwrite the input"):
        output.check(Destination(tmp_path / "x.onnx"), source)


def test_read_only_folder(tmp_path, monkeypatch):
    def refuse(**_: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(output.tempfile, "mkdtemp", refuse)
    with pytest.raises(UsageError, match="cannot write here: Permission denied"):
        output.check(Destination(tmp_path / "out.onnx"), tmp_path / "in.onnx")


def test_files_appear_together_and_staging_vanishes(tmp_path):
    (tmp_path / "b").write_text("old")
    with output.staging(tmp_path) as staged:
        staged.text(tmp_path / "a", "1")
        staged.text(tmp_path / "b", "2")
        assert not (tmp_path / "a").exists()
        staged.commit()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "1", "b": "2"}


def test_nothing_appears_after_an_error(tmp_path):
    def fail() -> None:
        with output.staging(tmp_path) as staged:
            staged.text(tmp_path / "a", "1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []
