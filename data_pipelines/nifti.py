"""What ITK does not see of a NIfTI file: that it is cut off, forged, or lacks a spacing."""

import gzip
import math
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.declared_size import check_size, corrupt
from data_pipelines.errors import UserError
from data_pipelines.file_names import extension

# The fields of NIfTI-1 that are needed here; ITK reads no NIfTI-2.
_HEADER: Any = np.dtype(
    {
        "names": ["size", "dim", "datatype", "bitpix", "pixdim", "vox_offset"],
        "formats": ["i4", "8i2", "i2", "i2", "8f4", "f4"],
        "offsets": [0, 40, 70, 72, 76, 108],
        "itemsize": 348,
    }
)
_SIZE_FIELD = _HEADER.itemsize.to_bytes(4, "little")
_WITH_VOXELS = b"n+1\0"
_FLOATS = {16: "f4", 64: "f8"}  # by datatype
_BITS = {2: 8, 4: 16, 8: 32, 16: 32, 64: 64, 256: 8, 512: 16, 768: 32, 1024: 64, 1280: 64}
_BITS |= {128: 24, 2304: 32, 32: 64, 1792: 128}  # colours and complex numbers
_BLOCK_BYTES = 1 << 22


def check_header(path: Path) -> None:
    """Check that the numbers of a NIfTI-1 header fit each other and the size of the file.

    Raises:
      UserError: they do not, there is no such header, or it has its voxels in another file.
    """
    if extension(path, (".hdr", ".img")):
        raise _pair(path)
    packed = _is_packed(path)
    try:
        with (gzip.open if packed else open)(path, "rb") as file:
            start = file.read(_HEADER.itemsize)
    except (EOFError, zlib.error, OSError) as error:
        raise corrupt(path, str(error)) from error
    if len(start) < _HEADER.itemsize or _SIZE_FIELD not in (start[:4], start[3::-1]):
        raise corrupt(path, "it has no NIfTI-1 header")
    if not start.endswith(_WITH_VOXELS):
        raise _pair(path)
    header, _ = _header(start)
    dim, offset = header["dim"].tolist(), float(header["vox_offset"])
    if not 1 <= dim[0] <= 7 or min(dim[1 : 1 + dim[0]]) < 1:
        raise corrupt(path, f"its dimensions are {dim}")
    if _BITS.get(int(header["datatype"])) != header["bitpix"]:
        raise corrupt(path, f"its voxels are of type {header['datatype']}")
    size = path.stat().st_size
    if not 0 <= offset <= (_BLOCK_BYTES if packed else size):
        raise corrupt(path, f"its voxels begin at {offset}")
    declared = math.prod(dim[1 : 1 + dim[0]]) * int(header["bitpix"]) // 8
    check_size(path, declared, size if packed else size - int(offset), compressed=packed)


def check(path: Path) -> None:
    """Check what ITK would replace without a word: missing bytes and NaN by 0, no spacing by 1 mm.

    Args:
      path: a file that passed `check_header`.

    Raises:
      UserError: truncated or corrupt file, a spacing of 0, or NaN or infinite voxels.
    """
    try:
        with (gzip.open if _is_packed(path) else open)(path, "rb") as file:
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


def _pair(path: Path) -> UserError:
    return UserError(f"{path} is one of a pair of .hdr and .img; save it as one .nii.gz")


def _is_packed(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def _header(start: bytes) -> tuple[Any, str]:
    """The fields and their byte order, "<" or ">"."""
    order = "<" if start.startswith(_SIZE_FIELD) else ">"
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
