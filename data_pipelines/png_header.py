"""The header of a PNG file, checked before ITK believes it."""

import struct
from pathlib import Path

from data_pipelines.declared_size import check_size, corrupt

_PNG = struct.Struct(">8s4x4sIIBB")
_PNG_START = (b"\x89PNG\r\n\x1a\n", b"IHDR")
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type


def check_png(path: Path) -> None:
    """Check the size that a PNG file declares.

    Raises:
      UserError: the file cannot hold as much, or is no PNG file.
    """
    with open(path, "rb") as file:
        start = file.read(_PNG.size)
    if len(start) < _PNG.size:
        raise corrupt(path, "it has no PNG header")
    *magic, columns, rows, bits, colour = _PNG.unpack(start)
    if tuple(magic) != _PNG_START or colour not in _PNG_CHANNELS:
        raise corrupt(path, "it has no PNG header")
    declared = rows * columns * _PNG_CHANNELS[colour] * bits // 8
    check_size(path, declared, path.stat().st_size, compressed=True)
