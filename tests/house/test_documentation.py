"""The documentation names every command, flag and option there is, its links lead somewhere, and its code runs."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import pytest

import surgeon
from surgeon.axes import Atom
from surgeon.cli.parser import build_parser
from surgeon.entries import PASSES, available
from surgeon.grad import Step, Tape
from surgeon.grad import registry as derivatives
from surgeon.graph import sessions
from surgeon.graph.save import to_model
from surgeon.graph.shapes import Shapes
from surgeon.ops import Op, registry
from surgeon.options import options_of
from surgeon.plugins import load_pass
from surgeon.stats.data import open_data

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    *sorted((REPOSITORY / "docs").rglob("*.md")),
]


def read(*parts):
    return REPOSITORY.joinpath(*parts).read_text(encoding="utf-8")


def section(text, heading):
    """The text under a ``##`` heading."""
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"no section {heading}"
    return found[1]


def commands():
    parser = build_parser()
    action = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return action.choices


def code_blocks(page, language):
    return re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


def surgeon_commands(page):
    """Command lines on the demo's model."""
    lines = [line for block in code_blocks(page, "console") for line in block.splitlines()]
    return [line for line in lines if line.startswith("surgeon ") and "models/digits.onnx" in line]


@pytest.mark.parametrize("name", commands())
def test_commands_and_flags_are_documented(name):
    text = section(read("docs", "reference", "cli.md"), f"surgeon {name}")
    for action in commands()[name]._actions:
        flags = [flag for flag in action.option_strings if flag not in ("-h", "--help", "--json", "--debug")]
        assert all(f"`{flag}" in text for flag in flags), flags
    assert f"surgeon {name}" in read("README.md")


@pytest.mark.parametrize("name", commands())
def test_documented_flags_exist(name):
    text = section(read("docs", "reference", "cli.md"), f"surgeon {name}")
    known = {flag for action in commands()[name]._actions for flag in action.option_strings}
    assert set(re.findall(r"`(--[\w-]+)", text)) - {"--data"} <= known | {"--data"}


def own_passes():
    return [name for name, found in available(PASSES).items() if found[0].distribution == "onnx-surgeon"]


@pytest.mark.parametrize("name", own_passes())
def test_passes_and_their_options_are_documented(name):
    text = section(read("docs", "reference", "passes.md"), name)
    documented = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    assert documented == set(options_of(load_pass(name)))


@pytest.mark.parametrize("name", own_passes())
def test_every_option_explains_itself(name):
    assert [option.name for option in options_of(load_pass(name)).values() if not option.doc] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.fixture
def checkout(tmp_path):
    """The demo in a folder that a command may write to."""
    shutil.copytree(REPOSITORY / "models", tmp_path / "models", ignore=shutil.ignore_patterns("__pycache__"))
    for path in (tmp_path / "models").glob("*.surgeon.*"):
        path.unlink()
    return tmp_path


def run(line, folder, *more):
    arguments = [sys.executable, "-m", "surgeon", *shlex.split(line)[1:], *more]
    return subprocess.run(
        arguments, cwd=folder, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )


