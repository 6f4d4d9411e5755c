"""Elements of a DICOM file, checked before GDCM believes their lengths."""

import contextlib
import logging
import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from data_pipelines.declared_size import check_size, corrupt
from data_pipelines.errors import UserError

_DEFERRED_BYTES = 1 << 16  # of longer elements only the place is read
_UNDEFINED = 0xFFFFFFFF
_PIXELS = Tag("PixelData")
_COUNTS = ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel")


def check_dicom(path: Path) -> None:
    """Check that all elements lie in the file, and that the pixels are as many as they say.

    Raises:
      UserError: they are not. It quotes no value, which may identify a patient.
    """
    try:
        with quiet_pydicom():
            dataset = pydicom.dcmread(path, defer_size=_DEFERRED_BYTES, force=True)
            elements = list(dataset.values())  # as they were read; indexing converts them
            _check_lengths(dataset, path.stat().st_size)
            for element in elements:
                if element.tag == _PIXELS:
                    _check_pixels(path, dataset, element)
    except UserError:
        raise
    # What a damaged file raises depends on where the damage is.
    except Exception as error:
        raise corrupt(path, "give DICOM, NIfTI, MetaImage, NRRD, TIFF or PNG") from error


@contextlib.contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Without pydicom's warnings, which quote values."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logger.setLevel(logging.CRITICAL)
            yield
    finally:
        logger.setLevel(level)


def _check_lengths(dataset: Dataset, size: int) -> None:
    for element in dataset.values():
        if not isinstance(element, RawDataElement):
            for item in element.value if element.VR == "SQ" else ():
                _check_lengths(item, size)
        elif element.length != _UNDEFINED:
            # A value that was not deferred is shorter than its length where the file ends.
            read = element.length if element.value is None else len(element.value)
            if read != element.length or element.value_tell + element.length > size:
                raise ValueError(f"element {element.tag} ends beyond the file")


def _check_pixels(path: Path, dataset: Dataset, pixels: RawDataElement) -> None:
    counts = [int(dataset.get(name, 1)) for name in _COUNTS]
    if min(counts) < 1:
        raise ValueError("no pixels")
    compressed = pixels.length == _UNDEFINED
    stored = path.stat().st_size if compressed else pixels.length
    declared = math.prod(counts) * int(dataset.get("BitsAllocated", 0)) // 8
    check_size(path, declared, stored, compressed=compressed)
