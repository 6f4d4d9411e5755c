import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from scan_files import OBLIQUE, assert_same, numbers, refuses

from data_pipelines.errors import UserError
from data_pipelines.geometry import Geometry, Volume
from data_pipelines.volumes import check_output, read_volume, write_volume


@pytest.mark.parametrize(
    "name",
    [
        *("v.nii", "v.nii.gz", "v.mha", "v.nrrd", "v.tif", "v.tiff", "v.ome.zarr", "v.zarr"),
        *("UPPER.NII.GZ", "UPPER.MHA", "UPPER.TIFF", "UPPER.OME.ZARR"),
    ],
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


@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
def test_dicom_round_trip(tmp_path: Path, dtype: Any) -> None:
    volume = Volume(numbers().astype(dtype), OBLIQUE)
    write_volume(volume, tmp_path / "new" / "series")
    assert_same(read_volume(tmp_path / "new" / "series"), volume)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["series"]


def test_floats_are_no_dicom(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"series cannot hold floats as DICOM"):
        write_volume(Volume(numbers(dtype=np.float32), OBLIQUE), tmp_path / "series")
    assert list(tmp_path.iterdir()) == []


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


@pytest.mark.parametrize("name", ["v.mha", "v.tif", "v.ome.zarr", "v"])
def test_existing_output_is_kept_without_overwrite(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_volume(Volume(numbers(), OBLIQUE), path)
    other = Volume(numbers() + 1, OBLIQUE)
    with pytest.raises(UserError, match=rf"{name} exists.*--overwrite"):
        write_volume(other, path)
    assert_same(read_volume(path), Volume(numbers(), OBLIQUE))
    write_volume(other, path, overwrite=True)
    assert_same(read_volume(path), other)
    assert list(tmp_path.iterdir()) == [path]


def test_output_is_checked_beforehand(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"v\.jpg .*\.nii\.gz, \.nii, \.mha, \.nrrd"):
        check_output(tmp_path / "v.jpg")
    (tmp_path / "folder.nii").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        check_output(tmp_path / "folder.nii", overwrite=True)
    check_output(tmp_path / "not" / "yet" / "v.nii.gz")


@pytest.mark.parametrize("kept", ["text", "link", "folder"])
def test_folders_with_other_things_are_never_replaced(tmp_path: Path, kept: str) -> None:
    volume = Volume(numbers(), OBLIQUE)
    for name in ("v.ome.zarr", "series"):
        path = tmp_path / name
        path.mkdir()
        if kept == "text":
            (path / "thesis.txt").write_text("dear")
        elif kept == "link":
            (path / "thesis").symlink_to(tmp_path)
        else:
            (path / "thesis.dcm").mkdir()
        with pytest.raises(UserError, match=rf"{name} .*choose another name"):
            write_volume(volume, path, overwrite=True)
        assert len(list(path.iterdir())) == 1
    write_volume(volume, tmp_path / "plain" / "v")
    (tmp_path / "plain" / "v" / "notes.txt").touch()
    with pytest.raises(UserError, match=r"v holds notes\.txt, which is no DICOM slice"):
        check_output(tmp_path / "plain" / "v", overwrite=True)


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    for name in ("v.ome.zarr", "series"):
        (tmp_path / name).touch()
        with pytest.raises(UserError, match=rf"{name} is a file"):
            check_output(tmp_path / name, overwrite=True)


@pytest.mark.parametrize("name", ["v.nii.gz", "v.mha", "v.tif", "v.ome.zarr", "v"])
def test_nothing_is_left_of_a_failed_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def disk_full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left")

    for replaced in ("replace", "rename"):  # what makes any file whole
        monkeypatch.setattr(os, replaced, disk_full)
    for path in (tmp_path / name, tmp_path / "new" / "folder" / name):
        with pytest.raises(UserError, match=rf"{name} cannot be written: No space left$"):
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
