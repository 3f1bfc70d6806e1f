"""The report of a run: one JSON object, and the same as Markdown for people."""

from __future__ import annotations

import json
import math
import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from typing import Any, TypeAlias

SCHEMA = 1
Table: TypeAlias = tuple[tuple[str, ...], list[tuple[str, ...]]]  # the head, and the rows
NO_GROUPS: dict[str, Any] = {"total": 0, "cut": 0, "whole": []}
NO_CERTIFICATE: dict[str, Any] = {"status": "none", "max_rel_err": None, "probes": 0}


def to_json(value: object) -> str:
    """Writes a value as strict JSON: numpy scalars and arrays become numbers and lists, nan and inf become null."""
    return json.dumps(plain(value), ensure_ascii=False, allow_nan=False)


def plain(value: object) -> Any:
    """Reduces a value to what JSON knows."""
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return [plain(item) for item in sorted(value, key=str)]
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy, without importing it
        return plain(value.tolist())
    return str(value)


def versions() -> dict[str, str]:
    """Returns the versions a result depends on."""
    found = {"python": platform.python_version()}
    for name in ("onnx-surgeon", "onnx", "onnxruntime", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def reasons(groups: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Counts why groups were left whole, the most frequent reason first."""
    counted = Counter(str(entry.get("reason")) for entry in groups.get("whole", ()))
    return sorted(counted.items(), key=lambda item: (-item[1], item[0]))


def rows(report: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Returns the before/after table as text: figure, before, after, change."""
    before, after = report["before"], report["after"]
    metric = report.get("metric") or {}
    wanted = (
        ("parameters", "params", amount),
        ("MACs", "macs", amount),
        ("bytes", "bytes", byte_amount),
        ("latency", "latency_ms", lambda value: f"{value:.3g} ms"),
        ("gzip", "gzip_bytes", byte_amount),
        ("zstd", "zstd_bytes", byte_amount),
        ("non-zero weights", "nonzeros", amount),
        ("distinct values", "distinct_values", amount),
        (str(metric.get("name", "metric")), "metric", lambda value: f"{value:.4f}"),
    )
    table = []
    for label, key, show in wanted:
        old, new = before.get(key), after.get(key)
        if old is None or new is None:
            continue
        change = f"{new - old:+.4f}" if key == "metric" else f"× {new / old:.3f}" if old else ""
        table.append((label, show(old), show(new), change))
    return table


def budgets(report: Mapping[str, Any]) -> list[Table]:
    """Returns the head and the rows of each trade-off curve that was measured, the smallest model first."""
    found = [each["budget"] for each in report["passes"] if each.get("budget")]
    return [_curve(budget, report) for budget in found]


def _curve(budget: Mapping[str, Any], report: Mapping[str, Any]) -> Table:
    before, later = report["before"], budget.get("judged_after")
    head = ("asked", "MACs", "parameters", str(budget["metric"]), "change", "")
    table: list[tuple[str, ...]] = []
    for point in budget["curve"]:
        said = "within" if point["within"] else _too_much(budget, point, report)
        if point["taken"]:
            said = "taken"
        elif point["quick"]:
            said = f"{said} (quick refit)"
        table.append(
            (
                f"{budget['by']}={point['asked']:g}",
                amount(point["macs"]),
                amount(point["params"]),
                *_change(budget["before"], point["metric"]),
                f"{said}, {byte_amount(point['bytes'])} after {', '.join(later)}" if later else said,
            )
        )
    first = (
        amount(before["macs"]),
        amount(before["params"]),
        *_change(budget["before"], budget["before"])[:1],
    )
    return head, [*table, ("", *first, "", "original")]


def controls(report: Mapping[str, Any]) -> list[Table]:
    """Returns the head and the rows of each search for operators that stay float, in the order of measuring."""
    found = [each["control"] for each in report["passes"] if each.get("control")]
    tables: list[Table] = []
    for control in found:
        head = ("operators in float", "bytes", str(control["metric"]), "change", "")
        rows: list[tuple[str, ...]] = []
        kept = sorted(entry["node"] for entry in control["float"])
        for point in control["curve"]:
            said = "within" if point["within"] else _too_much(control, point, report)
            if point["float"] is not None and point["nodes"] == kept:
                said = "taken" if point["within"] else f"taken, {said}"
            number = "all, as it came" if point["float"] is None else str(point["float"])
            rows.append(
                (number, byte_amount(point["bytes"]), *_change(control["before"], point["metric"]), said)
            )
        tables.append((head, rows))
    return tables


def _too_much(budget: Mapping[str, Any], point: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """Says of a point that is not within its budget whether what was measured is, without certainty."""
    if point["metric"] is None:
        return "costs too much"
    loss = budget["before"] - point["metric"]
    higher = (report.get("metric") or {}).get("higher_is_better", True)
    return "not for sure" if (loss if higher else -loss) <= budget["max_drop"] else "costs too much"


def _change(old: float | None, new: float | None) -> tuple[str, str]:
    if old is None or new is None:  # what is no number is null in JSON
        return "-", "-"
    return f"{new:.4f}", f"{new - old:+.4f}"


def sentences(report: Mapping[str, Any], limit: int = 6) -> list[str]:
    """Says what was cut, what was left whole and why, and what was proved."""
    groups, certificate = report["groups"], report["certificate"]
    lines = []
    if groups["total"]:
        lines.append(f"cut {groups['cut']} of {groups['total']} channel groups")
        why = reasons(groups)
        lines += [f"left whole: {count} × {reason}" for reason, count in why[:limit]]
        if len(why) > limit:
            lines.append(
                f"left whole: {sum(count for _, count in why[limit:])} × other reasons, see the report"
            )
    lines.append(certificate_sentence(certificate))
    return lines


def markdown(report: Mapping[str, Any]) -> str:
    """Writes the report for people."""
    lines = [f"# {report['model']} → {report['output']}", ""]
    lines += _table(("", "before", "after", "change"), rows(report))
    lines += ["", *(f"- {line}" for line in sentences(report, limit=50)), "", "## Passes", ""]
    passes = [
        (each["name"], f"{each['seconds']:.2f} s", _options(each.get("options", {})))
        for each in report["passes"]
    ]
    lines += _table(("pass", "time", "options"), passes)
    for head, body in budgets(report):
        lines += ["", "## Accuracy budget", "", *_table(head, body)]
    for head, body in controls(report):
        lines += ["", "## Accuracy control", "", *_table(head, body)]
    kept = [entry for each in report["passes"] for entry in each.get("left_float", ())]
    if kept:
        named = ((str(e["node"]), str(e["operator"]), str(e["reason"])) for e in kept)
        lines += ["", "## Left in float", "", *_table(("node", "operator", "why"), named)]
    if report.get("warnings"):
        lines += ["", "## Warnings", "", *(f"- {text}" for text in report["warnings"])]
    lines += ["", f"Took {report['seconds']:.1f} s. Versions: {_pairs(report.get('versions', {}))}.", ""]
    return "\n".join(lines)


def certificate_sentence(certificate: Mapping[str, Any]) -> str:
    """Says in words what a certificate proves."""
    error, probes = certificate.get("max_rel_err"), certificate.get("probes", 0)
    measured = f", largest relative error {error:.1e} on {probes} probes" if error is not None else ""
    return {
        "exact": f"proved: equal to the masked original{measured}",
        "structural": f"structural only: runs, but some cuts cannot equal the masked original{measured}",
    }.get(str(certificate.get("status")), "no cut to prove")


def output_sentence(output: Mapping[str, Any]) -> str:
    """Says in words how a model file compares with the cut its plan describes."""
    error = output.get("max_rel_err")
    if output.get("weights") == "original":
        return f"the file holds exactly that cut: original weights, relative error {error or 0:.1e}"
    measured = f" (outputs differ by up to {error:.1e})" if error is not None else ""
    return f"the file has that cut's interface and the shapes of its weights, with other values{measured}: only structure was checked"


def _table(head: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    escaped = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in body]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *escaped)]


def _options(options: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items())


def _pairs(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def amount(value: float) -> str:
    """Words a count: 25.56 M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.2f} {unit}"
    return f"{value:g}"


def byte_amount(value: float) -> str:
    """Words a number of bytes: 12.53 MB."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= limit:
            return f"{value / limit:.2f} {unit}"
    return f"{value:g} B"
