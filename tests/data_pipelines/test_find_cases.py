from pathlib import Path

import pytest
import SimpleITK as sitk  # noqa: N813
from scan_files import OBLIQUE, numbers, write_dicom, write_images

from data_pipelines.errors import UserError
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
