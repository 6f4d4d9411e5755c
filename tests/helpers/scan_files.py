"""Scans in files of every kind, and what the tests of their readers share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from scipy.spatial.transform import Rotation

from data_pipelines.errors import UserError
from data_pipelines.geometry import Geometry, Volume
from data_pipelines.volumes import read_volume

UIDS = {"a": "1.2.826.0.1.3680043.8.498.1", "b": "1.2.826.0.1.3680043.8.498.2"}


def numbers(shape: tuple[int, ...] = (5, 7, 9), dtype: Any = np.int16) -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 400, shape).astype(dtype)


def rotated(degrees: Sequence[float]) -> tuple[float, ...]:
    matrix = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    return tuple(matrix.ravel().tolist())


OBLIQUE = Geometry((0.7, 0.8, 2.5), (-120.5, 33.25, -900.0), rotated((10, -20, 30)))


def write_dicom(
    folder: Path,
    array: np.ndarray,
    geometry: Geometry = OBLIQUE,
    *,
    series: str = "a",
    suffix: str = ".dcm",
    changed: dict[int, dict[str, str]] | None = None,
) -> list[Path]:
    """Write each slice as a file of a DICOM series; `changed` overrides tags of some slices."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.KeepOriginalImageUIDOn()
    cosines = np.reshape(geometry.direction, (3, 3))
    files = []
    for number, pixels in enumerate(array):
        image = sitk.GetImageFromArray(pixels[None], isVector=pixels.ndim == 3)
        image.SetSpacing((*geometry.spacing_mm[:2], 9.9))  # a SliceThickness that must not matter
        position = geometry.physical_point((0, 0, number))
        tags = {
            "0008|0060": "CT",
            "0008|103e": f"kernel {series}",
            "0020|000e": UIDS[series],
            "0008|0018": f"{UIDS[series]}.{number + 1}",
            "0020|0013": str(number + 1),
            "0020|0032": "\\".join(f"{value:.6f}" for value in position),
            "0020|0037": "\\".join(f"{value:.8f}" for value in cosines[:, :2].T.ravel()),
            "0028|1052": "-1024",
            "0028|1053": "1",
        } | (changed or {}).get(number, {})
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        # Names in another order than the slices lie.
        files.append(folder / f"{series}{(number * 7) % 101}{suffix}")
        plain = files[-1].with_name(files[-1].name + ".tmp.dcm")
        writer.SetFileName(str(plain))
        writer.Execute(image)
        plain.rename(files[-1])
    return files


def write_images(folder: Path, count: int = 11, shape: tuple[int, int] = (6, 8)) -> np.ndarray:
    folder.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(1).integers(0, 256, (count, *shape)).astype(np.uint8)
    for number, image in enumerate(array):
        sitk.WriteImage(sitk.GetImageFromArray(image), str(folder / f"slice_{number}.png"))
    return array


def assert_same(volume: Volume, expected: Volume, atol: float = 1e-4) -> None:
    np.testing.assert_array_equal(volume.array, expected.array)
    assert volume.array.dtype == expected.array.dtype
    for field in ("spacing_mm", "origin_mm", "direction"):
        np.testing.assert_allclose(
            getattr(volume.geometry, field), getattr(expected.geometry, field), atol=atol
        )


def refuses(path: Path, *parts: str, **options: Any) -> None:
    """`read_volume` gives one line with all the parts."""
    with pytest.raises(UserError) as caught:
        read_volume(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message
