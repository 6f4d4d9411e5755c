"""Elements of a DICOM file, walked before GDCM takes memory for the lengths that they declare.

DICOM PS3.5, section 7 (elements and sequences) and A.4 (fragments of compressed pixels).
"""

import mmap
import struct
from pathlib import Path
from typing import NamedTuple

from data_pipelines.declared_size import check_size, corrupt
from data_pipelines.errors import UserError

FORMATS = "DICOM, NIfTI, MetaImage, NRRD, TIFF or PNG"
_PREAMBLE_BYTES = 128
_MAGIC = b"DICM"
_IMPLICIT, _DEFLATED, _BIG = (f"1.2.840.10008.1.2{end}".encode() for end in ("", ".1.99", ".2"))
_SHORT = b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split()
_LONG = b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split()
_UNDEFINED = 0xFFFFFFFF
_ITEM, _END_OF_ITEM, _END_OF_ITEMS = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_DEEPEST = 20
_SYNTAX, _PIXELS = 0x00020010, 0x7FE00010
_SAMPLES, _FRAMES, _ROWS, _COLUMNS, _BITS = (
    0x00280002, 0x00280008, 0x00280010, 0x00280011, 0x00280100,
)  # fmt: skip


class _Encoding(NamedTuple):
    order: str  # "<" or ">"
    explicit: bool  # whether elements name the type of their value


class _Element(NamedTuple):
    tag: int
    start: int  # of the value
    length: int
    items: bool  # whether the value is made of items
    inside: _Encoding  # of them


_META = _Encoding("<", True)


def check_dicom(path: Path) -> None:
    """Check that all elements lie in the file, and that the pixels are as many as they say.

    Raises:
      UserError: they are not, or this is no DICOM file. It quotes no value of an element, which
        may identify a patient.
    """
    if path.stat().st_size == 0:
        raise corrupt(path, f"give {FORMATS}")
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _check(path, data)
    except (ValueError, struct.error) as error:
        raise corrupt(path, f"give {FORMATS}") from error


def _check(path: Path, data: mmap.mmap) -> None:
    start, encoding = 0, _Encoding("<", bytes(data[4:6]) in (*_SHORT, *_LONG))
    if data[_PREAMBLE_BYTES : _PREAMBLE_BYTES + 4] == _MAGIC:
        start, syntax = _read_meta(data, _PREAMBLE_BYTES + 4)
        if syntax == _DEFLATED:
            raise UserError(f"{path} is a deflated DICOM file; save it with uncompressed elements")
        encoding = _Encoding(">" if syntax == _BIG else "<", syntax != _IMPLICIT)
    seen: dict[int, _Element] = {}
    _walk(data, start, len(data), encoding, 0, seen)
    if _PIXELS in seen:
        _check_pixels(path, data, encoding, seen)


def _read_meta(data: mmap.mmap, place: int) -> tuple[int, bytes]:
    """Place behind the file's meta elements, and the transfer syntax that they name."""
    syntax = b""
    while place < len(data) and data[place : place + 2] == b"\x02\x00":
        element = _element(data, place, len(data), _META)
        place = element.start + element.length
        if element.tag == _SYNTAX:
            syntax = data[element.start : place].strip(b"\0 ")
    return place, syntax


def _element(data: mmap.mmap, place: int, end: int, encoding: _Encoding) -> _Element:
    """The element at a place; a defined length is within the end."""
    group, number = struct.unpack_from(f"{encoding.order}HH", data, place)
    tag, kind = group << 16 | number, b""
    if group == 0xFFFE or not encoding.explicit:
        (length,), start = struct.unpack_from(f"{encoding.order}I", data, place + 4), place + 8
    else:
        kind = data[place + 4 : place + 6]
        if kind in _SHORT:
            (length,), start = struct.unpack_from(f"{encoding.order}H", data, place + 6), place + 8
        elif kind in _LONG:
            (length,), start = struct.unpack_from(f"{encoding.order}I", data, place + 8), place + 12
        else:
            raise ValueError("an element without a known type")
    if length != _UNDEFINED and start + length > end:
        raise ValueError("an element that ends beyond what holds it")
    first = struct.pack(f"{encoding.order}HH", 0xFFFE, 0xE000)
    items = kind == b"SQ" or (kind in (b"", b"UN") and data[start : start + 4] == first)
    unknown = kind == b"UN" and length == _UNDEFINED  # PS3.5, 6.2.2
    inside = _Encoding("<", False) if unknown else encoding
    return _Element(tag, start, length, items or length == _UNDEFINED, inside)


def _walk(
    data: mmap.mmap,
    place: int,
    end: int,
    encoding: _Encoding,
    depth: int,
    seen: dict[int, _Element] | None = None,
) -> int:
    """Check elements up to the end or that of an item; the place behind them."""
    if depth > _DEEPEST:
        raise ValueError("items in items without an end")
    while place < end:
        element = _element(data, place, end, encoding)
        if element.tag == _END_OF_ITEM:
            return element.start
        if element.length != _UNDEFINED:
            place = element.start + element.length
        if element.items:
            last = end if element.length == _UNDEFINED else place
            behind = _walk_items(data, element, last, depth)
            place = behind if element.length == _UNDEFINED else place
        if seen is not None:
            seen[element.tag] = element
    return place


def _walk_items(data: mmap.mmap, parent: _Element, end: int, depth: int) -> int:
    """Check items up to the end or that of the sequence; the place behind them."""
    place, encoding = parent.start, parent.inside
    while place < end:
        item = _element(data, place, end, encoding)
        if item.tag == _END_OF_ITEMS:
            return item.start
        if item.tag != _ITEM:
            raise ValueError("a sequence of other things than items")
        if parent.tag == _PIXELS:
            if item.length == _UNDEFINED:
                raise ValueError("a fragment without an end")
            place = item.start + item.length
        elif item.length == _UNDEFINED:
            place = _walk(data, item.start, end, encoding, depth + 1)
        else:
            place = _walk(data, item.start, item.start + item.length, encoding, depth + 1)
    return place


def _check_pixels(
    path: Path, data: mmap.mmap, encoding: _Encoding, seen: dict[int, _Element]
) -> None:
    def number(tag: int) -> int:
        element = seen[tag]
        return struct.unpack_from(f"{encoding.order}H", data, element.start)[0]

    if not {_ROWS, _COLUMNS, _BITS} <= seen.keys():
        raise ValueError("pixels without a size")
    frames = 1
    if _FRAMES in seen:
        start, length = seen[_FRAMES].start, seen[_FRAMES].length
        frames = int(data[start : start + length].strip(b"\0 ") or b"1")
    samples = number(_SAMPLES) if _SAMPLES in seen else 1
    if frames < 1 or samples < 1:
        raise ValueError("no pixels")
    declared = number(_ROWS) * number(_COLUMNS) * number(_BITS) // 8 * samples * frames
    pixels = seen[_PIXELS]
    if pixels.length == _UNDEFINED:
        check_size(path, declared, len(data), compressed=True)
    else:
        check_size(path, declared, pixels.length, compressed=False)