def test_the_readme_demo_runs(checkout):
    line = surgeon_commands(REPOSITORY / "README.md")[0]
    original = (checkout / "models" / "digits.onnx").read_bytes()
    done = run(line, checkout, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (checkout / "models" / "digits.onnx").read_bytes() == original
    assert (
        (checkout / report["output"]).stat().st_size
        == report["after"]["bytes"]
        < report["before"]["bytes"] / 3
    )
    assert report["after"]["macs"] <= 0.7 * report["before"]["macs"]
    assert report["before"]["metric"] >= 0.98
    assert report["after"]["metric"] >= 0.96
    assert report["certificate"]["status"] == "exact"
    assert {"plan", "recipe", "report"} <= report["files"].keys()


def test_the_readme_names_the_tests():
    blocks = code_blocks(REPOSITORY / "README.md", "console")
    assert any("pip install -e '.[test]'" in block and "pytest -n 2" in block for block in blocks)


@pytest.mark.slow
@pytest.mark.parametrize("line", surgeon_commands(REPOSITORY / "docs" / "tutorial.md"))
def test_the_tutorial_runs(line, checkout):
    first = surgeon_commands(REPOSITORY / "README.md")[0]
    if "bench" in line or "digits.surgeon" in line:
        assert run(first, checkout).returncode == 0
    done = run(line, checkout)
    assert done.returncode == 0, done.stderr


def python_block(page, containing):
    return next(block for block in code_blocks(REPOSITORY / "docs" / page, "python") if containing in block)


@pytest.fixture
def example(monkeypatch):
    """Runs a page's example as a module of its own and returns the module."""

    def execute(page, containing):
        module = types.ModuleType("example")
        monkeypatch.setitem(sys.modules, "example", module)
        exec(compile(python_block(page, containing), page, "exec"), vars(module))
        return module

    return execute


def test_the_example_pass_runs(demo, example):
    zero_small = example("how-to/add-a-pass.md", "class ZeroSmall").ZeroSmall
    result = surgeon.run(demo, passes=[zero_small(fraction=0.5)])
    facts = result.report["passes"][-1]
    assert facts["name"] == "zero_small"
    assert facts["zeroed"] > 1000
    with pytest.raises(surgeon.UsageError):
        zero_small(fraction=1.5)


def test_the_example_rule_couples_its_operands(monkeypatch, example):
    rules = registry.Rules()
    monkeypatch.setattr(registry, "RULES", rules)
    example("how-to/add-an-op.md", "ScaledAdd")
    declared = rules.find("ScaledAdd", "acme", 1)
    assert declared is not None
    tensors = [gs.Variable(name, np.float32, [2, 6]) for name in "ab"] + [
        gs.Constant("s", np.ones(6, np.float32))
    ]
    node = gs.Node(
        "ScaledAdd", "n", inputs=tensors, outputs=[gs.Variable("y", np.float32, [2, 6])], domain="acme"
    )
    op = Op(node, 1, Shapes(dims={}, dtypes={}, dynamic={}, values={}, probe={}), {})
    a, b, scale = [Atom(2), Atom(6)], [Atom(2), Atom(6)], [Atom(6)]
    (out,) = declared.function(op, a, b, scale)
    assert op.same(a[1], scale[0])
    assert op.same(a[1], b[1])
    assert op.same(out[1], a[1])


def test_the_example_derivative_is_right(monkeypatch, example):
    rules = derivatives.DERIVATIVES
    monkeypatch.setattr(rules, "_rules", dict(rules._rules))
    example("how-to/add-an-op.md", "@surgeon.derivative")
    declared = rules.find("ScaledAdd", "acme", 1)
    assert declared is not None
    assert declared.parameters == (2,)
    dims = {"a": (2, 6, 3), "b": (2, 6, 1), "s": (6,), "y": (2, 6, 3), "dy": (2, 6, 3)}
    shapes = Shapes(dims, dict.fromkeys(dims, 1), {k: (False,) * len(v) for k, v in dims.items()}, {}, {})
    a, b, s, y, dy = (gs.Variable(name, np.float32, list(size)) for name, size in dims.items())
    node = gs.Node("ScaledAdd", "n", inputs=[a, b, s], outputs=[y], domain="acme")
    graph = gs.Graph([], [a, b, s, dy], [], opset=21)
    tape = Tape(graph, shapes)
    step = Step(node, 1, tape, [tape.value(dy)], set())
    graph.outputs = [each.tensor for each in declared.function(step, *step.inputs)]
    graph.nodes = tape.nodes
    random = np.random.default_rng(0)
    feeds = {name: random.standard_normal(dims[name]).astype(np.float32) for name in ("a", "b", "s", "dy")}
    of_a, of_b, of_s = sessions.run(sessions.session(to_model(graph)), feeds)
    scale = feeds["s"][:, None]
    np.testing.assert_allclose(of_a, feeds["dy"])
    np.testing.assert_allclose(of_b, (feeds["dy"] * scale).sum(2, keepdims=True), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(of_s, (feeds["dy"] * feeds["b"]).sum((0, 2)), rtol=1e-5, atol=1e-5)


def test_the_example_of_a_check_holds(example):
    example("how-to/add-an-op.md", "grad.oracle").test_prelu()


def test_the_example_of_variants_keeps_shapes(tmp_path):
    (tmp_path / "loader.py").write_text(
        "import numpy as np\n\n\ndef data():\n    yield {'input': np.ones((4, 20, 3), np.float32)}\n\n\n"
        + python_block("how-to/your-data.md", "def augment")
    )
    data = open_data(f"{tmp_path}/loader.py:data", [("input", np.float32, ("N", "T", 3))])
    feeds = next(iter(data))[0]
    varied = data.augment(feeds, random=np.random.default_rng(0))["input"]
    assert varied.shape == (4, 20, 3)
    assert varied.dtype == np.float32
    assert not np.array_equal(varied, feeds["input"])
