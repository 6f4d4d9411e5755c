"""The attributes of a DICOM series that is written."""

import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from scan_files import OBLIQUE, assert_same, numbers, write_dicom

from data_pipelines.errors import UserError
from data_pipelines.geometry import Geometry, Volume
from data_pipelines.volumes import read_volume
from data_pipelines.writers import VolumeSpec, open_writer

PERSONAL = {
    "PatientName": "Müller^Jürgen",
    "PatientID": "4711",
    "PatientBirthDate": "19500102",
    "PatientSex": "O",
    "StudyDate": "20200304",
    "StudyTime": "101112",
    "AccessionNumber": "A1",
    "StudyID": "S1",
    "ReferringPhysicianName": "Doe^Jane",
}
STUDY, FRAME = "1.2.3.4", "1.2.3.5"
# Type 1 attributes of the modules of a CT image, which have a value, and those of type 2, which
# may be empty (DICOM PS3.3, A.3.3).
HAVE_A_VALUE = """SOPClassUID SOPInstanceUID StudyInstanceUID Modality SeriesInstanceUID
    FrameOfReferenceUID PixelSpacing ImageOrientationPatient ImagePositionPatient ImageType
    SamplesPerPixel PhotometricInterpretation Rows Columns BitsAllocated BitsStored HighBit
    PixelRepresentation RescaleIntercept RescaleSlope PixelData"""
MAY_BE_EMPTY = """PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime
    ReferringPhysicianName StudyID AccessionNumber SeriesNumber PositionReferenceIndicator
    Manufacturer InstanceNumber SliceThickness KVP AcquisitionNumber PatientPosition"""


def written(
    folder: Path, array: np.ndarray, geometry: Geometry = OBLIQUE, **options: Any
) -> list[Dataset]:
    folder.mkdir(exist_ok=True)
    spec = VolumeSpec(array.shape, array.dtype, geometry, "fine 8x")
    writer = open_writer(Path("fine"), folder, spec, **options)
    writer.create()
    for index, plane in enumerate(array):
        writer.write(index, plane)
    writer.finish()
    assert [path.name for path in sorted(writer.payload.iterdir())] == [
        f"{number:04}.dcm" for number in range(1, len(array) + 1)
    ]
    return [pydicom.dcmread(path) for path in sorted(writer.payload.iterdir())]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = write_dicom(tmp_path / "source", numbers((2, 4, 5)))[0]
    image = pydicom.dcmread(path)
    image.SpecificCharacterSet = "ISO_IR 100"
    for keyword, value in PERSONAL.items():
        setattr(image, keyword, value)
    image.StudyInstanceUID, image.FrameOfReferenceUID = STUDY, FRAME
    image.PatientPosition = "FFP"
    image.save_as(path)
    return path


def test_attributes(tmp_path: Path) -> None:
    images = written(tmp_path, numbers((3, 6, 7)))
    for number, image in enumerate(images, 1):
        assert image.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
        assert image.file_meta.MediaStorageSOPInstanceUID == image.SOPInstanceUID
        assert image.SOPClassUID == CTImageStorage
        assert all(image[keyword].value not in ("", None) for keyword in HAVE_A_VALUE.split())
        assert all(keyword in image for keyword in MAY_BE_EMPTY.split())
        assert image.InstanceNumber == number
        assert image.ImageType == ["DERIVED", "SECONDARY", "AXIAL"]
        assert image.SeriesDescription == image.DerivationDescription == "fine 8x"
        assert image.Manufacturer == "mmsr-jax"
        assert image.SoftwareVersions == importlib.metadata.version("mmsr-jax")
        assert (image.RescaleIntercept, image.RescaleSlope) == (0, 1)
        assert (image.WindowCenter, image.WindowWidth) == (-300, 1400)
        assert image.BurnedInAnnotation == "NO"
        assert image.PixelSpacing == [0.8, 0.7]
        assert image.SliceThickness == image.SpacingBetweenSlices == 2.5
    assert len({image.SOPInstanceUID for image in images}) == 3
    for shared in ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert len({image[shared].value for image in images}) == 1


def test_two_outputs_are_two_series(tmp_path: Path) -> None:
    one, other = (written(tmp_path / name, numbers((1, 4, 5)))[0] for name in "ab")
    for keyword in ("SeriesInstanceUID", "SOPInstanceUID", "StudyInstanceUID"):
        assert one[keyword].value != other[keyword].value


