"""Every operator rule has a test, and everything that is announced can be loaded."""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path

import pytest

import surgeon
from surgeon.grad import DERIVATIVES
from surgeon.ops import RULES

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OP_TESTS, GRAD_TESTS = REPOSITORY / "tests" / "ops", REPOSITORY / "tests" / "grad"
TESTED = [
    ("rule", REPOSITORY / "surgeon" / "ops", OP_TESTS, RULES),
    ("derivative", REPOSITORY / "surgeon" / "grad" / "rules", GRAD_TESTS, DERIVATIVES),
]
ENTRY_POINTS = [
    (group, name, target)
    for group, found in PROJECT["entry-points"].items()
    for name, target in found.items()
]


@pytest.mark.parametrize(("decorator", "room", "tests", "rules"), TESTED)
def test_every_rule_is_tested(decorator, room, tests, rules):
    words = set()
    for path in tests.glob("*.py"):
        words |= set(re.findall(r"\w+", path.read_text(encoding="utf-8")))
    assert sorted({rule.name for rule in rules} - words) == []


@pytest.mark.parametrize(("decorator", "room", "tests", "rules"), TESTED)
def test_tests_of_rules_mirror_the_families(decorator, room, tests, rules):
    families = {
        path.stem for path in room.glob("*.py") if f"\n@{decorator}(" in path.read_text(encoding="utf-8")
    }
    missing = [name for name in sorted(families) if not list(tests.glob(f"test_{name}*.py"))]
    assert missing == []


@pytest.mark.parametrize(("group", "name", "target"), ENTRY_POINTS)
def test_entry_points_load(group, name, target):
    module, _, attribute = target.partition(":")
    loaded = getattr(importlib.import_module(module), attribute)
    if group == "surgeon.passes":
        assert issubclass(loaded, surgeon.Pass)
        assert loaded.name == name


def test_the_version_is_the_same_everywhere():
    assert PROJECT["version"] == surgeon.__version__
    assert "## " in (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_public_name_exists():
    for name in surgeon.__all__:
        assert getattr(surgeon, name).__doc__, name
