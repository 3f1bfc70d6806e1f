"""The pretrained models that benchmarks prune: what calibrates each, what it is tried on, and how its task is scored.

A `Task` knows its data and its metric; nothing else differs between models. Calibration and trial never share a sample.
Labels are read by metrics alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from zoo import SHARED, script

from surgeon.graph.sessions import session

Array = NDArray[Any]
Feeds = dict[str, Array]
Session: TypeAlias = ort.InferenceSession
DATA = SHARED / "data"
# the functions of the data script that fit a model: calibration_plain, search_plain, test_plain and so on
CIFAR10 = {"resnet20": "", "resnet56": "", "densenet_bc100": "_plain", "vit": "_plain", "resnet8": "_raw"}


@dataclass(frozen=True)
class Task:
    """One model with its data.

    Attributes:
        model: The file's name without its ending.
        calibration: Yields unlabelled batches for a seed; seed 0 is the sample that is used first.
        trial: Yields held-out batches to compare outputs on.
        metric: Scores a session of the model on held-out data, or None where there is nothing to score by.
        unit: What the metric measures.
        classifier: Whether the metric is top-1.
    """

    model: str
    calibration: Callable[[int], Iterator[Feeds]]
    trial: Callable[[], Iterator[Feeds]]
    metric: Callable[[Session], float] | None = None
    unit: str = ""
    classifier: bool = False

    @property
    def path(self) -> Path:
        """The model file."""
        return model_path(self.model)


def model_path(name: str) -> Path:
    """The file of a model."""
    return SHARED / "models" / f"{name}.onnx"


@cache
def dense(name: str) -> Session:
    """The original of a model, for states that only it can make."""
    return session(model_path(name))


@cache
def dataset(name: str) -> ModuleType:
    """One of the data scripts beside the data."""
    return script(DATA / f"{name}.py")


def draw(pool: Sequence[Any], count: int, seed: int) -> list[Any]:
    """The first ``count`` of a pool for seed 0, others of it for other seeds."""
    if seed == 0:
        return list(pool[:count])
    chosen = np.random.default_rng(seed).choice(len(pool), min(count, len(pool)), replace=False)
    return [pool[k] for k in chosen]


def batched(arrays: Sequence[Array], name: str, size: int) -> Iterator[Feeds]:
    """Stacks arrays of one shape into batches of one input."""
    for start in range(0, len(arrays), size):
        yield {name: np.stack(arrays[start : start + size])}


def top1(batches: Callable[[], Iterator[Feeds]], run: Session) -> float:
    """Share of samples whose largest output is their label; labels come with the batches."""
    right = total = 0
    for batch in batches():
        labels = batch.pop("labels")
        scores = run.run(None, batch)[0].reshape(len(labels), -1)
        right += int((scores.argmax(axis=1) == labels).sum())
        total += len(labels)
    return right / total


def unlabelled(batches: Iterator[Feeds]) -> Iterator[Feeds]:
    """The batches without their labels."""
    for batch in batches:
        yield {name: array for name, array in batch.items() if name != "labels"}


def _cifar10(kind: str, seed: int) -> Iterator[Feeds]:
    """1,024 training images; the data script draws others where SURGEON_SEED is set."""
    os.environ.pop("SURGEON_SEED", None)
    if seed:
        os.environ["SURGEON_SEED"] = str(seed)
    yield from unlabelled(getattr(dataset("cifar10"), f"calibration{kind}")())
    os.environ.pop("SURGEON_SEED", None)


def _cifar10_test(kind: str) -> Iterator[Feeds]:
    yield from getattr(dataset("cifar10"), f"test{kind}")()


def _imagenet(kind: str, seed: int) -> Iterator[Feeds]:
    """All 200 images of the calibration part for seed 0, a random 150 of them for others."""
    batches = unlabelled(getattr(dataset("imagenet"), f"{kind}_calibration")())
    if seed == 0:
        yield from batches
        return
    arrays = [dict(zip(b, rows, strict=True)) for b in batches for rows in zip(*b.values(), strict=True)]
    name = next(iter(arrays[0]))
    yield from batched([row[name] for row in draw(arrays, 150, seed)], name, 25)


def _imagenet_test(kind: str) -> Iterator[Feeds]:
    yield from getattr(dataset("imagenet"), f"{kind}_test")()


def classifiers() -> list[Task]:
    """Models whose metric is top-1 and whose data come ready for them."""
    tasks = []
    for name, kind in CIFAR10.items():
        test = partial(_cifar10_test, kind)
        tasks.append(_classifier(f"cifar10_{name}", partial(_cifar10, kind), test))
    for name in ("mobilenet_v1", "mobilenet_v2", "squeezenet"):
        tasks.append(_classifier(f"imagenet_{name}", partial(_imagenet, name), partial(_imagenet_test, name)))
    return tasks


def _classifier(
    model: str, calibration: Callable[[int], Iterator[Feeds]], test: Callable[[], Iterator[Feeds]]
) -> Task:
    return Task(model, calibration, lambda: unlabelled(test()), partial(top1, test), "top-1", classifier=True)


def tasks() -> list[Task]:
    """Every model, classifiers first."""
    from pretrained_images import image_tasks
    from pretrained_sequences import sequence_tasks

    every = [*classifiers(), *image_tasks(), *sequence_tasks()]
    return [task for task in every if task.classifier] + [task for task in every if not task.classifier]
