from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given
from hypothesis import strategies as st
from scan_files import OBLIQUE, numbers, rotated

from data_pipelines.geometry import Geometry, Volume, axial

angles = st.tuples(*[st.floats(-180, 180)] * 3)
spacings = st.tuples(*[st.floats(0.05, 10)] * 3)
places = st.tuples(*[st.floats(-500, 500)] * 3)


@given(degrees=angles, spacing_mm=spacings, origin_mm=places, scale=st.integers(1, 12))
def test_finer_in_plane_covers_the_same_extent(
    degrees: tuple[float, ...], spacing_mm: Any, origin_mm: Any, scale: int
) -> None:
    coarse = Geometry(spacing_mm, origin_mm, rotated(degrees))
    fine = coarse.finer_in_plane(scale)
    columns, rows, slices = 11, 6, 4
    for x, y in [(0, 0), (1, 0), (0, 1), (1, 1)]:  # the corners of the outer voxels
        corner = (x * columns - 0.5, y * rows - 0.5, slices - 1)
        corner_fine = (x * columns * scale - 0.5, y * rows * scale - 0.5, slices - 1)
        np.testing.assert_allclose(
            fine.physical_point(corner_fine), coarse.physical_point(corner), atol=1e-9
        )
    assert fine.spacing_mm[2] == spacing_mm[2]
    assert fine.direction == coarse.direction


@given(degrees=angles, spacing_mm=spacings, origin_mm=places, index=places)
def test_physical_point_is_that_of_itk(
    degrees: tuple[float, ...], spacing_mm: Any, origin_mm: Any, index: Any
) -> None:
    geometry = Geometry(spacing_mm, origin_mm, rotated(degrees))
    image = sitk.Image(2, 2, 2, sitk.sitkInt16)
    image.SetSpacing(geometry.spacing_mm)
    image.SetOrigin(geometry.origin_mm)
    image.SetDirection(geometry.direction)
    np.testing.assert_allclose(
        geometry.physical_point(index),
        image.TransformContinuousIndexToPhysicalPoint(index),
        atol=1e-6,
    )


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 0, 1), (0, 2, 1), (2, 1, 0)])
def test_axial_keeps_every_voxel_where_it_was(order: tuple[int, ...]) -> None:
    columns = np.reshape(rotated((5, -8, 12)), (3, 3))[:, order]
    geometry = Geometry((1, 2, 3), (4, 5, 6), tuple(columns.ravel().tolist()))
    volume = Volume(numbers((4, 6, 8)), geometry)
    turned = axial(volume)
    direction = np.abs(np.reshape(turned.geometry.direction, (3, 3)))
    assert direction[2].argmax() == 2
    if order[2] != 2:
        assert direction[0].argmax() == 0  # columns run left to right
        assert turned.array.flags.c_contiguous
    voxels = {}
    for case in (volume, turned):
        for z, y, x in np.ndindex(case.array.shape):
            point = tuple(np.round(case.geometry.physical_point((x, y, z)), 6) + 0.0)
            voxels.setdefault(point, []).append(case.array[z, y, x])
    assert all(len(values) == 2 and values[0] == values[1] for values in voxels.values())


def test_axial_volume_is_returned_as_it_is() -> None:
    volume = Volume(numbers(), OBLIQUE)
    assert axial(volume) is volume
