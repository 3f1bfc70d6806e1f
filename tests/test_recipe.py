"""Recipes: what the user said in three places becomes one list of passes and settings."""

from __future__ import annotations

from pathlib import Path

import pytest
from distributions import install

from surgeon import plugins
from surgeon.errors import UsageError
from surgeon.recipe import Recipe, Settings, read, resolve, with_absolute_data, write


@pytest.fixture(autouse=True)
def example(tmp_path, monkeypatch, repository):
    """The example plugin is installed."""
    plugins.forget()
    site = tmp_path / "site"
    site.mkdir()
    install(repository / "tests" / "plugin", site)
    monkeypatch.syspath_prepend(str(site))
    yield
    plugins.forget()


def names(recipe: Recipe) -> list[str]:
    return [each.name for each in recipe.passes]


def test_clean_runs_first_unless_told_otherwise():
    assert names(resolve("flush", {})) == ["clean", "flush"]
    assert names(resolve("clean,flush", {})) == ["clean", "flush"]
    assert names(resolve("flush,clean", {})) == ["clean", "flush", "clean"]
    assert names(resolve("flush", {"clean": False})) == ["flush"]
    assert names(resolve("clean", {"clean": False})) == ["clean"]


def test_set_wins_over_inline_options():
    made = resolve(
        "flush{below=1e-3 keep=[a]}", {"clean": False}, sets=["flush.below=1e-4", "flush.keep=b,c"]
    )
    assert made.passes[0].options() == {"below": 1e-4, "keep": ("b", "c")}


def test_pass_instances_take_options_too():
    first = resolve("flush", {"clean": False}).passes[0]
    made = resolve([first, "flush{below=0.5}"], {"clean": False}, sets=["flush.keep=a"])
    assert [each.options() for each in made.passes] == [
        {"below": 1e-30, "keep": ("a",)},
        {"below": 0.5, "keep": ("a",)},
    ]


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        ("flsh.below=1", "did you mean 'flush'"),
        ("flush.belo=1", "did you mean 'below'"),
        ("flush.below", "expected pass.option=value"),
        ("below=1", "expected pass.option=value"),
        ("flush.=1", "expected pass.option=value"),
        ("flush.below=nan", "finite"),
        ("flush.below=", "a number"),
        ("flush.below=0", "must be positive"),
        ("quantize.below=0", "does not run"),
    ],
)
def test_wrong_set(sets, said):
    with pytest.raises(UsageError, match=said):
        resolve("flush", {}, sets=[sets])


def test_file_round_trip(tmp_path):
    settings = {
        "target": {"macs": "0.5", "size": 0.25}, "data": 'we"ird.npz', "metric": "top5", "max_drop": 0.01,
        "exclude": ("a*", "b\\"), "seed": 7,
    }  # fmt: skip
    first = resolve('flush{below=1e-5 keep=["x y",z]},flush', settings)
    path = tmp_path / "r.toml"
    path.write_text(write(first))
    assert resolve(None, {}, recipe=path) == first
    again = resolve(None, {"seed": 8}, recipe=path, sets=["flush.below=1"])
    assert again.settings.seed == 8
    assert again.settings.max_drop == 0.01
    assert [each.options().get("below") for each in again.passes[1:]] == [1.0, 1.0]
    assert names(resolve("flush", {}, recipe=path)) == ["clean", "flush"]
    assert names(resolve(None, {"clean": False}, recipe=path)) == ["flush", "flush"]
    path.write_text(write(resolve("flush", {"clean": False})))
    assert names(resolve(None, {}, recipe=path)) == ["flush"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("schema = 2", "schema"),
        ("seeed = 1", "did you mean 'seed'"),
        ("seed = ", "not a TOML file"),
        ("seed = 'x'", "whole number"),
        ("passes = 3", "passes must be"),
        ("[[passes]]\nbelow = 1", "needs a name"),
        ("[[passes]]\nname = 'flush'\nbelow = 'x'", "a number"),
        ("[target]\nmac = 0.5", "did you mean 'macs'"),
        ("[target]\nmacs = 0", "fraction"),
        ("max_drop = 2", "fraction"),
    ],
)
def test_wrong_files(tmp_path, text, said):
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=said):
        resolve(None, {}, recipe=path)


def test_unreadable_file(tmp_path):
    with pytest.raises(UsageError, match="cannot read the recipe"):
        read(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="cannot read the recipe"):
        read(tmp_path / "bytes.toml")


@pytest.mark.parametrize(
    "target", [{"mac": 0.5}, {"macs": 0}, {"macs": 1.1}, {"macs": "nan"}, {"macs": -1}, {"macs": "x"}]
)
def test_wrong_targets(target):
    with pytest.raises(UsageError):
        resolve("flush", {"target": target})


def test_data_paths_become_absolute():
    made = with_absolute_data(Recipe((), Settings(data="d/x.py:calibration", evaluation="e.npz")))
    assert made.settings.data == f"{Path.cwd()}/d/x.py:calibration"
    assert made.settings.evaluation == f"{Path.cwd()}/e.npz"