def test_a_source_gives_the_position_on_the_table_and_no_patient(
    tmp_path: Path, source: Path
) -> None:
    (image,) = written(tmp_path / "work", numbers((1, 4, 5)), source=source)
    assert image.FrameOfReferenceUID not in ("", FRAME)
    assert image.PatientPosition == "FFP"
    assert image.PatientIdentityRemoved == "YES"
    assert image.StudyInstanceUID != STUDY
    assert all(not image[keyword].value for keyword in PERSONAL)
    text = str(image)
    assert not any(value in text for value in PERSONAL.values() if len(value) > 1)


def test_patient_and_study_are_kept_when_asked(tmp_path: Path, source: Path) -> None:
    (image,) = written(tmp_path / "work", numbers((1, 4, 5)), source=source, keep_patient=True)
    assert {keyword: str(image[keyword].value) for keyword in PERSONAL} == PERSONAL
    assert (image.StudyInstanceUID, image.FrameOfReferenceUID) == (STUDY, FRAME)
    assert "PatientIdentityRemoved" not in image


def test_what_a_source_lacks_is_empty_or_new(tmp_path: Path, source: Path) -> None:
    image = pydicom.dcmread(source)
    for keyword in ("PatientName", "StudyInstanceUID", "FrameOfReferenceUID", "PatientPosition"):
        del image[keyword]
    image.PatientID = ["47", "11"]
    image.save_as(source)
    (image,) = written(tmp_path / "work", numbers((1, 4, 5)), source=source, keep_patient=True)
    assert (image.PatientName, image.PatientPosition) == ("", "")
    assert image.PatientID == ["47", "11"]
    assert image.StudyInstanceUID != image.FrameOfReferenceUID
    assert image.StudyDate == PERSONAL["StudyDate"]


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.uint8])
def test_pixels(tmp_path: Path, dtype: Any) -> None:
    array = np.random.default_rng(0).integers(
        np.iinfo(dtype).min, np.iinfo(dtype).max + 1, (3, 5, 7)
    )
    images = written(tmp_path, array.astype(dtype))
    np.testing.assert_array_equal([image.pixel_array for image in images], array)
    assert images[0].PixelRepresentation == (dtype == np.int16)
    read = read_volume(tmp_path / "volume")
    np.testing.assert_array_equal(read.array, array)


def test_decimal_strings_are_short(tmp_path: Path) -> None:
    geometry = Geometry((0.1 + 1e-13, 1 / 3, 2 / 3), (-1 / 3, 1e-9 / 3, -1234.56789012345678))
    (image,) = written(tmp_path, numbers((1, 4, 5)), geometry)
    for keyword in ("PixelSpacing", "ImagePositionPatient", "SliceThickness"):
        value = image[keyword].value
        for number in value if image[keyword].VM > 1 else [value]:
            assert len(str(number)) <= 16


def test_simpleitk_reads_the_series(tmp_path: Path) -> None:
    array = numbers((4, 6, 7))
    written(tmp_path, array)
    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "volume"))
    image = sitk.ReadImage(files)
    geometry = Geometry(image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    assert_same(Volume(sitk.GetArrayFromImage(image), geometry), Volume(array, OBLIQUE))


def test_long_descriptions_are_cut(tmp_path: Path) -> None:
    spec = VolumeSpec((1, 4, 5), np.dtype(np.int16), OBLIQUE, "lüng\\" * 30)
    writer = open_writer(Path("fine"), tmp_path, spec)
    writer.create()
    writer.write(0, numbers((4, 5)))
    image = pydicom.dcmread(writer.payload / "0001.dcm")
    assert image.SeriesDescription == ("lüng/" * 30)[: 64 - 11]  # 11 letters of two bytes
    assert image.DerivationDescription == "lüng/" * 30


def test_a_source_that_is_gone_or_no_dicom(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone"):
        written(tmp_path, numbers((1, 4, 5)), source=tmp_path / "gone.dcm")
    (tmp_path / "text.dcm").write_text("no DICOM, but a text that is longer than a preamble" * 9)
    with pytest.raises(UserError, match=r"text\.dcm cannot be read"):
        written(tmp_path, numbers((1, 4, 5)), source=tmp_path / "text.dcm")
