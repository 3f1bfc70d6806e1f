"""The benchmark of the steps of a prune runs: it calls them as the pass does."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from large_models import FAMILIES


def test_every_step_is_timed(tmp_path):
    place = Path(__file__).with_name("prune_time.py")
    spec = importlib.util.spec_from_file_location("prune_time", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    write, per_block = next(iter(FAMILIES.values()))
    seconds = module.timed(write(tmp_path / "m.onnx", 40 // per_block))
    assert set(seconds) == set(module.STEPS)
    assert (tmp_path / "m.out").stat().st_size > 0
