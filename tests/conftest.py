"""Fixtures that more than one room's tests need: where the repository, the demo and the shared test models are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# as a run of surgeon does: threads of linear algebra wait for those of onnxruntime and of other processes. Read when numpy is imported
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def demo() -> Path:
    """The digit classifier that comes with the repository."""
    return REPOSITORY / "models" / "digits.onnx"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real models and data outside the repository; tests that need it are skipped where it is absent.

    ``SURGEON_SHARED`` names it; without the variable it is the folder ``shared`` next to the repository.
    """
    folder = Path(os.environ.get("SURGEON_SHARED", str(REPOSITORY.parent / "shared")))
    if not folder.is_dir():
        pytest.skip("no folder of shared models; set SURGEON_SHARED to run this test")
    return folder
