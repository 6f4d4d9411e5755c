import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsr_jax.inference.bicubic import bicubic, made_consistent, pooled
from mmsr_jax.inference.tiles import Window
from mmsr_jax.networks.consistency import consistent

SIZES = st.integers(1, 24)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape[0]).normal(-500, 300, shape).astype(np.float32)


def keys(distance: np.ndarray) -> np.ndarray:
    """The cubic of Keys 1981, equation 15."""
    d = np.abs(distance)
    inner = 1.5 * d**3 - 2.5 * d**2 + 1
    outer = -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
    return np.where(d < 1, inner, np.where(d < 2, outer, 0))


@pytest.mark.parametrize("scale", [2, 8])
def test_inside_it_is_cubic_convolution(scale: int) -> None:
    plane = noise(14, 17)
    fine = bicubic(plane, Window(0, 14, 0, 17), scale)
    rows, columns = (
        keys((np.arange(scale * n)[:, None] + 0.5) / scale - 0.5 - np.arange(n)) for n in (14, 17)
    )
    inner = np.s_[2 * scale : -2 * scale, 2 * scale : -2 * scale]
    np.testing.assert_allclose(fine[inner], (rows @ plane @ columns.T)[inner], atol=0.01)


def test_a_constant_stays_constant_and_pooling_is_a_mean() -> None:
    fine = bicubic(np.full((5, 7), -321.0), Window(0, 5, 0, 7), 8)
    np.testing.assert_allclose(fine, -321.0, rtol=1e-5)
    image = noise(24, 16)
    shrunk = sitk.GetArrayFromImage(sitk.BinShrink(sitk.GetImageFromArray(image), (8, 8)))
    np.testing.assert_allclose(pooled(image, 8), shrunk, rtol=1e-4)


@settings(derandomize=True, deadline=None, max_examples=25)
@given(rows=SIZES, columns=SIZES, data=st.data())
def test_a_window_is_cut_from_the_whole(rows: int, columns: int, data: st.DataObject) -> None:
    plane = noise(rows, columns)
    top, left = (data.draw(st.integers(0, side - 1)) for side in (rows, columns))
    window = Window(
        top, data.draw(st.integers(top + 1, rows)), left, data.draw(st.integers(left + 1, columns))
    )
    whole = bicubic(plane, Window(0, rows, 0, columns), 4)
    np.testing.assert_allclose(bicubic(plane, window, 4), window.of(whole, 4), atol=0.01)


@settings(derandomize=True, deadline=None, max_examples=25)
@given(rows=SIZES, columns=SIZES, scale=st.sampled_from([2, 4, 8]))
def test_consistency_is_exact_and_changes_nothing_that_is_consistent(
    rows: int, columns: int, scale: int
) -> None:
    coarse, fine = noise(rows, columns), noise(scale * rows, scale * columns)
    made = made_consistent(fine, coarse)
    np.testing.assert_allclose(pooled(made, scale), coarse, atol=0.01)
    np.testing.assert_allclose(made_consistent(made, coarse), made, atol=0.05)


def test_it_is_the_limit_of_the_networks_series() -> None:
    rng = np.random.default_rng(0)
    coarse = rng.uniform(-1, 1, (12, 15)).astype(np.float32)
    fine = rng.uniform(-1, 1, (96, 120)).astype(np.float32)
    series = fine[None, :, :, None]
    for _ in range(4):  # 8 passes each
        series = np.asarray(consistent(series, coarse[None, :, :, None]))
    np.testing.assert_allclose(made_consistent(fine, coarse), series[0, :, :, 0], atol=1e-4)
