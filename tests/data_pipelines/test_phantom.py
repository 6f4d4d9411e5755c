from pathlib import Path

import numpy as np
import pytest

from data_pipelines import phantom as module
from data_pipelines.phantom import (
    HU_PER_UNIT,
    MICRO_SPACING_MM,
    SLICE_SPACING_MM,
    LungPhantom,
    phantom_volumes,
    scan_clinical,
    scan_micro,
)

REAL = Path(__file__).parents[3] / "shared/data/micro/lung_microct_texture_1.png"
# Measured on parenchyma (no large airway) of two real lung micro-CT slices, MIT licence,
# github.com/bnherrerac/alveolar-micro-CT-reconstruction; air mode at -1, tissue mode at +0.486.
REAL_MEAN, REAL_STD = -0.813, 0.259
REAL_LEVEL_90_PERCENT = -0.43
REAL_TISSUE_FRACTION = 0.167  # above -0.55
REAL_MEAN_CHORD_PX = 20.0  # of the air spaces, along rows
REAL_TISSUE_GREY, REAL_TISSUE_VALUE = 208, 0.486


def window(hu: np.ndarray) -> np.ndarray:
    """The window [-1000, 400] HU as [-1, 1]."""
    return (hu + 300) / HU_PER_UNIT


def texture_statistics(crops: list[np.ndarray]) -> dict[str, float]:
    values = np.concatenate([crop.ravel() for crop in crops])
    chords: list[int] = []
    for row in np.concatenate(crops) < -0.55:
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(int), [0]])))
        chords.extend(edges[1::2] - edges[::2])
    return {
        "mean": values.mean(),
        "std": values.std(),
        "level_90_percent": np.quantile(values, 0.9),
        "tail": (values > 0.4).mean(),
        "tissue_fraction": (values > -0.55).mean(),
        "mean_chord_px": float(np.mean(chords)),
    }


def power_spectrum(crops: list[np.ndarray]) -> np.ndarray:
    """Mean radial power of the 170 px crops in 7 bands from 0.02 to 0.4 cycles per pixel."""
    size = 170
    taper = np.outer(np.hanning(size), np.hanning(size))
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size)))
    band = np.digitize(radius, np.geomspace(0.02, 0.4, 8))
    powers = []
    parts = [
        crop[top : top + size, left : left + size]
        for crop in crops
        for top in range(0, crop.shape[0] - size + 1, size)
        for left in range(0, crop.shape[1] - size + 1, size)
    ]
    for part in parts:
        power = np.abs(np.fft.fft2((part - part.mean()) * taper)) ** 2
        powers.append([power[band == k].mean() for k in range(1, 8)])
    return np.mean(powers, axis=0)


@pytest.fixture(scope="module")
def phantom() -> LungPhantom:
    return LungPhantom(seed=3)


@pytest.fixture(scope="module")
def truth(phantom: LungPhantom) -> np.ndarray:
    return phantom.slice_hu(2.0)


@pytest.fixture(scope="module")
def micro_slices() -> list[np.ndarray]:
    return [
        window(scan_micro(LungPhantom(seed).slice_hu(0.0), np.random.default_rng(seed)))
        for seed in range(8)
    ]


def test_same_seed_gives_same_slice_in_any_order() -> None:
    first, second = LungPhantom(7, 128), LungPhantom(7, 128)
    second.slice_hu(5.0)
    np.testing.assert_array_equal(first.slice_hu(1.25), second.slice_hu(1.25))
    assert np.abs(first.slice_hu(1.25) - LungPhantom(8, 128).slice_hu(1.25)).mean() > 10


@pytest.mark.parametrize("size_px", [128, 136, 648])
def test_slice_shape_type_and_range(size_px: int) -> None:
    phantom = LungPhantom(0, size_px)
    image = phantom.slice_hu(-3.0)
    assert image.shape == (size_px, size_px)
    assert image.dtype == np.float32
    assert image.min() >= -1000
    assert image.max() <= 400
    np.testing.assert_allclose(phantom.slice_hu(-3.0 + phantom.depth_mm), image, atol=2)


@pytest.mark.parametrize("size_px", [64, 250])
def test_unusable_size_is_refused(size_px: int) -> None:
    with pytest.raises(ValueError, match="multiple of 8"):
        LungPhantom(0, size_px)


