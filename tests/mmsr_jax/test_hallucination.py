import math

import numpy as np
import pytest

from mmsr_jax.evaluation.hallucination import (
    nodule_scores,
    solid_structures,
    stability,
    structures_without_counterpart,
)

SIZE = 120


def disc(row: float, column: float, radius: float) -> np.ndarray:
    rows, columns = np.indices((SIZE, SIZE))
    return np.hypot(rows - row, columns - column) <= radius


def tissue(*masks: np.ndarray, value: float = 0.5) -> np.ndarray:
    image = np.full((SIZE, SIZE), -0.9)
    for mask in masks:
        image[mask] = value
    return image


A, B, VESSEL = disc(30, 30, 10), disc(80, 70, 8), disc(30, 90, 6)


def test_the_truth_recalls_its_nodules_and_invents_none() -> None:
    pair = tissue(A, B, VESSEL), tissue(VESSEL)
    for one in nodule_scores([A, B], pair, pair):
        assert one.contrast_recovery == pytest.approx(1)
        assert one.recalled == 1
        assert one.persisted == 0


def test_a_lost_a_faint_and_an_invented_nodule() -> None:
    truth = tissue(A, B), tissue()
    lost, faint = nodule_scores([A, B], truth, (tissue(B, value=-0.2), tissue()))
    assert (lost.contrast_recovery, lost.recalled) == (0, 0)
    assert faint.contrast_recovery == pytest.approx(0.7 / 1.4)
    assert faint.recalled == 0  # not solid
    invented = nodule_scores([A], truth, (tissue(A), tissue(A)))[0]
    assert (invented.contrast_recovery, invented.recalled, invented.persisted) == (0, 1, 1)


@pytest.mark.parametrize(("radius", "recalled"), [(6, 0), (8, 1)])
def test_half_of_a_nodule_recalls_it(radius: float, recalled: int) -> None:
    truth = tissue(A), tissue()
    smaller = nodule_scores([A], truth, (tissue(disc(30, 30, radius)), tissue()))[0]
    assert smaller.recalled == recalled


def test_texture_is_not_solid() -> None:
    rows, columns = np.indices((SIZE, SIZE))
    septa = np.where((rows % 12 < 3) | (columns % 12 < 3), 0.5, -0.9)
    assert not solid_structures(septa).any()
    solid = solid_structures(np.maximum(septa, tissue(A)))
    assert solid[A].mean() > 0.9
    assert not solid[~disc(30, 30, 16)].any()


def count(image: np.ndarray, other: np.ndarray, tolerance_px: int = 4) -> float:
    density = structures_without_counterpart(image, other, tolerance_px=tolerance_px, pixel_mm=0.05)
    return density * (SIZE * 0.05) ** 2


def test_false_and_missing_structures_are_counted() -> None:
    image, truth = tissue(A, VESSEL), tissue(A, B)
    assert count(image, truth) == pytest.approx(1)
    assert count(truth, image) == pytest.approx(1)
    assert count(tissue(), truth) == 0
    assert count(truth, tissue()) == pytest.approx(2)
    assert count(truth, truth) == 0


@pytest.mark.parametrize(("apart", "false"), [(3, 0), (4, 0), (8, 1)])
def test_structures_may_lie_a_tolerance_apart(apart: int, false: int) -> None:
    beside = disc(30, 30 + 20 + apart, 10)  # gap between the edges
    assert count(tissue(beside), tissue(A)) == pytest.approx(false)


def test_stability() -> None:
    image = np.random.default_rng(0).uniform(-1, 1, (SIZE, SIZE))
    moved = np.roll(image, (4, 4), (0, 1))
    assert stability(image, image, shift_px=0, scale=8) == math.inf
    assert stability(image, moved, shift_px=4, scale=8) == math.inf
    assert stability(image, moved, shift_px=0, scale=8) < 10
    assert stability(image, moved + 0.02, shift_px=4, scale=8) == pytest.approx(40)
    framed = moved.copy()
    framed[:12] = framed[:, -15:] = 0  # the border, that the roll wrapped, does not count
    assert stability(image, framed, shift_px=4, scale=8) == math.inf
