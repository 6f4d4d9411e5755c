"""Header of NIfTI-1 in one file."""

import nibabel
import numpy as np

from data_pipelines.writers.slice_writer import VolumeSpec

LONGEST_SIDE = 32767  # sizes are 16-bit numbers
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_DESCRIPTION_BYTES = 79
_NO_EXTENSION = b"\0\0\0\0"


def nifti_header(spec: VolumeSpec) -> bytes:
    """The header with the geometry as both sform and qform, up to the first voxel."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(spec.geometry.direction, (3, 3)) * spec.geometry.spacing_mm
    affine[:3, 3] = spec.geometry.origin_mm
    header = nibabel.Nifti1Header(endianness="<")
    header.set_data_dtype(np.dtype(spec.dtype))
    header.set_data_shape(spec.shape[::-1])
    header.set_qform(_LPS_TO_RAS @ affine, code=1)
    header.set_sform(_LPS_TO_RAS @ affine, code=1)
    header.set_xyzt_units("mm")
    header.set_slope_inter(1, 0)
    header["descrip"] = spec.description.encode("ascii", "replace")[:_DESCRIPTION_BYTES]
    header["magic"] = b"n+1"
    header["vox_offset"] = header.sizeof_hdr + len(_NO_EXTENSION)
    return header.binaryblock + _NO_EXTENSION
