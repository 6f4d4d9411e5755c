"""Tiled TIFF, of which ITK reads no more than 8 bits, and the geometry that ours describe."""

import contextlib
import dataclasses
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from data_pipelines.errors import UserError
from data_pipelines.geometry import Geometry, Triple
from data_pipelines.stored_volume import StoredVolume

_KEY = "mmsr_jax"


def description_of(geometry: Geometry) -> dict[str, Any]:
    """What ImageDescription says, as JSON, of where a volume lies."""
    return {_KEY: dataclasses.asdict(geometry)}


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
    try:
        with _complaints() as complaints, tifffile.TiffFile(path) as file:
            geometry = _described(file.pages.first.description)
            array = file.asarray()
    # What a damaged file raises depends on where the damage is.
    except Exception as error:
        raise UserError(f"{path} cannot be read, is it corrupt? {error}") from error
    if complaints:  # the library goes without the pages that it cannot read
        raise UserError(f"{path} cannot be read, is it corrupt? {complaints[0]}")
    array = array[None] if array.ndim == 2 else array
    if array.ndim != 3:
        raise UserError(f"{path} is no stack of grey images: {array.shape}; save one volume")
    if geometry is None and spacing_mm is None:
        raise UserError(f"{path} has no spacing in mm; {remedy}")
    geometry = geometry or Geometry(spacing_mm or (1.0, 1.0, 1.0))
    return StoredVolume(geometry, (path,), iter(array))


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
