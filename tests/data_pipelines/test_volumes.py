import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from scan_files import OBLIQUE, assert_same, numbers, refuses

from data_pipelines.errors import UserError
from data_pipelines.geometry import Geometry, Volume
from data_pipelines.volumes import check_hounsfield, check_output, read_volume, write_volume


@pytest.mark.parametrize(
    "name", ["v.nii", "v.nii.gz", "v.mha", "v.nrrd", "UPPER.NII.GZ", "UPPER.MHA"]
)
@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.uint8, np.float32])
def test_round_trip(tmp_path: Path, name: str, dtype: Any) -> None:
    array = numbers() if dtype == np.int16 else np.abs(numbers()).astype(dtype)
    if dtype == np.float32:
        array += 0.25
    if dtype == np.uint16:
        array += 40000
    volume = Volume(array, OBLIQUE)
    path = tmp_path / "new" / "folder" / name
    write_volume(volume, path)
    assert_same(read_volume(path), volume)
    assert [file.name for file in path.parent.iterdir()] == [name]


def test_mask_is_written_as_uint8(tmp_path: Path) -> None:
    write_volume(Volume(numbers() > 0, OBLIQUE), tmp_path / "mask.nii.gz")
    assert read_volume(tmp_path / "mask.nii.gz").array.dtype == np.uint8


def test_one_slice_round_trip(tmp_path: Path) -> None:
    volume = Volume(numbers((1, 6, 8)), OBLIQUE)
    write_volume(volume, tmp_path / "v.nii.gz")
    assert_same(read_volume(tmp_path / "v.nii.gz"), volume)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (np.array([-1000, 400], np.int32), np.int16),
        (np.array([0, 65535], np.int32), np.uint16),
        (np.array([-1000.0, 400.0], np.float64), np.int16),
        (np.array([-1000.5, 400.0], np.float64), np.float32),
        (np.array([-40000, 400], np.int32), np.float32),
        (np.array([-100, 100], np.int8), np.int16),
    ],
)
def test_dtype_is_narrowed(tmp_path: Path, values: np.ndarray, dtype: Any) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(values.reshape(2, 1, 1)), str(tmp_path / "v.mha"))
    array = read_volume(tmp_path / "v.mha").array
    assert array.dtype == dtype
    np.testing.assert_array_equal(array.ravel(), values)


def test_existing_file_is_kept_without_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "v.mha"
    write_volume(Volume(numbers(), OBLIQUE), path)
    other = Volume(numbers() + 1, OBLIQUE)
    with pytest.raises(UserError, match=r"v\.mha exists.*--overwrite"):
        write_volume(other, path)
    assert_same(read_volume(path), Volume(numbers(), OBLIQUE))
    write_volume(other, path, overwrite=True)
    assert_same(read_volume(path), other)


def test_output_is_checked_beforehand(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"v\.jpg .*\.nii\.gz, \.nii, \.mha, \.nrrd"):
        check_output(tmp_path / "v.jpg")
    (tmp_path / "folder.nii").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        check_output(tmp_path / "folder.nii", overwrite=True)
    check_output(tmp_path / "not" / "yet" / "v.nii.gz")


