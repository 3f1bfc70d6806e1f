"""Finding plugins: a real third-party package, broken ones, doubled ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from distributions import announce, install

from surgeon import entries, plugins
from surgeon.errors import PluginError, UsageError
from surgeon.passes import Pass
from surgeon.recipe import instantiate
from surgeon.syntax import parse_passes

PROJECT = Path(__file__).parent / "plugin"
MODULE = """
from __future__ import annotations
from dataclasses import dataclass
from typing import ClassVar
import surgeon

class NotAPass: pass

@dataclass
class Thawed:
    name: ClassVar[str] = "thawed"

class Plain(surgeon.Pass):
    name: ClassVar[str] = "plain"
    def run(self, graph, context): return graph

@dataclass(frozen=True)
class Other(surgeon.Pass):
    name: ClassVar[str] = "other"
    def run(self, graph, context): return graph

@dataclass(frozen=True)
class Abstract(surgeon.Pass):
    name: ClassVar[str] = "abstract"
"""


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Nothing that another test found is remembered, and what it declares is not left behind."""
    from surgeon.grad import DERIVATIVES
    from surgeon.ops import RULES

    for rules in (RULES, DERIVATIVES):
        known = {key: list(found) for key, found in rules._rules.items()}
        monkeypatch.setattr(rules, "_rules", known)
    for name in [name for name in sys.modules if name.startswith("surgeon_example_plugin")]:
        monkeypatch.delitem(sys.modules, name)
    plugins.forget()
    yield
    for name in [name for name in sys.modules if name.startswith("surgeon_example_plugin")]:
        del sys.modules[name]
    plugins.forget()


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of installed packages that comes first on the import path."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "some_module.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "some_module", raising=False)
    return folder


def announce_pass(site: Path, name: str, target: str, distribution: str = "third-party") -> None:
    announce(site, distribution, {entries.PASSES: {name: target}})


def test_a_third_partys_pass_is_found_with_its_options(site):
    install(PROJECT, site)
    plugin = entries.find(entries.PASSES, "flush")
    assert plugin.origin == "surgeon-example-plugin 1.2.0"
    made = instantiate(parse_passes("flush{below=1e-9 keep=[a*]}")[0])
    assert isinstance(made, Pass)
    assert made.options() == {"below": 1e-9, "keep": ("a*",)}
    assert made.changed_options() == made.options()
    with pytest.raises(UsageError, match=r"flush\.below: must be positive"):
        instantiate(parse_passes("flush{below=-1}")[0])


def test_built_by_pip(tmp_path):
    pytest.importorskip("hatchling")
    target = tmp_path / "site"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
    ]
    subprocess.run([*command, "--target", str(target), str(PROJECT)], check=True, capture_output=True)
    names = {path.name for path in target.iterdir()}
    assert {"surgeon_example_plugin", "surgeon_example_plugin-1.2.0.dist-info"} <= names
    assert "flush" in next(target.glob("*.dist-info/entry_points.txt")).read_text()


def test_unknown_pass_is_suggested(site):
    install(PROJECT, site)
    with pytest.raises(UsageError, match=r"flsh: no such pass .did you mean 'flush'"):
        plugins.load_pass("flsh")


def test_a_broken_plugin_is_named_and_harms_nobody_else(site):
    install(PROJECT, site)
    announce_pass(site, "wrong", "no_such_module:Wrong")
    assert "wrong" in entries.available(entries.PASSES)
    assert plugins.load_pass("flush").name == "flush"
    with pytest.raises(PluginError, match=r"third-party 0\.0\.1.*cannot be imported") as error:
        plugins.load_pass("wrong")
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "target", "said"),
    [
        ("not", "some_module:NotAPass", "not a subclass of surgeon.Pass"),
        ("thawed", "some_module:Thawed", "not a subclass of surgeon.Pass"),
        ("plain", "some_module:Plain", "not a frozen dataclass"),
        ("another", "some_module:Other", "calls itself 'other', its entry point 'another'"),
        ("abstract", "some_module:Abstract", "does not define run"),
        ("module", "some_module", "not a subclass of surgeon.Pass"),
    ],
)
def test_what_is_not_a_pass(site, name, target, said):
    announce_pass(site, name, target)
    with pytest.raises(PluginError, match=said):
        plugins.load_pass(name)


def test_a_name_provided_twice_is_an_error_when_it_is_used(site):
    install(PROJECT, site)
    announce_pass(site, "flush", "some_module:Other", "rival")
    assert len(entries.available(entries.PASSES)["flush"]) == 2
    with pytest.raises(PluginError, match="provided twice") as error:
        plugins.load_pass("flush")
    assert "rival 0.0.1" in str(error.value)
    assert "surgeon-example-plugin 1.2.0" in str(error.value)


def test_the_same_distribution_twice_on_the_path_is_no_conflict(site, tmp_path, monkeypatch):
    install(PROJECT, site)
    again = tmp_path / "again"
    again.mkdir()
    install(PROJECT, again)
    monkeypatch.syspath_prepend(str(again))
    assert len(entries.available(entries.PASSES)["flush"]) == 1
    assert plugins.load_pass("flush").name == "flush"


def test_broken_operator_rules_cost_a_warning(site):
    announce(site, "bad-rules", {entries.OPS: {"bad": "no_such_module"}})
    said: list[str] = []
    plugins.load_rules(said.append)
    assert any("bad-rules 0.0.1" in text and "left as they are" in text for text in said)


def test_a_third_partys_rule_is_declared(site):
    from surgeon.ops import RULES

    install(PROJECT, site)
    said: list[str] = []
    plugins.load_rules(said.append)
    assert said == []
    found = RULES.find("ChannelScale", "example", 1)
    assert found is not None
    assert found.function.__name__ == "channel_scale"


def test_a_third_partys_derivative_is_declared_by_the_same_entry_point(site):
    from surgeon.grad import DERIVATIVES

    install(PROJECT, site)
    said: list[str] = []
    plugins.load_rules(said.append)
    assert said == []
    found = DERIVATIVES.find("ChannelScale", "example", 1)
    assert found is not None
    assert found.parameters == (1,)


def test_a_third_partys_derivative_lets_gradients_through(site):
    from ops.oracle import build

    from surgeon.grad import gradient
    from surgeon.graph.load import from_model

    graph = from_model(build("float[N,3] x", "float[N,3] y", "r = Floor (x)\ny = Mul (r, w)", {"w": (3,)}))

    def loss(tape):
        return tape.find("y").sum()

    assert "x" in gradient(graph, loss, ["x"]).stopped
    text = "import surgeon\n\n@surgeon.derivative('Floor')\ndef straight(op, x):\n    return [op.dy()]\n"
    (site / "straight_through.py").write_text(text)
    announce(site, "straight", {entries.OPS: {"straight": "straight_through"}})
    plugins.forget()
    plugins.load_rules(lambda _: None)
    assert gradient(graph, loss, ["x"]).stopped == {}
    del sys.modules["straight_through"]
