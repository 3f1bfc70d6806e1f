"""Prints what 8 bits do to pretrained models, quantized by surgeon and by others, as Markdown, row by row.

    SURGEON_SHARED=FOLDER python tests/benchmarks/quantization.py [--models PATTERNS] [--columns PATTERNS] [--cache FILE]

Every quantizer gets the same calibration samples and is judged on the same held-out ones: the task's figure, the cosine
of the outputs with the original's, size and time against the original, and what onnxruntime runs of it in integers. Each
runs in a process of its own with a time limit; one without a result is a row that says why. With --cache every row is written
down when it is finished, under the version of what made it, and a second call goes on where the first one was stopped.
NNCF takes part where it can be imported, here or by the interpreter that --nncf-python names.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import together
from accuracy import matches
from pretrained import Task, tasks
from quantized import FLOAT, RIVALS, SURGEON, Cell, Cells, Settings, cell, columns_of, drop, scale_of

HEADS = ["model", "task", "float", "quantizer", "result", "drop", "cosine", "bytes ×", "latency ×", "integer"]
HEADS += ["conversions", "seconds", "MB"]
# what two equal results may differ by
LATENCY_NOISE, SIZE_NOISE = 1.05, 1.01
Row = dict[str, Any]


def row_of(task: Task, column: str, dense: Cell, found: Cell) -> Row:
    """One row as facts: figures in the unit they are shown in, ratios against the original."""
    scale = scale_of(task)
    row: Row = {"model": task.model, "task": task.unit, "quantizer": column, "float": None}
    if dense["metric"] is not None:
        row["float"] = dense["metric"] * scale.factor
    row |= {name: found[name] for name in ("seconds", "peak_mb", "samples")}
    if "why" in found:
        return row | {"why": found["why"]}
    if dense["metric"] is not None:
        row |= {
            "result": found["metric"] * scale.factor,
            "drop": drop(task, dense["metric"], found["metric"]),
        }
    names = ("cosine", "integer", "products", "conversions", "notes")
    row |= {name: found[name] for name in names}
    return row | {"bytes": found["bytes"] / dense["bytes"], "latency": found["latency"]["ratio"]}


def line_of(task: Task, row: Row) -> str:
    """One row as Markdown."""
    digits = scale_of(task).digits

    def shown(name: str, form: str) -> str:
        value = row.get(name)
        return "–" if value is None else format(value, form)

    figure = f".{digits}f"
    texts = [row["model"], row["task"] or "–", shown("float", figure), row["quantizer"]]
    if "why" in row:
        texts += ["none", *["–"] * 6]
    else:
        texts += [shown("result", figure), shown("drop", f"+{figure}"), shown("cosine", ".5f")]
        texts += [shown("bytes", ".3f"), shown("latency", ".2f"), f"{row['integer']} of {row['products']}"]
        texts.append(shown("conversions", "d"))
    return f"| {' | '.join([*texts, shown('seconds', '.0f'), shown('peak_mb', 'd')])} |"


def remarks(rows: Sequence[Row]) -> Iterator[str]:
    """Why there is no result, and what had to be done to get there."""
    for row in rows:
        if "why" in row:
            yield f"- {row['model']}, {row['quantizer']}: {row['why']}"
        for note in row.get("notes", []):
            yield f"- {row['model']}, {row['quantizer']}: {note}"


def behind(rows: Sequence[Row], ours: str = SURGEON) -> Iterator[str]:
    """Where another quantizer does better than ours: the best other one, for accuracy, time and size."""
    mine = {row["model"]: row for row in rows if row["quantizer"] == ours}
    for model, row in mine.items():
        others = [each for each in rows if each["model"] == model and each["quantizer"] != ours]
        others = [each for each in others if "why" not in each]
        if not others:
            continue
        if "why" in row:  # which is right where nobody is faster than the original
            faster = [each["quantizer"] for each in others if each["latency"] * LATENCY_NOISE < 1]
            if faster:
                yield f"- {model}: nothing from {ours}; faster than the original: {', '.join(faster)}"
            continue
        if row.get("drop") is not None:
            best = min(others, key=lambda each: each["drop"])
            if best["drop"] < row["drop"]:
                yield f"- {model}, drop: {row['drop']:+.2f}, {best['quantizer']} {best['drop']:+.2f}"
        best = max(others, key=lambda each: each["cosine"])
        if row.get("drop") is None and best["cosine"] > row["cosine"]:
            yield f"- {model}, cosine: {row['cosine']:.5f}, {best['quantizer']} {best['cosine']:.5f}"
        for name, noise in (("latency", LATENCY_NOISE), ("bytes", SIZE_NOISE)):
            best = min(others, key=itemgetter(name))
            if best[name] * noise < row[name]:
                yield f"- {model}, {name}: × {row[name]:.3f}, {best['quantizer']} × {best[name]:.3f}"


def table(
    chosen: Sequence[Task], columns: Sequence[str], settings: Settings, cells: Cells, rows: list[Row]
) -> Iterator[str]:
    """The lines of the table, as they are finished; ``rows`` collects their facts."""
    yield f"\nInt8 after training, up to {settings.samples} calibration samples, draw {settings.draw}\n"
    yield f"| {' | '.join(HEADS)} |\n|{'---|' * len(HEADS)}"
    for task in chosen:
        dense = cell(task, FLOAT, settings, cells)
        for column in columns_of(task, list(columns)):
            rows.append(row_of(task, column, dense, cell(task, column, settings, cells)))
            yield line_of(task, rows[-1])
    for title, lines in (("Remarks", list(remarks(rows))), ("Behind another", list(behind(rows)))):
        if lines:
            yield f"\n{title}\n\n" + "\n".join(lines)


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--models", default="*", help="pattern of model names; several, separated by commas")
    parser.add_argument(
        "--columns", default="*", help=f"patterns of quantizers: {', '.join((SURGEON, *RIVALS))}; with commas"
    )
    parser.add_argument(
        "--passes",
        action="append",
        default=[],
        metavar="P1,P2",
        help=f"a further column: other passes of surgeon than those of the column {SURGEON}; repeatable",
    )
    parser.add_argument("--samples", type=int, default=Settings.samples, help="default %(default)s")
    parser.add_argument("--draw", type=int, default=Settings.draw, help="other calibration samples for each")
    parser.add_argument("--timeout", type=float, default=Settings.timeout, help="seconds for a quantizer")
    parser.add_argument("--nncf-python", type=Path, help="an interpreter that can import NNCF")
    parser.add_argument("--cache", type=Path, help="a JSON file that keeps finished rows")
    parser.add_argument("--keep", type=Path, help="a folder to keep quantized models in")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of Markdown")
    parser.add_argument("--together", action="store_true", help="also prune and quantize in one run")
    return parser.parse_args()


def settings_of(asked: argparse.Namespace) -> Settings:
    """The settings that the command line asks for."""
    python = asked.nncf_python
    if python is None and importlib.util.find_spec("nncf") is not None:
        python = Path(sys.executable)
    passes = {SURGEON: "quantize"} | {f"{SURGEON} {chain}": chain for chain in asked.passes}
    return Settings(asked.samples, asked.timeout, python, passes, asked.keep, draw=asked.draw)


def columns_asked(patterns: str, settings: Settings) -> list[str]:
    """The columns to fill: all that match and can be filled."""
    rivals = [name for name in RIVALS if settings.nncf_python is not None or not name.startswith("nncf")]
    return [name for name in (*rivals, *settings.passes) if matches(name, patterns)]


def main() -> None:
    """Prints the tables."""
    asked = arguments()
    settings, cells = settings_of(asked), Cells(asked.cache)
    rows: list[Row] = []
    chosen = [task for task in tasks() if matches(task.model, asked.models)]
    lines = table(chosen, columns_asked(asked.columns, settings), settings, cells, rows)
    joint: list[Row] = []
    further = together.table(chosen, settings, cells, joint) if asked.together else iter(())
    for part in (lines, further):
        for line in part:
            print(line, file=sys.stderr if asked.json else sys.stdout, flush=True)
    if asked.json:
        print(json.dumps({"quantize": rows, "together": joint}, indent=1))


if __name__ == "__main__":
    main()
