import gzip
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import zarr
from scan_files import OBLIQUE, UIDS, numbers, write_dicom, write_images

from data_pipelines.errors import UserError
from data_pipelines.geometry import Geometry, Volume, axial
from data_pipelines.slices import open_slices
from data_pipelines.volumes import read_volume, write_volume

CORONAL = Geometry((0.7, 2.5, 0.8), (1.0, -2.0, 3.0), (1, 0, 0, 0, 0, 1, 0, -1, 0))
SAGITTAL = Geometry((0.7, 2.5, 0.8), (1.0, -2.0, 3.0), (0, 0, 1, 1, 0, 0, 0, -1, 0))
ROWS_UP = Geometry((0.7, 2.5, 0.8), (1.0, -2.0, 3.0), (0, 1, 0, 0, 0, 1, 1, 0, 0))


def assert_as_read_volume(path: Path, **options: Any) -> None:
    """The slices and their geometry are those of `axial(read_volume(path))`."""
    expected = axial(read_volume(path, **options))
    with open_slices(path, **options) as reader:
        assert reader.shape == expected.array.shape
        assert reader.geometry == expected.geometry
        order = np.random.default_rng(0).permutation(reader.shape[0])
        for index in order.tolist():
            np.testing.assert_array_equal(reader.read(index), expected.array[index])
        np.testing.assert_array_equal(np.stack(list(reader)), expected.array)


def write(path: Path, array: np.ndarray, geometry: Geometry, compress: bool) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(geometry.spacing_mm)
    image.SetOrigin(geometry.origin_mm)
    image.SetDirection(geometry.direction)
    sitk.WriteImage(image, str(path), compress)


