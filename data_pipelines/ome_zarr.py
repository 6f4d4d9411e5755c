"""OME-Zarr images, versions 0.4 and 0.5: level 0."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from data_pipelines.declared_size import check_size, check_slices
from data_pipelines.errors import UserError
from data_pipelines.geometry import Geometry, Triple, as_triple
from data_pipelines.stored_volume import StoredVolume
from data_pipelines.zarr_chunks import check_chunks

AXES = ("z", "y", "x")
NO_SPACING = "write the unit of its axes into its metadata, such as millimeter"
_MM = {
    "angstrom": 1e-7,
    "nanometer": 1e-6,
    "micrometer": 1e-3,
    "millimeter": 1.0,
    "centimeter": 10.0,
    "meter": 1e3,
}
# Some other codecs run what they read as a program.
_CODECS = {"bytes", "transpose", "sharding_indexed", "crc32c", "shuffle", "delta"}
_CODECS |= {"blosc", "gzip", "zlib", "zstd", "lz4", "lzma", "bz2"}
_METADATA = ("zarr.json", ".zattrs")
_OURS = "mmsr_jax"  # OME-Zarr has no direction of its axes


def geometry_attributes(geometry: Geometry) -> dict[str, Any]:
    """Attributes of a group, beside "ome", that say where its volume lies in the patient."""
    return {
        _OURS: {"origin_mm": list(geometry.origin_mm), "direction": list(geometry.direction)},
    }


def is_zarr_group(path: Path) -> bool:
    """Whether a folder is a Zarr group, of which an OME-Zarr image is one."""
    try:
        return bool(json.loads((path / "zarr.json").read_bytes()).get("node_type") != "array")
    except (ValueError, AttributeError):  # corrupt, but nothing else has this name
        return True
    except (FileNotFoundError, NotADirectoryError):
        return (path / ".zgroup").is_file()


def is_image(path: Path) -> bool:
    """Whether a folder is an OME-Zarr image of version 0.5."""
    try:
        attributes = json.loads((path / "zarr.json").read_bytes())["attributes"]
        return "multiscales" in attributes["ome"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def open_ome_zarr(path: Path, spacing_mm: Triple | None, remedy: str) -> StoredVolume:
    """Check the finest level of an OME-Zarr image; the slices of a chunk are read at once.

    Args:
      path: the folder.
      spacing_mm: (x, y, z) of an image whose axes have no unit.
      remedy: what to do about an image without units, for the error.

    Returns:
      The level. Its geometry is the scale and the translation in mm, with a direction only where
      this project wrote one.

    Raises:
      UserError: another kind of Zarr, corrupt metadata, axes other than z, y and x with more than
        one entry, an unknown unit, or no spacing.
    """
    try:
        group = zarr.open_group(path, mode="r")
        multiscale = _multiscales(group)[0]
        axes = [dict(axis) for axis in multiscale["axes"]]
        dataset = multiscale["datasets"][0]
        array = group[dataset["path"]]
        scale, translation = _transformation(len(axes), dataset, multiscale)
        ours: Any = group.attrs.get(_OURS, {})
        if not isinstance(array, zarr.Array):
            raise UserError(f"{path} has no array {dataset['path']}; write it again")
        _check_array(path, array, axes)
        unitless = next((axis["name"] for axis in axes[-3:] if not axis.get("unit")), None)
        if unitless is not None:
            geometry = Geometry(_given(path, unitless, spacing_mm, remedy))
        else:
            geometry = _geometry(path, axes, scale, translation, ours)
        level = [file for file in sorted((path / array.path).rglob("*")) if file.is_file()]
        _check_sizes(path, array, sum(file.stat().st_size for file in level))
        check_chunks(array, [file for file in level if file.name[0].isdigit()])
    except UserError:
        raise
    # Metadata can be wrong in any way.
    except Exception as error:
        raise _unreadable(path, error) from error
    metadata = [path / name for name in _METADATA if (path / name).is_file()]
    return StoredVolume(geometry, (*metadata, *level), _planes(path, array))


def _planes(path: Path, array: zarr.Array) -> Iterator[np.ndarray]:
    """Slices of an array whose leading axes have one entry, in this machine's byte order."""
    leading: Any = (0,) * (array.ndim - 3)
    depth = array.chunks[-3]
    for start in range(0, array.shape[-3], depth):
        try:
            slab = np.asarray(array[(*leading, slice(start, start + depth))])
        # Each codec has errors of its own.
        except Exception as error:
            raise _unreadable(path, error) from error
        yield from slab.astype(slab.dtype.newbyteorder("="), copy=False)


