import functools

import numpy as np
import pytest

from mmsr_jax.evaluation.anatomy import airways
from mmsr_jax.evaluation.ground_truth import degrade
from mmsr_jax.evaluation.phantom_cases import PhantomCase, phantom_cases

WINDOW_HU = (-1000.0, 400.0)
SCALE = 8


@functools.cache
def cases() -> list[PhantomCase]:
    return phantom_cases(2, window_hu=WINDOW_HU, size_px=384, scale=SCALE)


def pooled(image: np.ndarray) -> np.ndarray:
    rows, columns = (size // SCALE for size in image.shape)
    return image.reshape(rows, SCALE, columns, SCALE).mean(axis=(1, 3))


def test_shapes_and_range() -> None:
    for case in cases():
        for name in ("scan", "scan_without_nodules", "scan_with_other_noise", "scan_shifted"):
            assert getattr(case, name).shape == (48, 48)
        for name in ("micro", "micro_without_nodules"):
            assert getattr(case, name).shape == (384, 384)
        assert -1 <= case.scan.min() < case.scan.max() <= 1
        assert case.micro.std() > 0.2


def test_they_are_always_the_same_and_differ_from_each_other() -> None:
    first, second = cases()
    again = phantom_cases(1, window_hu=WINDOW_HU, size_px=384, scale=SCALE)[0]
    np.testing.assert_array_equal(again.scan, first.scan)
    np.testing.assert_array_equal(again.micro, first.micro)
    assert np.abs(first.micro - second.micro).mean() > 0.1


def test_the_scan_shows_what_the_micro_image_shows() -> None:
    for case in cases():
        correlation = np.corrcoef(case.scan.ravel(), pooled(case.micro).ravel())[0, 1]
        assert correlation > 0.85


def test_only_the_nodules_differ() -> None:
    for case in cases():
        assert case.nodules
        inside = np.logical_or.reduce(case.nodules)
        change = case.micro - case.micro_without_nodules
        assert change[inside].mean() > 0.5
        far = ~inside & (np.abs(change) > 0.3)
        assert far.mean() < 0.002  # the blurred edges
        coarse = case.scan - case.scan_without_nodules
        assert coarse[pooled(inside) > 0.5].mean() > 0.4
        assert np.abs(coarse).min() == 0  # the same noise
        assert np.median(np.abs(coarse)) == 0


def test_only_the_noise_differs() -> None:
    for case in cases():
        difference = case.scan - case.scan_with_other_noise
        inner = np.abs(case.scan) < 0.95  # where nothing is clipped
        assert difference[inner].std() == pytest.approx(2**0.5 * 0.025, rel=0.2)
        assert abs(difference.mean()) < 0.01


def test_the_shifted_scan_is_of_the_shifted_anatomy() -> None:
    for case in cases():
        moved = pooled(np.roll(case.micro, (SCALE // 2, SCALE // 2), (0, 1)))
        own, other = (
            np.corrcoef(scan[2:, 2:].ravel(), moved[2:, 2:].ravel())[0, 1]
            for scan in (case.scan_shifted, case.scan)
        )
        assert own > other + 0.03


def test_airways_are_where_the_masks_say() -> None:
    for case in cases():
        assert not (case.lumens & ~case.walls).any()
        assert case.micro[case.lumens].mean() < -0.6
        found = airways(case.micro, case.lumens, case.walls)
        assert found
        for airway in found:
            row, column = np.rint(airway.center).astype(int)
            assert case.micro[row, column] < -0.7


def test_degrading_is_the_clinical_scanner() -> None:
    case = cases()[0]
    scan = degrade(case.micro, SCALE, WINDOW_HU, seed=0)
    assert scan.shape == case.scan.shape
    correlation = np.corrcoef(scan.ravel(), case.scan.ravel())[0, 1]
    assert correlation > 0.9
    assert np.abs(scan - case.scan).mean() < 0.06
    np.testing.assert_array_equal(scan, degrade(case.micro, SCALE, WINDOW_HU, seed=0))
    assert (scan != degrade(case.micro, SCALE, WINDOW_HU, seed=1)).mean() > 0.8
