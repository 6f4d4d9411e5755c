"""One image file of any format that ITK reads, or a folder of 2-D TIFF or PNG images."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813

from data_pipelines import itk, nifti
from data_pipelines.errors import UserError
from data_pipelines.file_names import IMAGES, extension, files_in
from data_pipelines.geometry import Triple, Volume, as_triple

# A MetaImage or NRRD header says the spacing, or ITK takes 1 mm.
_SPACING = re.compile(
    rb"^(Element(Spacing|Size)|spacings:|space directions:)(?!.*nan)", re.I | re.M
)
_HEADER_BYTES = 1 << 16
_ONE_FILE = "1"  # nifti_type, of header and voxels in one file
NO_SPACING = "convert it to NIfTI, MetaImage or NRRD with the size of its voxels"


def read_file(path: Path, spacing_mm: Triple | None, remedy: str = NO_SPACING) -> Volume:
    """Read one file as it is stored; a 2-D image becomes one slice.

    Args:
      path: the file.
      spacing_mm: (x, y, z) of a TIFF or PNG file, of a 2-D image and of a header that gives no
        spacing, which are refused without it.
      remedy: what to do about a file without a spacing.

    Raises:
      UserError: corrupt, truncated or unsupported file, 4-D or colour image, or no spacing.
    """
    # ITK recognises .mha and .mhd in lower case only.
    reader = itk.image_information(path, "MetaImageIO" if extension(path, (".mha", ".mhd")) else "")
    _check_grey(path, reader)
    if reader.GetDimension() > 3:
        raise UserError(f"{path} is {reader.GetDimension()}-D {reader.GetSize()}; save one volume")
    flat = reader.GetDimension() == 2
    if flat and spacing_mm is None and not extension(path, IMAGES):
        raise UserError(f"{path} is a 2-D image; give a volume of slices")
    given = None if not flat and _has_spacing(path) else _given(path, spacing_mm, remedy)
    if reader.HasMetaDataKey("nifti_type"):
        if reader.GetMetaData("nifti_type") != _ONE_FILE:
            raise UserError(f"{path} is one of a pair of .hdr and .img; save it as one .nii.gz")
        nifti.check(path)
    image = itk.execute(reader, path)
    volume = itk.to_volume(sitk.JoinSeries([image]) if flat else image)
    return volume if given is None else _spaced(volume, given)


def read_stack(folder: Path, spacing_mm: Triple | None, remedy: str = NO_SPACING) -> Volume:
    """Read a folder of 2-D images in natural order, or the only image file that it holds.

    Raises:
      UserError: as `read_file`, or no images, a gap in their numbers, several pages in one, or
        images of several sizes or types.
    """
    images = [path for path in files_in(folder) if extension(path, IMAGES)]
    if not images:
        raise UserError(
            f"{folder} holds no DICOM series and no TIFF or PNG images; "
            "give the folder of one series, or a file"
        )
    if len(images) == 1:
        return read_file(images[0], spacing_mm, remedy)
    given = _given(folder, spacing_mm, remedy)
    _check_alike(folder, images)
    if missing := missing_image(images):
        raise UserError(
            f"{folder} misses {missing}; copy the images again, or number them without a gap"
        )
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(path) for path in images])
    return _spaced(itk.to_volume(itk.execute(reader, folder)), given)


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
    if not extension(path, (".mha", ".mhd", ".nrrd", ".nhdr")):
        return True
    with open(path, "rb") as file:
        return bool(_SPACING.search(file.read(_HEADER_BYTES)))


def _given(path: Path, spacing_mm: Triple | None, remedy: str) -> Triple:
    if spacing_mm is None:
        raise UserError(f"{path} has no spacing in mm; {remedy}")
    return as_triple(spacing_mm)


def _spaced(volume: Volume, spacing_mm: Triple) -> Volume:
    geometry = dataclasses.replace(volume.geometry, spacing_mm=spacing_mm)
    return dataclasses.replace(volume, geometry=geometry)


def _pages(reader: Any) -> int:
    size = reader.GetSize()
    return int(size[2]) if len(size) > 2 else 1


def _size(reader: Any) -> str:
    return "{} x {} pixels".format(*reader.GetSize())


def _type(reader: Any) -> str:
    return sitk.GetPixelIDValueAsString(reader.GetPixelID())
