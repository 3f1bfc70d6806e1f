"""What a pass is, and what it may ask of the run it takes part in.

A pass is a frozen dataclass: its fields are its options, `run` takes a graph to a graph. Timing, verification,
reports and files are the pipeline's business, so no pass knows of them.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

from surgeon.errors import UsageError

if TYPE_CHECKING:
    from surgeon.engine import Model
    from surgeon.plan import Plan
    from surgeon.reference import Masks, Reference
    from surgeon.stats.chunks import Input
    from surgeon.stats.data import Dataset

Graph: TypeAlias = Any  # onnx_graphsurgeon.Graph, which comes without types
Advance: TypeAlias = Callable[[int], None]
SYNTHETIC_SAMPLES = 64
CONFIDENCE = 0.9


@dataclass(frozen=True)
class Pass(ABC):
    """One transformation of a graph.

    Subclasses are frozen dataclasses whose fields are typed options: bool, int, float, str, a Literal,
    ``X | None``, ``tuple[X, ...]`` or ``dict[str, X]``. They check ranges in ``__post_init__`` and raise UsageError.
    An ``Attributes:`` section in the class docstring documents the options.

    Class attributes:
        name: What the pass is called on the command line; the name of its entry point.
        requires: Facts that must hold for the graph it is given, e.g. ``float``.
        ensures: Facts that hold afterwards, e.g. ``qdq``.
        removes: Facts that do not hold any more.
        trains: Whether it takes steps down gradients, for minutes.
        learns: Whether it changes what the model computes, from data, so that ``verify`` cannot repeat it.
        sizes: Whether what it is for shows in compressed sizes, zeros or different values, so that a run with it measures them.
    """

    name: ClassVar[str]
    requires: ClassVar[frozenset[str]] = frozenset()
    ensures: ClassVar[frozenset[str]] = frozenset()
    removes: ClassVar[frozenset[str]] = frozenset()
    learns: ClassVar[bool] = False
    trains: ClassVar[bool] = False
    sizes: ClassVar[bool] = False

    @abstractmethod
    def run(self, graph: Graph, context: Context) -> Graph:
        """Returns the transformed graph; ``graph`` is the pass's own copy and may be changed in place.

        Weight arrays are shared with the original: replace them, never write into them.
        """

    def finish(self, graph: Graph, context: Context) -> Graph:
        """Returns the graph as it is to be stored, once all passes have run; by default it stays as it is.

        For what changes how a model is stored and not what it computes, and would be in the way of later passes. ``graph``
        may be changed in place.
        """
        del context
        return graph

    def check_names(self, known: Collection[str]) -> None:
        """Raises UsageError where a pattern of the option ``exclude`` matches none of the names that there are.

        A pass overrides this where such an option means something else, or names that are not there before it runs.

        Args:
            known: The names of all nodes and tensors of the graph it is given, and of the one the run began with.
        """
        from surgeon.names import misspelt, pattern_of
        from surgeon.suggest import did_you_mean

        given = self.options().get("exclude")
        patterns = [each for each in given if isinstance(each, str)] if isinstance(given, tuple) else []
        if (pattern := misspelt(patterns, known)) is not None:
            hint = did_you_mean(pattern, map(pattern_of, known))
            message = f"{pattern!r} matches no node and no tensor"
            raise UsageError(message, where=f"{self.name}.exclude", hint=hint)

    def if_slow(self) -> str:
        """Says what to change where the result turns out slower than the model was; by default nothing."""
        return ""

    def options(self) -> dict[str, object]:
        """Returns every option and its value."""
        return {item.name: getattr(self, item.name) for item in dataclasses.fields(self) if item.init}

    def changed_options(self) -> dict[str, object]:
        """Returns the options that differ from their defaults."""
        defaults = {
            item.name: item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
            for item in dataclasses.fields(self)
        }
        return {name: value for name, value in self.options().items() if value != defaults[name]}


class Monitor(Protocol):
    """Where a run's warnings and progress go; the command line shows them, a library keeps them."""

    def warn(self, text: str) -> None:
        """Takes one sentence the user should read."""

    def progress(self, label: str, total: int | None) -> AbstractContextManager[Advance]:
        """Opens a progress line; calling what it yields moves it on."""


class SilentMonitor:
    """Keeps warnings for the report and shows nothing."""

    def warn(self, text: str) -> None:
        """Does nothing: the context has already noted the text."""

    def progress(self, label: str, total: int | None) -> AbstractContextManager[Advance]:
        """Returns a progress line nobody sees."""
        del label, total
        return nullcontext(lambda _: None)


class Later(Protocol):
    """The rest of a run, which a pass may try on a graph of its own."""

    names: tuple[str, ...]

    def __call__(
        self,
        graph: Graph,
        *,
        plan: Plan | None = None,
        reference: Reference | None = None,
        settle: bool = False,
    ) -> Graph:
        """Returns what the later passes make of a graph; it is left as it is, and so is the run.

        Args:
            graph: A candidate for the result of the current pass.
            plan: What was removed in it, on top of the run's plan.
            reference: What it should compute, if not the run's reference.
            settle: Whether they take their time, as in the run itself, and keep what they find for further trials.
        """


