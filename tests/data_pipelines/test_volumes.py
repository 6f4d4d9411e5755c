import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from data_pipelines.errors import UserError
from data_pipelines.volumes import (
    Geometry,
    Volume,
    axial,
    check_hounsfield,
    check_output,
    find_cases,
    read_volume,
    write_volume,
)

CLINICAL = Path(__file__).parents[3] / "shared" / "data" / "clinical"
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
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
        image = sitk.GetImageFromArray(pixels[None])
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
        assert part in message


# ---- geometry


angles = st.tuples(*[st.floats(-180, 180)] * 3)
spacings = st.tuples(*[st.floats(0.05, 10)] * 3)
places = st.tuples(*[st.floats(-500, 500)] * 3)


@given(degrees=angles, spacing_mm=spacings, origin_mm=places, scale=st.integers(1, 12))
def test_finer_in_plane_covers_the_same_extent(
    degrees: tuple[float, ...], spacing_mm: Any, origin_mm: Any, scale: int
) -> None:
    coarse = Geometry(spacing_mm, origin_mm, rotated(degrees))
    fine = coarse.finer_in_plane(scale)
    columns, rows, slices = 11, 6, 4
    for x, y in [(0, 0), (1, 0), (0, 1), (1, 1)]:  # the corners of the outer voxels
        corner = (x * columns - 0.5, y * rows - 0.5, slices - 1)
        corner_fine = (x * columns * scale - 0.5, y * rows * scale - 0.5, slices - 1)
        np.testing.assert_allclose(
            fine.physical_point(corner_fine), coarse.physical_point(corner), atol=1e-9
        )
    assert fine.spacing_mm[2] == spacing_mm[2]
    assert fine.direction == coarse.direction


@given(degrees=angles, spacing_mm=spacings, origin_mm=places, index=places)
def test_physical_point_is_that_of_itk(
    degrees: tuple[float, ...], spacing_mm: Any, origin_mm: Any, index: Any
) -> None:
    geometry = Geometry(spacing_mm, origin_mm, rotated(degrees))
    image = sitk.Image(2, 2, 2, sitk.sitkInt16)
    image.SetSpacing(geometry.spacing_mm)
    image.SetOrigin(geometry.origin_mm)
    image.SetDirection(geometry.direction)
    np.testing.assert_allclose(
        geometry.physical_point(index),
        image.TransformContinuousIndexToPhysicalPoint(index),
        atol=1e-6,
    )


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 0, 1), (0, 2, 1), (2, 1, 0)])
def test_axial_keeps_every_voxel_where_it_was(order: tuple[int, ...]) -> None:
    columns = np.reshape(rotated((5, -8, 12)), (3, 3))[:, order]
    geometry = Geometry((1, 2, 3), (4, 5, 6), tuple(columns.ravel().tolist()))
    volume = Volume(numbers((4, 6, 8)), geometry)
    turned = axial(volume)
    direction = np.abs(np.reshape(turned.geometry.direction, (3, 3)))
    assert direction[2].argmax() == 2
    if order[2] != 2:
        assert direction[0].argmax() == 0  # columns run left to right
        assert turned.array.flags.c_contiguous
    voxels = {}
    for case in (volume, turned):
        for z, y, x in np.ndindex(case.array.shape):
            point = tuple(np.round(case.geometry.physical_point((x, y, z)), 6) + 0.0)
            voxels.setdefault(point, []).append(case.array[z, y, x])
    assert all(len(values) == 2 and values[0] == values[1] for values in voxels.values())


def test_axial_volume_is_returned_as_it_is() -> None:
    volume = Volume(numbers(), OBLIQUE)
    assert axial(volume) is volume


# ---- written and read again


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz", "v.mha", "v.nrrd", "UPPER.NII.GZ"])
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
    with pytest.raises(UserError, match=r"cannot be written: No space left$"):
        write_volume(Volume(numbers(), OBLIQUE), tmp_path / "v.nii.gz")
    assert list(tmp_path.iterdir()) == []


def test_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        write_volume(Volume(numbers(), OBLIQUE), tmp_path / "file" / "v.nii.gz")


# ---- DICOM


@pytest.mark.parametrize("suffix", [".dcm", ".IMA", ""])
def test_dicom_series(tmp_path: Path, suffix: str) -> None:
    volume = Volume(numbers(), OBLIQUE)
    write_dicom(tmp_path / "scan", volume.array, suffix=suffix)
    (tmp_path / "scan" / "notes.txt").write_text("not DICOM")
    assert_same(read_volume(tmp_path / "scan"), volume)


