"""CT volumes in files: DICOM series, NIfTI, MetaImage, NRRD, and TIFF or PNG stacks."""

import math
import os
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813

from data_pipelines import dicom_series, image_files, itk
from data_pipelines.errors import UserError
from data_pipelines.file_names import extension
from data_pipelines.geometry import Geometry, Triple, Volume
from data_pipelines.output_folder import check_writable, made

_WRITABLE = (".nii.gz", ".nii", ".mha", ".nrrd")


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
        NRRD, multi-page TIFF or DICOM file; a folder of 2-D TIFF or PNG images, stacked in
        natural order; or a single 2-D image, which becomes one slice.
      series: SeriesInstanceUID, for a folder that holds several DICOM series.
      spacing_mm: (x, y, z) of a file that says none, as TIFF, PNG and 2-D images do not; other
        files keep their own.
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
    _check_readable(path)
    slices = dicom_series.dicom_slices(path) if path.is_dir() else []
    if series is not None and not slices:
        raise UserError(f"{path} is no folder of DICOM slices; leave --series={series} out")
    if slices:
        volume = dicom_series.read_series(path, slices, series)
    else:
        read = image_files.read_stack if path.is_dir() else image_files.read_file
        volume = read(path, spacing_mm, remedy)
    bad = volume.array.size - sum(int(np.isfinite(plane).sum()) for plane in volume.array)
    if bad:
        raise UserError(f"{path} has {bad} NaN or infinite voxels; replace them first")
    array = _narrowed(volume.array)
    _check_geometry(path, volume.geometry)
    return Volume(array, volume.geometry)


def check_output(path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Check that `write_volume` may write to `path`, before hours of work go into it.

    Raises:
      UserError: unknown extension, a folder of that name, a file that exists, or a locked folder.
    """
    path = Path(path)
    if not extension(path, _WRITABLE):
        raise UserError(f"{path} cannot be written; end its name in {', '.join(_WRITABLE)}")
    check_writable(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the name of a file")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists; choose another name or pass --overwrite")


def write_volume(volume: Volume, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write a volume as .nii, .nii.gz, .mha or .nrrd; masks become uint8.

    Missing folders are made. The file appears under its name only when it is complete.

    Raises:
      UserError: as `check_output`, or the file cannot be written.
    """
    path = Path(path)
    check_output(path, overwrite)
    array = volume.array.astype(np.uint8) if volume.array.dtype == bool else volume.array
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(volume.geometry.spacing_mm)
    image.SetOrigin(volume.geometry.origin_mm)
    image.SetDirection(volume.geometry.direction)
    # In lower case, since ITK writes no .NII.GZ.
    partial = path.with_name(f".partial-{os.getpid()}-{path.name.lower()}")
    try:
        with made(path.parent):
            try:
                with itk.native_stderr():
                    sitk.WriteImage(image, str(partial))
                os.replace(partial, path)
            finally:
                partial.unlink(missing_ok=True)
    except (RuntimeError, OSError) as error:
        raise UserError(f"{path} cannot be written: {itk.reason(error)}") from error


def check_hounsfield(volume: Volume, name: str) -> None:
    """Check that intensities can be Hounsfield units of a chest: at least 1 % of it is air.

    Scanner padding, such as -2000 or -3024, is allowed.

    Raises:
      UserError: fewer than 1 % of the voxels lie in [-1200, -500] HU, or values lie outside
        [-32768, 32767].
    """
    low, high = float(volume.array.min()), float(volume.array.max())
    air = np.mean([np.mean((plane >= -1200) & (plane <= -500)) for plane in volume.array])
    if air >= 0.01 and low >= -32768 and high <= 32767:
        return
    remedy = "apply the DICOM rescale slope and intercept"
    if low >= 0 and high > 500:
        remedy = "subtract the offset, often 1024, or " + remedy
    raise UserError(
        f"{name} is not in Hounsfield units: values {low:g} to {high:g}, "
        f"{air:.1%} of them air; {remedy}"
    )


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
