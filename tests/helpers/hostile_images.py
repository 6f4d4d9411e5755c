"""Every reader of files that come from elsewhere, with a real file to make mutants of."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk  # noqa: N813
import tifffile
import zarr
from hostile_subject import Subject
from mutants import mutant, png_mutant
from scan_files import OBLIQUE, numbers, write_dicom, write_images

from data_pipelines.geometry import Volume
from data_pipelines.slices import open_slices
from data_pipelines.volumes import read_volume, write_volume

_SPACING = (0.7, 0.7, 1.0)


def _read(path: Path) -> None:
    read_volume(path)


def _read_with_spacing(path: Path) -> None:
    with open_slices(path, spacing_mm=_SPACING) as slices:
        for _ in slices:
            pass


def _written(name: str, dtype: Any = np.int16) -> Subject:
    volume = Volume(numbers(dtype=dtype), OBLIQUE)
    return Subject(lambda folder: write_volume(volume, folder / name), _read, name)


def _dicom(folder: Path) -> None:
    write_dicom(folder, numbers((3, 7, 9)))


def _dicom_compressed(folder: Path) -> None:
    for path in write_dicom(folder, numbers((2, 8, 10))):
        dataset = pydicom.dcmread(path)
        dataset.compress(pydicom.uid.RLELossless)
        dataset.save_as(path)


def _dicom_jpeg(folder: Path) -> None:
    for path in write_dicom(folder, numbers((1, 7, 9))):
        image = sitk.ReadImage(str(path))
        writer = sitk.ImageFileWriter()
        writer.SetImageIO("GDCMImageIO")
        writer.UseCompressionOn()
        writer.SetFileName(str(path))
        writer.Execute(sitk.Cast(image, sitk.sitkInt16))


def _meta_pair(folder: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(numbers()), str(folder / "scan.mhd"))


def _meta_compressed(folder: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(numbers()), str(folder / "scan.mha"), True)


def _nrrd_pair(folder: Path) -> None:
    image = sitk.GetImageFromArray(numbers())
    sitk.WriteImage(image, str(folder / "scan.nhdr"))


def _nrrd_compressed(folder: Path) -> None:
    image = sitk.GetImageFromArray(numbers())
    sitk.WriteImage(image, str(folder / "scan.nrrd"), True)


def _tiff(**options: Any) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        array = numbers((3, 32, 32), np.uint16)
        tifffile.imwrite(folder / "scan.tif", array, photometric="minisblack", **options)

    return make


def _tiff_deflated(folder: Path) -> None:
    image = sitk.GetImageFromArray(numbers((3, 32, 32), np.uint16))
    sitk.WriteImage(image, str(folder / "scan.tif"), True, 5)


def _zarr_v2(folder: Path) -> None:
    group = zarr.open_group(folder / "scan.zarr", mode="w", zarr_format=2)
    array = group.create_array("0", data=numbers((4, 8, 8)), chunks=(2, 8, 8))
    assert array.shape == (4, 8, 8)
    axes = [{"name": n, "type": "space", "unit": "millimeter"} for n in "zyx"]
    scale = [{"type": "scale", "scale": [2.0, 0.7, 0.7]}]
    datasets = [{"path": "0", "coordinateTransformations": scale}]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]


IMAGE_SUBJECTS = {
    "dicom": Subject(_dicom, _read),
    "dicom_rle": Subject(_dicom_compressed, _read),
    "dicom_jpeg": Subject(_dicom_jpeg, _read),
    "nifti": _written("scan.nii"),
    "nifti_gz": _written("scan.nii.gz", np.float32),
    "meta": _written("scan.mha"),
    "meta_pair": Subject(_meta_pair, _read, "scan.mhd"),
    "meta_compressed": Subject(_meta_compressed, _read, "scan.mha"),
    "nrrd": _written("scan.nrrd"),
    "nrrd_pair": Subject(_nrrd_pair, _read, "scan.nhdr"),
    "nrrd_compressed": Subject(_nrrd_compressed, _read, "scan.nrrd"),
    "tiff": Subject(_tiff(), _read_with_spacing, "scan.tif"),
    "tiff_tiled": Subject(_tiff(tile=(16, 16)), _read_with_spacing, "scan.tif"),
    "tiff_deflated": Subject(_tiff_deflated, _read_with_spacing, "scan.tif"),
    "tiff_ours": _written("scan.tiff"),
    "png": Subject(lambda folder: write_images(folder, 3), _read_with_spacing, mutant=png_mutant),
    "zarr": Subject(
        lambda folder: write_volume(Volume(numbers(), OBLIQUE), folder / "scan.ome.zarr"),
        _read,
        "scan.ome.zarr",
    ),
    "zarr_v2": Subject(_zarr_v2, _read, "scan.zarr"),
}

# Scans of patients and specimens, where they are.
_SCANS = Path(__file__).parents[3] / "shared" / "data"
_REAL = {
    "real_dicom": "clinical/lung_pet_ct_dx_a0002_dicom/1-1[0-2].dcm",
    "real_nifti": "clinical/totalsegmentator_crop_b.nii.gz",
    "real_tiff": "micro/qim3d_bone.tif",
    "real_png": "micro/lung_microct_texture_1.png",
}


def _real(pattern: str) -> Subject:
    files = sorted(_SCANS.glob(pattern))

    def make(folder: Path) -> None:
        for file in files:
            (folder / file.name).write_bytes(file.read_bytes())  # not their permissions

    name = files[0].name if len(files) == 1 else ""
    read = _read_with_spacing if pattern.startswith("micro") else _read
    return Subject(make, read, name, mutant=png_mutant if name.endswith(".png") else mutant)


if _SCANS.is_dir():
    IMAGE_SUBJECTS |= {kind: _real(pattern) for kind, pattern in _REAL.items()}
