"""Which scans the paths of a command line stand for."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from data_pipelines.dicom_series import is_dicom
from data_pipelines.errors import UserError
from data_pipelines.file_names import IMAGES, VOLUMES, extension, files_in, natural_order
from data_pipelines.image_files import pages
from data_pipelines.ome_zarr import is_zarr_group


def find_cases(paths: Sequence[str]) -> list[Path]:
    """Expand files, folders and glob patterns to scans that `read_volume` reads.

    A file is a case, but a DICOM file stands for its folder. A folder with DICOM files is a
    case, and so is an OME-Zarr. In any other folder each volume file is a case, and its
    subfolders are searched; when that finds nothing, its 2-D TIFF or PNG images are one case
    (beside volumes they are taken for previews).

    Returns:
      The cases in natural order (2 before 10), each as it was spelled first: other spellings of
      its path and links to it are no cases of their own.

    Raises:
      UserError: a path matches nothing, or holds no scan.
      OSError: a path or a folder under it is locked.
    """
    cases: dict[Path, Path] = {}
    for path in paths:
        if _exists(path):
            found = _cases_at(Path(path))
        else:
            matches = [Path(match) for match in glob.glob(path, recursive=True)]
            if not matches:
                raise UserError(f"{path} matches no file or folder; check the path")
            scans = [p for p in matches if p.is_dir() or _is_image(p) or is_dicom(p)]
            found = [case for match in scans for case in _cases_at(match)]
        if not found:
            raise UserError(
                f"{path} holds no scans; give DICOM, NIfTI, MetaImage, NRRD, TIFF or OME-Zarr"
            )
        for case in sorted(found, key=natural_order):
            cases.setdefault(case.resolve(), case)
    return sorted(cases.values(), key=natural_order)


def _exists(path: str) -> bool:
    """Unlike `os.path.exists`, which says no of what is in a locked folder."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _cases_at(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path.parent if is_dicom(path) else path]
    files = files_in(path)
    if is_zarr_group(path) or any(is_dicom(file) for file in files):
        return [path]
    images = [file for file in files if _is_image(file)]
    volumes = [file for file in images if extension(file, VOLUMES) or pages(file) > 1]
    folders = (child for child in path.iterdir() if child.is_dir() and child.name[0] != ".")
    found = volumes + [case for folder in folders for case in _cases_at(folder)]
    return [path] if images and not found else found


def _is_image(path: Path) -> bool:
    return bool(extension(path, VOLUMES + IMAGES))
