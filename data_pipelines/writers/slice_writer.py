"""What every writer knows of a volume, and what it does with its slices."""

import dataclasses
from pathlib import Path
from typing import Protocol

import numpy as np

from data_pipelines.geometry import Geometry


@dataclasses.dataclass(frozen=True)
class VolumeSpec:
    """The volume that is going to be written.

    Attributes:
      shape: (slices, rows, columns).
      dtype: int16, uint16, uint8 or float32.
      geometry: where it lies in the patient.
      description: one line; DICOM's SeriesDescription, OME-Zarr's name, cut where too long.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype
    geometry: Geometry
    description: str

    @property
    def little_endian(self) -> np.dtype:
        """The dtype as it is stored."""
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def plane_bytes(self) -> int:
        """Size of one slice."""
        return self.shape[1] * self.shape[2] * np.dtype(self.dtype).itemsize

    def stored(self, plane: np.ndarray) -> np.ndarray:
        """A slice as it is stored: contiguous and little endian.

        Raises:
          ValueError: it has another shape or dtype than the volume.
        """
        if plane.shape != self.shape[1:] or plane.dtype != self.dtype:
            raise ValueError(
                f"slice of {plane.dtype} {plane.shape} in a volume of {self.dtype} {self.shape}"
            )
        return np.ascontiguousarray(plane, self.little_endian)


class SliceWriter(Protocol):
    """Writes one volume slice by slice, in any order, from one process or several.

    Several processes write different slices. What a killed process left of a slice is mended by
    writing that slice again. An `OSError` names the file that could not be written.
    """

    @property
    def payload(self) -> Path:
        """What becomes the output by one rename, in the working folder."""

    def create(self) -> None:
        """Lay out the unfinished payload, unless it is there; before any slice, by one process."""

    def write(self, index: int, plane: np.ndarray) -> None:
        """Write slice `index`; `plane` is (rows, columns) in the volume's dtype."""

    def finish(self) -> None:
        """Make the payload whole, when all slices are written; by one process."""
