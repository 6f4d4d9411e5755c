import time
from pathlib import Path

import numpy as np
import pytest
from chest import body
from scipy import ndimage
from skimage.measure import block_reduce

from data_pipelines.errors import UserError
from data_pipelines.find_cases import find_cases
from data_pipelines.lung_mask import LungMask, lung_mask, specimen_mask, streamed_lung_mask
from data_pipelines.volumes import read_volume

CLINICAL = Path(__file__).parents[3] / "shared" / "data" / "clinical"


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


@pytest.mark.parametrize("spacing_mm", [(0.9, 0.9, 5.0), (2.0, 2.0, 8.0), (2.5, 2.5, 1.25)])
def test_body_on_a_table(spacing_mm: tuple[float, float, float]) -> None:
    hu, lungs = body(spacing_mm)
    mask = lung_mask(hu, spacing_mm, "body")
    assert mask.dtype == bool
    assert mask.shape == hu.shape
    assert dice(mask, lungs) > 0.95


def test_vessels_and_a_tumour_at_the_wall_stay_inside() -> None:
    hu, lungs = body()
    dense = (hu > -320) & lungs
    assert dense.sum() > 500
    assert (lung_mask(hu, (2.0, 2.0, 5.0), "body") & dense).sum() > 0.9 * dense.sum()


def test_padding_around_the_scanned_circle() -> None:
    hu, lungs = body()
    y, x = np.indices(hu.shape[1:]) - np.array(hu.shape[1:]).reshape(2, 1, 1) / 2
    hu[:, np.hypot(y, x) > hu.shape[1] / 2] = -3024
    assert dice(lung_mask(hu, (2.0, 2.0, 5.0), "body"), lungs) > 0.95


@pytest.mark.parametrize("field_mm", [270.0, 170.0])
def test_lungs_that_the_scan_crops(field_mm: float) -> None:
    hu, lungs = body(field_mm=field_mm)
    assert dice(lung_mask(hu, (2.0, 2.0, 5.0), "crop"), lungs) > 0.95


def test_thin_chest_wall_with_a_leak() -> None:
    hu, lungs = body()
    y, x = (np.indices(hu.shape[1:]) - np.array(hu.shape[1:]).reshape(2, 1, 1) / 2) * 2
    hu[10, (np.abs(y) < 3) & (x > 130)] = -980  # a passage from the left lung to the outside
    assert dice(lung_mask(hu, (2.0, 2.0, 5.0), "leak"), lungs) > 0.95


def test_one_slice() -> None:
    hu, lungs = body()
    assert dice(lung_mask(hu[15:16], (2.0, 2.0, 5.0), "slice"), lungs[15:16]) > 0.95


def test_one_lung() -> None:
    hu, lungs = body()
    half = hu.shape[2] // 2
    hu[..., :half][lungs[..., :half]] = 40
    lungs[..., :half] = False
    assert dice(lung_mask(hu, (2.0, 2.0, 5.0), "one lung"), lungs) > 0.95


@pytest.mark.parametrize("value", [-1000.0, 40.0])
def test_no_lung(value: float) -> None:
    with pytest.raises(UserError, match=r"no lung found in scan 7 \(0\.00%"):
        lung_mask(np.full((5, 64, 64), value), (1, 1, 1), "scan 7")


def test_body_without_lungs() -> None:
    hu, lungs = body()
    hu[lungs] = 40
    with pytest.raises(UserError, match="no lung found"):
        lung_mask(hu, (2.0, 2.0, 5.0), "abdomen")


@pytest.mark.skipif(not CLINICAL.is_dir(), reason="real clinical scans are not there")
@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("lung_pet_ct_dx_a0001_sharp.nii.gz", (0.22, 0.26)),
        ("lung_pet_ct_dx_a0001_smooth.nii.gz", (0.22, 0.26)),
        ("lung_pet_ct_dx_a0002_dicom", (0.15, 0.18)),
        ("totalsegmentator_crop_a.nii.gz", (0.32, 0.37)),
        ("totalsegmentator_crop_b.nii.gz", (0.38, 0.43)),
    ],
)
def test_real_scans(name: str, share: tuple[float, float]) -> None:
    volume = read_volume(CLINICAL / name)
    started = time.monotonic()
    mask = lung_mask(volume.array, volume.geometry.spacing_mm, name)
    assert time.monotonic() - started < 30
    assert share[0] < mask.mean() < share[1]  # of the masks that were judged right by eye
    assert -900 < np.median(volume.array[mask]) < -700


@pytest.mark.skipif(not CLINICAL.is_dir(), reason="real clinical scans are not there")
def test_kernel_does_not_change_the_mask() -> None:
    masks = []
    for case in find_cases([str(CLINICAL / "lung_pet_ct_dx_a0001_*")]):
        volume = read_volume(case)
        masks.append(lung_mask(volume.array, volume.geometry.spacing_mm, case.name))
    assert dice(*masks) > 0.98


def at_full_size(mask: LungMask) -> np.ndarray:
    whole = np.kron(mask.coarse, np.ones(mask.block, bool))
    return whole[tuple(slice(size) for size in mask.shape)]


