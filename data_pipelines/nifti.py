"""What ITK does not say of a NIfTI file: that it is cut off, or lacks spacing or numbers."""

import gzip
import math
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.errors import UserError

# The fields of NIfTI-1 that are needed here; ITK reads no NIfTI-2.
_HEADER: Any = np.dtype(
    {
        "names": ["size", "dim", "datatype", "bitpix", "pixdim", "vox_offset"],
        "formats": ["i4", "8i2", "i2", "i2", "8f4", "f4"],
        "offsets": [0, 40, 70, 72, 76, 108],
        "itemsize": 348,
    }
)
_FLOATS = {16: "f4", 64: "f8"}  # by datatype
_BLOCK_BYTES = 1 << 22


def check(path: Path) -> None:
    """Check what ITK would replace without a word: missing bytes and NaN by 0, no spacing by 1 mm.

    Args:
      path: a NIfTI-1 file with header and voxels.

    Raises:
      UserError: truncated or corrupt file, a spacing of 0, or NaN or infinite voxels.
    """
    try:
        with (gzip.open if path.suffix.lower() == ".gz" else open)(path, "rb") as file:
            header, order = _header(file.read(_HEADER.itemsize))
            spacing = tuple(abs(header["pixdim"][1 : 1 + min(3, header["dim"][0])]).tolist())
            if not all(math.isfinite(step) and step > 0 for step in spacing):
                raise UserError(f"{path} has a spacing of {spacing} mm; give a positive one")
            _check_voxels(path, file, header, order)
    except (EOFError, zlib.error, OSError) as error:
        raise UserError(f"{path} is truncated or corrupt ({error}); copy it again") from error


def unpack(path: Path, plain: Path) -> None:
    """Write what a .nii.gz file that passed `check` holds to a .nii file, block by block.

    Raises:
      UserError: the disk is full.
    """
    try:
        with gzip.open(path) as packed, open(plain, "wb") as file:
            shutil.copyfileobj(packed, file, _BLOCK_BYTES)
    except OSError as error:
        raise UserError(f"{plain} cannot be written: {error.strerror}; free its disk") from error


def _header(start: bytes) -> tuple[Any, str]:
    """The fields and their byte order, "<" or ">"."""
    order = "<" if start[:4] == _HEADER.itemsize.to_bytes(4, "little") else ">"
    return np.frombuffer(start, _HEADER.newbyteorder(order), count=1)[0], order


def _check_voxels(path: Path, file: Any, header: Any, order: str) -> None:
    """Read all voxels, block by block."""
    first = max(int(header["vox_offset"]), _HEADER.itemsize)  # some writers leave it 0
    voxels = math.prod(header["dim"][1 : 1 + header["dim"][0]].tolist())
    needed = voxels * int(header["bitpix"]) // 8
    code = _FLOATS.get(int(header["datatype"]))
    floats = np.dtype(order + code) if code else None
    file.seek(first)
    stored = bad = 0
    while block := file.read(min(_BLOCK_BYTES, needed - stored)):
        stored += len(block)
        if floats is not None:
            whole = len(block) // floats.itemsize
            values = np.frombuffer(block, floats, whole)
            bad += whole - int(np.isfinite(values).sum())
    if stored < needed:
        raise UserError(
            f"{path} is truncated: {first + stored} of {first + needed} bytes; copy it again"
        )
    if bad:
        raise UserError(f"{path} has {bad} NaN or infinite voxels; replace them first")
    while file.read(_BLOCK_BYTES):  # so that gzip compares its checksum
        pass
