"""Volumes read with the libraries of their formats, as anyone else would."""

import json
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import SimpleITK as sitk  # noqa: N813
import tifffile
import zarr

from data_pipelines.geometry import Geometry, Volume, as_triple


def readings(path: Path) -> Iterator[Volume]:
    """What each library that knows the format reads."""
    extension = "".join(path.suffixes).lower()
    if extension in (".nii", ".nii.gz"):
        yield from (_simpleitk(path), _nibabel(path))
    elif extension in (".mha", ".nrrd"):
        yield _simpleitk(path)
    elif extension in (".tif", ".tiff"):
        yield _tifffile(path)
    elif extension in (".ome.zarr", ".zarr"):
        yield _zarr(path)
    else:
        yield _pydicom(path)


def _simpleitk(path: Path) -> Volume:
    image = sitk.ReadImage(str(path))
    geometry = Geometry(image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    return Volume(sitk.GetArrayFromImage(image), geometry)


def _nibabel(path: Path) -> Volume:
    image = nibabel.load(path)
    assert image.header["sform_code"] == image.header["qform_code"] == 1
    assert image.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=2e-3)
    affine = np.diag([-1, -1, 1, 1]) @ image.get_sform()
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    return Volume(np.asarray(image.dataobj).T, _geometry(affine[:3, :3], spacing, affine[:3, 3]))


def _tifffile(path: Path) -> Volume:
    with tifffile.TiffFile(path) as file:
        assert file.is_bigtiff
        page = file.pages[-1]
        assert page.is_tiled
        tags = file.pages[0].tags
        said = json.loads(tags["ImageDescription"].value)["mmsr_jax"]
        per_cm = [np.divide(*tags[name].value) for name in ("XResolution", "YResolution")]
        np.testing.assert_allclose(10 / np.array(per_cm), said["spacing_mm"][:2], rtol=1e-6)
        array = np.stack([page.asarray() for page in file.pages])
    return Volume(array, Geometry(**{name: tuple(value) for name, value in said.items()}))


def _zarr(path: Path) -> Volume:
    group = zarr.open_group(path, mode="r")
    dataset = group.attrs["ome"]["multiscales"][0]["datasets"][0]
    scale, _ = dataset["coordinateTransformations"]
    ours = group.attrs["mmsr_jax"]
    axes = np.reshape(ours["direction"], (3, 3))
    spacing = np.array(scale["scale"][::-1])
    return Volume(group["0"][:], _geometry(axes * spacing, spacing, ours["origin_mm"]))


def _pydicom(folder: Path) -> Volume:
    """In the order of the files' names."""
    slices = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    first = slices[0]
    x, y = np.reshape(np.array(first.ImageOrientationPatient, float), (2, 3))
    z = np.cross(x, y)
    if len(slices) > 1:
        z = np.subtract(slices[1].ImagePositionPatient, first.ImagePositionPatient)
        z /= np.linalg.norm(z)
    spacing = np.array([*first.PixelSpacing[::-1], first.SpacingBetweenSlices], float)
    steps = np.stack([x, y, z], axis=1) * spacing
    array = np.stack([image.pixel_array for image in slices])
    return Volume(array, _geometry(steps, spacing, first.ImagePositionPatient))


def _geometry(steps: np.ndarray, spacing: np.ndarray, origin: object) -> Geometry:
    direction = tuple((steps / spacing).ravel().tolist())
    return Geometry(as_triple(spacing), as_triple(np.array(origin, float)), direction)
