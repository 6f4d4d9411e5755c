"""CT volumes in files: DICOM series, NIfTI, MetaImage, NRRD, and TIFF or PNG stacks.

SimpleITK reads and writes them. Coordinates follow ITK: millimetres in the patient's LPS frame.
Arrays are (z, y, x) = (slices, rows, columns); geometry is always given as (x, y, z).
"""

import contextlib
import dataclasses
import glob
import gzip
import math
import os
import re
import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import SimpleITK as sitk  # noqa: N813 (the name that its own documentation uses)

from data_pipelines.errors import UserError

# ITK's warnings are pages long; what matters in them is checked below and said in one line.
sitk.ProcessObject.SetGlobalWarningDisplay(False)

_VOLUMES = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".nhdr")
_IMAGES = (".tif", ".tiff", ".png")  # files that carry no spacing in millimetres
_WRITABLE = (".nii.gz", ".nii", ".mha", ".nrrd")
_CT_IMAGE_STORAGE = b"1.2.840.10008.5.1.4.1.1.2\0"

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
        return _triple(np.asarray(self.origin_mm) + np.reshape(self.direction, (3, 3)) @ step)

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


def read_volume(
    path: str | os.PathLike[str],
    *,
    series: str | None = None,
    spacing_mm: Triple | None = None,
) -> Volume:
    """Read one volume.

    Args:
      path: a DICOM series folder (rescale slope and intercept are applied); a NIfTI, MetaImage,
        NRRD, multi-page TIFF or DICOM file; a folder of 2-D TIFF or PNG images, stacked in
        natural order; or a single 2-D image, which becomes one slice.
      series: SeriesInstanceUID, for a folder that holds several DICOM series.
      spacing_mm: (x, y, z); replaces the file's spacing, and must be given for TIFF and PNG.

    Returns:
      The volume as stored: Hounsfield units for CT. Integers that fit become int16 or uint16,
      also when they were stored as int32 or floats; other values become float32.

    Raises:
      UserError: missing, corrupt or unsupported file, 4-D or colour image, NaN or infinite
        voxels, no spacing, or a DICOM series that is ambiguous, incomplete or not a regular
        stack of parallel slices.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist; check the path")
    if path.is_dir():
        volume = _read_folder(path, series, spacing_mm)
    else:
        volume = _read_file(path, spacing_mm)
    bad = volume.array.size - sum(int(np.isfinite(plane).sum()) for plane in volume.array)
    if bad:
        raise UserError(f"{path} has {bad} NaN or infinite voxels; replace them first")
    array = _narrowed(volume.array)
    geometry = volume.geometry
    if spacing_mm is not None:
        geometry = dataclasses.replace(geometry, spacing_mm=_triple(spacing_mm))
    if not all(math.isfinite(step) and step > 0 for step in geometry.spacing_mm):
        raise UserError(f"{path} has a spacing of {geometry.spacing_mm} mm; give a positive one")
    return Volume(array, geometry)


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
        _triple(np.asarray(volume.geometry.spacing_mm)[order]),
        volume.geometry.origin_mm,
        tuple(direction[:, order].ravel().tolist()),
    )
    array = volume.array.transpose([2 - axis for axis in reversed(order)])
    return Volume(np.ascontiguousarray(array), geometry)


def find_cases(paths: Sequence[str]) -> list[Path]:
    """Expand files, folders and glob patterns to scans that `read_volume` reads.

    A file is a case, but a DICOM file stands for its folder. A folder with DICOM files is a
    case. In any other folder each volume file is a case, and its subfolders are searched; when
    that finds nothing, its 2-D TIFF or PNG images are one case (beside volumes they are taken
    for previews).

    Returns:
      The cases in natural order (2 before 10), without duplicates.

    Raises:
      UserError: a path matches nothing, or holds no scan.
    """
    cases: set[Path] = set()
    for path in paths:
        if os.path.exists(path):
            found = _cases_at(Path(path))
        else:
            matches = [Path(match) for match in glob.glob(path, recursive=True)]
            if not matches:
                raise UserError(f"{path} matches no file or folder; check the path")
            scans = [p for p in matches if p.is_dir() or _is_image(p) or _is_dicom(p)]
            found = [case for match in scans for case in _cases_at(match)]
        if not found:
            raise UserError(f"{path} holds no scans; give DICOM, NIfTI, MetaImage, NRRD or TIFF")
        cases.update(found)
    return sorted(cases, key=_natural)


def check_output(path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Check that `write_volume` may write to `path`, before hours of work go into it.

    Raises:
      UserError: unknown extension, a folder of that name, or a file that exists.
    """
    path = Path(path)
    if not _extension(path, _WRITABLE):
        raise UserError(f"{path} cannot be written; end its name in {', '.join(_WRITABLE)}")
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
        path.parent.mkdir(parents=True, exist_ok=True)
        with _native_stderr():
            sitk.WriteImage(image, str(partial))
        os.replace(partial, path)
    except (RuntimeError, OSError) as error:
        raise UserError(f"{path} cannot be written: {_reason(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


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


# ---- files ------------------------------------------------------------------------------------


def _read_file(path: Path, spacing_mm: Triple | None) -> Volume:
    reader = _image_information(path)
    if reader.GetNumberOfComponents() > 1:
        raise UserError(
            f"{path} is a colour image ({reader.GetNumberOfComponents()} components per pixel); "
            "convert it to grey values"
        )
    if reader.GetDimension() > 3:
        raise UserError(f"{path} is {reader.GetDimension()}-D {reader.GetSize()}; save one volume")
    if spacing_mm is None and (reader.GetDimension() == 2 or _extension(path, _IMAGES)):
        raise UserError(f"{path} has no spacing in mm; give its spacing (x y z)")
    _check_complete(path, reader)
    image = _execute(reader, path)
    return _volume(image if image.GetDimension() == 3 else sitk.JoinSeries([image]))


def _read_folder(folder: Path, series: str | None, spacing_mm: Triple | None) -> Volume:
    slices = _dicom_slices(folder)
    if slices:
        return _read_dicom(folder, _one_series(folder, slices, series))
    images = [path for path in _files(folder) if _extension(path, _IMAGES)]
    if not images:
        raise UserError(f"{folder} holds no DICOM series and no TIFF or PNG images")
    if len(images) == 1:
        return _read_file(images[0], spacing_mm)
    for path in images:
        if _pages(path) > 1:
            raise UserError(f"{path} has several pages; in {folder} it must be a 2-D image")
    first = _read_file(images[0], spacing_mm)  # makes the checks that all images share
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(path) for path in images])
    volume = _volume(_execute(reader, folder))
    if volume.array.ndim != 3:
        raise UserError(f"{folder} holds colour images; convert them to grey values")
    return dataclasses.replace(volume, geometry=first.geometry)


