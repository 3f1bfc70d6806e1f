"""What people see on stdout: tables and sentences; JSON does not come through here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from surgeon import report
from surgeon.syntax import format_value


def run(facts: Mapping[str, Any]) -> None:
    """Shows the outcome of a run."""
    console = _console()
    table = _table("", "before", "after", "change", right=(1, 2, 3))
    for row in report.rows(facts):
        table.add_row(*map(escape, row))
    console.print(table)
    for sentence in report.sentences(facts):
        console.print(sentence, markup=False, highlight=False)
    for head, body in report.budgets(facts):
        curve = _table(*head, right=(1, 2, 3, 4))
        for point in body:
            curve.add_row(*map(escape, point))
        console.print(curve)
    for head, body in report.controls(facts):
        if len(body) > 1:
            mixes = _table(*head, right=(0, 1, 2, 3))
            for point in body:
                mixes.add_row(*map(escape, point))
            console.print(mixes)
    files = [file for file in (facts["output"], *facts["files"].values()) if file]
    console.print(
        f"wrote {', '.join(map(str, files))} in {facts['seconds']:.1f} s", markup=False, highlight=False
    )


def bench(facts: Mapping[str, Any]) -> None:
    """Shows latencies side by side."""
    table = _table(
        "model", "median", "p10", "p90", "of the first", "p10 … p90", "speed-up", right=(1, 2, 3, 4, 5, 6)
    )
    for row in facts["models"]:
        times = [f"{row[key]:.3g} ms" for key in ("median_ms", "p10_ms", "p90_ms")]
        speedup = f"{row['speedup']:.2f} ×" if row["speedup"] else "-"
        spread = f"{row['ratio_p10']:.3f} … {row['ratio_p90']:.3f}"
        table.add_row(escape(row["model"]), *times, f"{row['ratio']:.3f}", spread, speedup)
    console = _console()
    console.print(table)
    console.print(
        f"{facts['rounds']} rounds in turns, {facts['threads']} thread{'s' * (facts['threads'] > 1)}, "
        f"{facts['clock']} time"
    )


def sizes(models: Sequence[Mapping[str, Any]], *, tensors: bool) -> None:
    """Shows what models take, a row for each, and with ``tensors`` what each of their weights takes."""
    heads = ("bytes", "gzip", "zstd", "params", "non-zero", "zero", "distinct", "MACs")
    table = _table("model", *heads, right=range(1, 9))
    for column in table.columns[1:]:
        column.no_wrap = True
    names = [Path(row["model"]).name for row in models]
    shown = names if len(set(names)) == len(names) else [row["model"] for row in models]
    for name, row in zip(shown, models, strict=True):
        table.add_row(
            escape(name),
            *(report.byte_amount(row[key]) for key in ("bytes", "gzip_bytes", "zstd_bytes")),
            report.amount(row["params"]),
            report.amount(row["nonzeros"]),
            f"{row['weights']['sparsity']:.1%}",
            str(row["distinct_values"]),
            report.amount(row["macs"]),
        )
    console = _console()
    console.print(table)
    for row in models if tensors else ():
        console.print()
        console.print(_weights(row))


def _weights(model: Mapping[str, Any]) -> Table:
    """What every weight of a model takes, and all together."""
    heads = ("bytes", "gzip", "numbers", "zero", "distinct")
    table = _table(f"weights of {escape(model['model'])}", *heads, right=range(1, 6))
    for each in (*model["tensors"], {"name": "total", **model["weights"]}):
        table.add_row(
            escape(each["name"]),
            *(report.byte_amount(each[key]) for key in ("bytes", "gzip_bytes")),
            report.amount(each["elements"]),
            f"{each['sparsity']:.1%}",
            str(each["distinct_values"]),
        )
    return table


def verified(facts: Mapping[str, Any]) -> None:
    """Shows what a check of a certificate found."""
    anything(report.certificate_sentence(facts["certificate"]))
    anything(report.output_sentence(facts["output"]))


def passes(described: Sequence[Mapping[str, Any]]) -> None:
    """Shows the installed passes."""
    table = _table("pass", "what it does", "options", "from")
    console = _console()
    for each in described:
        if "error" not in each:
            options = ", ".join(option["name"] for option in each["options"])
            origin = f"{each['distribution']} {each['version']}"
            table.add_row(*map(escape, (each["name"], each["summary"], options, origin)))
    console.print(table)
    for each in described:
        if "error" in each:
            console.print(f"broken: {each['name']}: {each['error']}", markup=False, highlight=False)


def one_pass(described: Mapping[str, Any]) -> None:
    """Shows one pass in full."""
    console = _console()
    origin = f"{described['distribution']} {described['version']}"
    console.print(f"{described['name']}, from {origin}", markup=False, highlight=False)
    for text in (described["summary"], described["details"]):
        if text:
            console.print(text, markup=False, highlight=False)
    for fact in ("requires", "ensures", "removes"):
        if described[fact]:
            console.print(f"{fact}: {', '.join(described[fact])}", markup=False, highlight=False)
    table = _table("option", "type", "default", "meaning")
    for option in described["options"]:
        default = "must be given" if option["required"] else format_value(option["default"])
        table.add_row(*map(escape, (option["name"], option["type"], default, option["doc"])))
    if described["options"]:
        console.print(table)


def anything(content: Any) -> None:
    """Shows a rich renderable, or text as it is."""
    console = _console()
    if isinstance(content, str):
        console.print(content, markup=False, highlight=False, soft_wrap=True)
    else:
        console.print(content)


def _console() -> Console:
    return Console()


def _table(*heads: str, right: Sequence[int] = ()) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, head in enumerate(heads):
        table.add_column(head, justify="right" if index in right else "left", overflow="fold")
    return table
