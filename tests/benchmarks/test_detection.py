"""The detector's figure is computed as PASCAL VOC defines it."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.detection import Box, mean_average_precision, overlaps, yolox_boxes


def box(left: float, label: int = 0, score: float = 1.0) -> Box:
    return Box(label, score, np.array([left, 0.0, left + 10.0, 10.0]))


def test_overlap_is_intersection_over_union():
    found = overlaps(box(0).corners, np.stack([box(0).corners, box(5).corners, box(20).corners]))
    assert found == pytest.approx([1.0, 1 / 3, 0.0])


def test_every_box_found_is_one_and_half_of_them_a_half():
    truth = [[box(0), box(50)]]
    assert mean_average_precision([[box(0), box(50)]], truth) == pytest.approx(1.0)
    assert mean_average_precision([[box(0)]], truth) == pytest.approx(0.5)
    assert mean_average_precision([[]], truth) == 0.0


def test_a_second_box_on_the_same_object_is_wrong():
    found = [[box(0, score=0.9), box(1, score=0.8), box(50, score=0.7)]]
    assert mean_average_precision(found, [[box(0), box(50)]]) == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_classes_count_alike():
    truth = [[box(0), box(20), box(40, label=3)]]
    assert mean_average_precision([[box(0), box(20)]], truth) == pytest.approx(0.5)


def test_cells_become_boxes_in_pixels_of_the_photograph():
    output = np.zeros((52 * 52 + 26 * 26 + 13 * 13, 85), np.float32)
    output[52 + 2, 4], output[52 + 2, 5 + 7] = 0.9, 0.8  # row 1, column 2 of the finest grid: stride 8
    (found,) = yolox_boxes(output, ratio=0.5)
    assert (found.label, found.score) == (7, pytest.approx(0.72))
    assert found.corners == pytest.approx([(16 - 4) / 0.5, (8 - 4) / 0.5, (16 + 4) / 0.5, (8 + 4) / 0.5])
