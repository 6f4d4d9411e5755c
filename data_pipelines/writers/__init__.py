"""Volumes that are written slice by slice, in the format that the output's name says."""

from pathlib import Path

import numpy as np

from data_pipelines.errors import UserError
from data_pipelines.file_names import extension
from data_pipelines.writers.bigtiff import BigTiff
from data_pipelines.writers.dicom_folder import LONGEST_SIDE as LONGEST_DICOM_SIDE
from data_pipelines.writers.dicom_folder import DicomFolder
from data_pipelines.writers.flat_file import FlatFile
from data_pipelines.writers.gzip_members import GzipMembers
from data_pipelines.writers.metaimage_header import metaimage_header
from data_pipelines.writers.nifti_header import LONGEST_SIDE as LONGEST_NIFTI_SIDE
from data_pipelines.writers.nifti_header import nifti_header
from data_pipelines.writers.nrrd_header import nrrd_header
from data_pipelines.writers.ome_zarr import OmeZarr
from data_pipelines.writers.slice_writer import SliceWriter, VolumeSpec
from data_pipelines.writers.staging import put_in_place

__all__ = [
    "DICOM",
    "ZARR",
    "SliceWriter",
    "VolumeSpec",
    "check_size",
    "extension_of",
    "open_writer",
    "put_in_place",
]

DICOM = ""  # a folder, whose name has no dot
ZARR = (".ome.zarr", ".zarr")
_TIFF = (".tif", ".tiff")
_EXTENSIONS = (".nii.gz", ".nii", ".mha", ".nrrd", *ZARR, *_TIFF)
_HEADERS = {".mha": metaimage_header, ".nii": nifti_header, ".nrrd": nrrd_header}


def extension_of(path: Path) -> str:
    """The extension that says the format, in lower case; `DICOM` for a name without a dot.

    Raises:
      UserError: another extension.
    """
    known = extension(path, _EXTENSIONS)
    if not known and (not path.name or "." in path.name):
        raise UserError(
            f"{path} cannot be written; end its name in {', '.join(_EXTENSIONS)}, "
            "or give one without a dot for a DICOM folder"
        )
    return known


def check_size(path: Path, spec: VolumeSpec) -> None:
    """Check that the format of `path` can hold a volume.

    Raises:
      UserError: too many voxels along a side, floats in DICOM, or a name without a known format.
    """
    kind = extension_of(path)
    longest = max(spec.shape)
    if kind in (".nii", ".nii.gz") and longest > LONGEST_NIFTI_SIDE:
        raise UserError(
            f"{path} cannot hold a side of {longest} voxels, NIfTI has at most "
            f"{LONGEST_NIFTI_SIDE}; end its name in .ome.zarr"
        )
    if kind == DICOM and longest > LONGEST_DICOM_SIDE:
        raise UserError(
            f"{path} cannot hold a side of {longest} voxels, DICOM has at most "
            f"{LONGEST_DICOM_SIDE}; end its name in .ome.zarr"
        )
    if kind == DICOM and np.dtype(spec.dtype).kind == "f":
        raise UserError(f"{path} cannot hold floats as DICOM; end its name in .ome.zarr")


def open_writer(
    path: Path,
    folder: Path,
    spec: VolumeSpec,
    *,
    source: Path | None = None,
    keep_patient: bool = False,
    identity: Path | None = None,
) -> SliceWriter:
    """Make the writer of an output; processes that write one together make one each.

    Args:
      path: the final name, which says the format.
      folder: an existing folder on the same disk, in which everything unfinished lies.
      spec: the volume.
      source: a DICOM slice of the scan that the volume is made from.
      keep_patient: whether a DICOM output keeps the source's patient, study and frame of reference.
      identity: file on the same disk that DICOM outputs of one study share; by default in `folder`.

    Raises:
      UserError: as `check_size`, or the source is corrupt.
    """
    check_size(path, spec)
    kind = extension_of(path)
    payload = folder / f"volume{kind}"
    if kind == DICOM:
        identity = identity or folder / "identity.json"
        return DicomFolder(payload, spec, source, keep_patient, identity)
    if kind in ZARR:
        return OmeZarr(payload, spec)
    if kind in _TIFF:
        return BigTiff(payload, spec)
    if kind == ".nii.gz":
        return GzipMembers(payload, spec, nifti_header(spec))
    return FlatFile(payload, spec, _HEADERS[kind](spec))
