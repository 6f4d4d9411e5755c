"""One image file of any format that ITK reads, or a folder of 2-D TIFF or PNG images."""

import dataclasses
import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import SimpleITK as sitk  # noqa: N813

from data_pipelines import itk
from data_pipelines.errors import UserError
from data_pipelines.file_names import IMAGES, extension, files_in
from data_pipelines.geometry import Triple, Volume


def read_file(path: Path, spacing_mm: Triple | None) -> Volume:
    """Read one file as it is stored; a 2-D image becomes one slice.

    Args:
      path: the file.
      spacing_mm: (x, y, z), which the caller will put in place of the file's; without it, a
        format that carries no spacing in mm is refused.

    Raises:
      UserError: corrupt, truncated or unsupported file, 4-D or colour image, or no spacing.
    """
    # ITK recognises .mha and .mhd in lower case only.
    reader = itk.image_information(path, "MetaImageIO" if extension(path, (".mha", ".mhd")) else "")
    if reader.GetNumberOfComponents() > 1:
        raise UserError(
            f"{path} is a colour image ({reader.GetNumberOfComponents()} components per pixel); "
            "convert it to grey values"
        )
    if reader.GetDimension() > 3:
        raise UserError(f"{path} is {reader.GetDimension()}-D {reader.GetSize()}; save one volume")
    if spacing_mm is None and (reader.GetDimension() == 2 or extension(path, IMAGES)):
        raise UserError(f"{path} has no spacing in mm; give its spacing (x y z)")
    _check_complete(path, reader)
    image = itk.execute(reader, path)
    return itk.to_volume(image if image.GetDimension() == 3 else sitk.JoinSeries([image]))


def read_stack(folder: Path, spacing_mm: Triple | None) -> Volume:
    """Read a folder of 2-D images in natural order, or the only image file that it holds.

    Raises:
      UserError: as `read_file`, or no images, several pages in one, or images of several sizes.
    """
    images = [path for path in files_in(folder) if extension(path, IMAGES)]
    if not images:
        raise UserError(f"{folder} holds no DICOM series and no TIFF or PNG images")
    if len(images) == 1:
        return read_file(images[0], spacing_mm)
    for path in images:
        if pages(path) > 1:
            raise UserError(f"{path} has several pages; in {folder} it must be a 2-D image")
    first = read_file(images[0], spacing_mm)  # makes the checks that all images share
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(path) for path in images])
    volume = itk.to_volume(itk.execute(reader, folder))
    if volume.array.ndim != 3:
        raise UserError(f"{folder} holds colour images; convert them to grey values")
    return dataclasses.replace(volume, geometry=first.geometry)


def pages(path: Path) -> int:
    """Number of 2-D images in a TIFF file; 1 for other formats."""
    if not extension(path, (".tif", ".tiff")):
        return 1
    size = itk.image_information(path).GetSize()
    return int(size[2]) if len(size) > 2 else 1


def _check_complete(path: Path, reader: Any) -> None:
    """Reject a truncated NIfTI file, which ITK reads as zeros without a word."""
    ending = extension(path, (".nii.gz", ".nii"))
    if not ending:
        return
    voxels = math.prod(reader.GetSize())
    needed = voxels * int(reader.GetMetaData("bitpix")) // 8
    needed += int(float(reader.GetMetaData("vox_offset")))
    stored = path.stat().st_size
    if ending == ".nii.gz":
        try:
            with gzip.open(path) as file:
                stored = sum(len(block) for block in iter(lambda: file.read(1 << 22), b""))
        except (EOFError, zlib.error, OSError) as error:
            raise UserError(f"{path} is truncated or corrupt ({error}); copy it again") from error
    if stored < needed:
        raise UserError(f"{path} is truncated: {stored} of {needed} bytes; copy it again")