def test_nothing_is_left_of_a_failed_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def disk_full(image: sitk.Image, path: str) -> None:
        Path(path).write_bytes(b"half")
        raise RuntimeError("ITK ERROR: Writer(0x12): No space left\nand more")

    monkeypatch.setattr(sitk, "WriteImage", disk_full)
    for path in (tmp_path / "v.nii.gz", tmp_path / "new" / "folder" / "v.nii.gz"):
        with pytest.raises(UserError, match=r"cannot be written: No space left$"):
            write_volume(Volume(numbers(), OBLIQUE), path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_keeps_its_spacing(tmp_path: Path) -> None:
    write_volume(Volume(numbers(), OBLIQUE), tmp_path / "v.mha")
    volume = read_volume(tmp_path / "v.mha", spacing_mm=(0.05, 0.05, 0.1))
    assert volume.geometry.spacing_mm == OBLIQUE.spacing_mm


def test_spacing_that_is_not_positive(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(numbers()), str(tmp_path / "v.tif"))
    refuses(tmp_path / "v.tif", "spacing of (1.0, 1.0, 0.0)", spacing_mm=(1, 1, 0))


@pytest.mark.parametrize("name", ["v.mha", "v.nrrd", "v.nii"])
def test_sheared_axes(tmp_path: Path, name: str) -> None:
    image = sitk.GetImageFromArray(numbers())
    image.SetDirection((1, 0.01, 0, 0, 1, 0, 0, 0, 1))
    path = tmp_path / name
    sitk.WriteImage(image, str(path))
    if name == "v.nii":  # the writer straightened the axes
        data = bytearray(path.read_bytes())
        data[252:256] = np.array([0, 1], np.int16).tobytes()  # qform_code, sform_code
        data[280:328] = np.array([1, 0.1, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0], np.float32).tobytes()
        path.write_bytes(data)
    refuses(path, f"{path} has a sheared direction; resample it to straight axes first")


def test_mirrored_and_rounded_axes(tmp_path: Path) -> None:
    mirrored = tuple(round(-cosine, 4) for cosine in OBLIQUE.direction)
    geometry = Geometry(OBLIQUE.spacing_mm, OBLIQUE.origin_mm, mirrored)
    write_volume(Volume(numbers(), geometry), tmp_path / "v.mha")
    assert read_volume(tmp_path / "v.mha").geometry.direction == pytest.approx(mirrored)


def test_series_of_what_is_no_dicom(tmp_path: Path) -> None:
    write_volume(Volume(numbers(), OBLIQUE), tmp_path / "v.mha")
    for path in (tmp_path / "v.mha", tmp_path):
        refuses(path, f"{path} is no folder of DICOM slices", "--series=1.2.3", series="1.2.3")


@pytest.mark.parametrize("folder", [False, True])
def test_locked_file_and_folder(
    tmp_path: Path, folder: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path if folder else tmp_path / "v.mha"
    write_volume(Volume(numbers(), OBLIQUE), tmp_path / "v.mha")

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", denied)
    monkeypatch.setattr(Path, "open", denied)
    refuses(path, f"{path} cannot be read: Permission denied; check its permissions")


def test_unknown_format(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    refuses(tmp_path / "notes.txt", "notes.txt cannot be read", "give DICOM, NIfTI, MetaImage")


def test_missing_file(tmp_path: Path) -> None:
    refuses(tmp_path / "v.nii", "v.nii does not exist")


def test_empty_folder(tmp_path: Path) -> None:
    refuses(tmp_path, str(tmp_path), "no DICOM series")


def test_voxels_that_are_no_numbers(tmp_path: Path) -> None:
    array = numbers(dtype=np.float32)
    array[0, 0, :2] = np.nan
    array[1, 2, 3] = np.inf
    write_volume(Volume(array, OBLIQUE), tmp_path / "v.mha")
    refuses(tmp_path / "v.mha", "v.mha has 3 NaN or infinite voxels")


def chest(dtype: Any = np.int16) -> np.ndarray:
    array = np.full((4, 20, 20), 40, dtype)
    array[:, 5:15, 5:15] = -850
    return array


def test_hounsfield_units_pass() -> None:
    array = chest()
    check_hounsfield(Volume(array, OBLIQUE), "scan")
    array[:, 0] = -3024  # padding of the scanner
    check_hounsfield(Volume(array, OBLIQUE), "scan")


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (chest() + 1024, "values 174 to 1064, 0.0% of them air; subtract the offset, often 1024"),
        ((chest() + 1024).astype(np.uint16), "subtract the offset"),
        (np.clip((chest() + 1000) / 5, 0, 255).astype(np.uint8), "apply the DICOM rescale"),
        (((chest() + 1000) / 2000).astype(np.float32), "values 0.075 to 0.52"),
        (chest() - 2048, "values -2898 to -2008"),
        (np.where(chest() < 0, -850, 1e6).astype(np.float32), "to 1e+06"),
    ],
)
def test_other_units_are_refused(array: np.ndarray, said: str) -> None:
    with pytest.raises(UserError) as caught:
        check_hounsfield(Volume(array, OBLIQUE), "scan 7")
    assert said in str(caught.value)
    assert str(caught.value).startswith("scan 7 is not in Hounsfield units")
    assert "\n" not in str(caught.value)