@pytest.mark.parametrize("geometry", [OBLIQUE, CORONAL, SAGITTAL, ROWS_UP])
@pytest.mark.parametrize(
    ("name", "compress"),
    [
        ("v.nii", False),
        ("v.nii.gz", True),
        ("v.mha", False),
        ("v.mha", True),
        ("v.mhd", False),
        ("v.mhd", True),
        ("v.nrrd", False),
        ("v.nrrd", True),
        ("v.nhdr", False),
    ],
)
def test_files_with_a_spacing(
    tmp_path: Path, name: str, compress: bool, geometry: Geometry
) -> None:
    write(tmp_path / name, numbers(), geometry, compress)
    assert_as_read_volume(tmp_path / name)
    with open_slices(tmp_path / name) as reader:
        assert sorted(reader.files) == sorted(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("name", ["UPPER.NII.GZ", "v.nii", "UPPER.MHA"])
def test_values_of_other_types(tmp_path: Path, name: str, dtype: Any) -> None:
    array = np.abs(numbers()).astype(dtype) if np.dtype(dtype).kind == "u" else numbers(dtype=dtype)
    write(tmp_path / name.lower(), array, OBLIQUE, False)
    (tmp_path / name.lower()).rename(tmp_path / name)
    assert_as_read_volume(tmp_path / name)


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz"])
def test_scaled_nifti(tmp_path: Path, name: str) -> None:
    write_volume(Volume(numbers(), OBLIQUE), tmp_path / "v.nii")
    data = bytearray((tmp_path / "v.nii").read_bytes())
    data[112:120] = np.array([0.5, 3.0], np.float32).tobytes()  # scl_slope, scl_inter
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    with open_slices(tmp_path / name) as reader:
        np.testing.assert_allclose(np.stack(list(reader)), numbers() * 0.5 + 3)


@pytest.mark.parametrize("qfac", [1, -1])
def test_negative_spacing_of_old_files(tmp_path: Path, qfac: int) -> None:
    path = tmp_path / "v.nii"
    sitk.WriteImage(sitk.GetImageFromArray(numbers()), str(path))
    data = bytearray(path.read_bytes())
    data[76:92] = np.array([qfac, -0.5, 0.7, -2], np.float32).tobytes()  # pixdim
    path.write_bytes(data)
    image = sitk.ReadImage(str(path))
    with open_slices(path) as reader:
        assert reader.geometry.spacing_mm == pytest.approx(image.GetSpacing())
        assert reader.geometry.direction == pytest.approx(image.GetDirection())


@pytest.mark.parametrize("geometry", [OBLIQUE, CORONAL, SAGITTAL])
def test_dicom_series(tmp_path: Path, geometry: Geometry) -> None:
    files = write_dicom(tmp_path, numbers(), geometry)
    assert_as_read_volume(tmp_path)
    with open_slices(tmp_path) as reader:
        assert sorted(reader.files) == sorted(files)


def test_one_of_several_series(tmp_path: Path) -> None:
    write_dicom(tmp_path, numbers(), series="a")
    files = write_dicom(tmp_path, numbers((4, 7, 9)), series="b")
    assert_as_read_volume(tmp_path, series=UIDS["b"])
    with open_slices(tmp_path, series=UIDS["b"]) as reader:
        assert reader.files == tuple(files)


def test_dicom_slope_of_its_own_in_each_slice(tmp_path: Path) -> None:
    files = write_dicom(tmp_path, np.full((3, 4, 5), -973, np.int16))  # stored as 51
    one, half = (b"\x28\x00\x53\x10\x02\x00\x00\x00" + slope for slope in (b"1 ", b".5"))
    files[1].write_bytes(files[1].read_bytes().replace(one, half))
    with open_slices(tmp_path) as reader:
        assert [plane[0, 0] for plane in reader] == [-973, 51 * 0.5 - 1024, -973]


def test_one_dicom_file(tmp_path: Path) -> None:
    (path,) = write_dicom(tmp_path, numbers((1, 7, 9)))
    assert_as_read_volume(path)
    assert_as_read_volume(tmp_path)


def test_images_without_a_spacing(tmp_path: Path) -> None:
    write_images(tmp_path / "stack")
    sitk.WriteImage(sitk.GetImageFromArray(numbers(dtype=np.uint16)), str(tmp_path / "v.tif"))
    sitk.WriteImage(sitk.GetImageFromArray(numbers()[0]), str(tmp_path / "flat.nii.gz"))
    for name in ("stack", "stack/slice_3.png", "v.tif", "flat.nii.gz"):
        assert_as_read_volume(tmp_path / name, spacing_mm=(0.1, 0.2, 0.3))
    with open_slices(tmp_path / "stack", spacing_mm=(1, 1, 1)) as reader:
        assert [path.name for path in reader.files] == [f"slice_{n}.png" for n in range(11)]


@pytest.mark.parametrize("geometry", [OBLIQUE, CORONAL])
@pytest.mark.parametrize("depth", [1, 2])
def test_ome_zarr(tmp_path: Path, depth: int, geometry: Geometry) -> None:
    path = tmp_path / "v.ome.zarr"
    write_volume(Volume(numbers(), geometry), path)
    group = zarr.open_group(path)
    group.create_array("0", data=numbers(), chunks=(depth, 4, 4), overwrite=True)
    assert_as_read_volume(path)
    with open_slices(path) as reader:
        level = {file for file in (path / "0").rglob("*") if file.is_file()}
        assert set(reader.files) == {path / "zarr.json", *level}  # it says where the level lies


def test_tiled_tiff(tmp_path: Path) -> None:
    write_volume(Volume(numbers(), OBLIQUE), tmp_path / "v.tif")
    assert_as_read_volume(tmp_path / "v.tif")


def test_several_threads_read_the_same(tmp_path: Path) -> None:
    array = numbers((40, 30, 20))
    write_volume(Volume(array, OBLIQUE), tmp_path / "v.nii.gz")
    wrong = []

    def read(seed: int) -> None:
        for index in np.random.default_rng(seed).permutation(40).tolist():
            if (reader.read(index) != array[index]).any():
                wrong.append(index)

    with open_slices(tmp_path / "v.nii.gz") as reader:
        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_the_copy_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    write_volume(Volume(numbers(), OBLIQUE), tmp_path / "v.nii.gz")
    with open_slices(tmp_path / "v.nii.gz") as reader:
        stored = [path for path in scratch.rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in stored) == numbers().nbytes
        with pytest.raises(IndexError):
            reader.read(5)
    assert list(scratch.iterdir()) == []
    with (
        pytest.raises(ZeroDivisionError),
        open_slices(tmp_path / "v.nii.gz") as reader,
    ):
        raise ZeroDivisionError
    assert list(scratch.iterdir()) == []


# ---- bad input --------------------------------------------------------------------------------


def missing(folder: Path) -> Path:
    return folder / "nowhere.nii.gz"


def unreadable(folder: Path) -> Path:
    (folder / "text.nii.gz").write_text("no image")
    return folder / "text.nii.gz"


def truncated(name: str) -> Callable[[Path], Path]:
    def write_truncated(folder: Path) -> Path:
        sitk.WriteImage(sitk.GetImageFromArray(numbers((20, 17, 19))), str(folder / name))
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) * 2 // 3])
        return folder / name

    return write_truncated


