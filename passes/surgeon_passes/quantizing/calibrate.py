"""Ranges of activations from data, read four times at most and held one small batch at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import onnx

from surgeon.errors import UnsupportedModelError
from surgeon.stats.data import Dataset, Feeds
from surgeon.stats.histogram import Histogram
from surgeon.stats.ranges import METHODS, PERCENTILE, Range, find_range
from surgeon_passes.quantizing.activations import Activations
from surgeon_passes.quantizing.judge import Judge
from surgeon_passes.quantizing.taps import LIMIT, Taps

SMALL = 4  # samples of a batch to judge by: the fewer, the more places they come from
JUDGED, _MOST = 32, 512  # samples that ranges are judged by, of small models more
_ENOUGH = 2**26  # bytes of activations to judge by
_FALLBACK = "mse"
_TIE = 1e-3  # relative differences of errors below are chance
_SHARES = (1 / 2, 1 / 4, 1 / 8)  # to which either end of a range is pulled in, on trial


@dataclass
class Calibration:
    """What was found out.

    Attributes:
        ranges: The range of each tensor that has one.
        methods: Where it comes from.
        pulled: Tensors that have less than the method said at an end, such as what a SiLU makes next to nothing of.
        unusable: Tensors that cannot be rounded, and why.
        samples: How many samples were read.
        notes: What the user should know.
    """

    ranges: dict[str, Range] = field(default_factory=dict)
    methods: dict[str, str] = field(default_factory=dict)
    pulled: list[str] = field(default_factory=list)
    unusable: dict[str, str] = field(default_factory=dict)
    samples: int = 0
    notes: list[str] = field(default_factory=list)

    def facts(self) -> dict[str, object]:
        """Returns what the report says: how many ranges come from each method, and every range."""
        return {
            "methods": dict(sorted(Counter(self.methods.values()).items())),
            "pulled_in": len(self.pulled),
            "ranges": {
                name: [self.methods[name], *(float(f"{end:.5g}") for end in found)]
                for name, found in self.ranges.items()
            },
            "without_range": dict(self.unusable),
        }


def calibrate(
    model: onnx.ModelProto,
    activations: Activations,
    tensors: Sequence[str],
    data: Dataset,
    *,
    method: str,
    percentile: float = PERCENTILE,
    symmetric: bool,
    threads: int,
    limit: int = LIMIT,
) -> Calibration:
    """Finds the range of each tensor.

    Args:
        model: A prepared model.
        activations: Its tensors.
        tensors: Those that need a range.
        data: Calibration samples.
        method: auto, or one of :data:`surgeon.stats.ranges.METHODS`.
        percentile: For percentile.
        symmetric: int8 instead of uint8.
        threads: Threads for onnxruntime.
        limit: Bytes of activations held at a time.

    Raises:
        DataError: There are no samples, or they do not fit the model.
    """
    taps = Taps(model, tensors, data, threads=threads, limit=limit)
    histograms = {name: Histogram() for name in tensors}
    result = Calibration()
    for size, values in taps:
        for name, array in values:
            histograms[name].add(array)
        result.samples += size
    result.notes += [
        f"input {entry.name} has but one value in all calibration samples, so ranges hold for no other"
        for entry in model.graph.input
        if entry.name in histograms and histograms[entry.name].lowest == histograms[entry.name].highest
    ]
    found = {}
    for name, histogram in histograms.items():
        if histogram.strange:
            result.unusable[name] = "it has infinite values, which 8 bits do not"
        elif histogram.empty:
            result.unusable[name] = "it was empty in all samples"
        else:
            found[name] = histogram.distribution()
    names = METHODS if method == "auto" else (method,)
    candidates = {
        each: {
            name: find_range(each, values, symmetric=symmetric, percentile=percentile)
            for name, values in found.items()
        }
        for each in names
    }
    result.methods = dict.fromkeys(found, method)
    result.ranges = dict(candidates[_FALLBACK if method == "auto" else method])
    if method == "auto":
        result.methods = dict.fromkeys(found, _FALLBACK)
        _judge(model, activations, taps, candidates, result, symmetric=symmetric, threads=threads)
    return result


def _judge(
    model: onnx.ModelProto,
    activations: Activations,
    taps: Taps,
    candidates: Mapping[str, Mapping[str, Range]],
    result: Calibration,
    *,
    symmetric: bool,
    threads: int,
) -> None:
    """Finds, for each tensor, the method whose range does least harm to what reads it, and how much of that range it takes."""
    names = list(result.ranges)
    try:
        judge = Judge(model, activations, names, symmetric=symmetric, threads=threads)
        wanted = max(JUDGED, min(_MOST, _ENOUGH // max(taps.bytes, 1)))
        feeds = partial(_spread, taps.data, result.samples, wanted)
        others = [each for each in candidates if each != _FALLBACK]
        found = _better(judge, feeds, result.ranges, [candidates[each] for each in others])
        result.methods |= {name: others[index] for name, index in found.items()}
        result.ranges |= {name: candidates[others[index]][name] for name, index in found.items()}
        for end in () if symmetric else Range._fields:  # of symmetric ranges one end goes with the other
            pulled = [_pulled(result.ranges, end, share) for share in _SHARES]
            found = _better(judge, feeds, result.ranges, pulled)
            result.ranges |= {name: pulled[index][name] for name, index in found.items()}
            result.pulled += [name for name in found if name not in result.pulled]
    except UnsupportedModelError as error:
        result.notes.append(f"ranges were not judged by what reads them, only by histograms: {error}")


def _better(
    judge: Judge,
    feeds: Callable[[], Iterator[Feeds]],
    present: Mapping[str, Range],
    others: Sequence[Mapping[str, Range]],
) -> dict[str, int]:
    """Which of other ranges does least harm, of the tensors where it does less than the present one."""
    if all(other == present for other in others):
        return {}
    powers: Any = 0.0
    for batch in feeds():
        powers = powers + np.stack([judge.powers(batch, each) for each in (present, *others)])
    scores = judge.scores(powers)
    best = {name: int(np.argmin(errors)) for name, errors in scores.items()}
    return {
        name: index - 1 for name, index in best.items() if scores[name][index] < scores[name][0] * (1 - _TIE)
    }


def _pulled(ranges: Mapping[str, Range], end: str, share: float) -> dict[str, Range]:
    """Ranges with one of their ends nearer to zero."""
    return {name: each._replace(**{end: share * getattr(each, end)}) for name, each in ranges.items()}


def _spread(data: Dataset, samples: int, wanted: int = JUDGED) -> Iterator[Feeds]:
    """Yields small batches from all over the data, about as many samples as are wanted, and four batches at least."""
    small = data.rebatched(min(data.batch, SMALL))
    every = max(1, min(samples // wanted, samples // small.batch // 4))
    for index, (feeds, _) in enumerate(small):
        if index % every == 0:
            yield feeds
