from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from scan_files import OBLIQUE, assert_same, numbers, refuses, write_images

from data_pipelines.geometry import Geometry, Volume
from data_pipelines.volumes import read_volume, write_volume


def test_folder_of_images_in_natural_order(tmp_path: Path) -> None:
    array = write_images(tmp_path)
    volume = read_volume(tmp_path, spacing_mm=(0.05, 0.05, 0.06))
    assert_same(volume, Volume(array, Geometry((0.05, 0.05, 0.06))))


def test_multi_page_tiff(tmp_path: Path) -> None:
    path = tmp_path / "v.tif"
    sitk.WriteImage(sitk.GetImageFromArray(numbers(dtype=np.uint16)), str(path))
    volume = read_volume(path, spacing_mm=(0.05, 0.05, 0.05))
    assert_same(volume, Volume(numbers(dtype=np.uint16), Geometry((0.05, 0.05, 0.05))))
    assert_same(read_volume(tmp_path, spacing_mm=(0.05, 0.05, 0.05)), volume)


def test_one_image_is_one_slice(tmp_path: Path) -> None:
    array = write_images(tmp_path, count=1)
    volume = read_volume(tmp_path / "slice_0.png", spacing_mm=(1, 2, 3))
    assert_same(volume, Volume(array, Geometry((1, 2, 3))))


def test_images_need_a_spacing(tmp_path: Path) -> None:
    write_images(tmp_path)
    refuses(tmp_path / "slice_0.png", "slice_0.png has no spacing", "give its spacing")
    refuses(tmp_path, "give its spacing")


def test_images_of_several_sizes(tmp_path: Path) -> None:
    write_images(tmp_path)
    image = sitk.GetImageFromArray(np.zeros((6, 9), np.uint8))
    sitk.WriteImage(image, str(tmp_path / "slice_3.png"))
    refuses(tmp_path, str(tmp_path), "ize", spacing_mm=(1, 1, 1))


def test_pages_among_images(tmp_path: Path) -> None:
    write_images(tmp_path)
    sitk.WriteImage(sitk.GetImageFromArray(numbers()), str(tmp_path / "v.tif"))
    refuses(tmp_path, "v.tif has several pages", spacing_mm=(1, 1, 1))


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz", "v.mha", "v.nrrd", "v.tif", "v.dcm"])
@pytest.mark.parametrize("content", [b"", b"hello world"])
def test_corrupt_file(
    tmp_path: Path, name: str, content: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    refuses(tmp_path / name, name, "cannot be read", spacing_mm=(1, 1, 1))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz", "v.mha", "v.nrrd", "v.tif"])
def test_truncated_file(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / name
    sitk.WriteImage(sitk.GetImageFromArray(numbers((20, 17, 19))), str(path))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    refuses(path, name, spacing_mm=(1, 1, 1))
    assert capfd.readouterr() == ("", "")


def test_scaled_nifti_is_no_truncated_one(tmp_path: Path) -> None:
    path = tmp_path / "v.nii"
    write_volume(Volume(numbers(), OBLIQUE), path)
    header = bytearray(path.read_bytes())
    header[112:120] = np.array([0.5, 3.0], np.float32).tobytes()  # scl_slope, scl_inter
    path.write_bytes(header)
    np.testing.assert_allclose(read_volume(path).array, numbers() * 0.5 + 3)


def test_four_dimensions(tmp_path: Path) -> None:
    image = sitk.JoinSeries([sitk.GetImageFromArray(numbers())] * 2)
    sitk.WriteImage(image, str(tmp_path / "v.nii.gz"))
    refuses(tmp_path / "v.nii.gz", "is 4-D (9, 7, 5, 2)")


@pytest.mark.parametrize("name", ["v.nii", "v.mha"])
def test_colour_volume(tmp_path: Path, name: str) -> None:
    image = sitk.GetImageFromArray(np.zeros((3, 4, 5, 3), np.uint8), isVector=True)
    sitk.WriteImage(image, str(tmp_path / name))
    refuses(tmp_path / name, "colour image (3 components")


def test_colour_images(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(np.zeros((4, 5, 3), np.uint8), isVector=True)
    for number in range(3):
        sitk.WriteImage(image, str(tmp_path / f"{number}.png"))
    refuses(tmp_path / "1.png", "colour image", spacing_mm=(1, 1, 1))
    refuses(tmp_path, "colour image", spacing_mm=(1, 1, 1))
