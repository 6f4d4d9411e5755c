import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.errors import UserError
from data_pipelines.patch_sampling import (
    ANY_PLANE,
    LEAVES_MASK,
    NEARLY_CONSTANT,
    sample_positions,
    take_patch,
    usable_slices,
)


def sample(array, mask, patch_px, count, seed=0, **options):
    options = {"least_std": 0.0, "name": "case"} | options
    return sample_positions(array, mask, patch_px, count, np.random.default_rng(seed), **options)


def brute_force(mask, patch_px, planes=(0,), least_inside=1.0):
    """All valid positions, by looking at each patch."""
    found = []
    for plane in planes:
        view = np.moveaxis(mask, plane, 0)
        for index, row, column in np.ndindex(
            view.shape[0], view.shape[1] - patch_px + 1, view.shape[2] - patch_px + 1
        ):
            if take_patch(mask, (plane, index, row, column), patch_px).mean() >= least_inside:
                found.append((plane, index, row, column))
    return found


@pytest.mark.parametrize("planes", [(0,), ANY_PLANE])
@pytest.mark.parametrize("patch_px", [3, 4])
def test_asking_for_all_positions_gives_each_valid_one_once(planes, patch_px):
    rng = np.random.default_rng(1)
    mask = rng.random((6, 7, 9)) < 0.93
    expected = brute_force(mask, patch_px, planes)
    found = sample(rng.random(mask.shape), mask, patch_px, len(expected), planes=planes)
    assert sorted(map(tuple, found.positions.tolist())) == sorted(expected)
    assert found.valid_positions == len(expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.sampled_from([0.5, 0.8, 1.0]))
def test_patches_lie_in_the_mask_to_the_stated_fraction(seed, patch_px, least_inside):
    rng = np.random.default_rng(seed)
    mask = rng.random((3, 8, 6)) < 0.9
    valid = brute_force(
        mask, patch_px, least_inside=round(least_inside * patch_px**2) / patch_px**2
    )
    if len(valid) < 5:
        return
    found = sample(rng.random(mask.shape), mask, patch_px, 5, seed, least_inside=least_inside)
    assert set(map(tuple, found.positions.tolist())) <= set(valid)


def test_rejections_are_counted_by_reason():
    rng = np.random.default_rng(2)
    array = rng.normal(size=(2, 12, 12))
    array[0] = 5.0  # the first slice shows nothing
    mask = np.zeros(array.shape, bool)
    mask[:, 2:10, 2:10] = True
    found = sample(array, mask, 4, 25, least_std=0.01)
    assert found.positions[:, 1].tolist() == [1] * 25
    assert found.valid_positions == 50
    # Centres are at row + 2: 8 x 8 of them in the mask, of which 5 x 5 start a patch inside it.
    assert found.rejected[LEAVES_MASK] == 2 * (8 * 8 - 5 * 5)
    assert 0 < found.rejected[NEARLY_CONSTANT] <= 25


def test_the_whole_volume_without_a_mask_and_the_same_draw_for_the_same_seed():
    array = np.random.default_rng(3).random((3, 9, 9))
    first, again, other = (sample(array, None, 8, 6, seed).positions for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    everywhere = sample(array, np.ones(array.shape, bool), 8, 6).positions
    assert np.array_equal(first, everywhere)


@pytest.mark.parametrize(
    ("mask_value", "array_value", "patch_px", "words"),
    [
        (0, None, 4, "found 0 of 10 patches of 4 x 4 pixels (0 positions"),
        (1, 7.0, 4, "50 of 50 drawn ones nearly constant"),
        (1, None, 20, "(0 positions inside the mask"),
    ],
)
def test_too_few_valid_positions(mask_value, array_value, patch_px, words):
    array = np.random.default_rng(4).random((2, 8, 8))
    if array_value is not None:
        array[:] = array_value
    mask = np.full(array.shape, bool(mask_value))
    with pytest.raises(UserError) as error:
        sample(array, mask, patch_px, 10, least_std=0.01, name="scan.nii")
    assert words in str(error.value)
    assert "scan.nii" in str(error.value)
    assert "\n" not in str(error.value)


def test_usable_slices_hold_a_patch():
    mask = np.zeros((5, 8, 8), bool)
    mask[1, :4, :4] = mask[3] = True
    mask[4, :3] = True
    assert usable_slices(mask.shape, mask, 4).tolist() == [1, 3]