@dataclass
class Context:
    """What a pass may ask of the run.

    Attributes:
        source_path: The model file the run started from.
        model_sha256: Its hash, for plans.
        inputs: Name, dtype and shape of the model's inputs.
        data: Calibration data, or None; `calibration` never fails.
        evaluation: Labelled or reference data to judge a candidate by, or None.
        metric: Name of the metric to judge by, which `surgeon.stats.metrics.find_metric` finds.
        max_drop: The largest accepted loss of that metric, or None.
        confidence: The chance with which a loss has to stay within a budget on data like those it was measured on.
        targets: Fractions of the original to reach at most: macs, params, size, latency.
        exclude: Patterns of node and tensor names to leave alone.
        seed: Seed of everything random.
        threads: Threads for onnxruntime; must not change any result.
        preprocess: How images become arrays.
        scratch: A folder with room for temporary files as large as the model, or None for the system's.
        record: JSON facts of the current pass, shown in the report. ``groups`` and ``certificate`` are lifted to
            the report's top; ``proof_seconds`` is not counted as the pass's own time; ``changed`` overrules the
            pipeline's own idea of whether the pass changed anything.
        plan: What was removed, set by the pass that cut.
        left: For each tensor that any pass cut, per axis which positions of the file's tensor are left.
        reference: What the model should still compute: the graph before values were changed, and what of it is left.
        later: What the passes after the current one make of a graph, for passes that judge by it; None after the last.
        trains: Whether a pass after the current one trains: then the run takes its time, and a pass may take more of it.
        trial: Whether the pass works for such a judgement only, so that what it makes is measured and thrown away.
        kept: What passes keep for one another, and for their trials, by what it is.
        unrounded: The float graph that a quantized one was made of, set by the pass that quantized, or the result before it is
            stored in another way, set at the end; None before.
        warnings: Every warning so far.
        monitor: Where warnings and progress are shown.
    """

    source_path: Path
    model_sha256: str = ""
    inputs: tuple[Input, ...] = ()
    data: Dataset | None = None
    evaluation: Dataset | None = None
    metric: str = "top1"
    max_drop: float | None = None
    confidence: float = CONFIDENCE
    targets: Mapping[str, float] = field(default_factory=dict)
    exclude: tuple[str, ...] = ()
    seed: int = 0
    threads: int = 1
    preprocess: str | None = None
    scratch: Path | None = None
    record: dict[str, object] = field(default_factory=dict)
    plan: Plan | None = None
    left: Masks = field(default_factory=dict)
    reference: Reference | None = None
    later: Later | None = None
    trains: bool = False
    trial: bool = False
    kept: dict[str, Any] = field(default_factory=dict)
    unrounded: Graph | None = None
    warnings: list[str] = field(default_factory=list)
    monitor: Monitor = field(default_factory=SilentMonitor)

    def calibration(self) -> Dataset:
        """Returns the calibration data, or seeded synthetic samples with a warning of what that costs."""
        if self.data is None:
            from surgeon.stats.synthetic import synthetic_dataset

            self.warn(
                "no --data: statistics come from seeded synthetic inputs, which costs accuracy; "
                "a few hundred real samples without labels are enough"
            )
            self.data = synthetic_dataset(self.inputs, self.seed, SYNTHETIC_SAMPLES)
        return self.data

    def macs_left(self, name: str, own: float | None, default: float) -> float:
        """Returns the fraction of the multiply-accumulates that a pass may leave: its own, else the run's target, else its default.

        Args:
            name: Of the pass.
            own: Its option ``macs``, or None.
            default: Where the run has no targets.

        Raises:
            UsageError: The run has targets, and none of multiply-accumulates.
        """
        if own is not None:
            return own
        if self.targets and "macs" not in self.targets:
            raise UsageError(
                f"the run's target is of {', '.join(self.targets)}, and {name} can only aim at multiply-accumulates",
                where=f"{name}.macs",
                hint=f"say how many it may leave: {name}{{macs={default:g}}}",
            )
        return float(self.targets.get("macs", default))

    def note_cut(self, model: Model, plan: Plan, *, lossless: bool = False) -> None:
        """Takes note of a cut: in the plan, in what is left of the file's tensors, and in the reference.

        Args:
            model: What was cut.
            plan: How.
            lossless: Whether nothing read what went. Such a cut is no plan of its own: running the pass again finds it.
        """
        from surgeon.reference import joined, left_of, narrowed

        self.left = joined(self.left, left_of(model, plan))
        self.reference = narrowed(self.reference, model, plan)
        if self.plan is not None:
            self.plan = self.plan.then(plan)
        elif not lossless:
            self.plan = plan

    def warn(self, text: str) -> None:
        """Notes and shows a sentence the user should read, once."""
        if text not in self.warnings:
            self.warnings.append(text)
            self.monitor.warn(text)

    def progress(self, label: str, total: int | None = None) -> AbstractContextManager[Advance]:
        """Opens a progress line on the terminal: ``with context.progress("prune", 8) as advance: advance(1)``."""
        return self.monitor.progress(label, total)

    def excluded(self, name: str) -> bool:
        """Tells whether a node or tensor name matches one of the ``exclude`` patterns (shell wildcards)."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.exclude)

    def seed_for(self, purpose: str) -> int:
        """Derives a seed of its own for one purpose, so that passes do not disturb each other's draws."""
        digest = hashlib.sha256(f"{self.seed}/{purpose}".encode()).digest()
        return int.from_bytes(digest[:4], "little")


TARGETS = ("macs", "params", "size", "latency")


def check_targets(targets: Mapping[str, object]) -> dict[str, float]:
    """Checks ``--target`` entries: known keys, fractions in (0, 1].

    Raises:
        UsageError: A key is unknown or a value is no such fraction.
    """
    from surgeon.options import coerce
    from surgeon.suggest import did_you_mean

    checked = {}
    for key, value in targets.items():
        if key not in TARGETS:
            raise UsageError("no such target", where=key, hint=did_you_mean(key, TARGETS, what="targets"))
        fraction = coerce(value, float, f"target {key}")
        if not 0.0 < fraction <= 1.0:
            raise UsageError(
                f"must be a fraction of the original in (0, 1], got {fraction}", where=f"target {key}"
            )
        checked[key] = float(fraction)
    return checked
