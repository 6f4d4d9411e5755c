"""Headers of TIFF and PNG files, checked before ITK believes them."""

import math
import struct
from pathlib import Path

import tifffile

from data_pipelines.declared_size import check_size, corrupt
from data_pipelines.errors import UserError

_PNG = struct.Struct(">8s4x4sIIBB")
_PNG_START = (b"\x89PNG\r\n\x1a\n", b"IHDR")
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_LEAST_PAGE_BYTES = 50
_REDUCED = 1  # of NewSubfileType: a thumbnail


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


def check_tiff(path: Path) -> None:
    """Check the sizes that the pages of a TIFF file declare.

    Raises:
      UserError: the file cannot hold as much, has pages of several sizes, or is no TIFF file.
    """
    size = path.stat().st_size
    try:
        with tifffile.TiffFile(path) as file:
            pages = []
            for page in file.pages:
                pages.append(page.aspage())
                if len(pages) > size // _LEAST_PAGE_BYTES:
                    raise ValueError("its pages have no end")
            _check_pages(path, [page for page in pages if not page.subfiletype & _REDUCED], size)
    except UserError:
        raise
    # What a damaged file raises depends on where the damage is.
    except Exception as error:
        raise corrupt(path, " ".join(str(error).split())) from error


def _check_pages(path: Path, pages: list[tifffile.TiffPage], size: int) -> None:
    declared, compressed = 0, False
    for page in pages:
        if (page.shape, page.dtype) != (pages[0].shape, pages[0].dtype):
            raise corrupt(path, f"its pages are {pages[0].shape} and {page.shape}")
        if len(page.dataoffsets) != len(page.databytecounts):
            raise corrupt(path, "its strips have other offsets than lengths")
        for offset, count in zip(page.dataoffsets, page.databytecounts):
            if not 0 <= offset <= offset + count <= size:
                raise corrupt(path, "its strips are beyond its end")
        declared += math.prod(page.shape) * page.bitspersample // 8
        compressed |= page.compression != 1
    if not pages:
        raise corrupt(path, "it has no page")
    check_size(path, declared, size, compressed=compressed)
