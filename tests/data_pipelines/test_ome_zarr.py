"""OME-Zarr images of others, versions 0.4 and 0.5, and broken ones."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from ome_zarr_models import v04, v05
from scan_files import OBLIQUE, assert_same, numbers, refuses

from data_pipelines.errors import UserError
from data_pipelines.geometry import Geometry, Volume
from data_pipelines.ome_zarr import is_zarr_group, open_ome_zarr
from data_pipelines.volumes import read_volume, write_volume

SCALE, TRANSLATION = [3.0, 0.2, 0.1], [40.0, 30.0, -20.0]
GEOMETRY = Geometry((0.1, 0.2, 3.0), (-20.0, 30.0, 40.0))


def write(
    path: Path,
    array: np.ndarray,
    version: str = "0.5",
    *,
    names: str = "zyx",
    unit: str | None = "millimeter",
    **changed: Any,
) -> Path:
    """An image with one level, which is valid unless `changed` breaks its multiscale."""
    types = {"t": "time", "c": "channel"}
    described = [{"name": name, "type": types.get(name, "space")} for name in names]
    for axis in described:
        if axis["type"] == "space" and unit is not None:
            axis["unit"] = unit
    more = len(names) - 3
    steps = [
        {"type": "scale", "scale": [1.0] * more + SCALE},
        {"type": "translation", "translation": [0.0] * more + TRANSLATION},
    ]
    datasets = [{"path": "s0", "coordinateTransformations": steps}]
    multiscale = {"axes": described, "datasets": datasets} | changed
    if version == "0.4":
        attributes = {"multiscales": [multiscale | {"version": version}]}
    else:
        attributes = {"ome": {"version": version, "multiscales": [multiscale]}}
    group = zarr.create_group(
        path, zarr_format=2 if version == "0.4" else 3, attributes=attributes, overwrite=True
    )
    dimensions = {} if version == "0.4" else {"dimension_names": list(names)}
    chunks = (1,) * (array.ndim - 2) + array.shape[-2:]
    group.create_array("s0", data=array, chunks=chunks, **dimensions)
    return path


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", ["zyx", "czyx", "tczyx"])
@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<u2", "u1", "<f4"])
def test_images_of_others(tmp_path: Path, version: str, axes: str, dtype: str) -> None:
    array = np.abs(numbers()).astype(dtype)
    if dtype == "<f4":
        array += np.float32(0.25)
    shaped = array.reshape((1,) * (len(axes) - 3) + array.shape)
    path = write(tmp_path / "v.zarr", shaped, version, names=axes)
    (v04 if version == "0.4" else v05).Image.from_zarr(zarr.open_group(path, mode="r"))
    native = array.astype(array.dtype.newbyteorder("="))
    assert_same(read_volume(path), Volume(native, GEOMETRY))


@pytest.mark.parametrize(
    ("unit", "factor"), [("micrometer", 1e-3), ("nanometer", 1e-6), ("centimeter", 10)]
)
def test_units(tmp_path: Path, unit: str, factor: float) -> None:
    geometry = read_volume(write(tmp_path / "v.zarr", numbers(), unit=unit)).geometry
    np.testing.assert_allclose(geometry.spacing_mm, np.multiply(SCALE[::-1], factor))
    np.testing.assert_allclose(geometry.origin_mm, np.multiply(TRANSLATION[::-1], factor))


def test_a_transformation_of_all_levels_comes_last(tmp_path: Path) -> None:
    steps = [
        {"type": "scale", "scale": [1.0, 2.0, 4.0]},
        {"type": "translation", "translation": [1.0, 1.0, 1.0]},
    ]
    path = write(tmp_path / "v.zarr", numbers(), coordinateTransformations=steps)
    geometry = read_volume(path).geometry
    np.testing.assert_allclose(geometry.spacing_mm, (0.4, 0.4, 3.0))
    np.testing.assert_allclose(geometry.origin_mm, (-79.0, 61.0, 41.0))


def test_our_own_keep_their_direction(tmp_path: Path) -> None:
    write_volume(Volume(numbers(), OBLIQUE), tmp_path / "v.ome.zarr")
    geometry = read_volume(tmp_path / "v.ome.zarr").geometry
    np.testing.assert_allclose(geometry.direction, OBLIQUE.direction)
    np.testing.assert_allclose(geometry.origin_mm, OBLIQUE.origin_mm)


def test_without_units_a_spacing_is_needed(tmp_path: Path) -> None:
    path = write(tmp_path / "v.zarr", numbers(), unit=None)
    refuses(path, "v.zarr has no unit along z, so no spacing in mm; do this", remedy="do this")
    volume = read_volume(path, spacing_mm=(0.05, 0.05, 0.1))
    assert volume.geometry == Geometry((0.05, 0.05, 0.1))


def test_images_that_are_no_volume(tmp_path: Path) -> None:
    path = tmp_path / "v.zarr"
    write(path, numbers((2, 5, 7, 9)), names="czyx")
    refuses(path, "v.zarr has 2 entries along c; save one volume")
    write(path, numbers(), names="xyz")
    refuses(path, "v.zarr has the axes x, y, z")
    write(path, numbers(), unit="parsec")
    refuses(path, "v.zarr has 'parsec' along z", "millimeter")
    write(path, numbers() > 0)
    refuses(path, "v.zarr holds bool")


@pytest.mark.parametrize(
    "changed",
    [
        {"axes": ["z", "y", "x"]},  # version 0.3
        {"datasets": []},
        {"datasets": [{"path": "s1"}]},
        {"datasets": [{"path": "s0"}]},
        {"datasets": [{"path": "s0", "coordinateTransformations": []}]},
        {"datasets": [{"path": "s0", "coordinateTransformations": [{"type": "scale"}]}]},
        {"coordinateTransformations": [{"type": "scale", "scale": [1, 2]}]},
    ],
)
def test_corrupt_metadata(tmp_path: Path, changed: dict[str, Any]) -> None:
    path = write(tmp_path / "v.zarr", numbers(), **changed)
    refuses(path, "v.zarr is no OME-Zarr image, or corrupt (")


def test_corrupt_files(tmp_path: Path) -> None:
    path = write(tmp_path / "v.zarr", numbers())
    planes = open_ome_zarr(path, None, "").planes
    chunk = path / "s0" / "c" / "2" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:20])
    refuses(path, "v.zarr is no OME-Zarr image, or corrupt (")
    np.testing.assert_array_equal(np.stack([next(planes), next(planes)]), numbers()[:2])
    with pytest.raises(UserError, match=r"v\.zarr"):
        next(planes)
    (path / "zarr.json").write_text("{")
    refuses(path, "v.zarr is no OME-Zarr image, or corrupt (")


def test_other_zarr(tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "group.zarr")
    refuses(tmp_path / "group.zarr", "group.zarr is no OME-Zarr image, or corrupt ('multiscales')")
    zarr.create_array(tmp_path / "array.zarr", data=numbers())
    refuses(tmp_path / "array.zarr", "array.zarr holds no DICOM series")


def test_what_is_a_group(tmp_path: Path) -> None:
    for version in ("0.4", "0.5"):
        path = write(tmp_path / version, numbers(), version)
        assert is_zarr_group(path)
        assert not is_zarr_group(path / "s0")
    assert not is_zarr_group(tmp_path)
    assert json.loads((tmp_path / "0.5" / "zarr.json").read_text())["node_type"] == "group"