def _multiscales(group: zarr.Group) -> Sequence[Any]:
    attributes: dict[str, Any] = group.attrs.asdict()
    found: Sequence[Any] = attributes.get("ome", attributes)["multiscales"]
    return found


def _transformation(
    axes: int, dataset: dict[str, Any], multiscale: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Scale and translation of level 0, its own and then those of all levels."""
    first, *others = dataset["coordinateTransformations"]  # the first must be a scale
    scale, translation = np.ones(axes) * np.asarray(first["scale"], float), np.zeros(axes)
    for step in (*others, *multiscale.get("coordinateTransformations", [])):
        if step["type"] == "scale":
            factor = np.asarray(step["scale"], float)
            scale, translation = scale * factor, translation * factor
        elif step["type"] == "translation":
            translation = translation + np.asarray(step["translation"], float)
    return scale, translation


def _check_array(path: Path, array: Any, axes: list[dict[str, Any]]) -> None:
    names = [axis["name"] for axis in axes]
    if tuple(names[-3:]) != AXES or len(names) != array.ndim:
        raise UserError(
            f"{path} has the axes {', '.join(names)}; save it with z, y and x at the end"
        )
    for name, length in zip(names[:-3], array.shape):
        if length != 1:
            raise UserError(f"{path} has {length} entries along {name}; save one volume")
    if array.dtype.kind not in "iuf":
        raise UserError(f"{path} holds {array.dtype}; save it as numbers")


def _check_sizes(path: Path, array: zarr.Array, stored: int) -> None:
    unknown = _codecs_of(array.metadata.to_dict()) - _CODECS
    if unknown:
        raise UserError(f"{path} is packed by {', '.join(sorted(unknown))}; pack it by Blosc")
    check_slices(path, array.shape[-3])
    if min(*array.shape, *array.chunks) < 1:
        raise UserError(f"{path} has chunks of {array.chunks} in {array.shape}; write it again")
    voxels = max(math.prod(array.shape), math.prod(array.shards or array.chunks))
    check_size(path, voxels * array.dtype.itemsize, stored, compressed=True)


def _codecs_of(metadata: dict[str, Any]) -> set[str]:
    """Names of the codecs and filters of an array, and of those that they are made of."""
    names = set()
    inside = metadata.get("configuration") or metadata  # of a shard, or of the array
    for key in ("codecs", "index_codecs", "filters", "compressor"):
        found = inside.get(key) or ()
        for codec in (found,) if isinstance(found, dict) else found:
            names |= {str(codec.get("name", codec.get("id"))).removeprefix("numcodecs.")}
            names |= _codecs_of(codec)
    return names


def _geometry(
    path: Path,
    axes: list[dict[str, Any]],
    scale: np.ndarray,
    translation: np.ndarray,
    ours: dict[str, Any],
) -> Geometry:
    for axis in axes[-3:]:
        if axis["unit"] not in _MM:
            raise UserError(f"{path} has {axis['unit']!r} along {axis['name']}; give {list(_MM)}")
    mm = np.array([_MM[axis["unit"]] for axis in axes[-3:]])
    spacing = as_triple((scale[-3:] * mm)[::-1])
    if not ours:
        return Geometry(spacing, as_triple((translation[-3:] * mm)[::-1]))
    direction = tuple(np.reshape(ours["direction"], 9).astype(float).tolist())
    return Geometry(spacing, as_triple(ours["origin_mm"]), direction)


def _given(path: Path, axis: str, spacing_mm: Triple | None, remedy: str) -> Triple:
    if spacing_mm is None:
        raise UserError(f"{path} has no unit along {axis}, so no spacing in mm; {remedy}")
    return as_triple(spacing_mm)


def _unreadable(path: Path, error: Exception) -> UserError:
    cause = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"{path} is no OME-Zarr image, or corrupt ({cause}); write it again")
