"""Boxes of a detector, and their mean average precision at an overlap of 0.5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
STRIDES, SIDE = (8, 16, 32), 416
LEAST_SCORE, SUPPRESSED, OVERLAP = 0.01, 0.65, 0.5


class Box(NamedTuple):
    """A class, a score and the corners: left, top, right, bottom in pixels."""

    label: int
    score: float
    corners: Array


def overlaps(one: Array, others: Array) -> Array:
    """Intersection over union of one box [4] with others [N, 4]."""
    lower, upper = np.maximum(one[:2], others[:, :2]), np.minimum(one[2:], others[:, 2:])
    shared: Array = (upper - lower).clip(0).prod(axis=1)
    areas = (others[:, 2:] - others[:, :2]).prod(axis=1) + (one[2:] - one[:2]).prod()
    found: Array = shared / np.maximum(areas - shared, 1e-9)
    return found


def yolox_boxes(output: Array, ratio: float) -> list[Box]:
    """Decodes the rows of YOLOX (centre and log size in strides, objectness, classes) and suppresses repetitions.

    Args:
        output: [cells, 5 + classes] of one picture.
        ratio: How much the picture was scaled.
    """
    grids, strides = [], []
    for stride in STRIDES:
        cells = SIDE // stride
        x, y = np.meshgrid(np.arange(cells), np.arange(cells))
        grids.append(np.stack([x.ravel(), y.ravel()], axis=1))
        strides.append(np.full((cells * cells, 1), stride))
    grid, stride_of = np.concatenate(grids), np.concatenate(strides)
    centre, size = (output[:, :2] + grid) * stride_of, np.exp(output[:, 2:4].clip(-20, 20)) * stride_of
    corners = np.concatenate([centre - size / 2, centre + size / 2], axis=1) / ratio
    scores = output[:, 4:5] * output[:, 5:]
    rows, labels = np.nonzero(scores > LEAST_SCORE)
    boxes: list[Box] = []
    for label in np.unique(labels):
        chosen = rows[labels == label]
        left = chosen[np.argsort(-scores[chosen, label], kind="stable")]
        while len(left):
            best, left = left[0], left[1:]
            boxes.append(Box(int(label), float(scores[best, label]), corners[best]))
            left = left[overlaps(corners[best], corners[left]) < SUPPRESSED]
    return boxes


def mean_average_precision(found: Sequence[Sequence[Box]], truth: Sequence[Sequence[Box]]) -> float:
    """Mean over the classes that occur of the area under precision against recall (PASCAL VOC 2010 and later).

    Args:
        found: Boxes of each picture.
        truth: True boxes of each picture.
    """
    labels = sorted({box.label for boxes in truth for box in boxes})
    return float(np.mean([_average_precision(label, found, truth) for label in labels]))


def _average_precision(label: int, found: Sequence[Sequence[Box]], truth: Sequence[Sequence[Box]]) -> float:
    true = [np.array([b.corners for b in boxes if b.label == label]).reshape(-1, 4) for boxes in truth]
    taken = [np.zeros(len(boxes), bool) for boxes in true]
    ordered = sorted(
        ((box, picture) for picture, boxes in enumerate(found) for box in boxes if box.label == label),
        key=lambda pair: -pair[0].score,
    )
    hits = np.zeros(len(ordered))
    for k, (box, picture) in enumerate(ordered):
        shared = np.where(taken[picture], 0.0, overlaps(box.corners, true[picture]))
        if len(shared) and shared.max() >= OVERLAP:
            taken[picture][shared.argmax()], hits[k] = True, 1.0
    recall = hits.cumsum() / max(sum(map(len, true)), 1)
    precision = hits.cumsum() / np.arange(1, len(hits) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]  # precision at this recall or a larger one
    return float((np.diff(recall, prepend=0.0) * best).sum())
