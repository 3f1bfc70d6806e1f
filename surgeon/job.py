"""One run from a model file to a smaller one: load, transform, measure, judge, write."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon import measure, output, report
from surgeon.errors import GateError, UsageError
from surgeon.passes import Context, Graph, Monitor
from surgeon.pipeline import Outcome, check_facts, run_passes
from surgeon.plugins import load_rules
from surgeon.recipe import Recipe, with_absolute_data, write

if TYPE_CHECKING:
    from surgeon.plan import Plan
    from surgeon.stats.data import Dataset
    from surgeon.stats.metrics import Metric
    from surgeon.trace import Traced

HELD_OUT = 0.1


@dataclass(frozen=True)
class Job:
    """Everything one run needs to know.

    Attributes:
        source: The model file.
        recipe: Passes and settings, resolved.
        destination: Where the files go, or None to keep the result in memory.
        plan_file: Where a plan of the file by its own names goes; None: nowhere.
        data: Calibration data that are already open, instead of the recipe's.
        evaluation: Evaluation data that are already open, instead of the recipe's.
        threads: Threads for onnxruntime.
        latency: Whether to measure latency.
        latency_threads: Threads while latency is measured; 1 gives the steadiest ratios.
        monitor: Where warnings and progress go.
        debug: Whether every pass's result is loaded in onnxruntime.
        label: The model's name in the report.
        force: Whether a quantized model is written although it is slower than the original.
        sizes: Whether to measure compressed sizes, zeros and different values, even if no pass asks for it.
    """

    source: Path
    recipe: Recipe
    monitor: Monitor
    label: str
    destination: output.Destination | None = None
    plan_file: Path | None = None
    data: Dataset | None = None
    evaluation: Dataset | None = None
    threads: int = 1
    latency: bool = True
    latency_threads: int = 1
    debug: bool = False
    force: bool = False
    sizes: bool = False

    @property
    def folder(self) -> Path | None:
        """The folder that is written to; None where nothing is."""
        file = self.destination.model if self.destination is not None else self.plan_file
        return None if file is None else file.absolute().parent


@dataclass
class Finished:
    """What a run gives back."""

    graph: Graph
    report: dict[str, Any]
    recipe: Recipe
    plan: Plan | None = None


@dataclass
class _Judged:
    before: measure.Figures
    after: measure.Figures
    nodes: int
    targets: dict[str, Any] = field(default_factory=dict)


def execute(job: Job) -> Finished:
    """Runs a job.

    Raises:
        SurgeonError: Something was wrong or a gate was not met; nothing has been written then.
    """
    import numpy as np  # noqa: F401 - only libraries that are loaded are limited, and scipy has one of its own
    import scipy.linalg  # noqa: F401
    from threadpoolctl import threadpool_limits

    from surgeon.graph.collecting import seldom_collected
    from surgeon.stats.blocks import workers

    # BLAS on several threads waits for onnxruntime's, and for those of any other process: the small products of the
    # closed forms took 10 to 60 times as long with two threads as with one, and only the largest ones gain from them
    with seldom_collected(), threadpool_limits(1, user_api="blas"), workers(job.threads):
        return _execute(job)


def _execute(job: Job) -> Finished:
    from surgeon.graph.load import load
    from surgeon.plan import Plan
    from surgeon.trace import trace

    started = time.perf_counter()
    if job.destination is not None:
        output.check(job.destination, job.source)
    if job.plan_file is not None:
        output.check_file(job.plan_file, job.source)
    if job.recipe.settings.metric is not None:
        _find_metric(job.recipe.settings.metric)
    graph = load(job.source)
    check_facts(job.recipe.passes, graph)
    context = _context(job, graph)
    metric = _metric(job, context, graph)
    if metric is not None:
        measure.try_metric(job.source, metric, context)
    load_rules(context.warn)
    original = measure.figures(graph, measure.file_bytes(job.source, graph))
    outcome = run_passes(graph, job.recipe.passes, context, debug=job.debug)
    _check_something_happened(job, outcome, context)
    _store_as_before(graph, outcome, context)
    traced = trace(graph, outcome, context)
    plan = traced.plan if traced is not None else None
    texts = {} if job.plan_file is None else {job.plan_file: _by_name(job, traced).to_text()}
    with output.staging(job.folder) as staged:
        model = _save(job, outcome.graph, staged)
        size = sum(path.stat().st_size for path in model.parent.iterdir())
        judged = _Judged(original, measure.figures(outcome.graph, size), len(outcome.graph.nodes))
        judged = _judge(job, context, metric, model, judged)
        if job.sizes or any(each.sizes for each in job.recipe.passes):
            _measure_sizes(job, context, graph, outcome.graph, model, judged)
        facts = _report(job, context, metric, outcome, judged)
        facts["seconds"] = time.perf_counter() - started
        if job.destination is not None:
            if job.destination.summary is not None:
                # first: its folder may be on another disk, and that may fail
                texts[job.destination.summary] = report.markdown(facts)
            texts[job.destination.report] = report.to_json(facts) + "\n"
            texts[job.destination.recipe] = write(with_absolute_data(job.recipe))
            texts[job.destination.plan] = (plan or Plan(context.model_sha256, groups=())).to_text()
        _write(job.destination, staged, model, texts)
    return Finished(outcome.graph, facts, job.recipe, plan)


def _context(job: Job, graph: Graph) -> Context:
    """Opens the data and gathers what passes may ask for."""
    from surgeon.graph.source import source_of
    from surgeon.stats.data import open_data

    settings, inputs, source = job.recipe.settings, measure.inputs_of(graph), source_of(graph)
    data, evaluation = job.data, job.evaluation
    if data is None and settings.data is not None:
        data = open_data(settings.data, inputs, settings.preprocess)
    if evaluation is None and settings.evaluation is not None:
        evaluation = open_data(settings.evaluation, inputs, settings.preprocess)
    if evaluation is None and data is not None:
        measured = data.has_labels or settings.max_drop is not None  # without labels: agreement
        if measured and data.total() >= 2:
            data, evaluation = data.split(HELD_OUT, settings.seed)
    context = Context(
        source_path=job.source,
        model_sha256=source.sha256 if source else "",
        inputs=inputs,
        data=data,
        evaluation=evaluation,
        max_drop=settings.max_drop,
        confidence=settings.confidence,
        targets=settings.target,
        exclude=settings.exclude,
        seed=settings.seed,
        threads=job.threads,
        preprocess=settings.preprocess,
        scratch=job.folder,
        monitor=job.monitor,
    )
    _check_patterns(context, graph)
    return context


def _store_as_before(graph: Graph, outcome: Outcome, context: Context) -> None:
    """What the file stores as indices and a table is stored so again, where it has few values still."""
    from surgeon.graph.copy import copy_of
    from surgeon.graph.source import source_of
    from surgeon.stats.encode import encode_again

    source = source_of(graph)
    if source is None or not source.encoded:
        return
    outcome.graph = copy_of(outcome.graph)
    more = encode_again(outcome.graph, source.encoded)
    if more:
        context.warn(
            f"{len(more)} weights that the file stores as indices and a table have too many values for that now, and are stored as floats; "
            f"the first: {more[0]}"
        )


def _check_patterns(context: Context, graph: Graph) -> None:
    """Refuses exclusions that exclude nothing: they are misspelt, and silence would cut what must stay."""
    from surgeon.names import misspelt, names_known, pattern_of
    from surgeon.suggest import did_you_mean

    names = names_known(graph, context.kept)
    if (pattern := misspelt(context.exclude, names)) is not None:
        raise UsageError(
            "matches no node and no tensor",
            where=f"--exclude {pattern}",
            hint=did_you_mean(pattern, map(pattern_of, names)),
        )


def _find_metric(name: str) -> Metric:
    from surgeon.stats.metrics import find_metric

    return find_metric(name)


def _metric(job: Job, context: Context, graph: Graph) -> Metric | None:
    """Chooses the metric; None where there is nothing to evaluate on."""
    settings = job.recipe.settings
    if context.evaluation is None:
        if settings.max_drop is not None:
            hint = "give --eval, or --data of which a tenth can be held out"
            raise UsageError("needs data to measure accuracy on", where="--max-drop", hint=hint)
        return None
    labelled = context.evaluation.has_labels
    metric = _find_metric(settings.metric or ("top1" if labelled else "agreement"))
    if metric.against == "labels" and not labelled:
        hint = "add labels to the data, or take --metric agreement or cosine"
        raise UsageError(
            "needs labels, and the evaluation data have none", where=f"--metric {metric.name}", hint=hint
        )
    if settings.max_drop is not None and metric.name == "agreement" and not measure.decides(graph):
        hint = "take --metric mse or cosine, or a function of your own as file.py:function"
        raise UsageError(
            "always agrees: the first output is one number, and no choice between several",
            where="--metric agreement",
            hint=hint,
        )
    context.metric = metric.name
    return metric


def _check_something_happened(job: Job, outcome: Outcome, context: Context) -> None:
    """Raises GateError when no pass that was asked for changed anything."""
    asked = [each for each in outcome.passes if each["name"] != "clean"] or outcome.passes
    if any(each["changed"] for each in asked):
        return
    message = f"nothing to do: {' and '.join(str(each['name']) for each in asked)} changed nothing"
    if not any("prunable" in each.requires for each in job.recipe.passes):
        warned = "; ".join(context.warnings)
        raise GateError(message, where=job.label, hint=f"warnings of the run: {warned}" if warned else None)
    groups = outcome.groups or report.NO_GROUPS
    why = report.reasons(groups)
    if groups["total"]:
        message += f"; none of {groups['total']} channel groups could be cut"
    if why:
        message += ", mostly because: " + "; ".join(f"{reason} ({count} ×)" for reason, count in why[:3])
    raise GateError(message, where=job.label, hint="surgeon inspect lists every group and what pins it")


def _save(job: Job, graph: Graph, staged: output.Staging) -> Path:
    from surgeon.graph.save import save

    folder = staged.folder / "model"
    folder.mkdir()
    model = folder / (job.destination.model.name if job.destination else "result.onnx")
    save(graph, model)
    return model


def _judge(job: Job, context: Context, metric: Metric | None, model: Path, judged: _Judged) -> _Judged:
    """Loads, runs and measures the result, and checks every gate."""
    measure.check_loads(model, job.source, context, judged.nodes)
    if metric is not None:
        with context.progress("evaluate"):
            scores = measure.measure_metric(job.source, model, metric, context)
        judged.before.metric, judged.after.metric = scores
    times = None
    if not job.force and any("qdq" in each.ensures for each in job.recipe.passes):
        with context.progress("measure speed"):
            hints = [hint for each in job.recipe.passes if (hint := each.if_slow())]
            times = measure.check_speed(job.source, model, context, job.latency_threads, hints=hints)
    if times is None and (job.latency or "latency" in context.targets):
        times = measure.measure_latency(job.source, model, context, job.latency_threads)
    if times is not None:
        judged.before.latency_ms, judged.after.latency_ms = times
    judged.targets = measure.check_gates(judged.before, judged.after, context, metric)
    return judged


def _measure_sizes(
    job: Job, context: Context, before: Graph, after: Graph, model: Path, judged: _Judged
) -> None:
    from surgeon.sizes import files_of

    with context.progress("measure sizes"):
        measure.add_sizes(judged.before, before, files_of(job.source, before))
        measure.add_sizes(judged.after, after, sorted(model.parent.iterdir()))


def _report(
    job: Job, context: Context, metric: Metric | None, outcome: Outcome, judged: _Judged
) -> dict[str, Any]:
    destination = job.destination
    files = {}
    if destination is not None:
        files = {"plan": destination.plan, "recipe": destination.recipe, "report": destination.report}
        if destination.summary is not None:
            files["summary"] = destination.summary
    elif job.plan_file is not None:
        files = {"plan": job.plan_file}
    facts = {
        "schema": report.SCHEMA,
        "model": job.label,
        "output": str(destination.model) if destination else None,
        "model_sha256": context.model_sha256,
        "seconds": 0.0,
        "before": vars(judged.before),
        "after": vars(judged.after),
        "passes": outcome.passes,
        "groups": outcome.groups or report.NO_GROUPS,
        "certificate": outcome.certificate or report.NO_CERTIFICATE,
        "metric": None
        if metric is None
        else {"name": metric.name, "higher_is_better": metric.higher_is_better},
        "targets": {
            key: {"asked": context.targets[key], "reached": value} for key, value in judged.targets.items()
        },
        "warnings": context.warnings,
        "seed": context.seed,
        "files": {name: str(path) for name, path in files.items()},
        "versions": report.versions(),
    }
    plain: dict[str, Any] = report.plain(facts)
    return plain


def _by_name(job: Job, traced: Traced | None) -> Plan:
    """The plan of the file itself.

    Raises:
        GateError: There is none.
    """
    if traced is None:
        raise GateError("nothing to plan: no channel was cut, and no weight made sparse", where=job.label)
    if traced.by_name is None:
        raise GateError(str(traced.why_not), where=job.label, hint="make the plan with --no-clean")
    return traced.by_name


def _write(
    destination: output.Destination | None, staged: output.Staging, model: Path, texts: dict[Path, str]
) -> None:
    """Prepares every file and lets them appear together, the model last."""
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        staged.text(path, text)
    if destination is not None:
        beside = [path for path in sorted(model.parent.iterdir()) if path != model]
        for path in (*beside, model):
            staged.add(path, destination.model.with_name(path.name))
    staged.commit()
