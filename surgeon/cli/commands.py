"""What each command does: read the arguments, call the library, print."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from surgeon.errors import UsageError
from surgeon.options import Bare, coerce
from surgeon.report import to_json


def run_command(arguments: argparse.Namespace) -> int:
    """Handles ``surgeon run``."""
    from surgeon.output import default_output

    targets = _pairs(arguments.target, "--target")
    return _run(
        arguments,
        targets,
        destination=default_output(Path(arguments.model)) if arguments.output is None else arguments.output,
        report_folder=arguments.report,
        latency=_latency(arguments, targets),
        sizes=arguments.sizes,
    )


def plan_command(arguments: argparse.Namespace) -> int:
    """Handles ``surgeon plan``."""
    from surgeon.output import default_plan

    plan = default_plan(Path(arguments.model)) if arguments.output is None else arguments.output
    return _run(arguments, _pairs(arguments.target, "--target"), plan_file=plan)


def _run(arguments: argparse.Namespace, targets: dict[str, float], **where: Any) -> int:
    """Runs passes with the options that ``run`` and ``plan`` share."""
    from surgeon import api
    from surgeon.cli.monitor import TerminalMonitor

    with TerminalMonitor() as monitor:
        result = api.run(
            Path(arguments.model),
            arguments.passes,
            target=targets or None,
            max_drop=_number(arguments.max_drop, float, "--max-drop"),
            confidence=_number(arguments.confidence, float, "--confidence"),
            exclude=arguments.exclude,
            clean=False if arguments.no_clean else None,
            sets=arguments.set,
            recipe=arguments.recipe,
            monitor=monitor,
            force=arguments.force,
            **_measuring(arguments),
            **where,
        )
    return _show_run(arguments, result.report)


def apply_command(arguments: argparse.Namespace) -> int:
    """Handles ``surgeon apply``."""
    from surgeon import api
    from surgeon.cli.monitor import TerminalMonitor
    from surgeon.output import default_output

    source = Path(arguments.model)
    with TerminalMonitor() as monitor:
        result = api.apply(
            source,
            arguments.plan,
            destination=default_output(source) if arguments.output is None else arguments.output,
            report_folder=arguments.report,
            latency=_latency(arguments, {}),
            sizes=arguments.sizes,
            monitor=monitor,
            **_measuring(arguments),
        )
    return _show_run(arguments, result.report)


def _measuring(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "data": arguments.data,
        "evaluation": arguments.eval,
        "preprocess": arguments.preprocess,
        "metric": arguments.metric,
        "seed": _number(arguments.seed, int, "--seed"),
        "threads": _number(arguments.threads, int, "--threads"),
        "debug": arguments.debug,
    }


def _latency(arguments: argparse.Namespace, targets: dict[str, float]) -> bool:
    """Whether latency is measured: not for programs that did not ask."""
    asked = not arguments.json or arguments.eval is not None or "latency" in targets
    return asked and not arguments.no_latency


def _show_run(arguments: argparse.Namespace, facts: dict[str, Any]) -> int:
    from surgeon.cli import show

    if arguments.json:
        _write(to_json(facts))
    else:
        show.run(facts)
    return 0


def inspect_command(arguments: argparse.Namespace) -> int:
    """Handles ``surgeon inspect``."""
    from surgeon.cli import show

    graph = _load(arguments.model)
    from surgeon.inspect import inspect, render

    facts = inspect(graph)
    if arguments.json:
        _write(to_json(facts))
    else:
        show.anything(render(facts))
    return 0


def explain_command(arguments: argparse.Namespace) -> int:
    """Handles ``surgeon explain``."""
    from surgeon.cli import show

    graph = _load(arguments.model)
    from surgeon.explain import explain
    from surgeon.wording import render

    answer = explain(graph, arguments.name, arguments.name2)
    if arguments.json:
        _write(to_json(answer))
    else:
        show.anything(render(answer))
    return 0


def bench_command(arguments: argparse.Namespace) -> int:
    """Handles ``surgeon bench``."""
    from surgeon.cli import bench, show

    seconds: float | None = _number(arguments.seconds, float, "--seconds")
    if seconds is not None and (seconds <= 0 or arguments.rounds is not None):
        what = "must be above 0" if seconds <= 0 else "and --rounds exclude each other"
        raise UsageError(what, where="--seconds")
    rounds = bench.MOST_ROUNDS if seconds is not None else bench.Settings.rounds
    settings = bench.Settings(
        threads=_positive(arguments.threads, "--threads"),
        rounds=rounds if arguments.rounds is None else _positive(arguments.rounds, "--rounds"),
        warm_up=_positive(arguments.warm_up, "--warm-up", least=0),
        seconds=seconds,
        batch=_positive(arguments.batch, "--batch"),
        sizes=_sizes(arguments.size),
        data=arguments.data,
        preprocess=arguments.preprocess,
        seed=_positive(arguments.seed, "--seed", least=0),
    )
    facts = bench.measure([Path(model) for model in arguments.models], settings)
    if arguments.json:
        _write(to_json(facts))
    else:
        show.bench(facts)
    return 0


def size_command(arguments: argparse.Namespace) -> int:
    """Handles ``surgeon size``."""
    from surgeon import api
    from surgeon.cli import show
    from surgeon.cli.monitor import TerminalMonitor

    _warn_of_rules()
    with TerminalMonitor() as monitor:
        rows = [{"model": model, **api.size(model, monitor=monitor).to_json()} for model in arguments.models]
    if arguments.json:
        _write(to_json({"schema": 1, "models": rows}))
    else:
        show.sizes(rows, tensors=arguments.tensors)
    return 0


def verify_command(arguments: argparse.Namespace) -> int:
    """Handles ``surgeon verify``; a certificate that does not hold is exit code 1."""
    from surgeon.cli import show
    from surgeon.replay import verify_files

    _warn_of_rules()
    facts = verify_files(Path(arguments.before), Path(arguments.after), Path(arguments.plan)).to_json()
    if arguments.json:
        _write(to_json(facts))
    else:
        show.verified(facts)
    return 0


def passes_command(arguments: argparse.Namespace) -> int:
    """Handles ``surgeon passes``."""
    from surgeon.cli import catalogue, show

    facts = catalogue.describe_one(arguments.name) if arguments.name else catalogue.describe_all()
    if arguments.json:
        _write(to_json({"schema": 1, "passes": [facts] if isinstance(facts, dict) else facts}))
    elif isinstance(facts, dict):
        show.one_pass(facts)
    else:
        show.passes(facts)
    return 0


def _write(text: str) -> None:
    sys.stdout.write(text + "\n")


def _load(path: str) -> Any:
    from surgeon.api import load

    _warn_of_rules()
    return load(path)


def _warn_of_rules() -> None:
    from surgeon.plugins import load_rules

    load_rules(print_warning)


def print_warning(text: str) -> None:
    """Shows one warning line on stderr."""
    sys.stderr.write(f"surgeon: warning: {' '.join(text.split())}\n")


def _pairs(texts: list[str], flag: str) -> dict[str, float]:
    """Reads repeated ``key=value`` texts; the values are checked where targets are."""
    pairs: dict[str, Any] = {}
    for text in (part for each in texts for part in each.split(",")):
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"expected key=fraction, got {text!r}", where=flag)
        if key.strip() in pairs:
            raise UsageError("given twice", where=f"{flag} {key.strip()}")
        pairs[key.strip()] = value.strip()
    return pairs


def _sizes(texts: list[str]) -> dict[str, int]:
    """Reads repeated ``dimension=size`` texts."""
    sizes = {}
    for text in texts:
        name, equals, value = text.rpartition("=")
        if not equals or not name:
            raise UsageError(f"expected dimension=size, got {text!r}", where="--size")
        sizes[name] = _positive(value, f"--size {name}")
    return sizes


def _number(text: str | None, kind: type[Any], flag: str) -> Any:
    return None if text is None else coerce(Bare(text), kind, flag)


def _positive(text: str, flag: str, least: int = 1) -> int:
    number: int = coerce(Bare(text), int, flag)
    if number < least:
        raise UsageError(f"must be at least {least}, got {number}", where=flag)
    return number
