import math

import numpy as np
import pytest
from scipy import ndimage

from mmsr_jax.evaluation.anatomy import Airway, airway_errors, airways

AIR, TISSUE = -0.9, 0.5


def annulus(
    inner: float, outer: float, center: tuple[float, float] = (40.3, 38.7), size: int = 80
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(image with antialiased edges, lumen mask, wall mask)."""
    rows, columns = np.indices((size, size))
    distance = np.hypot(rows - center[0], columns - center[1])
    within = np.clip(outer - distance + 0.5, 0, 1) - np.clip(inner - distance + 0.5, 0, 1)
    return AIR + (TISSUE - AIR) * within, distance < inner, distance < outer


def only(truth: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Airway:
    (airway,) = airways(*truth)
    return airway


def test_the_true_surfaces_of_a_ring() -> None:
    truth = annulus(8, 12)
    airway = only(truth)
    assert np.allclose(airway.center, (40.3, 38.7), atol=0.15)
    assert len(airway.angles) == 64
    np.testing.assert_allclose(airway.inner_px, 8, atol=0.7)
    np.testing.assert_allclose(airway.outer_px, 12, atol=0.7)
    own = airway_errors(airway, truth[0], truth[0])
    assert (own.wall_error, own.lumen_error, own.lost) == (0, 0, 0)


@pytest.mark.parametrize(("inner", "outer"), [(8, 14), (7, 12), (9, 12), (8, 11)])
def test_errors_of_other_rings_are_those_of_geometry(inner: float, outer: float) -> None:
    truth = annulus(8, 12)
    found = airway_errors(only(truth), truth[0], annulus(inner, outer)[0])
    assert found.lost == 0
    assert found.wall_error == pytest.approx(abs((outer - inner) / 4 - 1), abs=0.03)
    assert found.lumen_error == pytest.approx(abs(inner**2 / 64 - 1), abs=0.05)


def test_a_blurred_thin_wall_is_measured_too_thick() -> None:
    truth = annulus(9, 11)
    errors = [
        airway_errors(only(truth), truth[0], ndimage.gaussian_filter(truth[0], sigma)).wall_error
        for sigma in (0.5, 1.0, 1.5)
    ]
    assert errors == sorted(errors)
    # A box of width 2 under a Gaussian of 1.5: half of its peak lies 1.98 from the middle.
    assert errors[-1] == pytest.approx(1.98 - 1, abs=0.25)


@pytest.mark.parametrize("contrast", [0.4, 1.0])
def test_contrast_does_not_matter(contrast: float) -> None:
    truth = annulus(8, 12)
    found = airway_errors(only(truth), truth[0], contrast * (truth[0] - AIR) + AIR)
    assert found.wall_error == pytest.approx(0, abs=1e-6)
    assert found.lumen_error == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", ["blank", "blob", "inverted", "faint"])
def test_an_image_without_the_wall_has_lost_it(kind: str) -> None:
    truth = annulus(8, 12)
    airway = only(truth)
    rows, columns = np.indices(truth[0].shape)
    image = {
        "blank": np.full_like(truth[0], -0.5),
        "blob": np.where(np.hypot(rows - 40.3, columns - 38.7) < 12, TISSUE, AIR),
        "inverted": -truth[0],
        "faint": 0.1 * (truth[0] - AIR) + AIR,
    }[kind]
    found = airway_errors(airway, truth[0], image)
    assert found.lost == 1
    assert math.isnan(found.wall_error)
    assert math.isnan(found.lumen_error)


def test_rays_into_a_companion_artery_are_left_out() -> None:
    image, lumens, walls = annulus(8, 11)
    rows, columns = np.indices(image.shape)
    image = np.where(np.hypot(rows - 40.3, columns - 56) < 7, TISSUE, image)
    airway = only((image, lumens, walls))
    assert 32 <= len(airway.angles) < 60
    towards = np.abs(np.angle(np.exp(1j * airway.angles)))  # 0 is along the columns
    assert towards.min() > 0.2


def test_what_cannot_be_measured_is_left_out() -> None:
    assert airways(*annulus(2, 5)) == []  # a lumen too small
    assert airways(*annulus(8, 12, center=(10, 40))) == []  # cut by the border
    image, lumens, walls = annulus(8, 12)
    assert airways(np.full_like(image, TISSUE), lumens, walls) == []  # filled in
    assert airways(image, np.zeros_like(lumens), walls) == []


def test_several_airways() -> None:
    first, second = annulus(8, 12, (30, 30), 160), annulus(6, 9, (110, 90), 160)
    both = np.maximum(first[0], second[0]), first[1] | second[1], first[2] | second[2]
    found = airways(*both)
    assert [tuple(np.rint(one.center)) for one in found] == [(30, 30), (110, 90)]
