"""Files and functions stay small, say what they are for, and hold nothing that only means something elsewhere."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
CODE = [
    path for room in ("surgeon", "passes", "models") for path in sorted((REPOSITORY / room).rglob("*.py"))
]
LONGEST_FILE, LONGEST_FUNCTION = 400, 60

# folders of one machine, or of a checkout's neighbours
FOREIGN = re.compile(r"\.\./shared|/(?:work|root|tmp|home|Users)/")


def short(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """A thorough docstring does not make a function long."""
    first = node.body[0]
    return (first.end_lineno or first.lineno) - first.lineno + 1 if ast.get_docstring(node) else 0


def test_files_are_short():
    lengths = {short(path): len(path.read_text(encoding="utf-8").splitlines()) for path in CODE}
    assert {name: length for name, length in lengths.items() if length >= LONGEST_FILE} == {}


def test_functions_are_short():
    long = {}
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1 - docstring_lines(node)
                if length >= LONGEST_FUNCTION:
                    long[f"{short(path)}:{node.name}"] = length
    assert long == {}


def test_every_file_says_what_it_is_for():
    silent = [
        short(path) for path in CODE if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert silent == []


def test_nothing_points_outside_the_repository():
    listed = subprocess.run(
        ["git", "ls-files", "README.md", "*.md", "docs", "surgeon", "passes", "models", "pyproject.toml"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.split()
    files = [REPOSITORY / name for name in listed] or CODE
    found = []
    for path in files:
        text = path.read_bytes().decode("utf-8", errors="ignore") if path.exists() else ""
        found += [f"{short(path)}: {match[0]}" for match in FOREIGN.finditer(text)]
    assert found == []


SUPPRESSION = re.compile(r"# (noqa: [A-Z0-9, ]+?|type: ignore\[[\w, -]+\])(?:\s+(?:#|-).*\w.*)?$")


def test_suppressions_have_a_reason():
    """A code is named on every line, its reason at least the first time it occurs in a file."""
    bare = []
    for path in CODE:
        reasoned: set[str] = set()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            found = SUPPRESSION.search(line)
            if found and not line.endswith(found[1]):
                reasoned.add(found[1].strip())
            elif ("# noqa" in line or "# type: ignore" in line) and not (
                found and found[1].strip() in reasoned
            ):
                bare.append(f"{short(path)}:{number}")
            if re.search(r"except(?: (?:Base)?Exception(?: as \w+)?)?:\s*$", line):
                bare.append(f"{short(path)}:{number}")
    assert bare == []
