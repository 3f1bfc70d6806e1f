"""A recipe: which passes run with which options, and what the whole run is told; as text, TOML or Python.

Every run writes its resolved recipe, so that ``--recipe`` repeats it.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from surgeon.errors import UsageError
from surgeon.options import build, options_of
from surgeon.passes import CONFIDENCE, Pass, check_targets
from surgeon.plugins import load_pass
from surgeon.suggest import did_you_mean
from surgeon.syntax import Call, parse_passes, parse_value

SCHEMA = 1
DEFAULT_PASSES = "prune"


@dataclass(frozen=True)
class Settings:
    """What a run is told besides the model and its passes.

    Attributes:
        target: Fractions of the original to reach at most, by macs, params, size or latency.
        data: Calibration data: .npz, folder of .npy, folder of images, or file.py[:name].
        evaluation: Data to measure the metric on; the same forms.
        preprocess: How images become arrays.
        metric: Name of the metric, or None for the default.
        max_drop: The largest accepted loss of the metric, as a fraction.
        confidence: The chance with which passes that look for a model within that drop want it to hold on other data.
        exclude: Patterns of node and tensor names to leave alone.
        seed: Seed of everything random.
        clean: Whether `clean` runs first.
    """

    target: dict[str, float] = field(default_factory=dict)
    data: str | None = None
    evaluation: str | None = None
    preprocess: str | None = None
    metric: str | None = None
    max_drop: float | None = None
    confidence: float = CONFIDENCE
    exclude: tuple[str, ...] = ()
    seed: int = 0
    clean: bool = True

    def __post_init__(self) -> None:
        check_targets(self.target)
        if self.max_drop is not None and not 0.0 <= self.max_drop <= 1.0:
            raise UsageError(f"must be a fraction in [0, 1], got {self.max_drop}", where="max-drop")
        if not 0.5 <= self.confidence < 1.0:
            raise UsageError(f"must be in [0.5, 1), got {self.confidence}", where="confidence")
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"must be in 0 … 2³² − 1, got {self.seed}", where="seed")


@dataclass(frozen=True)
class Recipe:
    """Passes in the order they run, and the settings of the run."""

    passes: tuple[Pass, ...]
    settings: Settings


def resolve(
    passes: str | Iterable[str | Pass] | None,
    settings: Mapping[str, object],
    *,
    sets: Sequence[str] = (),
    recipe: Path | None = None,
) -> Recipe:
    """Makes the recipe that runs out of everything the user said.

    Args:
        passes: Pass instances or text such as ``prune{macs=0.5},quantize``; None takes the recipe file's, or prune.
        settings: Fields of `Settings` given on the command line or in Python; they win over the recipe file.
        sets: ``pass.option=value`` texts, which win over both.
        recipe: A TOML file to start from.

    Raises:
        UsageError: Anything is unknown, misspelt or out of range.
        PluginError: A pass that is asked for is broken.
    """
    listed, given = read(recipe) if recipe is not None else ([], {})
    merged = build(Settings, {**given, **settings}, where="settings")
    chosen: list[Call | Pass] = [*listed] if passes is None else _calls(passes)
    if passes is None and settings.get("clean") is False and chosen and chosen[0].name == "clean":
        del chosen[0]  # a resolved recipe spells the first clean out; this run was told to do without
    chosen = chosen or [Call(DEFAULT_PASSES, {})]
    if merged.clean and chosen[0].name != "clean":
        chosen.insert(0, Call("clean", {}))
    chosen = _apply_sets(chosen, sets)
    ready = tuple(item if isinstance(item, Pass) else instantiate(item) for item in chosen)
    return Recipe(ready, merged)


def instantiate(call: Call) -> Pass:
    """Makes the pass that a call names.

    Raises:
        UsageError: The pass or one of its options is unknown or wrong.
        PluginError: The pass is broken.
    """
    return build(load_pass(call.name), call.options, where=call.name)


def read(path: Path) -> tuple[list[Call], dict[str, object]]:
    """Reads a recipe file into calls and settings, not yet typed.

    Raises:
        UsageError: The file cannot be read or is not a recipe.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the recipe: {error}", where=str(path)) from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"not a TOML file: {error}", where=str(path)) from error
    if document.pop("schema", SCHEMA) != SCHEMA:
        raise UsageError(f"unknown recipe schema; this version reads schema {SCHEMA}", where=str(path))
    entries = document.pop("passes", [])
    known = [item.name for item in fields(Settings)]
    for key in document:
        if key not in known:
            hint = did_you_mean(key, [*known, "passes", "schema"])
            raise UsageError("no such recipe key", where=f"{path}: {key}", hint=hint)
    if not isinstance(entries, list):
        raise UsageError("passes must be [[passes]] tables or a list of names", where=str(path))
    return [call for entry in entries for call in _entry(entry, path)], document


