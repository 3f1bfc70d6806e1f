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
    from surgeon import api
    from surgeon.cli import show
    from surgeon.cli.monitor import TerminalMonitor
    from surgeon.output import default_output

    source = Path(arguments.model)
    targets = _pairs(arguments.target, "--target")
    latency = not arguments.no_latency and (
        not arguments.json or arguments.eval is not None or "latency" in targets
    )
    with TerminalMonitor() as monitor:
        result = api.run(
            source,
            arguments.passes,
            data=arguments.data,
            evaluation=arguments.eval,
            preprocess=arguments.preprocess,
            metric=arguments.metric,
            target=targets or None,
            max_drop=_number(arguments.max_drop, float, "--max-drop"),
            confidence=_number(arguments.confidence, float, "--confidence"),
            exclude=arguments.exclude,
            seed=_number(arguments.seed, int, "--seed"),
            threads=_number(arguments.threads, int, "--threads"),
            clean=False if arguments.no_clean else None,
            sets=arguments.set,
            recipe=arguments.recipe,
            destination=default_output(source) if arguments.output is None else arguments.output,
            report_folder=arguments.report,
            latency=latency,
            monitor=monitor,
            debug=arguments.debug,
            force=arguments.force,
            sizes=arguments.sizes,
        )
    if arguments.json:
        _write(to_json(result.report))
    else:
        show.run(result.report)
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
