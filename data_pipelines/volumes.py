"""CT volumes in files: DICOM series, NIfTI, MetaImage, NRRD, OME-Zarr, TIFF or PNG stacks."""

import math
import os
import tempfile
from pathlib import Path

import numpy as np

from data_pipelines import dicom_series, image_files, ome_zarr, tiff, writers
from data_pipelines.errors import UserError
from data_pipelines.file_names import extension
from data_pipelines.geometry import Geometry, Triple, Volume
from data_pipelines.output_folder import check_writable, made
from data_pipelines.stored_volume import StoredVolume


def read_volume(
    path: str | os.PathLike[str],
    *,
    series: str | None = None,
    spacing_mm: Triple | None = None,
    remedy: str = image_files.NO_SPACING,
) -> Volume:
    """Read one volume.

    Args:
      path: a DICOM series folder (rescale slope and intercept are applied); a NIfTI, MetaImage,
        NRRD, multi-page TIFF or DICOM file; an OME-Zarr, of which the finest level is read; a
        folder of 2-D TIFF or PNG images, stacked in natural order; or a single 2-D image, which
        becomes one slice.
      series: SeriesInstanceUID, for a folder that holds several DICOM series.
      spacing_mm: (x, y, z) of a file that says none, as TIFF, PNG and 2-D images and an OME-Zarr
        without units do not; other files keep their own.
      remedy: what to do about a file without a spacing, for the error.

    Returns:
      The volume as stored: Hounsfield units for CT. Integers that fit become int16 or uint16,
      also when they were stored as int32 or floats; other values become float32.

    Raises:
      UserError: missing, locked, corrupt or unsupported file, 4-D or colour image, NaN or
        infinite voxels, no spacing, sheared axes, images of several sizes or types, or a DICOM
        series that is ambiguous, incomplete or not a regular stack of parallel slices.
    """
    path = Path(path)
    volume = open_volume(path, series, spacing_mm, remedy).in_memory()
    bad = volume.array.size - sum(int(np.isfinite(plane).sum()) for plane in volume.array)
    if bad:
        raise UserError(f"{path} has {bad} NaN or infinite voxels; replace them first")
    return Volume(_narrowed(volume.array), volume.geometry)


def open_volume(
    path: Path,
    series: str | None,
    spacing_mm: Triple | None,
    remedy: str,
    *,
    unpacked: Path | None = None,
) -> StoredVolume:
    """Check the headers of what `read_volume` reads; voxels are read later, as they are stored.

    Args:
      path: as in `read_volume`.
      series: as in `read_volume`.
      spacing_mm: as in `read_volume`.
      remedy: as in `read_volume`.
      unpacked: .nii file to unpack .nii.gz to, so that its slices are read one by one.

    Raises:
      UserError: as `read_volume`, but for what only the voxels show.
    """
    _check_readable(path)
    zarr = path.is_dir() and ome_zarr.is_zarr_group(path)
    slices = dicom_series.dicom_slices(path) if path.is_dir() and not zarr else []
    if series is not None and not slices:
        raise UserError(f"{path} is no folder of DICOM slices; leave --series={series} out")
    if slices:
        volume = dicom_series.open_series(path, slices, series)
    elif zarr:
        volume = ome_zarr.open_ome_zarr(path, spacing_mm, remedy)
    elif path.is_dir():
        volume = image_files.open_stack(path, spacing_mm, remedy)
    elif extension(path, (".tif", ".tiff")) and tiff.is_tiled(path):
        volume = tiff.open_tiled_tiff(path, spacing_mm, remedy)
    else:
        volume = image_files.open_file(path, spacing_mm, remedy, unpacked=unpacked)
    _check_geometry(path, volume.geometry)
    return volume


def check_output(path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Check that `write_volume` may write to `path`, before hours of work go into it.

    Raises:
      UserError: unknown extension, a folder of that name that is no such output, a file where a
        folder should be, an output that exists, or a locked folder.
    """
    path = Path(path)
    kind = writers.extension_of(path)
    check_writable(path)
    if path.is_dir():
        _check_replaceable(path, kind)
    elif path.exists() and kind in (writers.DICOM, *writers.ZARR):
        raise UserError(f"{path} is a file; give the name of a folder")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists; choose another name or pass --overwrite")


def write_volume(volume: Volume, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write a volume in the format that the name says; masks become uint8.

    Missing folders are made. The output appears under its name only when it is complete.

    Raises:
      UserError: as `check_output` and `writers.check_size`, or the output cannot be written.
    """
    path = Path(path)
    check_output(path, overwrite)
    array = volume.array.astype(np.uint8) if volume.array.dtype == bool else volume.array
    slices, rows, columns = array.shape
    spec = writers.VolumeSpec((slices, rows, columns), array.dtype, volume.geometry, path.name)
    writers.check_size(path, spec)
    try:
        with (
            made(path.parent),
            tempfile.TemporaryDirectory(prefix=".partial-", dir=path.parent) as folder,
        ):
            writer = writers.open_writer(path, Path(folder), spec)
            writer.create()
            for index, plane in enumerate(array):
                writer.write(index, plane)
            writer.finish()
            writers.put_in_place(writer.payload, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def _check_readable(path: Path) -> None:
    """ITK tells a locked file from a corrupt one by no word."""
    try:
        if path.is_dir():
            os.listdir(path)
        else:
            path.open("rb").close()
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; check the path") from error
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}; check its permissions"
        ) from error


def _check_replaceable(folder: Path, kind: str) -> None:
    """Refuse to replace a folder that may hold anything but an older output."""
    if kind in writers.ZARR:
        if not ome_zarr.is_image(folder):
            raise UserError(f"{folder} is a folder, but no OME-Zarr image; choose another name")
    elif kind == writers.DICOM:
        other = next((p for p in folder.iterdir() if p.suffix != ".dcm" or p.is_dir()), None)
        if other is not None:
            raise UserError(
                f"{folder} holds {other.name}, which is no DICOM slice; choose another name"
            )
    else:
        raise UserError(f"{folder} is a folder; give the name of a file")


def _check_geometry(path: Path, geometry: Geometry) -> None:
    if not all(math.isfinite(step) and step > 0 for step in geometry.spacing_mm):
        raise UserError(f"{path} has a spacing of {geometry.spacing_mm} mm; give a positive one")
    axes = np.reshape(geometry.direction, (3, 3))
    # The output's axes are orthonormal in all formats, so that a shear would be lost in it.
    if np.abs(axes.T @ axes - np.eye(3)).max() > 1e-3:
        raise UserError(f"{path} has a sheared direction; resample it to straight axes first")


def _narrowed(array: np.ndarray) -> np.ndarray:
    """The same values in the smallest of the dtypes that a `Volume` may have."""
    if array.dtype in (np.uint8, np.int16, np.uint16):
        return array
    low, high = array.min(), array.max()
    for dtype in (np.int16, np.uint16):
        limits = np.iinfo(dtype)
        if limits.min <= low and high <= limits.max:
            whole = array.dtype.kind in "iu" or all((np.rint(p) == p).all() for p in array)
            return array.astype(dtype if whole else np.float32)
    return array.astype(np.float32)
