"""DICOM series whose headers hold a marker wherever there may be text, and a search for markers."""

import base64
import datetime
import gzip
import itertools
import re
import struct
import urllib.parse
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import tifffile
import zarr
from pydicom.datadict import DicomDictionary
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from data_pipelines.geometry import Triple

# What each marker begins with, and how it is found as ASCII.
_WORD, _DIGITS = "ZQJXKV", "739182645073"
_FIRST_DATE = datetime.date(1801, 1, 1)
_DATES_OF_A_CASE = 300
_MARKER = re.compile(
    rb"%s\d{0,7}|%s\d{0,7}|0718\d\d\.?9182\d{0,2}" % (_WORD.encode(), _DIGITS.encode()),
    re.IGNORECASE,
)
_DATE = re.compile(rb"(?<![0-9a-fA-F.])(18[0-7]\d)[-/.]?([01]\d)[-/.]?([0-3]\d)")
_WORDS = ("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT")
_TEXT = (*_WORDS, "DA", "DT", "TM", "UI")
# What makes an image of the file.
_NEEDED = (
    "SpecificCharacterSet",
    "ImageType",
    "SOPClassUID",
    "Modality",
    "PhotometricInterpretation",
)
_GROUPS = {*range(0x0008, 0x0028, 2), *range(0x0032, 0x0074, 2), 0x0088, 0x2110, 0x4000, 0x4008}
_PRIVATE = 0x0019
_ZLIB = re.compile(rb"\x78[\x01\x5e\x9c\xda]")


class Planted:
    """One series, with a marker of its own in every element.

    Attributes:
      markers: marker -> keyword or tag of the element that holds it.
      header: of every slice, without what lies in the pixel module.
    """

    def __init__(self, case: int) -> None:
        self.case = case
        self.markers: dict[str, str] = {}
        self.header = Dataset()
        self._days, self._times = itertools.count(), itertools.count(1)
        for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
            wanted = tag >> 16 in _GROUPS and vr in _TEXT and keyword not in _NEEDED
            if wanted and keyword:
                self.header.add_new(tag, vr, self.marker(vr, keyword))
        self._add_nested()
        self._add_private()

    def marker(self, vr: str, name: str) -> str:
        """A value that the VR allows and that no other element has."""
        number = len(self.markers)
        if vr in ("DA", "DT"):
            day = _DATES_OF_A_CASE * self.case + next(self._days)
            value = (_FIRST_DATE + datetime.timedelta(day)).strftime("%Y%m%d")
            text = value if vr == "DA" else f"{value}{self._time(0)}"
        elif vr == "TM":
            text = value = self._time(next(self._times))
        elif vr == "UI":
            value = f"{_DIGITS}{self.case:02}{number:05}"
            text = f"1.2.826.0.1.3680043.8.498.{value}"
        else:
            text = value = f"{_WORD}{self.case:02}{number:05}"
        self.markers[value] = name
        return text

    def _time(self, number: int) -> str:
        return f"0718{self.case:02}.9182{number:02}"

    def __getitem__(self, keyword: str) -> str:
        return str(self.header[keyword].value)

    def _add_nested(self) -> None:
        for keyword in (
            "OtherPatientIDsSequence",
            "RequestAttributesSequence",
            "ReferencedStudySequence",
            "PersonIdentificationCodeSequence",
        ):
            inner, outer = Dataset(), Dataset()
            inner.PatientID = self.marker("LO", f"{keyword}/PatientID")
            outer.PatientID = self.marker("LO", f"{keyword}/PatientID")
            outer.PatientName = self.marker("PN", f"{keyword}/PatientName")
            outer.ReferencedSOPInstanceUID = self.marker("UI", f"{keyword}/UID")
            outer.RequestAttributesSequence = Sequence([inner])
            setattr(self.header, keyword, Sequence([outer]))

    def _add_private(self) -> None:
        creator = self.marker("LO", "private creator")
        block = self.header.private_block(_PRIVATE, creator, create=True)
        for element, vr in enumerate(("LO", "SH", "PN", "LT", "DA", "UI"), 1):
            block.add_new(element, vr, self.marker(vr, f"private {vr}"))
        for element, encoding in ((7, "ascii"), (8, "utf-16-le")):
            text = self.marker("LO", f"private {encoding}")
            block.add_new(element, "OB", text.encode(encoding).ljust(40, b"\0"))
        item = Dataset()
        item.PatientComments = self.marker("LT", "private sequence")
        block.add_new(9, "SQ", Sequence([item]))

    def write(
        self,
        folder: Path,
        array: np.ndarray,
        spacing_mm: Triple = (0.8, 0.8, 2.0),
        **changed: Any,
    ) -> list[Path]:
        """Write every slice as a file; `changed` are elements of the headers."""
        folder.mkdir(parents=True, exist_ok=True)
        files = []
        for number, pixels in enumerate(array):
            files.append(folder / f"{self.case}-{number}.dcm")
            image = self._image(number, pixels, spacing_mm)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for keyword, value in changed.items():
                    setattr(image, keyword, value)
                pydicom.dcmwrite(files[-1], image, enforce_file_format=True)
        return files

    def _image(self, number: int, pixels: np.ndarray, spacing_mm: Triple) -> Dataset:
        image = Dataset()
        image.update(self.header)
        image.preamble = self.marker("LO", "preamble").encode().ljust(128, b"\0")
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.file_meta.SourceApplicationEntityTitle = self.marker("AE", "source")
        image.file_meta.ImplementationVersionName = self.marker("SH", "implementation")
        image.SpecificCharacterSet = "ISO_IR 192"
        image.SOPClassUID, image.Modality = CTImageStorage, "CT"
        image.SOPInstanceUID = self.marker("UI", f"SOPInstanceUID of {number}")
        image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        image.InstanceNumber = number + 1
        image.Rows, image.Columns = pixels.shape
        image.PixelSpacing, image.SliceThickness = [*spacing_mm[1::-1]], spacing_mm[2]
        image.ImagePositionPatient = [0, 0, spacing_mm[2] * number]
        image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
        image.PixelRepresentation = 1
        image.RescaleIntercept, image.RescaleSlope = 0, 1
        image.add_new(0x60004000, "LT", self.marker("LT", "overlay comments"))
        image.PixelData = pixels.astype("<i2").tobytes()  # below 0, so that no digits are in it
        image.add_new(0xFFFCFFFC, "OB", self.marker("LO", "padding").encode().ljust(20, b"\0"))
        return image


