"""Tiled TIFF files of others, which ITK does not read, and broken ones."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from scan_files import OBLIQUE, assert_same, numbers, refuses

from data_pipelines.geometry import Geometry, Volume
from data_pipelines.volumes import read_volume, write_volume

SPACING = (0.05, 0.06, 0.1)


@pytest.mark.parametrize("shape", [(5, 40, 50), (40, 50)])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_spacing_is_given(
    tmp_path: Path, shape: tuple[int, ...], compression: str | None
) -> None:
    array = numbers(shape)
    path = tmp_path / "v.tif"
    tifffile.imwrite(path, array, tile=(16, 32), compression=compression)
    refuses(path, "v.tif has no spacing in mm; do this", remedy="do this")
    expected = Volume(array.reshape((-1, 40, 50)), Geometry(SPACING))
    assert_same(read_volume(path, spacing_mm=SPACING), expected)


def test_ours_keep_their_geometry(tmp_path: Path) -> None:
    volume = Volume(numbers(), OBLIQUE)
    write_volume(volume, tmp_path / "v.tif")
    assert_same(read_volume(tmp_path / "v.tif", spacing_mm=SPACING), volume)


def test_colours(tmp_path: Path) -> None:
    array = np.zeros((2, 40, 50, 3), np.uint8)
    tifffile.imwrite(tmp_path / "v.tif", array, tile=(16, 32), photometric="rgb")
    refuses(tmp_path / "v.tif", "v.tif is no stack of grey images", spacing_mm=SPACING)


def test_a_truncated_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "v.tif"
    write_volume(Volume(numbers((5, 40, 50)), OBLIQUE), path)
    data = path.read_bytes()
    with tifffile.TiffFile(path) as file:
        third_page = file.pages[2].offset
    for length in (len(data) - 1, len(data) // 2, third_page, third_page + 10, 100, 3):
        path.write_bytes(data[:length])
        refuses(path, "v.tif cannot be read, is it corrupt?")
    assert not caplog.records
