"""DICOM: a folder with one CT image a slice, a new series of its own."""

import importlib.metadata
import io
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import DSfloat

from data_pipelines.errors import UserError
from data_pipelines.writers.slice_writer import VolumeSpec
from data_pipelines.writers.staging import naming, staged

_PATIENT_AND_STUDY = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "StudyID",
    "ReferringPhysicianName",
)
LONGEST_SIDE = 65535  # Rows and Columns are 16-bit numbers
_DESCRIPTION_BYTES = 64
_LUNG_WINDOW = {"WindowCenter": -300, "WindowWidth": 1400}


class DicomFolder:
    """Writes a DICOM series whose identifiers are the same in every process and resumed run.

    Args:
      payload: the folder to make.
      spec: the volume.
      source: a slice of the scan that the volume is made from, whose frame of reference is kept.
      keep_patient: whether to keep its patient and study too.
      identity: file that the series of one study share, and that `create` makes.
    """

    def __init__(
        self,
        payload: Path,
        spec: VolumeSpec,
        source: Path | None,
        keep_patient: bool,
        identity: Path,
    ) -> None:
        self.payload = payload
        self._spec = spec
        self._source = source
        self._keep_patient = keep_patient
        self._identity = identity

    def create(self) -> None:
        """See `SliceWriter`."""
        self.payload.mkdir(exist_ok=True)
        if not self._identity.exists():
            with staged(self._identity, self._identity.parent) as partial:
                partial.write_text(json.dumps(generate_uid()))

    def write(self, index: int, plane: np.ndarray) -> None:
        """See `SliceWriter`."""
        number = str(index + 1).zfill(max(4, len(str(self._spec.shape[0]))))
        image = self._image(index)
        image.PixelData = _in_16_bits(self._spec.stored(plane)).tobytes()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        # In memory first, since pydicom hides the number of an OSError.
        file = io.BytesIO()
        pydicom.dcmwrite(file, image, enforce_file_format=True)
        # Outside the payload, where a killed process would leave a file that is no slice.
        with staged(self.payload / f"{number}.dcm", self.payload.parent) as partial:
            partial.write_bytes(file.getvalue())

    def finish(self) -> None:
        """See `SliceWriter`."""

    def _image(self, index: int) -> Dataset:
        """One slice without its pixels."""
        image = Dataset()
        for part in (self._common, self._position(index)):
            image.update(part)
        image.SOPInstanceUID = self._uid(f"image {index} of {self._spec.description}")
        image.InstanceNumber = index + 1
        return image

    @cached_property
    def _common(self) -> Dataset:
        """What all slices share."""
        common = Dataset()
        for attributes in (
            self._patient_and_study(),
            self._series(),
            _equipment(),
            self._pixels(),
        ):
            for keyword, value in attributes.items():
                setattr(common, keyword, value)
        return common

    def _patient_and_study(self) -> dict[str, Any]:
        kept = self._read_source if self._keep_patient else Dataset()
        attributes = {keyword: str(kept.get(keyword, "")) for keyword in _PATIENT_AND_STUDY}
        attributes["StudyInstanceUID"] = kept.get("StudyInstanceUID") or self._uid("study")
        if not self._keep_patient:
            attributes["PatientIdentityRemoved"] = "YES"
            attributes["DeidentificationMethod"] = "Patient and study not copied"
        return attributes

    def _series(self) -> dict[str, Any]:
        source = self._read_source
        description = self._spec.description.replace("\\", "/")  # which parts values
        return {
            "SpecificCharacterSet": "ISO_IR 192",
            "SOPClassUID": CTImageStorage,
            "Modality": "CT",
            "SeriesInstanceUID": self._uid(f"series of {self._spec.description}"),
            "SeriesNumber": None,
            "SeriesDescription": _cut(description),
            "FrameOfReferenceUID": source.get("FrameOfReferenceUID") or self._uid("frame"),
            "PositionReferenceIndicator": "",
            "PatientPosition": source.get("PatientPosition", ""),
            "ImageType": ["DERIVED", "SECONDARY", "AXIAL"],
            "DerivationDescription": description,
            "BurnedInAnnotation": "NO",
            "KVP": None,
            "AcquisitionNumber": None,
        }

    def _pixels(self) -> dict[str, Any]:
        signed = self._spec.dtype == np.int16
        x_mm, y_mm, z_mm = self._spec.geometry.spacing_mm
        return {
            "Rows": self._spec.shape[1],
            "Columns": self._spec.shape[2],
            "PixelSpacing": _decimals((y_mm, x_mm)),
            "SliceThickness": _decimals((z_mm,)),
            "SpacingBetweenSlices": _decimals((z_mm,)),
            "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2",
            "BitsAllocated": 16,
            "BitsStored": 16,
            "HighBit": 15,
            "PixelRepresentation": int(signed),
            "RescaleIntercept": 0,
            "RescaleSlope": 1,
            "RescaleType": "HU" if signed else "US",
        } | (_LUNG_WINDOW if signed else {})

    def _position(self, index: int) -> Dataset:
        geometry = self._spec.geometry
        across_and_down = np.reshape(geometry.direction, (3, 3))[:, :2]
        position = Dataset()
        position.ImageOrientationPatient = _decimals(across_and_down.T.ravel())
        position.ImagePositionPatient = _decimals(geometry.physical_point((0, 0, index)))
        return position

    @cached_property
    def _read_source(self) -> Dataset:
        if self._source is None:
            return Dataset()
        try:
            with naming(self._source):
                # Old files lack the preamble that `force` does without.
                return pydicom.dcmread(self._source, stop_before_pixels=True, force=True)
        except OSError:
            raise
        except Exception as error:  # of many kinds, by where a file is corrupt
            raise UserError(f"{self._source} cannot be read, is it corrupt? {error}") from error

    def _uid(self, what: str) -> str:
        return generate_uid(entropy_srcs=[json.loads(self._identity.read_text()), what])


def _equipment() -> dict[str, Any]:
    return {
        "Manufacturer": "mmsr-jax",
        "ManufacturerModelName": "mmsr-jax",
        "SoftwareVersions": importlib.metadata.version("mmsr-jax"),
    }


def _cut(text: str) -> str:
    return text.encode()[:_DESCRIPTION_BYTES].decode(errors="ignore")


def _decimals(values: Any) -> list[DSfloat]:
    """Decimal strings of at most 16 characters."""
    return [DSfloat(float(value), auto_format=True) for value in values]


def _in_16_bits(plane: np.ndarray) -> np.ndarray:
    """CT images have no other pixels."""
    return plane if plane.itemsize == 2 else plane.astype("<u2")
