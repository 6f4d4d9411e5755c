"""One image file of any format that ITK reads, or a folder of 2-D TIFF or PNG images."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813

from data_pipelines import itk, nifti
from data_pipelines.declared_size import check_slices
from data_pipelines.errors import UserError
from data_pipelines.file_names import IMAGES, extension, files_in
from data_pipelines.geometry import Geometry, Triple, as_triple
from data_pipelines.stored_volume import StoredVolume

# A MetaImage or NRRD header says the spacing, or ITK takes 1 mm.
_SPACING = re.compile(
    rb"^(Element(Spacing|Size)|spacings:|space directions:)(?!.*nan)", re.I | re.M
)
# Headers of which ITK cannot read a part: the voxels are compressed or lie in several files.
_WHOLE = re.compile(
    rb"^(CompressedData *= *True|ElementDataFile *= *(LIST|[^\r\n]*%))", re.I | re.M
)
_VOXEL_FILE = re.compile(rb"^(?:ElementDataFile *=|data ?file:) *([^\r\n]*[^\r\n ])", re.I | re.M)
_HEADER_BYTES = 1 << 16
_META = (".mha", ".mhd")
_NRRD = (".nrrd", ".nhdr")
NO_SPACING = "convert it to NIfTI, MetaImage or NRRD with the size of its voxels"


def open_file(
    path: Path,
    spacing_mm: Triple | None,
    remedy: str = NO_SPACING,
    *,
    unpacked: Path | None = None,
) -> StoredVolume:
    """Check one file; a 2-D image becomes one slice.

    Planes of .nii and of uncompressed MetaImage files are read one by one; with the first plane
    of other files all of them are.

    Args:
      path: the file.
      spacing_mm: (x, y, z) of a TIFF or PNG file, of a 2-D image and of a header that gives no
        spacing, which are refused without it.
      remedy: what to do about a file without a spacing.
      unpacked: .nii file to unpack .nii.gz to, of which planes are read one by one.

    Raises:
      UserError: corrupt, truncated or unsupported file, 4-D or colour image, no spacing, or a
        full disk.
    """
    reader = itk.image_information(path)
    _check_grey(path, reader)
    if reader.GetDimension() > 3:
        raise UserError(f"{path} is {reader.GetDimension()}-D {reader.GetSize()}; save one volume")
    check_slices(path, _pages(reader))
    flat = reader.GetDimension() == 2
    if flat and spacing_mm is None and not extension(path, IMAGES):
        raise UserError(f"{path} is a 2-D image; give a volume of slices")
    given = None if not flat and _has_spacing(path) else _given(path, spacing_mm, remedy)
    if extension(path, (".nii", ".nii.gz")):
        nifti.check(path)
    voxels = path
    if unpacked is not None and extension(path, (".nii.gz",)):
        nifti.unpack(path, unpacked)
        voxels, reader = unpacked, itk.image_information(unpacked)
    one_by_one = not flat and _reads_parts(voxels)
    planes = _planes_one_by_one(path, reader) if one_by_one else _planes_at_once(path, reader)
    return StoredVolume(_geometry(reader, given), (path, *_voxel_file(path)), planes)


def open_stack(folder: Path, spacing_mm: Triple | None, remedy: str = NO_SPACING) -> StoredVolume:
    """Check a folder of 2-D images in natural order, or the only image file that it holds.

    Raises:
      UserError: as `open_file`, or no images, a gap in their numbers, several pages in one, or
        images of several sizes or types.
    """
    images = [path for path in files_in(folder) if extension(path, IMAGES)]
    if not images:
        raise UserError(
            f"{folder} holds no DICOM series and no TIFF or PNG images; "
            "give the folder of one series, or a file"
        )
    if len(images) == 1:
        return open_file(images[0], spacing_mm, remedy)
    given = _given(folder, spacing_mm, remedy)
    _check_alike(folder, images)
    if missing := missing_image(images):
        raise UserError(
            f"{folder} misses {missing}; copy the images again, or number them without a gap"
        )
    planes = (
        sitk.GetArrayFromImage(itk.execute(itk.image_information(path), path)) for path in images
    )
    return StoredVolume(Geometry(given), tuple(images), planes)


def pages(path: Path) -> int:
    """Number of 2-D images in a TIFF file; 1 for other formats."""
    return _pages(itk.image_information(path)) if extension(path, (".tif", ".tiff")) else 1


def missing_image(images: Sequence[Path]) -> str:
    """Name of the first image that is missing among evenly numbered ones, such as "s3.png".

    Returns:
      An empty string if none is missing, if the names differ in more than one number, or if the
      steps between the numbers are too uneven to say.
    """
    names = [re.split(r"(\d+)", path.name) for path in images]
    varying = [place for place, parts in enumerate(zip(*names)) if len(set(parts)) > 1]
    if len({len(name) for name in names}) > 1 or len(varying) != 1:
        return ""
    place = varying[0]
    if place % 2 == 0:  # text; the numbers stand between the texts
        return ""
    numbered = {int(name[place]): name for name in names}
    numbers = sorted(numbered)
    steps = np.diff(numbers)
    step = int(steps.min(initial=numbers[-1] + 1))
    regular = steps == step
    if regular.all() or 2 * regular.sum() < len(steps) or (steps % step).any():
        return ""
    name = numbered[numbers[int(regular.argmin())]]
    name[place] = str(int(name[place]) + step).zfill(len(name[place]))
    return "".join(name)


def _check_alike(folder: Path, images: Sequence[Path]) -> None:
    """ITK gives every image the size and the type of the first, wrapping what does not fit."""
    first = itk.image_information(images[0])
    for path in images:
        reader = itk.image_information(path)
        _check_grey(path, reader)
        if _pages(reader) > 1:
            raise UserError(f"{path} has several pages; in {folder} it must be a 2-D image")
        for what in (_size, _type):
            if what(reader) != what(first):
                raise UserError(
                    f"{path} is {what(reader)} and {images[0].name} is {what(first)}; "
                    "give images of one size and type"
                )


def _check_grey(path: Path, reader: Any) -> None:
    if reader.GetNumberOfComponents() > 1:
        raise UserError(
            f"{path} is a colour image ({reader.GetNumberOfComponents()} components per pixel); "
            "convert it to grey values"
        )


def _has_spacing(path: Path) -> bool:
    if extension(path, IMAGES):
        return False
    if not extension(path, (*_META, *_NRRD)):
        return True
    return bool(_SPACING.search(_header(path)))


def _reads_parts(path: Path) -> bool:
    """Whether ITK reads a plane without decoding all that lies before it."""
    if extension(path, _META):
        return not _WHOLE.search(_header(path))
    return bool(extension(path, (".nii",)))


def _voxel_file(path: Path) -> list[Path]:
    """The file that a .mhd or .nhdr header names."""
    found = _VOXEL_FILE.search(_header(path)) if extension(path, (".mhd", ".nhdr")) else None
    named = path.parent / found[1].decode(errors="replace") if found else path.parent
    return [named] if named.is_file() else []


def _header(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(_HEADER_BYTES)


def _given(path: Path, spacing_mm: Triple | None, remedy: str) -> Triple:
    if spacing_mm is None:
        raise UserError(f"{path} has no spacing in mm; {remedy}")
    return as_triple(spacing_mm)


def _geometry(reader: Any, spacing_mm: Triple | None) -> Geometry:
    """What the header says, with another spacing if one is given, as it is for a 2-D image."""
    dimension = reader.GetDimension()
    direction = np.eye(3)
    direction[:dimension, :dimension] = np.reshape(reader.GetDirection(), (dimension, dimension))
    steps_mm = np.ones(3)
    steps_mm[:dimension] = reader.GetSpacing()
    direction = direction * np.copysign(1.0, steps_mm) + 0.0  # as ITK does when it reads voxels
    return Geometry(
        as_triple(abs(steps_mm)) if spacing_mm is None else spacing_mm,
        as_triple((*reader.GetOrigin(), 0.0)[:3]),
        tuple(direction.ravel().tolist()),
    )


def _planes_one_by_one(path: Path, reader: Any) -> Iterator[np.ndarray]:
    columns, rows, slices = reader.GetSize()
    reader.SetExtractSize((columns, rows, 1))
    for index in range(slices):
        reader.SetExtractIndex((0, 0, index))
        yield sitk.GetArrayFromImage(itk.execute(reader, path))[0]


def _planes_at_once(path: Path, reader: Any) -> Iterator[np.ndarray]:
    image = itk.execute(reader, path)
    array = sitk.GetArrayViewFromImage(image)
    for plane in array if array.ndim == 3 else array[None]:
        yield plane.copy()  # a view would not outlive the image


def _pages(reader: Any) -> int:
    size = reader.GetSize()
    return int(size[2]) if len(size) > 2 else 1


def _size(reader: Any) -> str:
    return "{} x {} pixels".format(*reader.GetSize())


def _type(reader: Any) -> str:
    return sitk.GetPixelIDValueAsString(reader.GetPixelID())
