import functools
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import ndimage

from mmsr_jax.evaluation import metrics
from mmsr_jax.evaluation.consistency import consistency
from mmsr_jax.evaluation.ground_truth import score
from mmsr_jax.evaluation.interpolation import bicubic, nearest
from mmsr_jax.evaluation.sections import paired_scores

SIZE_PX = 96


def noise(seed: int, size: int = SIZE_PX) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).normal(size=(size, size))


def vessels(size: int = SIZE_PX) -> np.ndarray:
    """Three discs of soft tissue in air, with soft edges."""
    rows, columns = np.indices((size, size))
    picture = np.full((size, size), -0.9)
    for row, column, radius in ((25, 30, 9), (60, 65, 14), (70, 20, 7)):
        picture[np.hypot(rows - row, columns - column) < radius] = 0.4
    return ndimage.gaussian_filter(picture, 0.8)


# PSNR, SSIM, correlation


@pytest.mark.parametrize(("difference", "decibels"), [(2.0, 0), (0.2, 20), (0.02, 40)])
def test_psnr_is_for_a_range_of_two(difference: float, decibels: float) -> None:
    truth = np.zeros((12, 12))
    assert metrics.psnr(truth, truth + difference) == pytest.approx(decibels)


def test_ssim_of_known_pairs() -> None:
    truth = noise(0)
    assert metrics.ssim(truth, truth) == pytest.approx(1)
    assert metrics.ssim(0.5 + truth, 0.5 - truth) < -0.5
    # two flat images: only the luminance factor is left, with C1 = (0.01 · 2)²
    flat = np.full((16, 16), 0.5)
    expected = (2 * 0.5 * 0.1 + 4e-4) / (0.5**2 + 0.1**2 + 4e-4)
    assert metrics.ssim(flat, flat - 0.4) == pytest.approx(expected, rel=1e-6)


def test_ssim_is_that_of_wang_et_al() -> None:
    a, b = 0.2 + noise(0), 0.1 + noise(0) + 0.5 * noise(1)
    mean = functools.partial(ndimage.gaussian_filter, sigma=1.5, truncate=3.5)  # 11 pixels
    variances = mean(a * a) - mean(a) ** 2 + mean(b * b) - mean(b) ** 2
    covariance = mean(a * b) - mean(a) * mean(b)
    luminance = (2 * mean(a) * mean(b) + 4e-4) / (mean(a) ** 2 + mean(b) ** 2 + 4e-4)
    structure = (2 * covariance + 3.6e-3) / (variances + 3.6e-3)
    expected = (luminance * structure)[5:-5, 5:-5].mean()
    assert metrics.ssim(a, b) == pytest.approx(expected, abs=1e-6)


def test_correlation() -> None:
    a, b = noise(1), noise(2)
    assert metrics.correlation(a, a) == pytest.approx(1)
    assert metrics.correlation(a, 0.3 - 2 * a) == pytest.approx(-1)
    mixed = a + 0.5 * b
    assert metrics.correlation(a, mixed) == pytest.approx(
        np.corrcoef(a.ravel(), mixed.ravel())[0, 1]
    )
    assert metrics.correlation(a, np.zeros_like(a)) == 0
    assert metrics.correlation(a.astype(np.float32) + 1000, a) == pytest.approx(1, abs=1e-4)


# Edges


def test_edges_of_known_images() -> None:
    truth = vessels()
    blank = np.full_like(truth, 0.3)
    for image, strength, alignment in (
        (truth, 1, 1),
        (blank, 0, 0),
        (-truth, 1, -1),
        (0.5 * truth + 0.2, 0.5, 0.5),
    ):
        assert metrics.edge_strength(truth, image) == pytest.approx(strength, abs=1e-9)
        assert metrics.edge_alignment(truth, image) == pytest.approx(alignment, abs=1e-9)


@pytest.mark.parametrize("metric", [metrics.edge_strength, metrics.edge_alignment])
def test_edges_fall_with_blur(metric: Callable[[np.ndarray, np.ndarray], float]) -> None:
    truth = vessels()
    strengths = [metric(truth, ndimage.gaussian_filter(truth, sigma)) for sigma in (0, 1, 2, 4, 8)]
    assert all(sharper > softer + 0.02 for sharper, softer in itertools.pairwise(strengths))
    assert strengths[-1] > 0


def test_edges_elsewhere_and_texture_are_not_aligned() -> None:
    truth = vessels()
    shifted = np.roll(truth, 12, axis=1)
    assert metrics.edge_alignment(truth, shifted) < 0.3
    assert metrics.edge_alignment(truth, 5 * noise(3)) == pytest.approx(0, abs=0.1)
    assert metrics.edge_strength(truth, 5 * noise(3)) > 0.3


@pytest.mark.parametrize("walls", [False, True])
@pytest.mark.parametrize("metric", [metrics.edge_strength, metrics.edge_alignment])
def test_edges_without_structures_are_nan(
    metric: Callable[[np.ndarray, np.ndarray], float], walls: bool
) -> None:
    septa = np.full((40, 40), -0.8)
    if walls:
        septa[::10] = 0.4  # of one pixel: no structures
    assert math.isnan(metric(septa, septa))


