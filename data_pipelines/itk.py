"""SimpleITK without its noise: a failure is one `UserError`, and nothing else is printed."""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import SimpleITK as sitk  # noqa: N813 (the name that its own documentation uses)

from data_pipelines.errors import UserError

# ITK's warnings are pages long; what matters in them is checked by the readers, in one line.
sitk.ProcessObject.SetGlobalWarningDisplay(False)


def image_information(path: Path, io: str = "") -> Any:
    """SimpleITK's file reader, with the header of `path` read.

    Args:
      path: a file.
      io: name of the ImageIO; empty for the one that ITK chooses.

    Raises:
      UserError: the header cannot be read.
    """
    reader = sitk.ImageFileReader()
    reader.SetImageIO(io)
    reader.SetFileName(str(path))
    with native_stderr():
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            raise _unreadable(path, error) from error
    return reader


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
    if "Unable to determine ImageIO" in cause:
        return UserError(
            f"{path} cannot be read, is it corrupt? give DICOM, NIfTI, MetaImage, NRRD, TIFF or PNG"
        )
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
