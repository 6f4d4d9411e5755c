"""The pyramid and the metadata of an OME-Zarr that is written."""

from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import zarr
from ome_zarr_models.common.omero import Omero
from ome_zarr_models.v05 import Image
from scan_files import OBLIQUE

from data_pipelines.geometry import Geometry
from data_pipelines.writers import VolumeSpec, open_writer


def written(folder: Path, array: np.ndarray, geometry: Geometry = OBLIQUE) -> zarr.Group:
    spec = VolumeSpec(array.shape, array.dtype, geometry, "fine 8x")
    writer = open_writer(Path("fine.ome.zarr"), folder, spec)
    writer.create()
    for index, plane in enumerate(array):
        writer.write(index, plane)
    writer.finish()
    return zarr.open_group(writer.payload, mode="r")


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
@pytest.mark.parametrize("shape", [(2, 5, 7), (2, 513, 1030), (1, 1, 3)])
def test_it_is_valid(tmp_path: Path, shape: tuple[int, int, int], dtype: type) -> None:
    group = written(tmp_path, np.ones(shape, dtype))
    image = Image.from_zarr(group)
    multiscale = image.attributes.ome.multiscales[0]
    assert multiscale.name == "fine 8x"
    assert [axis.name for axis in multiscale.axes] == ["z", "y", "x"]
    assert {axis.unit for axis in multiscale.axes} == {"millimeter"}
    if dtype == np.int16:
        window = Omero(**image.attributes.ome.omero).channels[0].window
        assert (window.start, window.end) == (-1000, 400)


def test_levels_are_means_in_plane(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    array = rng.integers(-1000, 400, (3, 520, 1032)).astype(np.int16)
    group = written(tmp_path, array)
    assert [group[level].shape for level in "012"] == [(3, 520, 1032), (3, 260, 516), (3, 130, 258)]
    assert "3" not in group
    for level, factor in (("1", 2), ("2", 4)):
        block = (1, factor, factor)
        mean = scipy.ndimage.uniform_filter(array.astype(float), block, mode="nearest")
        expected = mean[:, factor // 2 :: factor, factor // 2 :: factor]
        assert np.abs(group[level][:] - expected).max() <= 0.5001


@pytest.mark.parametrize("sides", [(513, 515), (1021, 777)])
def test_odd_sides_are_continued_at_the_edge(tmp_path: Path, sides: tuple[int, int]) -> None:
    group = written(tmp_path, np.full((1, *sides), 7, np.uint8))
    rows, columns = sides
    level = 0
    while str(level) in group:
        assert group[str(level)].shape == (1, rows, columns)
        assert (group[str(level)][:] == 7).all()
        rows, columns, level = (rows + 1) // 2, (columns + 1) // 2, level + 1
    assert min(group[str(level - 1)].shape[1:]) <= 256


def test_a_point_has_the_same_place_in_all_levels(tmp_path: Path) -> None:
    geometry = Geometry((0.1, 0.2, 3.0), (-20.0, 30.0, 40.0))
    array = np.zeros((2, 1024, 1024), np.float32)
    array[1, 400:404, 800:804] = 1  # one pixel of level 2
    group = written(tmp_path, array, geometry)
    for dataset in group.attrs["ome"]["multiscales"][0]["datasets"]:
        scale, translation = (step[step["type"]] for step in dataset["coordinateTransformations"])
        centre = np.argwhere(group[dataset["path"]][:] > 0).mean(axis=0)
        place = centre * scale + translation
        np.testing.assert_allclose(place, [40 + 3, 30 + 0.2 * 401.5, -20 + 0.1 * 801.5])


def test_one_file_a_slice_and_level(tmp_path: Path) -> None:
    group = written(tmp_path, np.ones((3, 530, 600), np.int16))
    chunks = [path for path in (tmp_path / "volume.ome.zarr").rglob("*") if "c" in path.parts]
    files = [path for path in chunks if path.is_file()]
    assert len(files) == 3 * 3
    assert group["0"].shards == (1, 1024, 1024)
    assert group["0"].chunks == (1, 512, 512)
    assert group["0"].metadata.dimension_names == ("z", "y", "x")


def test_direction_is_kept_beside(tmp_path: Path) -> None:
    group = written(tmp_path, np.ones((1, 4, 5), np.int16))
    ours = group.attrs["mmsr_jax"]
    np.testing.assert_allclose(ours["origin_mm"], OBLIQUE.origin_mm)
    np.testing.assert_allclose(np.ravel(ours["direction"]), OBLIQUE.direction)