# Grid


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_white_noise_has_no_grid(seed: int) -> None:
    assert 0 < metrics.grid_energy_db(noise(seed), 8) < 1


@pytest.mark.parametrize("axis", [0, 1])
def test_a_grid_in_rows_or_columns_is_seen(axis: int) -> None:
    position = np.indices((SIZE_PX, SIZE_PX))[axis] % 8
    assert metrics.grid_energy_db(noise(4) * np.where(position < 4, 1.0, 0.2), 8) > 6
    # √10 in amplitude at a position of its own is 10 dB in power, less what the filter leaks
    loud = metrics.grid_energy_db(noise(4) * np.where(position == 3, math.sqrt(10), 1.0), 8)
    assert 7 < loud < 11


def test_the_period_matters() -> None:
    position = np.indices((SIZE_PX, SIZE_PX))[0] % 6
    picture = noise(5) * np.where(position < 3, 1.0, 0.2)
    assert metrics.grid_energy_db(picture, 6) > 6
    assert metrics.grid_energy_db(picture, 7) < 2.5


@pytest.mark.parametrize("value", [-1.0, 0.0, 0.3, 1.0])
def test_a_blank_image_has_no_grid(value: float) -> None:
    assert metrics.grid_energy_db(np.full((32, 32), value, np.float32), 8) == pytest.approx(0)


# Spectra


