import numpy as np
import pytest
from scipy import ndimage

from data_pipelines.intensity import clinical_intensity
from data_pipelines.phantom import MICRO_SPACING_MM, LungPhantom, scan_micro, tube_coverage
from mmsr_jax.report.regions import REGIONS, find_regions

SIGMAS = np.geomspace(3, 9, 6)


def parenchyma(seed: int = 0) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(200, 240)), 2)
    return np.clip(-0.8 + 0.1 * noise / noise.std(), -1, 1)


def centre(corner: tuple[int, int], side: int) -> np.ndarray:
    return np.array(corner) + side / 2


@pytest.mark.parametrize("seed", range(4))
def test_drawn_structures_are_found(seed: int) -> None:
    image = parenchyma(seed)
    y, x = np.indices(image.shape)
    rng = np.random.default_rng(seed)
    slots = rng.permutation([(60, 60), (60, 180), (140, 60)])
    bronchus, tumour, vessel = slots
    away = np.hypot(y - bronchus[0], x - bronchus[1])
    image[away < 12] = 0.5
    image[away < 8] = -1
    image[np.hypot(y - tumour[0], x - tumour[1]) < 17] = 0.5
    image[(np.abs(y - vessel[0]) < 5) & (np.abs(x - vessel[1]) < 40)] = 0.5
    found = find_regions(image, sigmas_px=SIGMAS, side_px=40)
    assert np.abs(centre(found["bronchus"], 40) - bronchus).max() <= 3
    assert np.abs(centre(found["tumour"], 40) - tumour).max() <= 3
    at = centre(found["vessel"], 40)
    assert abs(at[0] - vessel[0]) <= 3
    assert abs(at[1] - vessel[1]) <= 40


def test_nothing_is_looked_for_outside_the_mask() -> None:
    image = parenchyma()
    y, x = np.indices(image.shape)
    for row, column, radius in ((60, 60, 17), (140, 180, 12)):
        image[np.hypot(y - row, x - column) < radius] = 0.5
    larger = find_regions(image, sigmas_px=SIGMAS, side_px=40)["tumour"]
    assert np.abs(centre(larger, 40) - (60, 60)).max() <= 3
    mask = x > 120
    other = find_regions(image, sigmas_px=SIGMAS, side_px=40, mask=mask)["tumour"]
    assert np.abs(centre(other, 40) - (140, 180)).max() <= 3


def test_squares_lie_inside_the_image() -> None:
    image = parenchyma()
    image[:6, :6] = image[-6:, -6:] = 0.5
    for top, left in find_regions(image, sigmas_px=SIGMAS, side_px=90).values():
        assert 0 <= top <= 200 - 90
        assert 0 <= left <= 240 - 90
    assert set(find_regions(image, sigmas_px=SIGMAS, side_px=500).values()) == {(0, 0)}


@pytest.mark.parametrize("seed", [101, 102, 104])
def test_phantoms_show_their_own_structures(seed: int) -> None:
    """The square of each kind holds what the phantom says is there."""
    phantom = LungPhantom(seed, 512)
    z_mm = phantom.nodules[0].center_mm[2]
    hu = scan_micro(phantom.slice_hu(z_mm), np.random.default_rng(0))
    image = clinical_intensity().normalise(hu)
    side = 128
    found = find_regions(image, sigmas_px=SIGMAS, side_px=side)
    assert set(found) == set(REGIONS)

    def covers(tubes_names: tuple[str, ...], name: str) -> float:
        top, left = found[name]
        z = z_mm / MICRO_SPACING_MM
        covered = np.zeros(image.shape)
        for tubes in tubes_names:
            coverage = tube_coverage(getattr(phantom, tubes), z, phantom.depth_px, image.shape)
            covered = np.maximum(covered, coverage)
        return float(covered[top : top + side, left : left + side].sum())

    assert covers(("airway_lumens",), "bronchus") > 30
    assert covers(("arteries", "veins"), "vessel") > 150
    x, y = np.array(phantom.nodules[0].center_mm[:2]) / MICRO_SPACING_MM
    top, left = found["tumour"]
    assert top <= y <= top + side
    assert left <= x <= left + side
