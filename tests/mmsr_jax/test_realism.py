import numpy as np
import pytest
from scipy import ndimage

from data_pipelines.phantom import LungPhantom, scan_micro
from mmsr_jax.evaluation.realism import histogram_distance, sliced_wasserstein


def textures(seed: int, count: int = 32, size: int = 64, sigma: float = 1.0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(count, size, size))
    smooth = ndimage.gaussian_filter(noise, (0, sigma, sigma))
    return 0.3 * smooth / smooth.std()


def test_equal_sets_are_at_distance_zero() -> None:
    images = textures(0)
    # The places of the neighbourhoods differ, so that the distance is that of two samples.
    assert sliced_wasserstein(images, images) < 0.05
    assert histogram_distance(images, images) == 0


def test_other_images_of_the_domain_are_near() -> None:
    assert sliced_wasserstein(textures(0), textures(1)) < 0.1


def test_the_distance_is_that_of_gaussians_where_it_is_known() -> None:
    """White noise k times as strong: every projection of every level is k times as wide."""
    white = np.random.default_rng(0).normal(size=(8, 128, 128))
    for factor in (0.5, 2.0):
        other = factor * np.random.default_rng(1).normal(size=(8, 128, 128))
        # The Wasserstein distance of N(0, 1) and N(0, k²) is |k − 1| · E|N(0, 1)|. Neighbouring
        # pixels of a level depend on each other, so that directions differ but average to 1.
        expected = abs(factor - 1) * np.sqrt(2 / np.pi)
        assert sliced_wasserstein(other, white) == pytest.approx(expected, rel=0.12)


@pytest.mark.parametrize("sigma", [0.7, 1.6])
def test_blur_and_sharpening_are_seen(sigma: float) -> None:
    assert sliced_wasserstein(textures(0, sigma=sigma), textures(1)) > 0.15


def test_more_blur_is_farther() -> None:
    references = textures(9)
    distances = [
        sliced_wasserstein(ndimage.gaussian_filter(textures(0), (0, s, s)), references)
        for s in (0.0, 0.5, 1.0, 2.0)
    ]
    assert distances == sorted(distances)
    assert distances[-1] > 4 * distances[0]


def test_the_seed_decides() -> None:
    images, references = textures(0), textures(1)
    first, again, other = (sliced_wasserstein(images, references, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert first == pytest.approx(other, abs=0.03)


def test_brightness_is_seen() -> None:
    """On the last level alone: the others are differences."""
    images, references = textures(0), textures(1)
    near, shifted, further = (
        sliced_wasserstein(images + shift, references) for shift in (0, 0.3, 0.6)
    )
    assert shifted > near + 0.2
    assert further - near == pytest.approx(2 * (shifted - near), rel=0.3)


def test_small_images_have_fewer_levels() -> None:
    assert sliced_wasserstein(textures(0, size=16), textures(1, size=16)) < 0.2


def test_the_histogram_sees_a_shift_and_a_stretch() -> None:
    images = textures(0)
    assert histogram_distance(images + 0.25, images) == pytest.approx(0.25)
    mean_size = np.abs(images).mean()
    assert histogram_distance(2 * images, images) == pytest.approx(mean_size, rel=0.02)


def test_none_of_them_sees_inversion_of_symmetric_texture() -> None:
    """Why they are shown beside correlation."""
    images, references = textures(0), textures(1)
    assert sliced_wasserstein(-images, references) < 0.1
    assert histogram_distance(-images, references) < 0.02


def test_phantoms_are_nearer_to_each_other_than_to_their_blurred_selves() -> None:
    hu = [
        scan_micro(LungPhantom(seed, 256).slice_hu(3.0), np.random.default_rng(seed))
        for seed in range(4)
    ]
    images = np.clip(np.stack(hu) / 700 + 1000 / 700 - 1, -1, 1)
    own = sliced_wasserstein(images[:2], images[2:])
    blurred = sliced_wasserstein(ndimage.gaussian_filter(images[:2], (0, 4, 4)), images[2:])
    assert blurred > 4 * own