def write(recipe: Recipe) -> str:
    """Writes a recipe as TOML with every option spelled out; `read` and `resolve` give the same recipe back."""
    lines = ["# Repeat this run: surgeon run MODEL --recipe THIS_FILE", f"schema = {SCHEMA}"]
    for name, value in asdict(recipe.settings).items():
        if value is not None and name != "target":
            lines.append(f"{name} = {toml(value)}")
    if recipe.settings.target:
        lines += [
            "",
            "[target]",
            *(f"{key} = {toml(value)}" for key, value in recipe.settings.target.items()),
        ]
    for each in recipe.passes:
        lines += ["", "[[passes]]", f"name = {toml(each.name)}"]
        options = options_of(type(each))
        for name, value in each.options().items():
            if value is None and options[name].default is None:
                continue
            # TOML has no null; `false` is how an optional value is switched off
            lines.append(f"{name} = {toml(False if value is None else value)}")
    return "\n".join(lines) + "\n"


def with_absolute_data(recipe: Recipe) -> Recipe:
    """Returns the recipe with absolute data paths, so that it works from any folder."""
    settings = recipe.settings
    data, evaluation = _absolute(settings.data), _absolute(settings.evaluation)
    return replace(recipe, settings=replace(settings, data=data, evaluation=evaluation))


def _absolute(spec: str | None) -> str | None:
    if spec is None:
        return None
    path, colon, name = spec.rpartition(":") if re.search(r"\.py:\w+$", spec) else (spec, "", "")
    return str(Path(path).resolve()) + colon + name


def _calls(passes: str | Iterable[str | Pass]) -> list[Call | Pass]:
    if isinstance(passes, str):
        return [*parse_passes(passes)]
    calls: list[Call | Pass] = []
    for item in passes:
        if isinstance(item, Pass):
            calls.append(item)
        elif isinstance(item, str):
            calls += parse_passes(item)
        else:
            raise UsageError(f"expected a pass or its name, got {type(item).__name__}", where="passes")
    return calls


def _entry(entry: object, path: Path) -> list[Call]:
    if isinstance(entry, str):
        return parse_passes(entry)
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise UsageError("every [[passes]] table needs a name", where=str(path))
    return [Call(entry["name"], {key: value for key, value in entry.items() if key != "name"})]


def _apply_sets(calls: list[Call | Pass], sets: Sequence[str]) -> list[Call | Pass]:
    """Adds ``pass.option=value`` texts to every call of that pass; ``pass.option.key=value`` fills a table."""
    for text in sets:
        target, equals, value = text.partition("=")
        name, dot, option = target.strip().partition(".")
        if not equals or not dot or not option:
            raise UsageError(f"expected pass.option=value, got {text!r}", where="--set")
        if name not in {each.name for each in calls}:
            hint = did_you_mean(name, {each.name for each in calls}, what="passes of this run")
            raise UsageError("this pass does not run", where=f"--set {text}", hint=hint)
        option, _, key = option.partition(".")
        parsed = parse_value(value, f"{name}.{option}")
        calls = [_with(each, option, key, parsed) if each.name == name else each for each in calls]
    return calls


def _with(call: Call | Pass, option: str, key: str, value: object) -> Call | Pass:
    options = call.options() if isinstance(call, Pass) else dict(call.options)
    if key:
        table = options.get(option, {})
        value = {**(table if isinstance(table, Mapping) else {}), key: value}
    options[option] = value
    if isinstance(call, Pass):
        return build(type(call), options, where=call.name)
    return Call(call.name, options)


def toml(value: object) -> str:
    """Writes one value as TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{value} cannot be written to a recipe", where="recipe")
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{toml(str(key))} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence):
        return "[" + ", ".join(map(toml, value)) + "]"
    return repr(value)
