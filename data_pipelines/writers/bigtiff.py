"""Tiled BigTIFF, one page a slice."""

import json
import math
from functools import cached_property
from pathlib import Path

import numpy as np
import tifffile

from data_pipelines.tiff import description_of
from data_pipelines.writers.slice_writer import VolumeSpec
from data_pipelines.writers.staging import staged, write_at

_TILE_PX = 256
_TILE_STEP_PX = 16  # sides of tiles are multiples of it


class BigTiff:
    """Writes each page, whose tiles lie one after the other, at its place in the file."""

    def __init__(self, payload: Path, spec: VolumeSpec) -> None:
        self.payload = payload
        self._spec = spec
        self._tile = tuple(min(_TILE_PX, _rounded_up(side)) for side in spec.shape[1:])

    def create(self) -> None:
        """See `SliceWriter`."""
        if self.payload.exists():
            return
        x_mm, y_mm, _ = self._spec.geometry.spacing_mm
        with (
            staged(self.payload, self.payload.parent) as partial,
            tifffile.TiffWriter(partial, bigtiff=True, byteorder="<") as file,
        ):
            file.write(
                shape=self._spec.shape,
                dtype=self._spec.little_endian,
                tile=self._tile,
                photometric="minisblack",
                resolution=(10 / x_mm, 10 / y_mm),
                resolutionunit="CENTIMETER",
                description=json.dumps(description_of(self._spec.geometry)),
                software="mmsr-jax",
                metadata=None,
            )

    def write(self, index: int, plane: np.ndarray) -> None:
        """See `SliceWriter`."""
        tiles = self._tiled(self._spec.stored(plane))
        write_at(self.payload, self._offsets[index], tiles.data)

    def finish(self) -> None:
        """See `SliceWriter`."""

    @cached_property
    def _offsets(self) -> list[int]:
        """Place of the first tile of each page."""
        with tifffile.TiffFile(self.payload) as file:
            return [page.dataoffsets[0] for page in file.pages]

    def _tiled(self, plane: np.ndarray) -> np.ndarray:
        """(tiles down, tiles across, rows, columns); those at the edge are filled up with 0."""
        height, width = self._tile
        down, across = (math.ceil(side / px) for side, px in zip(plane.shape, self._tile))
        whole = np.zeros((down * height, across * width), plane.dtype)
        whole[: plane.shape[0], : plane.shape[1]] = plane
        tiles = whole.reshape(down, height, across, width).swapaxes(1, 2)
        return np.ascontiguousarray(tiles)


def _rounded_up(side: int) -> int:
    return math.ceil(side / _TILE_STEP_PX) * _TILE_STEP_PX