def _image_information(path: Path, io: str = "") -> Any:
    """SimpleITK's file reader, with the header of `path` read."""
    reader = sitk.ImageFileReader()
    reader.SetImageIO(io)
    reader.SetFileName(str(path))
    with _native_stderr():
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            raise UserError(f"{path} cannot be read, is it corrupt? {_reason(error)}") from error
    return reader


def _execute(reader: Any, path: Path) -> sitk.Image:
    with _native_stderr() as caught:
        try:
            image = reader.Execute()
        except RuntimeError as error:
            raise UserError(f"{path} cannot be read, is it corrupt? {_reason(error)}") from error
        caught.seek(0)
        lines = caught.read().decode(errors="replace").splitlines()
    # libtiff drops the pages that it cannot read and only prints that it did.
    failures = [line for line in lines if line.startswith("TIFF") and "Warning" not in line]
    if failures:
        raise UserError(f"{path} cannot be read, is it corrupt? {failures[0]}")
    return image


def _check_complete(path: Path, reader: Any) -> None:
    """Reject a truncated NIfTI file, which ITK reads as zeros without a word."""
    extension = _extension(path, (".nii.gz", ".nii"))
    if not extension:
        return
    voxels = math.prod(reader.GetSize())
    needed = voxels * int(reader.GetMetaData("bitpix")) // 8
    needed += int(float(reader.GetMetaData("vox_offset")))
    stored = path.stat().st_size
    if extension == ".nii.gz":
        try:
            with gzip.open(path) as file:
                stored = sum(len(block) for block in iter(lambda: file.read(1 << 22), b""))
        except (EOFError, zlib.error, OSError) as error:
            raise UserError(f"{path} is truncated or corrupt ({error}); copy it again") from error
    if stored < needed:
        raise UserError(f"{path} is truncated: {stored} of {needed} bytes; copy it again")


