"""What a volume is: an array and where it lies in the patient.

Coordinates follow ITK: millimetres in the patient's LPS frame. Arrays are (z, y, x) = (slices,
rows, columns); geometry is always given as (x, y, z).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

Triple = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Where a volume lies in the patient, in ITK's LPS convention.

    Attributes:
      spacing_mm: distance between voxel centres along (x, y, z) of the index.
      origin_mm: physical position of the centre of voxel (0, 0, 0).
      direction: 3x3 matrix, row-major; column i is the unit vector of index axis i.
    """

    spacing_mm: Triple
    origin_mm: Triple = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)

    def physical_point(self, index_xyz: Sequence[float]) -> Triple:
        """Position in mm (LPS) of a continuous index (x, y, z); voxel centres are integers."""
        step = np.asarray(self.spacing_mm) * np.asarray(index_xyz, dtype=float)
        return as_triple(np.asarray(self.origin_mm) + np.reshape(self.direction, (3, 3)) @ step)

    def finer_in_plane(self, scale: int) -> "Geometry":
        """Geometry of the same physical extent with `scale` times as many columns and rows."""
        x, y, z = self.spacing_mm
        # The first new centre lies half a new pixel from the outer edge, which is at index -1/2.
        first = 0.5 / scale - 0.5
        return Geometry(
            (x / scale, y / scale, z), self.physical_point((first, first, 0)), self.direction
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Volume:
    """A volume: `array` (z, y, x), int16, uint16, uint8 or float32, and its geometry."""

    array: np.ndarray
    geometry: Geometry


def axial(volume: Volume) -> Volume:
    """Make axial slices of a coronal or sagittal volume.

    Permutes the axes, without flips or resampling, so that array axis 0 is the one closest to
    the patient's superior-inferior axis; geometry follows exactly. An axial volume is returned
    as it is.
    """
    direction = np.reshape(volume.geometry.direction, (3, 3))
    towards = np.abs(direction).round(6)
    if towards[2, 2] == towards[2].max():
        return volume
    slices = int(towards[2].argmax())
    columns, rows = sorted({0, 1, 2} - {slices}, key=lambda axis: -towards[0, axis])
    order = [columns, rows, slices]
    geometry = Geometry(
        as_triple(np.asarray(volume.geometry.spacing_mm)[order]),
        volume.geometry.origin_mm,
        tuple(direction[:, order].ravel().tolist()),
    )
    array = volume.array.transpose([2 - axis for axis in reversed(order)])
    return Volume(np.ascontiguousarray(array), geometry)


def as_triple(values: Sequence[float] | np.ndarray) -> Triple:
    """Three numbers of any kind as floats of Python."""
    x, y, z = (float(value) for value in values)
    return (x, y, z)