@pytest.mark.parametrize("rim_mm", [0.0, 3.0, 9.0])
def test_a_rim_is_as_wide_as_asked_and_smooth(rim_mm: float) -> None:
    spacing_mm = (0.7, 0.8, 3.0)
    hu, _ = body(spacing_mm)
    mask = streamed_lung_mask(iter(hu), spacing_mm, "body")
    grown = mask.grown(rim_mm)
    lungs = at_full_size(mask)
    middle = len(hu) // 2
    plane = grown(middle)
    assert plane.dtype == bool
    assert plane.shape == hu.shape[1:]
    beyond_mm = ndimage.distance_transform_edt(~lungs[middle], sampling=(0.8, 0.7))
    voxel_mm = max(mask.steps_mm[1:])
    assert plane[beyond_mm < rim_mm - voxel_mm].all()
    assert not plane[beyond_mm > rim_mm + voxel_mm].any()
    corners = ndimage.generic_filter(plane.astype(float), lambda v: v.sum() in (1, 3), size=2)
    stepped = ndimage.generic_filter(
        lungs[middle].astype(float), lambda v: v.sum() in (1, 3), size=2
    )
    if rim_mm:  # steps of a pixel each, and not of a block: more and smaller ones
        assert corners.sum() > 1.2 * stepped.sum()


@pytest.mark.parametrize("spacing_mm", [(2.0, 2.0, 5.0), (1.1, 1.3, 4.0), (2.5, 2.5, 1.25)])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_slices_of_a_stream_give_the_same_mask(
    spacing_mm: tuple[float, float, float], dtype: type
) -> None:
    hu, lungs = body(spacing_mm)
    hu = hu.round().astype(dtype)
    expected = lung_mask(hu, spacing_mm, "body")
    mask = streamed_lung_mask((plane for plane in hu), spacing_mm, "body")
    np.testing.assert_array_equal(at_full_size(mask), expected)
    assert dice(expected, lungs) > 0.95


@pytest.mark.parametrize("seed", range(8))
def test_random_shapes_of_a_stream(seed: int) -> None:
    """The mask of a stream is that of the scan after scikit-image pooled it whole."""
    rng = np.random.default_rng(seed)
    spacing_mm = tuple(rng.uniform(0.4, 3.0, 3).tolist())
    size_mm = rng.uniform((1.0, 110.0, 110.0), (10.0, 140.0, 140.0))
    shape = tuple(np.ceil(size_mm / spacing_mm[::-1]).astype(int).tolist())
    hu = rng.integers(0, 80, shape).astype(np.int16)
    rows, columns = (slice(size // 4, 1 + 3 * size // 4) for size in shape[1:])
    hu[:, rows, columns] -= 900
    block = tuple(max(1, round(2.0 / step)) for step in reversed(spacing_mm))
    pad = [(0, -size % factor) for size, factor in zip(shape, block)]
    coarse = block_reduce(np.pad(hu, pad, mode="edge"), block, np.mean)
    steps_mm = tuple(step * factor for step, factor in zip(spacing_mm, reversed(block)))
    expected = np.kron(lung_mask(coarse, steps_mm, "pooled"), np.ones(block, bool))
    expected = expected[tuple(slice(size) for size in shape)]
    assert 0.1 < expected.mean() < 0.6
    mask = streamed_lung_mask(iter(hu), spacing_mm, "box")
    assert mask.shape == shape
    np.testing.assert_array_equal(at_full_size(mask), expected)
    np.testing.assert_array_equal(lung_mask(hu, spacing_mm, "box"), expected)


def test_no_lung_in_a_stream() -> None:
    with pytest.raises(UserError, match=r"no lung found in scan 7 \(0\.00%"):
        streamed_lung_mask(iter(np.full((5, 64, 64), 40)), (1, 1, 1), "scan 7")


def tissue(shape: tuple[int, int, int]) -> np.ndarray:
    """Alveoli-like texture of septa 150 and air 40."""
    y, x = np.indices(shape[1:])
    cells = np.hypot(y % 16 - 8, x % 16 - 8) < 6.5
    return np.broadcast_to(np.where(cells, 40, 150), shape)


@pytest.mark.parametrize("air_is_dark", [True, False])
def test_round_specimen_in_air(air_is_dark: bool) -> None:
    shape = (24, 256, 256)
    y, x = np.indices(shape[1:]) - 127.5
    inside = np.broadcast_to(np.hypot(y, x) < 100, shape)
    volume = np.where(inside, tissue(shape), 30) + np.random.default_rng(0).normal(0, 10, shape)
    volume = volume if air_is_dark else 255 - volume
    mask = specimen_mask(volume, air_is_dark=air_is_dark)
    assert mask.dtype == bool
    assert dice(mask, inside) > 0.95


def test_tissue_that_fills_the_field_of_view() -> None:
    shape = (24, 256, 256)
    volume = tissue(shape) + np.random.default_rng(0).normal(0, 10, shape)
    assert specimen_mask(volume).all()


def test_constant_volume_is_one_specimen() -> None:
    assert specimen_mask(np.zeros((3, 70, 50), dtype=np.uint8)).all()