def test_dicom_positions_rounded_by_the_scanner(tmp_path: Path) -> None:
    geometry = Geometry((0.7, 0.7, 0.625), (0, 0, 0))
    changed = {n: {"0020|0032": f"0\\0\\{0.625 * n:.1f}"} for n in range(12)}
    write_dicom(tmp_path, numbers((12, 7, 9)), geometry, changed=changed)
    assert read_volume(tmp_path).geometry.spacing_mm[2] == pytest.approx(0.625, abs=0.01)


def test_dicom_slope_of_its_own_in_each_slice(tmp_path: Path) -> None:
    files = write_dicom(tmp_path, np.full((3, 4, 5), -973, np.int16))  # stored as 51
    one, half = (b"\x28\x00\x53\x10\x02\x00\x00\x00" + slope for slope in (b"1 ", b".5"))
    assert one in files[1].read_bytes()
    files[1].write_bytes(files[1].read_bytes().replace(one, half))
    array = read_volume(tmp_path).array
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array[:, 0, 0], [-973, 51 * 0.5 - 1024, -973])


def test_one_dicom_file(tmp_path: Path) -> None:
    (path,) = write_dicom(tmp_path, numbers((1, 7, 9)))
    np.testing.assert_array_equal(read_volume(path).array, numbers((1, 7, 9)))
    np.testing.assert_array_equal(read_volume(tmp_path).array, numbers((1, 7, 9)))


def test_several_series(tmp_path: Path) -> None:
    write_dicom(tmp_path, numbers(), series="a")
    write_dicom(tmp_path, numbers((4, 7, 9)), series="b")
    listing = (f"{UIDS['a']} (5 images, kernel a)", f"{UIDS['b']} (4 images, kernel b)")
    refuses(tmp_path, "2 DICOM series", "--series", *listing)
    refuses(tmp_path, "no series 1.2.3", "--series", *listing, series="1.2.3")
    assert_same(read_volume(tmp_path, series=UIDS["b"]), Volume(numbers((4, 7, 9)), OBLIQUE))


def test_missing_slices(tmp_path: Path) -> None:
    geometry = Geometry((1, 1, 2.5), (0, 0, 10))
    write_dicom(tmp_path, numbers((8, 7, 9)), geometry)[3].unlink()
    refuses(tmp_path, "misses slices between 15.00 and 20.00 mm", "2.5 mm")


def test_duplicate_slices(tmp_path: Path) -> None:
    files = write_dicom(tmp_path, numbers())
    shutil.copy(files[2], tmp_path / "copy.dcm")
    refuses(tmp_path, "two slices at", files[2].name, "copy.dcm")


def test_uneven_spacing(tmp_path: Path) -> None:
    changed = {2: {"0020|0032": "0\\0\\2.3"}}
    write_dicom(tmp_path, numbers(), Geometry((1, 1, 1)), changed=changed)
    refuses(tmp_path, "slices 0.7 to 1.3 mm apart")


def test_slices_that_are_not_parallel(tmp_path: Path) -> None:
    files = write_dicom(
        tmp_path, numbers(), Geometry((1, 1, 1)), changed={2: {"0020|0037": "1\\0\\0\\0\\0\\1"}}
    )
    refuses(tmp_path, files[2].name, "not parallel")


def test_tilted_gantry(tmp_path: Path) -> None:
    changed = {n: {"0020|0032": f"0\\{0.3 * n}\\{n}"} for n in range(5)}
    write_dicom(tmp_path, numbers(), Geometry((1, 1, 1)), changed=changed)
    refuses(tmp_path, "tilted gantry", "0.3 mm every 1 mm")


def test_slices_of_another_size(tmp_path: Path) -> None:
    write_dicom(tmp_path, numbers((2, 7, 9)))
    shifted = Geometry(OBLIQUE.spacing_mm, OBLIQUE.physical_point((0, 0, 2)), OBLIQUE.direction)
    write_dicom(tmp_path / "other", numbers((1, 7, 8)), shifted)[0].rename(tmp_path / "z.dcm")
    refuses(tmp_path, "differ in size")


def test_position_missing(tmp_path: Path) -> None:
    path = write_dicom(tmp_path, numbers())[1]
    position, other_tag = b"\x20\x00\x32\x00", b"\x20\x00\x31\x00"
    assert path.read_bytes().count(position) == 1
    path.write_bytes(path.read_bytes().replace(position, other_tag))
    refuses(tmp_path, path.name, "ImagePositionPatient")


