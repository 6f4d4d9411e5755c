"""SimpleITK without its noise: a failure is one `UserError`, and nothing else is printed."""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import SimpleITK as sitk  # noqa: N813 (the name that its own documentation uses)

from data_pipelines.dicom_elements import check_dicom
from data_pipelines.errors import UserError
from data_pipelines.file_names import extension
from data_pipelines.nifti import check_header as check_nifti
from data_pipelines.png_header import check_png
from data_pipelines.text_header import check_meta, check_nrrd
from data_pipelines.tiff import check_tiff


class Format(NamedTuple):
    """A kind of file: the name of ITK's reader, and what checks the header before it."""

    io: str
    check: Callable[[Path], None]


DICOM = Format("GDCMImageIO", check_dicom)
_BY_EXTENSION = {
    **dict.fromkeys((".nii", ".nii.gz", ".hdr", ".img"), Format("NiftiImageIO", check_nifti)),
    **dict.fromkeys((".mha", ".mhd"), Format("MetaImageIO", check_meta)),
    **dict.fromkeys((".nrrd", ".nhdr"), Format("NrrdImageIO", check_nrrd)),
    **dict.fromkeys((".tif", ".tiff"), Format("TIFFImageIO", check_tiff)),
    ".png": Format("PNGImageIO", check_png),
}

# ITK's warnings are pages long; what matters in them is checked by the readers, in one line.
sitk.ProcessObject.SetGlobalWarningDisplay(False)


def image_information(path: Path, format: Format | None = None) -> Any:
    """SimpleITK's file reader, with the header of `path` checked and read.

    Args:
      path: a file.
      format: what it is; the one that its name says by default, or DICOM.

    Raises:
      UserError: the header cannot be read, or the file cannot hold what it declares.
    """
    format = format or format_of(path)
    format.check(path)
    reader = sitk.ImageFileReader()
    reader.SetImageIO(format.io)
    reader.SetFileName(str(path))
    with native_stderr():
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            raise _unreadable(path, error) from error
    return reader


def format_of(path: Path) -> Format:
    """The format that the name of a file says; DICOM where it says none."""
    return _BY_EXTENSION.get(extension(path, tuple(_BY_EXTENSION)), DICOM)


def execute(reader: Any, path: Path) -> sitk.Image:
    """Run a reader; `path` is named in the message of the `UserError` when that fails."""
    with native_stderr() as caught:
        try:
            image = reader.Execute()
        except RuntimeError as error:
            raise _unreadable(path, error) from error
        caught.seek(0)
        lines = caught.read().decode(errors="replace").splitlines()
    # libtiff drops the pages that it cannot read and only prints that it did.
    failures = [line for line in lines if line.startswith("TIFF") and "Warning" not in line]
    if failures:
        raise UserError(f"{path} cannot be read, is it corrupt? {failures[0]}")
    return image


def _unreadable(path: Path, error: Exception) -> UserError:
    """What the reader's exception means for the user."""
    cause = reason(error)
    if "orthonormal" in cause or "Bad direction" in cause:
        return UserError(f"{path} has a sheared direction; resample it to straight axes first")
    return UserError(f"{path} cannot be read, is it corrupt? {cause}")


def reason(error: Exception) -> str:
    """One line of an exception; SimpleITK's run over several, with addresses."""
    text = str(error)
    found = re.search(r"ERROR: (?:\w+\(0x\w+\): )?(.+)", text)
    return found[1].strip(" :") if found else (text.splitlines() or [repr(error)])[0]


@contextlib.contextmanager
def native_stderr() -> Iterator[IO[bytes]]:
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