def declare(path: Path, keyword: str, vr: str) -> None:
    """Give an element of a file another VR, which its value does not have."""
    tag = Tag(keyword)
    head = struct.pack("<HH", tag.group, tag.element)
    data = path.read_bytes()
    (place,) = re.finditer(re.escape(head) + b"[A-Z]{2}", data)
    path.write_bytes(data[: place.start()] + head + vr.encode() + data[place.end() :])


def found(data: bytes, *series: Planted) -> set[str]:
    """Case and name of the elements whose marker is in the data, or what is left of the marker."""
    parts = {match[0].decode().upper() for match in _MARKER.finditer(data)}
    dates = {b"".join(match.groups()).decode() for match in _DATE.finditer(data)}
    names = {
        text: f"{one.case}:{one.markers[text]}"
        for text in parts | dates
        for one in series
        if text in one.markers
    }
    return {names.get(text, text) for text in parts} | {names[text] for text in dates & {*names}}


def leaks(places: dict[str, bytes] | Path, *series: Planted) -> set[tuple[str, str]]:
    """(file or stream, element) of all that is found in what a command wrote."""
    texts = places.items() if isinstance(places, dict) else written(places)
    return {
        (place, name)
        for place, data in texts
        for plain in unpacked(data)
        for name in found(plain, *series)
    }


# ---- everything that was written --------------------------------------------------------------


def written(folder: Path) -> Iterator[tuple[str, bytes]]:
    """(path, content) of all below a folder; its name is content too, and so are voxels."""
    for path in sorted(folder.rglob("*")):
        place = str(path.relative_to(folder))
        yield place, path.name.encode()
        if path.is_file():
            yield place, path.read_bytes()
        if (path / "zarr.json").exists() and b'"array"' in (path / "zarr.json").read_bytes():
            yield place, np.asarray(zarr.open_array(path, mode="r")[...]).tobytes()
        if path.suffix == ".tif":
            yield place, tifffile.imread(path).tobytes()


def unpacked(data: bytes) -> Iterator[bytes]:
    """The data as they are and without packing; each also as if in UTF-16 or percent-encoded."""
    for plain in (data, *_members(data)):
        yield plain
        yield plain[::2]  # UTF-16 of either byte order
        yield plain[1::2]
        if b"%" in plain:
            yield urllib.parse.unquote_to_bytes(plain)


def _members(data: bytes) -> Iterator[bytes]:
    if data[:2] == b"\x1f\x8b":
        yield gzip.decompress(data)
    for found in _ZLIB.finditer(data):  # of PNG and TIFF
        try:
            yield zlib.decompressobj().decompress(data[found.start() :])
        except zlib.error:
            continue
    for picture in re.finditer(rb"base64,([A-Za-z0-9+/=]+)", data):
        plain = base64.b64decode(picture[1])
        yield plain
        yield from _members(plain)
