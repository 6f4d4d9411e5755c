"""A scan read slice by slice, so that its size does not matter to the memory."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_pipelines import image_files, volumes
from data_pipelines.errors import UserError
from data_pipelines.geometry import Geometry, Triple, Volume, axial
from data_pipelines.stored_volume import StoredVolume


class SliceReader:
    """The axial slices of a scan, as `axial` makes them, in an uncompressed copy on the disk.

    Iterating gives all slices in order. Threads may share a reader.

    Attributes:
      shape: (slices, rows, columns).
      geometry: of the axial slices.
      files: those that the scan was read from.
    """

    def __init__(
        self,
        copy: Path,
        dtype: np.dtype,
        stored_shape: tuple[int, ...],
        geometry: Geometry,
        files: tuple[Path, ...],
    ) -> None:
        # The shape of this array names its axes, and `axial` permutes it without a copy.
        axes = axial(Volume(np.empty((0, 1, 2), np.int8), geometry))
        self._copy, self._dtype, self._stored_shape = copy, dtype, stored_shape
        self._order = axes.array.shape
        slices, rows, columns = (stored_shape[axis] for axis in self._order)
        self.shape = (slices, rows, columns)
        self.geometry = axes.geometry
        self.files = files

    def read(self, index: int) -> np.ndarray:
        """One slice, (rows, columns): Hounsfield units for CT, in the dtype of the file."""
        # Mapped anew each time, or the pages of all slices would count as this process' memory.
        stored = np.memmap(self._copy, self._dtype, "r", shape=self._stored_shape)
        return np.array(stored.transpose(self._order)[index])

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.read(index) for index in range(self.shape[0]))


@contextlib.contextmanager
def open_slices(
    path: str | os.PathLike[str],
    *,
    series: str | None = None,
    spacing_mm: Triple | None = None,
    remedy: str = image_files.NO_SPACING,
) -> Iterator[SliceReader]:
    """Open all that `read_volume` reads as axial slices, with memory of a few of them.

    The scan is checked and copied once to the folder for temporary files (TMPDIR), uncompressed,
    so that a slice is read without decoding others and every error comes first. The copying of
    NRRD, compressed MetaImage, multi-page TIFF and multi-frame DICOM files holds the volume once,
    that of OME-Zarr the slices of a chunk.

    Args:
      path: as in `read_volume`.
      series: as in `read_volume`.
      spacing_mm: as in `read_volume`.
      remedy: as in `read_volume`.

    Yields:
      The reader; the copy is removed at exit.

    Raises:
      UserError: as `read_volume`, or the disk is full.
    """
    path = Path(path)
    with tempfile.TemporaryDirectory(prefix="slices-") as name:
        folder = Path(name)
        unpacked = folder / "unpacked.nii"
        stored = volumes.open_volume(path, series, spacing_mm, remedy, unpacked=unpacked)
        reader = _copied(path, stored, folder / "planes")
        unpacked.unlink(missing_ok=True)
        yield reader


def _copied(path: Path, stored: StoredVolume, copy: Path) -> SliceReader:
    count = bad = 0
    try:
        with open(copy, "wb") as file:
            for plane in stored.planes:
                count += 1
                bad += plane.size - int(np.isfinite(plane).sum())
                file.write(np.ascontiguousarray(plane).data)
    except OSError as error:
        raise UserError(f"{copy} cannot be written: {error.strerror}; free its disk") from error
    if bad:
        raise UserError(f"{path} has {bad} NaN or infinite voxels; replace them first")
    return SliceReader(copy, plane.dtype, (count, *plane.shape), stored.geometry, stored.files)