def truncated_slice(folder: Path) -> Path:
    path = write_dicom(folder / "dicom", numbers())[-1]
    path.write_bytes(path.read_bytes()[:-40])
    return folder / "dicom"


def truncated_image(folder: Path) -> Path:
    write_images(folder / "stack", shape=(60, 80))
    path = folder / "stack" / "slice_4.png"
    path.write_bytes(path.read_bytes()[:-2000])
    return folder / "stack"


def several_series(folder: Path) -> Path:
    for series in ("a", "b"):
        write_dicom(folder / "dicom", numbers(), series=series)
    return folder / "dicom"


def missing_slice(folder: Path) -> Path:
    write_dicom(folder / "dicom", numbers((6, 12, 12)))[3].unlink()
    return folder / "dicom"


def four_dimensional(folder: Path) -> Path:
    one = sitk.GetImageFromArray(numbers())
    sitk.WriteImage(sitk.JoinSeries([one, one]), str(folder / "4d.nii.gz"))
    return folder / "4d.nii.gz"


def not_finite(name: str) -> Callable[[Path], Path]:
    def write_not_finite(folder: Path) -> Path:
        array = numbers(dtype=np.float32)
        array[1, 2, 3:5] = np.nan
        array[4, 0, 0] = np.inf
        write_volume(Volume(array, OBLIQUE), folder / name)
        return folder / name

    return write_not_finite


def flat(folder: Path) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(numbers()[0]), str(folder / "flat.nii.gz"))
    return folder / "flat.nii.gz"


def tiff(folder: Path) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(numbers()), str(folder / "stack.tif"))
    return folder / "stack.tif"


def sheared(folder: Path) -> Path:
    image = sitk.GetImageFromArray(numbers())
    image.SetDirection((1, 0.01, 0, 0, 1, 0, 0, 0, 1))
    sitk.WriteImage(image, str(folder / "v.mha"))
    return folder / "v.mha"


def sheared_nifti(folder: Path) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(numbers()), str(folder / "v.nii"))
    data = bytearray((folder / "v.nii").read_bytes())
    data[252:256] = np.array([0, 1], np.int16).tobytes()  # qform_code, sform_code
    data[280:328] = np.array([1, 0.1, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0], np.float32).tobytes()
    (folder / "v.nii.gz").write_bytes(gzip.compress(data))
    return folder / "v.nii.gz"


def no_size(folder: Path) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(numbers()), str(folder / "v.mha"))
    data, spacing = (folder / "v.mha").read_bytes(), b"ElementSpacing = "
    assert spacing + b"1 1 1" in data
    (folder / "v.mha").write_bytes(data.replace(spacing + b"1", spacing + b"0"))
    return folder / "v.mha"


