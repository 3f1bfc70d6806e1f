"""Imports go one way through the rooms, the axes know no ONNX, and the command line starts without heavy modules."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

# A module may import its own layer and those above it in this list. New modules belong into one of them.
LAYERS = [
    {"errors", "suggest", "entries"},
    {"axes"},
    {"graph"},
    {"ops"},
    {"analysis", "quantized", "zeros", "groups", "coupling"},
    {
        "cost",
        "tally",
        "plan",
        "masks",
        "structure",
        "reference",
        "surgery",
        "states",
        "narrow",
        "unrounded",
        "engine",
        "scores",
        "isolate",
        "allocate",
        "probes",
        "verify",
        "stats",
        "grad",
        "refit",
        "scaling",
        "sizes",
        "names",
        "explain",
        "wording",
    },
    {"options", "syntax", "passes", "plugins", "recipe", "report", "output"},
    {"judge", "measure", "pipeline", "trace", "job", "api", "inspect", "replay"},
    {"cli"},
]
EXEMPT = {"__init__", "__main__"}  # the package's front door names what lies behind it
HEAVY = ("numpy", "onnx", "onnxruntime", "onnx_graphsurgeon", "networkx", "scipy", "rich")


def room(module: str) -> str:
    """``surgeon.graph.load`` belongs to the room ``graph``."""
    return module.split(".")[1] if "." in module else "__init__"


def sources(folder: str) -> Iterator[tuple[str, ast.Module]]:
    root = REPOSITORY / folder
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        yield ".".join(parts), ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.AST) -> set[str]:
    """Everything a module imports, inside functions and for types as well."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module == "surgeon":
                found |= {f"surgeon.{alias.name}" for alias in node.names}
    return found


def level(name: str) -> int:
    """The layer of a room; what is in none may import nothing and everything, and has a test of its own."""
    return next((k for k, layer in enumerate(LAYERS) if name in layer), -1)


def test_every_module_is_in_a_layer():
    rooms = {room(module) for module, _ in sources("surgeon")} - EXEMPT
    assert rooms <= set.union(*LAYERS)


def test_imports_go_one_way():
    wrong = []
    for module, tree in sources("surgeon"):
        if room(module) in EXEMPT:
            continue
        for name in imports(tree):
            other = room(name) if name.startswith("surgeon.") else None
            if other and level(other) > level(room(module)) >= 0:
                wrong.append(f"{module} imports {name}")
    assert not wrong


def test_the_compiler_knows_no_pass():
    wrong = [
        m for m, tree in sources("surgeon") if any(n.startswith("surgeon_passes") for n in imports(tree))
    ]
    assert not wrong


def test_axes_are_pure():
    for module, tree in sources("surgeon/axes"):
        outside = (
            {name.split(".")[0] for name in imports(tree)} - {"surgeon", "numpy"} - sys.stdlib_module_names
        )
        assert not outside, f"{module} imports {outside}"


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["--version"], ["run", "--no-such-flag"]]
)
def test_the_command_line_starts_light(arguments):
    code = (
        "import sys; from surgeon.cli import main; main(sys.argv[1:]);"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]; sys.exit(' '.join(heavy) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"imports {done.stderr}"


def test_only_the_command_line_prints():
    wrong = []
    for module, tree in sources("surgeon"):
        calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        names = {call.id for call in calls if isinstance(call, ast.Name)}
        if room(module) != "cli" and names & {"print", "exit", "quit"}:
            wrong.append(module)
    assert not wrong
