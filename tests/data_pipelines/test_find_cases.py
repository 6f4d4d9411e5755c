import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import SimpleITK as sitk  # noqa: N813
from scan_files import OBLIQUE, numbers, write_dicom, write_images

from data_pipelines.errors import UserError, reported_in_one_line
from data_pipelines.find_cases import find_cases
from data_pipelines.geometry import Volume
from data_pipelines.volumes import write_volume


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


def test_an_ome_zarr_is_one_case(tmp_path: Path) -> None:
    for name in ("a.ome.zarr", "b.zarr", ".partial-c.ome.zarr"):
        write_volume(Volume(numbers(), OBLIQUE), tmp_path / "plain.ome.zarr")
        (tmp_path / "plain.ome.zarr").rename(tmp_path / name)
    write_images(tmp_path / "a.ome.zarr" / "previews", count=3)
    expected = [tmp_path / "a.ome.zarr", tmp_path / "b.zarr"]
    assert find_cases([str(tmp_path)]) == expected
    assert find_cases([str(tmp_path / "*.zarr")]) == expected
    assert find_cases([str(tmp_path / "b.zarr")]) == expected[1:]


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


def test_another_spelling_and_a_link_are_no_other_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_volume(Volume(numbers(), OBLIQUE), tmp_path / "a" / "v1.mha")
    write_dicom(tmp_path / "a" / "v2", numbers((2, 4, 5)))
    (tmp_path / "a" / "v3.mha").symlink_to(tmp_path / "a" / "v1.mha")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    expected = [Path("a/v1.mha"), Path("a/v2")]
    assert find_cases(["a", "./b", "a/../a/v1.mha", str(tmp_path)]) == expected
    assert find_cases(["b/v3.mha", "a/v1.mha"]) == [Path("b/v3.mha")]


def test_what_is_locked_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_volume(Volume(numbers(), OBLIQUE), tmp_path / "v.mha")
    locked = tmp_path / "locked"
    locked.mkdir()
    stat, iterdir = os.stat, Path.iterdir

    def denied(path: Path) -> NoReturn:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    def stat_outside(path: Any, **options: Any) -> os.stat_result:
        return denied(path) if Path(path).parent == locked else stat(path, **options)

    def iterdir_outside(path: Path) -> Iterator[Path]:
        return denied(path) if path == locked else iterdir(path)

    monkeypatch.setattr(os, "stat", stat_outside)
    monkeypatch.setattr(Path, "iterdir", iterdir_outside)
    for path, named in ((locked / "v.mha", locked / "v.mha"), (tmp_path, locked)):
        with pytest.raises(SystemExit) as caught, reported_in_one_line():
            find_cases([str(path)])
        assert caught.value.code == (
            f"error: {named}: Permission denied; check the path, its permissions and its disk"
        )