def _volume(image: sitk.Image) -> Volume:
    geometry = Geometry(image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    return Volume(sitk.GetArrayFromImage(image), geometry)


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


# ---- DICOM ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _DicomSlice:
    path: Path
    series: str
    description: str
    size: tuple[int, int, int]
    spacing_mm: Triple
    pixel_id: int
    position: np.ndarray
    rows_columns: np.ndarray  # direction cosines of x and of y, (6,)


def _dicom_slices(folder: Path) -> list[_DicomSlice]:
    slices = [_dicom_slice(path) for path in _files(folder) if _is_dicom(path)]
    return [found for found in slices if found is not None]


def _dicom_slice(path: Path) -> _DicomSlice | None:
    """What the header says, or None for DICOM without an image (reports, structure sets)."""
    try:
        reader = _image_information(path, "GDCMImageIO")
    except UserError:
        with open(path, "rb") as file:
            if _CT_IMAGE_STORAGE in file.read(1024):
                raise UserError(f"{path} cannot be read, is it truncated? copy it again") from None
        return None

    def text(tag: str) -> str:
        value = reader.GetMetaData(tag) if reader.HasMetaDataKey(tag) else ""
        return str(value).strip("\0 ").encode("ascii", "replace").decode()

    def numbers(tag: str, count: int) -> np.ndarray:
        try:
            values = np.array(text(tag).split("\\"), dtype=float)
        except ValueError:
            values = np.array([])
        return values if values.size == count else np.full(count, np.nan)

    return _DicomSlice(
        path,
        text("0020|000e"),
        text("0008|103e"),
        reader.GetSize(),
        reader.GetSpacing(),
        reader.GetPixelID(),
        numbers("0020|0032", 3),
        numbers("0020|0037", 6),
    )


def _one_series(folder: Path, slices: list[_DicomSlice], series: str | None) -> list[_DicomSlice]:
    held: dict[str, list[_DicomSlice]] = {}
    for found in slices:
        held.setdefault(found.series, []).append(found)
    listing = "; ".join(
        f"{uid} ({len(members)} images, {members[0].description or 'no description'})"
        for uid, members in held.items()
    )
    if series is not None and series not in held:
        raise UserError(f"{folder} has no series {series}; choose with --series from: {listing}")
    if series is None and len(held) > 1:
        raise UserError(
            f"{folder} holds {len(held)} DICOM series; choose one with --series: {listing}"
        )
    return held[series] if series is not None else slices


def _read_dicom(folder: Path, slices: list[_DicomSlice]) -> Volume:
    if len(slices) == 1:
        return _read_file(slices[0].path, None)
    slices, geometry = _stacked(folder, slices)
    reader = sitk.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileNames([str(found.path) for found in slices])
    if len({found.pixel_id for found in slices}) > 1:  # a rescale slope of its own in each slice
        reader.SetOutputPixelType(sitk.sitkFloat32)
    array = _volume(_execute(reader, folder)).array
    if array.ndim != 3:
        raise UserError(f"{folder} holds colour images; choose a CT series with --series")
    return Volume(array, geometry)


def _stacked(folder: Path, slices: list[_DicomSlice]) -> tuple[list[_DicomSlice], Geometry]:
    """Slices in the order of their position, and the geometry that the positions give."""
    first = slices[0]
    for found in slices:
        if not np.isfinite([*found.position, *found.rows_columns]).all():
            raise UserError(f"{found.path} has no ImagePositionPatient or ImageOrientationPatient")
        if found.size[2] != 1:
            raise UserError(f"{found.path} has {found.size[2]} frames; give that file alone")
        if found.size != first.size or not np.allclose(found.spacing_mm[:2], first.spacing_mm[:2]):
            raise UserError(f"{found.path} and {first.path} differ in size or pixel spacing")
        if np.abs(found.rows_columns - first.rows_columns).max() > 1e-3:
            raise UserError(
                f"{found.path} is not parallel to {first.path}; keep only one orientation"
            )
    across = first.rows_columns[:3] / np.linalg.norm(first.rows_columns[:3])
    normal = np.cross(across, first.rows_columns[3:])
    normal /= np.linalg.norm(normal)
    ordered = sorted(slices, key=lambda found: float(found.position @ normal))
    positions = np.array([found.position for found in ordered])
    step_mm = _slice_spacing(folder, ordered, positions @ normal)
    steps = np.diff(positions, axis=0)
    sideways = np.linalg.norm(steps.mean(axis=0) - step_mm * normal)
    if sideways > 0.01 * step_mm:
        raise UserError(
            f"{folder} has a tilted gantry: slices shift by {sideways:.3g} mm every "
            f"{step_mm:.3g} mm; resample it to straight slices first"
        )
    direction = np.stack([across, np.cross(normal, across), normal], axis=1)
    spacing = (first.spacing_mm[0], first.spacing_mm[1], step_mm)
    return ordered, Geometry(spacing, _triple(positions[0]), tuple(direction.ravel().tolist()))


def _slice_spacing(folder: Path, ordered: list[_DicomSlice], positions: np.ndarray) -> float:
    """Spacing in mm of sorted positions along the normal; they must form a regular grid."""
    gaps = np.diff(positions)
    step = float(np.median(gaps))
    closest, widest = int(gaps.argmin()), int(gaps.argmax())
    if gaps[closest] < 1e-3:
        raise UserError(
            f"{folder} has two slices at {positions[closest]:.2f} mm: {ordered[closest].path.name} "
            f"and {ordered[closest + 1].path.name}; keep one of them"
        )
    if gaps[widest] > 1.5 * step:
        raise UserError(
            f"{folder} misses slices between {positions[widest]:.2f} and "
            f"{positions[widest + 1]:.2f} mm, where others lie {step:.3g} mm apart; "
            "copy the series again"
        )
    index = np.arange(len(positions))
    slope, start = np.polyfit(index, positions, 1)
    # Scanners write positions rounded to 0.1 mm, which is no irregularity.
    tolerance = max(0.01 * step, min(0.06, 0.1 * step))
    if np.abs(start + slope * index - positions).max() > tolerance:
        raise UserError(
            f"{folder} has slices {gaps.min():.3g} to {gaps.max():.3g} mm apart; "
            "resample it to one spacing first"
        )
    return float(positions[-1] - positions[0]) / (len(positions) - 1)


# ---- names ------------------------------------------------------------------------------------


def _cases_at(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path.parent if _is_dicom(path) else path]
    files = _files(path)
    if any(_is_dicom(file) for file in files):
        return [path]
    images = [file for file in files if _is_image(file)]
    volumes = [file for file in images if _extension(file, _VOLUMES) or _pages(file) > 1]
    folders = (child for child in path.iterdir() if child.is_dir() and child.name[0] != ".")
    found = volumes + [case for folder in folders for case in _cases_at(folder)]
    return [path] if images and not found else found


def _files(folder: Path) -> list[Path]:
    """Visible files of a folder in natural order."""
    files = (path for path in folder.iterdir() if path.is_file() and path.name[0] != ".")
    return sorted(files, key=_natural)


def _natural(path: Path) -> list[int | str]:
    return [int(t) if t.isdecimal() else t.lower() for t in re.split(r"(\d+)", str(path))]


def _extension(path: Path, known: tuple[str, ...]) -> str:
    """The extension in `known` that the name ends in, or an empty string."""
    return next((ext for ext in known if path.name.lower().endswith(ext)), "")


def _is_image(path: Path) -> bool:
    return bool(_extension(path, _VOLUMES + _IMAGES))


def _pages(path: Path) -> int:
    if not _extension(path, (".tif", ".tiff")):
        return 1
    size = _image_information(path).GetSize()
    return int(size[2]) if len(size) > 2 else 1


def _is_dicom(path: Path) -> bool:
    if path.name == "DICOMDIR" or not path.is_file():
        return False
    try:
        with open(path, "rb") as file:
            if file.read(132)[128:] == b"DICM":
                return True
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if path.suffix.lower() not in ("", ".dcm", ".ima"):
        return False
    try:  # old files lack the preamble
        _image_information(path, "GDCMImageIO")
    except UserError:
        return False
    return True


# ---- SimpleITK --------------------------------------------------------------------------------


@contextlib.contextmanager
def _native_stderr() -> Iterator[IO[bytes]]:
    """Catch what the C libraries under SimpleITK print, which bypasses `sys.stderr`."""
    with tempfile.TemporaryFile() as caught:
        sys.stderr.flush()
        screen = os.dup(2)
        os.dup2(caught.fileno(), 2)
        try:
            yield caught
        finally:
            os.dup2(screen, 2)
            os.close(screen)


def _reason(error: Exception) -> str:
    """One line of an exception; SimpleITK's run over several, with addresses."""
    text = str(error)
    found = re.search(r"ERROR: (?:\w+\(0x\w+\): )?(.+)", text)
    return found[1].strip(" :") if found else (text.splitlines() or [repr(error)])[0]


def _triple(values: Sequence[float] | np.ndarray) -> Triple:
    x, y, z = (float(value) for value in values)
    return (x, y, z)
