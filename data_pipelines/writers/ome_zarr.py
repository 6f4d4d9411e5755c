"""OME-Zarr 0.5: a pyramid of finer and coarser slices, in a shard for each slice and level."""

import math
import shutil
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from data_pipelines.geometry import Geometry
from data_pipelines.ome_zarr import AXES, geometry_attributes
from data_pipelines.writers.slice_writer import VolumeSpec
from data_pipelines.writers.staging import naming, staged

_COARSEST_PX = 256  # smaller side of the last level, or less
_CHUNK_PX = 512
_LUNG_WINDOW_HU = (-1000, 400)


class OmeZarr:
    """Writes each slice with its coarser copies, which are 2 x 2 means within the slice."""

    def __init__(self, payload: Path, spec: VolumeSpec) -> None:
        self.payload = payload
        self._spec = spec

    def create(self) -> None:
        """See `SliceWriter`."""
        if self.payload.exists():
            return
        with staged(self.payload, self.payload.parent) as partial:
            group = zarr.open_group(partial, mode="w", attributes=_attributes(self._spec))
            for level, sides in enumerate(_levels(self._spec.shape)):
                _create_array(group, level, (self._spec.shape[0], *sides), self._spec.dtype)

    def write(self, index: int, plane: np.ndarray) -> None:
        """See `SliceWriter`."""
        pyramid = _pyramid(self._spec.stored(plane), len(self._arrays))
        for level, (array, copy) in enumerate(zip(self._arrays, pyramid)):
            shard = self.payload / str(level) / "c" / str(index)
            with naming(shard):
                # Zarr would read the shard first, which a killed process may have left cut off.
                shutil.rmtree(shard, ignore_errors=True)
                array[index] = copy

    def finish(self) -> None:
        """See `SliceWriter`."""

    @cached_property
    def _arrays(self) -> list[zarr.Array]:
        group = zarr.open_group(self.payload, mode="r+")
        return [_array(group, str(level)) for level in range(len(_levels(self._spec.shape)))]


def _levels(shape: tuple[int, int, int]) -> list[tuple[int, int]]:
    """(rows, columns) of each level."""
    levels = [shape[1:]]
    while min(levels[-1]) > _COARSEST_PX:
        rows, columns = levels[-1]
        levels.append((math.ceil(rows / 2), math.ceil(columns / 2)))
    return levels


def _create_array(
    group: zarr.Group, level: int, shape: tuple[int, int, int], dtype: np.dtype
) -> None:
    chunk = [min(_CHUNK_PX, side) for side in shape[1:]]
    shard = [math.ceil(side / px) * px for side, px in zip(shape[1:], chunk)]
    group.create_array(
        str(level),
        shape=shape,
        dtype=dtype,
        chunks=(1, *chunk),
        shards=(1, *shard),
        compressors=ZstdCodec(level=3),
        fill_value=0,
        dimension_names=AXES,
    )


def _array(group: zarr.Group, name: str) -> zarr.Array:
    array = group[name]
    assert isinstance(array, zarr.Array)
    return array


def _pyramid(plane: np.ndarray, levels: int) -> Iterator[np.ndarray]:
    """A slice and its coarser copies, each rounded on its own."""
    yield plane
    mean = plane.astype(np.float32)
    for _ in range(1, levels):
        mean = _halved(mean)
        yield (mean if plane.dtype.kind == "f" else np.rint(mean)).astype(plane.dtype)


def _halved(plane: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels; an odd side is continued by its last pixels."""
    rows, columns = plane.shape
    even = np.pad(plane, ((0, rows % 2), (0, columns % 2)), mode="edge")
    return even.reshape(-(-rows // 2), 2, -(-columns // 2), 2).mean(axis=(1, 3))


def _attributes(spec: VolumeSpec) -> dict[str, Any]:
    levels = range(len(_levels(spec.shape)))
    multiscale = {
        "name": spec.description,
        "axes": [{"name": axis, "type": "space", "unit": "millimeter"} for axis in AXES],
        "datasets": [
            {"path": str(level), "coordinateTransformations": _place(spec.geometry, 2**level)}
            for level in levels
        ],
        "type": "mean",
    }
    ome: dict[str, Any] = {"version": "0.5", "multiscales": [multiscale]}
    if spec.dtype == np.int16:
        ome["omero"] = {"channels": [_lung_window(spec.description)]}
    return {"ome": ome} | geometry_attributes(spec.geometry)


def _place(geometry: Geometry, factor: int) -> list[dict[str, Any]]:
    """Scale and translation, along the volume's own axes, of a level `factor` times coarser."""
    x, y, z = geometry.spacing_mm
    axes = np.reshape(geometry.direction, (3, 3))
    # A coarse pixel's centre is that of the fine pixels in it.
    shift = (factor - 1) / 2 * np.array([x, y, 0.0])
    translation = axes.T @ np.asarray(geometry.origin_mm) + shift
    return [
        {"type": "scale", "scale": [z, y * factor, x * factor]},
        {"type": "translation", "translation": translation[::-1].tolist()},
    ]


def _lung_window(label: str) -> dict[str, Any]:
    """How viewers show Hounsfield units first."""
    start, end = _LUNG_WINDOW_HU
    limits = np.iinfo(np.int16)
    window = {"min": limits.min, "max": limits.max, "start": start, "end": end}
    return {"label": label, "color": "FFFFFF", "active": True, "window": window}
