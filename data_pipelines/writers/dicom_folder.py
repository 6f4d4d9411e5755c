"""DICOM: a folder with one CT image a slice, a new series of its own."""

import contextlib
import importlib.metadata
import io
import json
import re
import warnings
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pydicom.config
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import DSfloat

from data_pipelines.errors import UserError
from data_pipelines.writers.slice_writer import VolumeSpec
from data_pipelines.writers.staging import naming, staged

_WITHOUT_PATIENT = {
    "PatientIdentityRemoved": "YES",
    "DeidentificationMethod": "Patient and study not copied",
}
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
_UIDS_TO_KEEP = ("StudyInstanceUID", "FrameOfReferenceUID")
_PATIENT_POSITIONS = re.compile(r"(HF|FF|LF|RF|AF|PF)(P|S|DR|DL)")  # what PS3.3, C.7.3.1.1.2 allows
LONGEST_SIDE = 65535  # Rows and Columns are 16-bit numbers
_DESCRIPTION_BYTES = 64
_LUNG_WINDOW = {"WindowCenter": -300, "WindowWidth": 1400}


class DicomFolder:
    """Writes a DICOM series whose identifiers are the same in every process and resumed run.

    Args:
      payload: the folder to make.
      spec: the volume.
      source: a slice of the scan that the volume is made from.
      keep_patient: whether to keep its patient, study and frame of reference.
      identity: file that the series of one study share, and that `create` makes.

    Raises:
      UserError: the source is corrupt.
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
        self._keep_patient = keep_patient
        self._kept = Dataset() if source is None else _kept(source, keep_patient)
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
        common.update(self._kept)
        return common

    def _patient_and_study(self) -> dict[str, Any]:
        """Those of nobody, which what is kept of the source replaces."""
        attributes = dict.fromkeys(_PATIENT_AND_STUDY, "")
        attributes["StudyInstanceUID"] = self._uid("study")
        return attributes | ({} if self._keep_patient else _WITHOUT_PATIENT)

    def _series(self) -> dict[str, Any]:
        description = self._spec.description.replace("\\", "/")  # which parts values
        return {
            "SpecificCharacterSet": "ISO_IR 192",
            "SOPClassUID": CTImageStorage,
            "Modality": "CT",
            "SeriesInstanceUID": self._uid(f"series of {self._spec.description}"),
            "SeriesNumber": None,
            "SeriesDescription": _cut(description),
            "FrameOfReferenceUID": self._uid("frame"),
            "PositionReferenceIndicator": "",
            "PatientPosition": "",
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

    def _uid(self, what: str) -> str:
        return generate_uid(entropy_srcs=[json.loads(self._identity.read_text()), what])


def _kept(source: Path, keep_patient: bool) -> Dataset:
    """What a series that is made from a slice takes from its header."""
    keywords = [*_PATIENT_AND_STUDY, *_UIDS_TO_KEEP] if keep_patient else []
    kept = Dataset()
    try:
        with naming(source), _quiet_pydicom():
            # Old files lack the preamble that `force` does without.
            header = pydicom.dcmread(source, stop_before_pixels=True, force=True)
            _ = header["Rows"]  # which every image has, but not what `force` makes of other files
            for keyword in keywords:
                if value := _text(header.get(keyword)):
                    setattr(kept, keyword, value)
            if _PATIENT_POSITIONS.fullmatch(position := _text(header.get("PatientPosition"))):
                kept.PatientPosition = position
    except OSError:
        raise
    except Exception:  # of many kinds, by where a file is corrupt; they quote the header
        raise UserError(f"{source} cannot be read, is it corrupt? copy it again") from None
    return kept


@contextlib.contextmanager
def _quiet_pydicom() -> Iterator[None]:
    """Without its warnings, which quote the header, and which it logs too."""
    logger = pydicom.config.logger
    disabled, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = disabled


def _text(value: Any) -> str:
    """A value of a header, or several with what parts them."""
    return "\\".join(map(str, value)) if isinstance(value, MultiValue) else str(value or "")


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
