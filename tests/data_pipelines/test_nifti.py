import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from scan_files import OBLIQUE, numbers, refuses

from data_pipelines.geometry import Volume
from data_pipelines.volumes import read_volume, write_volume

PIXDIM = 80  # bytes before the spacing
VOXELS = 352


def write_nifti(path: Path, dtype: Any = np.int16) -> bytearray:
    sitk.WriteImage(sitk.GetImageFromArray(numbers(dtype=dtype)), str(path.with_name("plain.nii")))
    return bytearray(path.with_name("plain.nii").read_bytes())


def big_endian(data: bytearray, dtype: Any) -> bytes:
    header = np.frombuffer(data, np.uint8).copy()
    fields = {4: [(0, 4), (32, 36), (76, 124), (140, 148), (256, 328)], 2: [(36, 38), (40, 76)]}
    fields[2] += [(120, 122), (252, 256)]
    for width, places in fields.items():
        for start, stop in places:
            part = header[start:stop]
            part[:] = part.reshape(-1, width)[:, ::-1].ravel()
    voxels = np.frombuffer(data[VOXELS:], np.dtype(dtype).newbyteorder("<"))
    return header[:VOXELS].tobytes() + voxels.byteswap().tobytes()


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz", "v.NII.GZ"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_voxels_that_are_no_numbers(tmp_path: Path, name: str, dtype: Any) -> None:
    data = write_nifti(tmp_path / name, dtype)
    voxels = np.frombuffer(data, dtype, offset=VOXELS)
    voxels[[3, 77, -1]] = np.nan, np.inf, -np.inf
    packed = gzip.compress(data) if name.lower().endswith("gz") else data
    (tmp_path / name).write_bytes(packed)
    refuses(tmp_path / name, f"{name} has 3 NaN or infinite voxels; replace them first")


@pytest.mark.parametrize("bad", [False, True])
def test_big_endian(tmp_path: Path, bad: bool) -> None:
    data = write_nifti(tmp_path / "v.nii", np.float32)
    if bad:
        np.frombuffer(data, np.float32, offset=VOXELS)[5] = np.nan
    (tmp_path / "v.nii").write_bytes(big_endian(data, np.float32))
    if bad:
        refuses(tmp_path / "v.nii", "1 NaN")
    else:
        np.testing.assert_array_equal(read_volume(tmp_path / "v.nii").array, numbers())


@pytest.mark.parametrize("step", [0.0, np.nan, np.inf])
def test_no_spacing(tmp_path: Path, step: float) -> None:
    data = write_nifti(tmp_path / "v.nii")
    data[PIXDIM + 4 : PIXDIM + 8] = np.float32(step).tobytes()
    (tmp_path / "v.nii").write_bytes(data)
    refuses(tmp_path / "v.nii", f"v.nii has a spacing of (1.0, {step}, 1.0) mm; give a positive")


def test_negative_spacing_of_old_files(tmp_path: Path) -> None:
    data = write_nifti(tmp_path / "v.nii")
    data[PIXDIM : PIXDIM + 4] = np.float32(-0.5).tobytes()
    (tmp_path / "v.nii").write_bytes(data)
    assert read_volume(tmp_path / "v.nii").geometry.spacing_mm == (0.5, 1, 1)


def test_bytes_behind_the_voxels(tmp_path: Path) -> None:
    data = write_nifti(tmp_path / "v.nii", np.float32)
    (tmp_path / "v.nii").write_bytes(data + np.float32(np.nan).tobytes())
    np.testing.assert_array_equal(read_volume(tmp_path / "v.nii").array, numbers())


def test_wrong_checksum(tmp_path: Path) -> None:
    write_volume(Volume(numbers((40, 64, 64)), OBLIQUE), tmp_path / "v.nii.gz")
    packed = bytearray((tmp_path / "v.nii.gz").read_bytes())
    packed[-8] ^= 1
    (tmp_path / "v.nii.gz").write_bytes(packed)
    refuses(tmp_path / "v.nii.gz", "v.nii.gz is truncated or corrupt (CRC", "copy it again")


def test_pair_of_header_and_image(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(numbers()), str(tmp_path / "v.hdr"))
    for name in ("v.hdr", "v.img"):
        refuses(
            tmp_path / name, f"{name} is one of a pair of .hdr and .img; save it as one .nii.gz"
        )


def test_no_offset_of_the_voxels(tmp_path: Path) -> None:
    data = write_nifti(tmp_path / "v.nii", np.float32)
    data[108:112] = bytes(4)
    del data[348:VOXELS]
    (tmp_path / "v.nii").write_bytes(data)
    np.testing.assert_array_equal(read_volume(tmp_path / "v.nii").array, numbers())


def test_scaled_nifti_is_no_truncated_one(tmp_path: Path) -> None:
    path = tmp_path / "v.nii"
    write_volume(Volume(numbers(), OBLIQUE), path)
    header = bytearray(path.read_bytes())
    header[112:120] = np.array([0.5, 3.0], np.float32).tobytes()  # scl_slope, scl_inter
    path.write_bytes(header)
    np.testing.assert_allclose(read_volume(path).array, numbers() * 0.5 + 3)