def empty_folder(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def damaged_zarr(folder: Path) -> Path:
    write_volume(Volume(numbers(), OBLIQUE), folder / "v.ome.zarr")
    chunk = next(path for path in (folder / "v.ome.zarr" / "0" / "c").rglob("*") if path.is_file())
    chunk.write_bytes(b"rubbish")
    return folder / "v.ome.zarr"


@pytest.mark.parametrize(
    "bad",
    [
        missing,
        unreadable,
        *(truncated(f"v.{ext}") for ext in ("nii", "nii.gz", "mha", "nrrd", "tif")),
        truncated_slice,
        truncated_image,
        several_series,
        missing_slice,
        four_dimensional,
        *(not_finite(f"v.{ext}") for ext in ("nii", "nii.gz", "mha", "nrrd")),
        flat,
        tiff,
        sheared,
        sheared_nifti,
        no_size,
        empty_folder,
        damaged_zarr,
    ],
)
def test_bad_scans_give_the_line_of_read_volume(
    bad: Callable[[Path], Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, scratch = bad(tmp_path), tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    with pytest.raises(UserError) as whole:
        read_volume(path)
    with pytest.raises(UserError) as by_slice, open_slices(path):
        pass
    assert str(by_slice.value) == str(whole.value)
    assert str(path) in str(by_slice.value)
    assert "\n" not in str(by_slice.value)
    assert list(scratch.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_an_unknown_series(tmp_path: Path) -> None:
    write_dicom(tmp_path / "dicom", numbers())
    write_volume(Volume(numbers(), OBLIQUE), tmp_path / "v.mha")
    for name, said in (("dicom", "has no series 1.2.3"), ("v.mha", "leave --series=1.2.3 out")):
        with pytest.raises(UserError, match=said), open_slices(tmp_path / name, series="1.2.3"):
            pass


@pytest.mark.parametrize("side", [20, 80])
@pytest.mark.parametrize("name", ["v.mha", "v.nii.gz"])
def test_a_full_disk(tmp_path: Path, name: str, side: int) -> None:
    """In a process of its own, which may not write more than 1000 bytes to a file."""
    write_volume(Volume(numbers((9, side, side)), OBLIQUE), tmp_path / name)
    (tmp_path / "scratch").mkdir()
    program = (
        "import pathlib, resource, signal, sys\n"
        "from data_pipelines.slices import open_slices\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "import tempfile; tempfile.tempdir = sys.argv[2]\n"
        "with open_slices(sys.argv[1]): pass\n"
    )
    arguments = [str(tmp_path / name), str(tmp_path / "scratch")]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True
    )
    last = done.stderr.splitlines()[-1]
    assert last.startswith("data_pipelines.errors.UserError: ")
    assert str(tmp_path / "scratch") in last
    assert "cannot be written: File too large; free its disk" in last
    assert not any((tmp_path / "scratch").iterdir())


# ---- memory -----------------------------------------------------------------------------------

_PEAK = """
import pathlib, re, sys, tempfile
from data_pipelines.slices import open_slices
def peak(path):
    tempfile.tempdir = sys.argv[1]
    with open_slices(path) as reader:
        total = sum(int(plane[::50].sum()) for plane in reader)
    # Unlike ru_maxrss, this does not begin with the memory of the process that started this one.
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) / 1024
few, many = peak(sys.argv[2]), peak(sys.argv[3])
print(many - few)
"""


def write_scan(path: Path, slices: int) -> None:
    """Noise would take long to compress and to decompress."""
    plane = np.add.outer(np.arange(512), np.arange(512)).astype(np.int16) - 1000
    array = np.broadcast_to(plane, (slices, 512, 512))
    if path.suffix:
        write(path, np.ascontiguousarray(array), OBLIQUE, path.suffix == ".gz")
    else:
        write_dicom(path, array)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz", "v.mha", "dicom"])
def test_memory_does_not_grow_with_the_slices(tmp_path: Path, name: str) -> None:
    counts = (10, 100) if name == "dicom" else (20, 220)
    paths = []
    for count in counts:
        (tmp_path / f"{count}").mkdir()
        paths.append(tmp_path / f"{count}" / name)
        write_scan(paths[-1], count)
    (tmp_path / "scratch").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, tmp_path / "scratch", *paths],
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 12  # MiB, of 45 or 100 more of voxels
