from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.intensity import (
    AIR,
    TISSUE,
    Intensity,
    clinical_intensity,
    estimate_anchors,
    to_hu,
)
from data_pipelines.volumes import read_volume

MICRO = Path(__file__).parents[3] / "shared" / "data" / "micro"
SHAPE = (10, 200, 200)
finite = st.floats(-1e4, 1e4, width=32)


def two_tissues(share: float = 0.25) -> np.ndarray:
    """Air 800 +- 150, soft tissue 3000 +- 250."""
    rng = np.random.default_rng(0)
    tissue = rng.random(SHAPE) < share
    return np.where(tissue, rng.normal(3000, 250, SHAPE), rng.normal(800, 150, SHAPE))


def test_targets_are_those_of_the_clinical_window() -> None:
    assert AIR == -1
    assert pytest.approx(2 * (40 + 1000) / 1400 - 1) == TISSUE


def test_clinical_window() -> None:
    window = clinical_intensity()
    assert window == Intensity(-1000.0, 40.0, "window")
    values = window.normalise(np.array([-2000, -1000, -300, 40, 400, 3000], dtype=np.int16))
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, [-1, -1, 0, TISSUE, 1, 1], atol=1e-6)
    np.testing.assert_allclose(to_hu(np.array([-1, 0, 1])), [-1000, -300, 400], atol=1e-4)


def test_other_window() -> None:
    window_hu = (-1200.0, 200.0)
    values = clinical_intensity(window_hu).normalise(np.array([-1200, -500, 200]))
    np.testing.assert_allclose(values, [-1, 0, 1], atol=1e-6)
    np.testing.assert_allclose(to_hu(values, window_hu), [-1200, -500, 200], atol=1e-3)


@pytest.mark.parametrize("window_hu", [(400.0, -1000.0), (0.0, 0.0)])
def test_window_must_rise(window_hu: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="rise"):
        clinical_intensity(window_hu)


@pytest.mark.parametrize("tissue", [5.0, float("nan")])
def test_anchors_must_differ(tissue: float) -> None:
    with pytest.raises(ValueError, match="differ"):
        Intensity(5.0, tissue, "modes")


@given(air=finite, step=st.floats(1, 1e4), sign=st.sampled_from([-1, 1]), at=st.floats(-1, 1))
def test_denormalise_undoes_normalise(air: float, step: float, sign: int, at: float) -> None:
    levels = Intensity(air, air + sign * step, "modes")
    stored = levels.denormalise(np.array([at]))
    assert levels.normalise(stored)[0] == pytest.approx(at, abs=5e-3)


@given(air=finite, step=st.floats(1, 1e4), sign=st.sampled_from([-1, 1]))
def test_anchors_land_on_their_targets(air: float, step: float, sign: int) -> None:
    levels = Intensity(air, air + sign * step, "modes")
    np.testing.assert_allclose(
        levels.normalise(np.array([levels.air, levels.tissue])), [AIR, TISSUE], atol=5e-3
    )


@pytest.mark.parametrize("dtype", [np.float32, np.uint16, np.int16])
@pytest.mark.parametrize("share", [0.02, 0.25, 0.9])
def test_modes_are_found(dtype: type, share: float) -> None:
    levels = estimate_anchors(two_tissues(share).astype(dtype))
    assert levels.method == "modes"
    assert levels.air == pytest.approx(800, abs=50)
    assert levels.tissue == pytest.approx(3000, abs=80)


def test_inverted_has_air_above_tissue() -> None:
    levels = estimate_anchors((4000 - two_tissues()).astype(np.int16), inverted=True)
    assert levels.method == "modes"
    assert levels.air == pytest.approx(3200, abs=50)
    assert levels.tissue == pytest.approx(1000, abs=80)
    assert levels.normalise(np.array([1000]))[0] > levels.normalise(np.array([3200]))[0]


def test_padding_and_saturation_are_no_modes() -> None:
    volume = two_tissues()
    volume[:, :60] = 0
    volume[:, 60:80] = 65535
    levels = estimate_anchors(volume.astype(np.uint16))
    assert levels.method == "modes"
    assert levels.air == pytest.approx(800, abs=50)
    assert levels.tissue == pytest.approx(3000, abs=80)


def test_clipped_air_is_a_mode() -> None:
    levels = estimate_anchors(np.clip((two_tissues() - 800) / 10, 0, 255).astype(np.uint8))
    assert levels.method == "modes"
    assert levels.air <= 8
    assert levels.tissue == pytest.approx(220, abs=8)


def test_one_mode_falls_back_to_percentiles() -> None:
    volume = np.random.default_rng(0).normal(100, 10, SHAPE)
    levels = estimate_anchors(volume)
    assert levels.method == "percentiles"
    assert levels.air == pytest.approx(100 - 25.8, abs=1)
    assert levels.tissue == pytest.approx(100 + 25.8, abs=1)


def test_two_values_fall_back_to_percentiles() -> None:
    volume = np.zeros(SHAPE, dtype=np.uint8)
    volume[:, :50] = 200
    assert estimate_anchors(volume) == Intensity(0.0, 200.0, "percentiles")
    assert estimate_anchors(volume, inverted=True) == Intensity(200.0, 0.0, "percentiles")


def test_three_values_fall_back_to_percentiles() -> None:
    volume = np.repeat([0.0, 0.5, 1.0], 1000)
    assert estimate_anchors(volume) == Intensity(0.0, 1.0, "percentiles")


def test_large_volume_is_sampled_everywhere() -> None:
    volume = np.zeros((1, 4000, 4000), dtype=np.uint8)  # 16 million voxels: every fourth is used
    volume[..., 1::4] = 200
    assert estimate_anchors(volume) == Intensity(0.0, 200.0, "percentiles")


def test_constant_volume_is_refused() -> None:
    with pytest.raises(ValueError, match=r"nearly all voxels are 7"):
        estimate_anchors(np.full(SHAPE, 7, dtype=np.uint8))


def test_affine_change_of_units_changes_nothing() -> None:
    volume = two_tissues()
    values = estimate_anchors(volume).normalise(volume)
    other = 0.01 * volume - 5
    np.testing.assert_allclose(estimate_anchors(other).normalise(other), values, atol=0.03)


@pytest.mark.skipif(not MICRO.is_dir(), reason="real micro images are not there")
def test_real_images() -> None:
    def anchors(name: str, inverted: bool = False) -> Intensity:
        volume = read_volume(MICRO / name, spacing_mm=(1, 1, 1))
        return estimate_anchors(volume.array, inverted=inverted)

    one, two = (anchors(f"lung_microct_texture_{i}.png") for i in (1, 2))
    assert one.method == two.method == "modes"
    assert one.tissue == pytest.approx(two.tissue, abs=10)  # two windows of one slice
    sections = anchors("lung_sem", inverted=True)
    assert sections.air > 190
    assert sections.tissue < 120
