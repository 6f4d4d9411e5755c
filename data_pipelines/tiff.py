"""TIFF: a check before ITK reads it, what ITK cannot read of it, and our own description."""

import contextlib
import dataclasses
import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from data_pipelines.declared_size import check_size, corrupt
from data_pipelines.errors import UserError
from data_pipelines.geometry import Geometry, Triple
from data_pipelines.stored_volume import StoredVolume

_KEY = "mmsr_jax"
_LEAST_PAGE_BYTES = 50
# Images or pages, by NewSubfileType and SubfileType.
_KINDS = {(None, None), (0, None), (2, None), (None, 1), (None, 3)}


def description_of(geometry: Geometry) -> dict[str, Any]:
    """What ImageDescription says, as JSON, of where a volume lies."""
    return {_KEY: dataclasses.asdict(geometry)}


def check_tiff(path: Path) -> None:
    """Check the sizes that the pages of a TIFF file declare.

    Raises:
      UserError: the file cannot hold as much, has pages of several sizes or kinds, or is no TIFF
        file.
    """
    size = path.stat().st_size
    try:
        with _complaints() as complaints, tifffile.TiffFile(path) as file:
            pages = []
            for page in file.pages:
                pages.append(page.aspage())
                if len(pages) > size // _LEAST_PAGE_BYTES:
                    raise corrupt(path, "its pages have no end")
            _check_pages(path, pages, size)
    except UserError:
        raise
    # What a damaged file raises depends on where the damage is.
    except Exception as error:
        raise corrupt(path, " ".join(str(error).split())) from error
    if complaints:  # the library goes without the pages that it cannot read
        raise corrupt(path, complaints[0])


def is_tiled(path: Path) -> bool:
    """Whether a file is a TIFF whose pages are tiled."""
    try:
        with _complaints(), tifffile.TiffFile(path) as file:
            return bool(file.pages.first.is_tiled)
    # No TIFF, or a damaged one, of which the other reader says so.
    except Exception:
        return False


def open_tiled_tiff(path: Path, spacing_mm: Triple | None, remedy: str) -> StoredVolume:
    """Read the pages of a tiled TIFF, which is held whole, as slices.

    Args:
      path: the file.
      spacing_mm: (x, y, z) for a file whose description gives no geometry.
      remedy: what to do about a file without a spacing.

    Raises:
      UserError: a colour image, pages of several sizes, corrupt or compressed data that cannot be
        read, or no spacing.
    """
    check_tiff(path)
    try:
        with _complaints() as complaints, tifffile.TiffFile(path) as file:
            geometry = _described(file.pages.first.description)
            array = file.asarray()
    # What a damaged file raises depends on where the damage is.
    except Exception as error:
        raise corrupt(path, " ".join(str(error).split())) from error
    if complaints:
        raise corrupt(path, complaints[0])
    array = array[None] if array.ndim == 2 else array
    if array.ndim != 3:
        raise UserError(f"{path} is no stack of grey images: {array.shape}; save one volume")
    if geometry is None and spacing_mm is None:
        raise UserError(f"{path} has no spacing in mm; {remedy}")
    geometry = geometry or Geometry(spacing_mm or (1.0, 1.0, 1.0))
    return StoredVolume(geometry, (path,), iter(array))


def _check_pages(path: Path, pages: list[tifffile.TiffPage], size: int) -> None:
    declared, compressed = 0, False
    # ITK does not count thumbnails, but reads them beyond the others.
    kinds = {tuple(page.tags.valueof(code) for code in (254, 255)) for page in pages}
    if len(kinds) != 1 or not kinds <= _KINDS:
        raise UserError(f"{path} has thumbnails or no pages; save it as a plain stack")
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
    check_size(path, declared, size, compressed=compressed)


@contextlib.contextmanager
def _complaints() -> Iterator[list[str]]:
    """Catch what the library logs as an error, instead of showing it."""
    lines: list[str] = []

    def caught(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR:
            lines.append(record.getMessage())
        return False

    logger = tifffile.logger()
    logger.addFilter(caught)
    try:
        yield lines
    finally:
        logger.removeFilter(caught)


def _described(description: str) -> Geometry | None:
    try:
        fields = json.loads(description)[_KEY]
        return Geometry(
            **{name: tuple(np.asarray(v, float).tolist()) for name, v in fields.items()}
        )
    except (ValueError, KeyError, TypeError):
        return None
