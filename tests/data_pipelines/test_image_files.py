from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from scan_files import assert_same, numbers, refuses, write_images

from data_pipelines.geometry import Geometry, Volume
from data_pipelines.image_files import missing_image
from data_pipelines.volumes import read_volume


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
    for path in (tmp_path / "slice_0.png", tmp_path):
        refuses(path, f"{path} has no spacing in mm; convert it to NIfTI, MetaImage or NRRD")
        refuses(path, f"{path} has no spacing in mm; say it", remedy="say it")


def write_header(path: Path, spacing: str) -> Path:
    """A MetaImage or NRRD file with a line of the header, or none."""
    if path.suffix == ".mha":
        header = "ObjectType = Image\nNDims = 3\nDimSize = 9 7 5\nElementType = MET_SHORT\n"
        end = "ElementDataFile = LOCAL\n"
    else:
        header = "NRRD0004\ntype: short\ndimension: 3\nsizes: 9 7 5\nencoding: raw\n"
        end = "endian: little\n\n"
    path.write_bytes((header + spacing + end).encode() + numbers().tobytes())
    return path


@pytest.mark.parametrize(
    ("name", "line"), [("v.mha", ""), ("v.nrrd", ""), ("v.nrrd", "spacings: nan 1 1\n")]
)
def test_header_without_spacing(tmp_path: Path, name: str, line: str) -> None:
    path = write_header(tmp_path / name, line)
    refuses(path, f"{path} has no spacing in mm; convert it")
    volume = read_volume(path, spacing_mm=(0.1, 0.1, 0.2))
    assert_same(volume, Volume(numbers(), Geometry((0.1, 0.1, 0.2))))


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("v.mha", "ElementSpacing = 1 2 3\n"),
        ("v.mha", "ElementSize = 1 2 3\n"),
        ("v.nrrd", "spacings: 1 2 3\n"),
        ("v.nrrd", "space dimension: 3\nspace directions: (1,0,0) (0,2,0) (0,0,3)\n"),
    ],
)
def test_header_with_spacing(tmp_path: Path, name: str, line: str) -> None:
    volume = read_volume(write_header(tmp_path / name, line), spacing_mm=(0.1, 0.1, 0.2))
    assert volume.geometry.spacing_mm == (1, 2, 3)


def test_spacing_of_zero(tmp_path: Path) -> None:
    path = write_header(tmp_path / "v.mha", "ElementSpacing = 0 1 1\n")
    refuses(path, f"{path} has a spacing of (0.0, 1.0, 1.0) mm; give a positive one")


def test_flat_volume_file(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(numbers()[0]), str(tmp_path / "v.nii"))
    refuses(tmp_path / "v.nii", "v.nii is a 2-D image; give a volume of slices")
    volume = read_volume(tmp_path / "v.nii", spacing_mm=(1, 2, 3))
    assert_same(volume, Volume(numbers()[:1], Geometry((1, 2, 3))))


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((6, 9), np.uint8), "is 9 x 6 pixels and slice_0.png is 8 x 6 pixels"),
        (np.zeros((6, 8), np.uint16), "is 16-bit unsigned integer and slice_0.png is 8-bit"),
        (np.zeros((6, 8, 3), np.uint8), "is a colour image"),
    ],
)
def test_an_image_unlike_the_others(tmp_path: Path, array: np.ndarray, said: str) -> None:
    write_images(tmp_path)
    image = sitk.GetImageFromArray(array, isVector=array.ndim == 3)
    sitk.WriteImage(image, str(tmp_path / "slice_3.png"))
    refuses(tmp_path, f"{tmp_path / 'slice_3.png'} {said}", spacing_mm=(1, 1, 1))


def test_gap_in_the_numbers(tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / "slice_9.png").unlink()
    refuses(tmp_path, f"{tmp_path} misses slice_9.png", spacing_mm=(1, 1, 1))


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["s0.png", "s1.png", "s2.png", "s4.png"], "s3.png"),
        (["a_08_x2.tif", "a_09_x2.tif", "a_12_x2.tif"], "a_10_x2.tif"),
        (["s0.png", "s10.png", "s20.png", "s40.png"], "s30.png"),
        (["s9.png", "s10.png", "s11.png"], ""),
        (["s0.png", "s2.png", "s4.png"], ""),
        (["s1.png", "s7.png"], ""),
        (["s1.png", "s01.png", "s3.png"], ""),
        (["s3.png", "s17.png", "s45.png", "s46.png", "s99.png"], ""),
        (["t1_z1.png", "t1_z2.png", "t2_z4.png"], ""),
        (["a1.png", "b2.png", "c4.png"], ""),
        (["front.png", "middle.png", "back.png"], ""),
    ],
)
def test_missing_image(names: list[str], missing: str) -> None:
    assert missing_image([Path(name) for name in names]) == missing


def test_pages_among_images(tmp_path: Path) -> None:
    write_images(tmp_path)
    sitk.WriteImage(sitk.GetImageFromArray(numbers()), str(tmp_path / "v.tif"))
    refuses(tmp_path, "v.tif has several pages", spacing_mm=(1, 1, 1))


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz", "v.mha", "v.nrrd", "v.tif", "v.dcm"])
@pytest.mark.parametrize("content", [b"", b"hello world\n"])
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