@pytest.mark.parametrize("cycles", [6, 15, 30, 44])
@pytest.mark.parametrize("axis", [0, 1])
def test_spectrum_of_a_sinusoid_peaks_at_its_frequency(cycles: int, axis: int) -> None:
    frequency = cycles / SIZE_PX
    picture = np.sin(2 * np.pi * frequency * np.indices((SIZE_PX, SIZE_PX))[axis])
    frequencies, power = metrics.radial_spectrum(picture)
    ring_width = 0.5 / (SIZE_PX // 4)
    assert frequencies[power.argmax()] == pytest.approx(frequency, abs=ring_width)
    far = np.abs(frequencies - frequency) > 4 * ring_width
    assert power.max() > power[far].max() + 2


def test_spectrum_of_white_noise_is_flat_and_its_variance() -> None:
    spectra = [metrics.radial_spectrum(noise(seed))[1] for seed in range(12)]
    mean = np.mean(spectra, axis=0)
    assert np.ptp(mean[1:]) < 0.15
    assert mean[1:].mean() == pytest.approx(math.log10(0.1**2), abs=0.05)


@pytest.mark.parametrize("shape", [(64, 96), (97, 65), (9, 9)])
def test_spectrum_of_any_shape(shape: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).normal(size=shape)
    frequencies, power = metrics.radial_spectrum(picture)
    assert len(frequencies) == len(power) == min(shape) // 4
    assert frequencies[0] > 0
    assert frequencies[-1] < 0.5
    assert np.isfinite(power).all()
    np.testing.assert_allclose(metrics.radial_spectrum(picture + 5)[1], power, atol=1e-6)


def test_spectrum_distance() -> None:
    group, other = (np.stack([noise(seed + start) for seed in range(6)]) for start in (0, 20))
    assert metrics.spectrum_distance(group, group, 8) == 0
    assert metrics.spectrum_distance(group, other, 8) < 0.15
    assert metrics.spectrum_distance(10 * group, group, 8) == pytest.approx(2, abs=1e-3)
    blurred = [
        metrics.spectrum_distance(
            np.stack([ndimage.gaussian_filter(image, sigma) for image in group]), group, 8
        )
        for sigma in (0.5, 0.8, 1.2)
    ]
    assert 0.15 < blurred[0] < blurred[1] < blurred[2]


def test_spectrum_distance_ignores_what_the_scan_resolves() -> None:
    group = np.stack([noise(seed) for seed in range(4)])
    coarse = 0.5 * np.sin(2 * np.pi * 3 / SIZE_PX * np.indices((SIZE_PX, SIZE_PX))[0])
    assert metrics.spectrum_distance(group + coarse, group, 4) < 0.1
    assert metrics.spectrum_distance(group + coarse, group, 1000) > 0.1


# Interpolation


@pytest.mark.parametrize("scale", [2, 8])
def test_nearest_repeats_pixels(scale: int) -> None:
    image = noise(6, 7)[:, :5]
    np.testing.assert_array_equal(nearest(image, scale), np.kron(image, np.ones((scale, scale))))


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_bicubic_keeps_constants_and_ramps_in_place(scale: int) -> None:
    constant = bicubic(np.full((9, 11), 0.3, np.float32), scale)
    assert constant.shape == (9 * scale, 11 * scale)
    np.testing.assert_allclose(constant, 0.3, atol=1e-6)
    rows, columns = np.indices((24, 20))
    fine_rows, fine_columns = ((np.indices((24 * scale, 20 * scale)) + 0.5) / scale) - 0.5
    result = bicubic(0.03 * rows - 0.02 * columns, scale)
    inner = np.s_[8 * scale : -8 * scale, 8 * scale : -8 * scale]
    np.testing.assert_allclose(
        result[inner], (0.03 * fine_rows - 0.02 * fine_columns)[inner], atol=1e-4
    )


@pytest.mark.parametrize("scale", [2, 8])
def test_bicubic_does_not_shift(scale: int) -> None:
    rows, columns = np.indices((24, 30))
    blob = np.exp(-((rows - 10.3) ** 2 + (columns - 16.7) ** 2) / (2 * 2.0**2))
    fine = bicubic(blob, scale)
    centre = (np.array(ndimage.center_of_mass(fine)) + 0.5) / scale - 0.5
    np.testing.assert_allclose(centre, ndimage.center_of_mass(blob), atol=0.01)
    pooled = fine.reshape(24, scale, 30, scale).mean(axis=(1, 3))
    assert metrics.correlation(pooled, blob) > 0.999
    assert metrics.correlation(pooled, np.roll(blob, 1, axis=0)) < 0.97


def test_bicubic_stays_within_the_images_range() -> None:
    step = np.where(np.indices((16, 16))[1] < 8, -1.0, 1.0).astype(np.float32)
    result = bicubic(step, 8)
    assert result.min() >= -1
    assert result.max() <= 1


# All of them, against the truth


def test_scores_of_the_truth() -> None:
    scale, micro = 4, vessels() + noise(7)
    best = score(micro, micro, scale)
    assert best.psnr == math.inf
    assert best.ssim == pytest.approx(1)
    assert best.edge_alignment == pytest.approx(1)
    assert best.bias == 0
    assert 0 <= best.grid_db < 1


def test_scores_of_faulty_images() -> None:
    scale, micro = 4, vessels() + noise(7)
    clinical = micro.reshape(24, scale, 24, scale).mean(axis=(1, 3))
    brighter = score(micro, micro + 0.02, scale)
    assert brighter.bias == pytest.approx(0.02)
    assert brighter.psnr == pytest.approx(40, abs=0.01)
    inverted = score(micro, -micro, scale)
    assert inverted.edge_alignment == pytest.approx(-1)
    blocks = score(micro, nearest(clinical, scale), scale)
    assert blocks.grid_db > 3


def test_consistency_of_known_images() -> None:
    scale, micro = 4, vessels() + noise(7)
    window_hu = (-1000.0, 400.0)
    clinical = micro.reshape(24, scale, 24, scale).mean(axis=(1, 3))
    own = consistency(clinical, micro, window_hu)
    assert own.consistency_psnr > 100
    assert own.correlation == pytest.approx(1)
    assert own.contrast == pytest.approx(micro.std() / clinical.std())
    brighter = consistency(clinical, micro + 0.02, window_hu)
    assert brighter.consistency_psnr == pytest.approx(40, abs=0.01)
    assert brighter.consistency_mae_hu == pytest.approx(0.02 * 700, rel=1e-3)
    assert consistency(clinical, -micro, window_hu).correlation == pytest.approx(-1)
    blank = consistency(clinical, np.full_like(micro, 0.3), window_hu)
    assert blank.contrast == pytest.approx(0, abs=1e-6)
    assert blank.correlation == 0
    blocks = consistency(clinical, nearest(clinical, scale), window_hu)
    assert blocks.consistency_psnr > 100
    assert blocks.contrast == pytest.approx(1)


def test_the_border_does_not_count() -> None:
    scale, micro = 4, vessels() + noise(7)
    clinical = micro.reshape(24, scale, 24, scale).mean(axis=(1, 3))

    def scores(image: np.ndarray) -> dict[str, float]:
        return paired_scores(clinical, micro, image, (-1000.0, 400.0))

    framed = micro.copy()
    framed[: 2 * scale] = framed[:, -2 * scale :] = 1
    assert scores(framed) == scores(micro)
    framed[2 * scale, 40] += 0.5
    assert scores(framed)["psnr"] < math.inf


@pytest.mark.parametrize(("down", "right"), [(8, 0), (0, -8), (-16, 16)])
def test_drift_is_the_displacement(down: int, right: int) -> None:
    scale, rng = 8, np.random.default_rng(3)
    fine = ndimage.gaussian_filter(rng.normal(size=(400, 400)), 12, mode="wrap")
    fine *= 0.3 / fine.std()
    scan = average(fine, scale)
    moved = np.roll(fine, (down, right), (0, 1))
    drift_px = consistency(scan, moved, (-1000.0, 400.0)).drift_px
    assert drift_px == pytest.approx(np.hypot(down, right), rel=0.15)
    assert consistency(scan, fine, (-1000.0, 400.0)).drift_px == 0
    assert np.isnan(consistency(scan, np.zeros_like(fine), (-1000.0, 400.0)).drift_px)


def average(image: np.ndarray, scale: int) -> np.ndarray:
    return image.reshape(len(image) // scale, scale, -1, scale).mean(axis=(1, 3))
