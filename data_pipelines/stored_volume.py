"""A volume in files whose headers are read and checked, and whose voxels are still to be read."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_pipelines.geometry import Geometry, Volume


@dataclasses.dataclass(frozen=True, eq=False)
class StoredVolume:
    """What a reader knows before it reads voxels.

    Attributes:
      geometry: of the array (z, y, x) that the planes make.
      files: those with the header and the voxels, in the order of the planes.
      planes: (y, x) arrays of one dtype, in order, each read when it is asked for; can be read
        once. A `UserError` is raised where a file is corrupt.
    """

    geometry: Geometry
    files: tuple[Path, ...]
    planes: Iterator[np.ndarray]

    def in_memory(self) -> Volume:
        """Read all planes."""
        return Volume(np.stack(list(self.planes)), self.geometry)
