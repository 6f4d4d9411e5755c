import shutil
from pathlib import Path

import numpy as np
import pytest
from scan_files import OBLIQUE, UIDS, assert_same, numbers, refuses, write_dicom

from data_pipelines.geometry import Geometry, Volume
from data_pipelines.hounsfield import check_hounsfield
from data_pipelines.volumes import read_volume

CLINICAL = Path(__file__).parents[3] / "shared" / "data" / "clinical"


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
    listing = (f"{UIDS['a']} (5 images of 9 x 7)", f"{UIDS['b']} (4 images of 9 x 7)")
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


@pytest.mark.parametrize("kept_bytes", [0, 100, 140, 170, 600])
@pytest.mark.parametrize("suffix", [".dcm", ".IMA", ""])
def test_nearly_empty_file_at_the_end(tmp_path: Path, kept_bytes: int, suffix: str) -> None:
    path = write_dicom(tmp_path, numbers(), suffix=suffix)[-1]
    path.write_bytes(path.read_bytes()[:kept_bytes])
    if suffix or kept_bytes > 132:  # anything may have such a name
        refuses(tmp_path, f"{path} cannot be read, is it truncated? copy it again")


def test_what_is_no_image_is_left_out(tmp_path: Path) -> None:
    write_dicom(tmp_path, numbers())
    meta = b"\2\0\2\0UI\x1e\0" + b"1.2.840.10008.5.1.4.1.1.88.22\0"  # a structured report
    meta += b"\2\0\3\0UI\2\0" + b"1\0" + b"\2\0\x10\0UI\x14\0" + b"1.2.840.10008.1.2.1\0"
    report = b"\0" * 128 + b"DICM" + b"\2\0\0\0UL\4\0" + len(meta).to_bytes(4, "little") + meta
    (tmp_path / "report.dcm").write_bytes(report + b"\x08\0\x60\0CS\2\0SR")
    (tmp_path / "DICOMDIR").write_bytes(report)
    for name in ("notes.txt", "dose.xml", "series.json", "README"):
        (tmp_path / name).write_text("no slice")
    assert_same(read_volume(tmp_path), Volume(numbers(), OBLIQUE))


def test_colour_slice(tmp_path: Path) -> None:
    write_dicom(tmp_path, numbers((2, 7, 9)))
    shifted = Geometry(OBLIQUE.spacing_mm, OBLIQUE.physical_point((0, 0, 2)), OBLIQUE.direction)
    colours = np.zeros((1, 7, 9, 3), np.uint8)
    no_rescale = {0: {"0028|1052": "0"}}
    (path,) = write_dicom(tmp_path / "other", colours, shifted, changed=no_rescale)
    path.rename(tmp_path / "z.dcm")
    refuses(tmp_path, f"{tmp_path / 'z.dcm'} is a colour image")


@pytest.mark.skipif(not CLINICAL.is_dir(), reason="real clinical scans are not there")
def test_real_dicom_series() -> None:
    volume = read_volume(CLINICAL / "lung_pet_ct_dx_a0002_dicom")
    assert volume.array.shape == (12, 512, 512)
    assert volume.array.dtype == np.int16
    assert volume.geometry == Geometry(
        (0.646484375, 0.646484375, 8.0), (-173.1767578125, -294.1767578125, 152.0)
    )
    check_hounsfield(volume.array, "scan")