@pytest.mark.parametrize("size_px", [128, 256, 512])
def test_vessels_run_everywhere_in_the_frame(size_px: int) -> None:
    phantoms = [LungPhantom(seed, size_px) for seed in range(6)]
    shares = []
    for phantom in phantoms:
        for z in np.linspace(0, phantom.depth_px, 8, endpoint=False):
            vessels = np.maximum(
                phantom._coverage(phantom.arteries, z), phantom._coverage(phantom.veins, z)
            )
            blocks = vessels.reshape(4, size_px // 4, 4, size_px // 4)
            shares.append(blocks.mean(axis=(1, 3)))
    assert min(share.max() for share in shares) > 0
    mean = np.mean(shares, axis=0)
    assert mean.min() > 0.1 * mean.mean()
    assert min(mean[0, 0], mean[0, 3], mean[3, 0], mean[3, 3]) > 0.25 * mean.mean()


@pytest.mark.parametrize(("size_px", "least", "most"), [(128, 0.1, 0.5), (512, 0.5, 1.0)])
def test_number_of_nodules_in_a_slice(size_px: int, least: float, most: float) -> None:
    phantoms = [LungPhantom(seed, size_px) for seed in range(24)]
    found = [
        abs(center[2]) < radius or abs(center[2] - phantom.depth_mm) < radius
        for phantom in phantoms
        for center, radius in phantom.nodules
    ]
    assert least < sum(found) / len(phantoms) < most


def test_neighbouring_slices_agree_and_distant_ones_less(phantom: LungPhantom) -> None:
    slices = [phantom.slice_hu(k * SLICE_SPACING_MM).ravel() for k in (0, 1, 2, 4)]
    correlations = [np.corrcoef(slices[0], other)[0, 1] for other in slices[1:]]
    assert correlations == sorted(correlations, reverse=True)
    assert correlations[0] > 0.4
    assert correlations[-1] < 0.3


def test_a_nodule_lies_where_the_attribute_says(phantom: LungPhantom) -> None:
    y, x = np.mgrid[: phantom.size_px, : phantom.size_px] * MICRO_SPACING_MM
    for center, radius in phantom.nodules[::3]:
        image = phantom.slice_hu(center[2])
        core = np.hypot(x - center[0], y - center[1]) < 0.8 * radius
        np.testing.assert_allclose(image[core], module.NODULE_HU, atol=1)
        assert all(radius < c < phantom.size_px * MICRO_SPACING_MM - radius for c in center[:2])


def test_an_airway_is_air_in_a_wall_beside_its_artery(phantom: LungPhantom) -> None:
    lumens, walls = phantom.airway_lumens, phantom.airway_walls
    assert (walls.radius > lumens.radius + 1).all()
    middle, radius = (lumens.start + lumens.end) / 2, lumens.radius.mean(axis=1)
    inside = (np.abs(middle[:, :2] - phantom.size_px / 2) < phantom.size_px / 2 - 1).all(axis=1)
    chosen = np.flatnonzero(inside & (radius > 3))[::80]
    assert len(chosen) > 2
    arteries = (phantom.arteries.start + phantom.arteries.end) / 2
    for k in chosen:
        column, row, z = middle[k]
        image = phantom.slice_hu(z * MICRO_SPACING_MM)
        value = image[round(row), round(column)]
        assert value < module.AIR_HU + 1 or abs(value - module.NODULE_HU) < 1
        assert np.linalg.norm(arteries - middle[k], axis=1).min() < 5 * radius[k]


def test_vessels_branch_and_taper(phantom: LungPhantom) -> None:
    tree = phantom.arteries
    assert len(tree.start) > 1000
    assert (tree.radius[:, 1] < tree.radius[:, 0]).all()
    assert tree.radius.max() > 4 * tree.radius.min()


def test_micro_scanner_noise() -> None:
    scan = scan_micro(np.full((256, 256), -850, np.float32), np.random.default_rng(0))
    assert scan.dtype == np.float32
    assert scan.mean() == pytest.approx(-850, abs=0.5)
    assert scan.std() == pytest.approx(14, rel=0.02)


@pytest.mark.parametrize("scale", [4, 8])
def test_clinical_scanner_noise_and_correlation(scale: int) -> None:
    flat = np.full((128 * scale, 128 * scale), -850, np.float32)
    scan = scan_clinical(flat, np.random.default_rng(0), scale)
    assert scan.shape == (128, 128)
    assert scan.dtype == np.float32
    assert scan.mean() == pytest.approx(-850, abs=1.5)
    assert scan.std() == pytest.approx(17.5, rel=0.03)
    neighbours = np.corrcoef(scan[:, 1:].ravel(), scan[:, :-1].ravel())[0, 1]
    assert 0.3 < neighbours < 0.6  # exp(-1 / (4 * 0.6**2)) = 0.50 before sampling


def test_clinical_scan_is_the_blurred_pooled_truth(truth: np.ndarray) -> None:
    scan = scan_clinical(truth, np.random.default_rng(0), noise_hu=0)
    assert scan.mean() == pytest.approx(truth.mean(), abs=1)
    frequency = np.fft.fftfreq(512)
    gaussian = np.exp(-2 * (np.pi * 4 * frequency) ** 2)  # transform of a Gaussian of 8/2 pixels
    blurred = np.fft.ifft2(np.fft.fft2(truth) * np.outer(gaussian, gaussian)).real
    pooled = blurred.reshape(64, 8, 64, 8).mean(axis=(1, 3))
    inner = np.s_[3:-3, 3:-3]  # the transform wraps around
    np.testing.assert_allclose(scan[inner], pooled[inner], atol=0.5)


def test_volumes_share_frame_and_slices() -> None:
    clinical, micro = phantom_volumes(seed=1, size_px=256, slices=3, scale=8)
    assert clinical.array.shape == (3, 32, 32)
    assert micro.array.shape == (3, 256, 256)
    assert clinical.array.dtype == micro.array.dtype == np.int16
    assert clinical.geometry.spacing_mm == (0.625, 0.625, 0.625)
    assert micro.geometry == clinical.geometry.finer_in_plane(8)
    np.testing.assert_allclose(micro.geometry.origin_mm, 0, atol=1e-12)
    pooled = micro.array.reshape(3, 32, 8, 32, 8).mean(axis=(2, 4))
    assert pooled.mean() == pytest.approx(clinical.array.mean(), abs=3)
    correlation = {
        shift: np.corrcoef(np.roll(pooled, shift, (0, 1, 2)).ravel(), clinical.array.ravel())[0, 1]
        for shift in np.ndindex(3, 3, 3)
    }
    assert max(correlation, key=lambda shift: correlation[shift]) == (0, 0, 0)
    assert correlation[0, 0, 0] > 0.8


def test_texture_resembles_real_micro_ct(micro_slices: list[np.ndarray]) -> None:
    found = texture_statistics(micro_slices)
    assert found["mean"] == pytest.approx(REAL_MEAN, abs=0.07)
    assert found["std"] == pytest.approx(REAL_STD, abs=0.06)
    assert found["level_90_percent"] == pytest.approx(REAL_LEVEL_90_PERCENT, abs=0.1)
    assert found["tissue_fraction"] == pytest.approx(REAL_TISSUE_FRACTION, abs=0.04)
    assert found["mean_chord_px"] == pytest.approx(REAL_MEAN_CHORD_PX, rel=0.2)
    assert 0.003 < found["tail"] < 0.03  # 0.004 in the real crops, which hold no large vessel


@pytest.mark.skipif(not REAL.exists(), reason=f"no real micro-CT at {REAL}")
def test_numbers_and_spectrum_of_the_real_texture(micro_slices: list[np.ndarray]) -> None:
    from skimage.io import imread

    span = (1 + REAL_TISSUE_VALUE) / REAL_TISSUE_GREY
    first = imread(REAL) * span - 1
    second = imread(REAL.with_name("lung_microct_texture_2.png")) * span - 1
    crops = [first[208:378, :170], second[:170, :170], second[230:, 60:230], first[230:, 100:270]]
    real = texture_statistics(crops)
    assert real["mean"] == pytest.approx(REAL_MEAN, abs=0.002)
    assert real["std"] == pytest.approx(REAL_STD, abs=0.002)
    assert real["level_90_percent"] == pytest.approx(REAL_LEVEL_90_PERCENT, abs=0.01)
    assert real["tissue_fraction"] == pytest.approx(REAL_TISSUE_FRACTION, abs=0.002)
    assert real["mean_chord_px"] == pytest.approx(REAL_MEAN_CHORD_PX, abs=1)
    decades = np.log10(power_spectrum(micro_slices) / power_spectrum(crops))
    assert np.abs(decades).max() < 0.25