def test_truncated_dicom_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_dicom(tmp_path, numbers())[-1]
    path.write_bytes(path.read_bytes()[:-40])
    refuses(tmp_path, path.name, "truncated")
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not CLINICAL.is_dir(), reason="real clinical scans are not there")
def test_real_dicom_series() -> None:
    volume = read_volume(CLINICAL / "lung_pet_ct_dx_a0002_dicom")
    assert volume.array.shape == (12, 512, 512)
    assert volume.array.dtype == np.int16
    assert volume.geometry == Geometry(
        (0.646484375, 0.646484375, 8.0), (-173.1767578125, -294.1767578125, 152.0)
    )
    check_hounsfield(volume, "scan")


# ---- TIFF and PNG


def write_images(folder: Path, count: int = 11, shape: tuple[int, int] = (6, 8)) -> np.ndarray:
    folder.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(1).integers(0, 256, (count, *shape)).astype(np.uint8)
    for number, image in enumerate(array):
        sitk.WriteImage(sitk.GetImageFromArray(image), str(folder / f"slice_{number}.png"))
    return array


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


def test_spacing_replaces_that_of_the_file(tmp_path: Path) -> None:
    write_volume(Volume(numbers(), OBLIQUE), tmp_path / "v.nii")
    volume = read_volume(tmp_path / "v.nii", spacing_mm=(0.05, 0.05, 0.1))
    assert volume.geometry.spacing_mm == (0.05, 0.05, 0.1)
    refuses(tmp_path / "v.nii", "spacing of (1.0, 1.0, 0.0)", spacing_mm=(1, 1, 0))


def test_images_of_several_sizes(tmp_path: Path) -> None:
    write_images(tmp_path)
    image = sitk.GetImageFromArray(np.zeros((6, 9), np.uint8))
    sitk.WriteImage(image, str(tmp_path / "slice_3.png"))
    refuses(tmp_path, str(tmp_path), "ize", spacing_mm=(1, 1, 1))


def test_pages_among_images(tmp_path: Path) -> None:
    write_images(tmp_path)
    sitk.WriteImage(sitk.GetImageFromArray(numbers()), str(tmp_path / "v.tif"))
    refuses(tmp_path, "v.tif has several pages", spacing_mm=(1, 1, 1))


# ---- what cannot be read


def test_missing_file(tmp_path: Path) -> None:
    refuses(tmp_path / "v.nii", "v.nii does not exist")


def test_empty_folder(tmp_path: Path) -> None:
    refuses(tmp_path, str(tmp_path), "no DICOM series")


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


def test_voxels_that_are_no_numbers(tmp_path: Path) -> None:
    array = numbers(dtype=np.float32)
    array[0, 0, :2] = np.nan
    array[1, 2, 3] = np.inf
    write_volume(Volume(array, OBLIQUE), tmp_path / "v.mha")
    refuses(tmp_path / "v.mha", "v.mha has 3 NaN or infinite voxels")


# ---- finding cases


def test_find_cases(tmp_path: Path) -> None:
    write_dicom(tmp_path / "p10" / "series", numbers((2, 4, 5)), suffix="")
    write_dicom(tmp_path / "p2", numbers((2, 4, 5)))
    write_images(tmp_path / "micro" / "stack", count=3)
    volumes = tmp_path / "volumes"
    for name in ("v10.nii.gz", "v9.mha"):
        write_volume(Volume(numbers(), OBLIQUE), volumes / name)
    sitk.WriteImage(sitk.GetImageFromArray(numbers()), str(volumes / "v1.tif"))
    write_images(volumes, count=1)  # a preview
    (volumes / "README.txt").touch()
    (volumes / "._v9.mha").touch()
    expected = [
        tmp_path / "micro" / "stack",
        tmp_path / "p2",
        tmp_path / "p10" / "series",
        volumes / "v1.tif",
        volumes / "v9.mha",
        volumes / "v10.nii.gz",
    ]
    assert find_cases([str(tmp_path)]) == expected
    assert find_cases([str(tmp_path / "*"), str(volumes / "v9.mha")]) == expected
    assert find_cases([str(volumes / "v*")]) == expected[3:]
    assert find_cases([str(tmp_path / "p2" / "*.dcm")]) == [tmp_path / "p2"]
    assert find_cases([str(volumes / "slice_0.png")]) == [volumes / "slice_0.png"]


def test_preview_above_the_scans_hides_none(tmp_path: Path) -> None:
    write_images(tmp_path, count=1)
    write_dicom(tmp_path / "scan", numbers((2, 4, 5)))
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    assert find_cases([str(tmp_path)]) == [tmp_path / "scan"]


def test_paths_without_scans(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"v\*\.nii matches no file"):
        find_cases([str(tmp_path / "v*.nii")])
    (tmp_path / "notes.txt").write_text("no scan")
    for path in (tmp_path, tmp_path / "*.txt"):
        with pytest.raises(UserError, match="holds no scans"):
            find_cases([str(path)])


# ---- Hounsfield units


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
