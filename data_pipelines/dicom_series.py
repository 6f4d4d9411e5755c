"""DICOM series: which files are slices of one, and the regular stack that they form."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813

from data_pipelines import itk
from data_pipelines.errors import UserError
from data_pipelines.file_names import files_in
from data_pipelines.geometry import Geometry, Triple, as_triple
from data_pipelines.image_files import open_file
from data_pipelines.stored_volume import StoredVolume

_DICOM_NAMES = (".dcm", ".ima")
# MediaStorageSOPClassUID, whole: the element behind it has begun.
_STORAGE_CLASS = re.compile(rb"\x02\0\x02\0UI..([0-9.]+)\0?\x02\0\x03\0", re.DOTALL)
_CT_STORAGE = re.compile(rb"1\.2\.840\.10008\.5\.1\.4\.1\.1\.2(\.\d+)?")  # plain or enhanced


@dataclasses.dataclass(frozen=True)
class DicomSlice:
    """What the header of one DICOM image says.

    Attributes:
      path: the file.
      series: SeriesInstanceUID.
      size: (columns, rows, frames).
      spacing_mm: (x, y, z); z is unreliable, since ITK takes it from the slice thickness.
      pixel_id: SimpleITK's pixel type after the rescale.
      components: numbers a pixel; more than 1 in colour images.
      position: ImagePositionPatient in mm, (3,); NaN when absent.
      rows_columns: direction cosines of x and of y, (6,); NaN when absent.
    """

    path: Path
    series: str
    size: tuple[int, int, int]
    spacing_mm: Triple
    pixel_id: int
    components: int
    position: np.ndarray
    rows_columns: np.ndarray


def is_dicom(path: Path) -> bool:
    """Whether a path is a DICOM file other than a DICOMDIR; old ones lack the preamble.

    Raises:
      UserError: the file is locked.
    """
    if path.name.upper() == "DICOMDIR" or not path.is_file():
        return False
    try:
        with open(path, "rb") as file:
            if file.read(132)[128:] == b"DICM":
                return True
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}; check its permissions"
        ) from error
    if path.suffix.lower() not in ("", *_DICOM_NAMES):
        return False
    try:
        itk.image_information(path, itk.DICOM)
    except UserError:
        return False
    return True


def dicom_slices(folder: Path) -> list[DicomSlice]:
    """The DICOM images among the visible files of a folder, in natural order.

    Raises:
      UserError: a file beside DICOM files is truncated, so that it may be a slice.
    """
    files = files_in(folder)
    dicom = {path for path in files if is_dicom(path)}
    if not dicom:
        return []
    for path in files:
        if path not in dicom and path.suffix.lower() in _DICOM_NAMES:
            raise _truncated(path)
    slices = [_dicom_slice(path) for path in files if path in dicom]
    return [found for found in slices if found is not None]


def open_series(folder: Path, slices: list[DicomSlice], series: str | None) -> StoredVolume:
    """Check one series of the slices of a folder, and order it by the slices' positions.

    Args:
      folder: named in the messages.
      slices: those that `dicom_slices` found in the folder.
      series: SeriesInstanceUID; needed when the slices belong to several series.

    Returns:
      The volume with rescale slope and intercept applied; a file is read when its plane is.

    Raises:
      UserError: the series is ambiguous, absent, incomplete, corrupt, in colour, or not a
        regular stack of parallel slices.
    """
    slices = _one_series(folder, slices, series)
    if len(slices) == 1:
        return open_file(slices[0].path, None)
    slices, geometry = _stacked(folder, slices)
    files = tuple(found.path for found in slices)
    mixed = len({found.pixel_id for found in slices}) > 1  # a rescale slope of its own in each
    return StoredVolume(geometry, files, (_plane(path, as_floats=mixed) for path in files))


def _plane(path: Path, *, as_floats: bool) -> np.ndarray:
    reader = sitk.ImageFileReader()
    reader.SetImageIO(itk.DICOM.io)
    reader.SetFileName(str(path))
    if as_floats:
        reader.SetOutputPixelType(sitk.sitkFloat32)
    return sitk.GetArrayFromImage(itk.execute(reader, path))[0]


def _dicom_slice(path: Path) -> DicomSlice | None:
    """What the header says, or None for DICOM without an image (reports, structure sets)."""
    try:
        reader = itk.image_information(path, itk.DICOM)
    except UserError:
        with open(path, "rb") as file:
            storage = _STORAGE_CLASS.search(file.read(1024))
        if storage is None or _CT_STORAGE.fullmatch(storage[1]):
            raise _truncated(path) from None
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

    return DicomSlice(
        path,
        text("0020|000e"),
        reader.GetSize(),
        reader.GetSpacing(),
        reader.GetPixelID(),
        reader.GetNumberOfComponents(),
        numbers("0020|0032", 3),
        numbers("0020|0037", 6),
    )


def _truncated(path: Path) -> UserError:
    return UserError(f"{path} cannot be read, is it truncated? copy it again")


def _one_series(folder: Path, slices: list[DicomSlice], series: str | None) -> list[DicomSlice]:
    held: dict[str, list[DicomSlice]] = {}
    for found in slices:
        held.setdefault(found.series, []).append(found)
    # Not their descriptions, in which there are names of people.
    listing = "; ".join(
        "{} ({} images of {} x {})".format(uid, len(members), *members[0].size[:2])
        for uid, members in held.items()
    )
    if series is not None and series not in held:
        raise UserError(f"{folder} has no series {series}; choose with --series from: {listing}")
    if series is None and len(held) > 1:
        raise UserError(
            f"{folder} holds {len(held)} DICOM series; choose one with --series: {listing}"
        )
    return held[series] if series is not None else slices


def _stacked(folder: Path, slices: list[DicomSlice]) -> tuple[list[DicomSlice], Geometry]:
    """Slices in the order of their position, and the geometry that the positions give."""
    first = slices[0]
    for found in slices:
        if not np.isfinite([*found.position, *found.rows_columns]).all():
            raise UserError(f"{found.path} has no ImagePositionPatient or ImageOrientationPatient")
        if found.size[2] != 1:
            raise UserError(
                f"{found.path} has {found.size[2]} frames; give it in a folder of its own"
            )
        if found.components != 1:
            raise UserError(f"{found.path} is a colour image; take it out of the series")
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
    return ordered, Geometry(spacing, as_triple(positions[0]), tuple(direction.ravel().tolist()))


def _slice_spacing(folder: Path, ordered: list[DicomSlice], positions: np.ndarray) -> float:
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
