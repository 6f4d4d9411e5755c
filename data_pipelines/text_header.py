"""Headers of MetaImage and NRRD files, checked before ITK believes them."""

import math
import re
from pathlib import Path

from data_pipelines.declared_size import check_size, corrupt
from data_pipelines.errors import UserError

_HEADER_BYTES = 1 << 16
_LONGEST_LINE = 500  # ITK copies values into fixed arrays
_MOST_AXES = 4  # more than three are refused later, in other words
_MOST_FILES = 100_000
_LOCAL = "LOCAL"
_CHANNELS = "ElementNumberOfChannels"

_META_BYTES = {"MET_CHAR": 1, "MET_SHORT": 2, "MET_INT": 4, "MET_LONG": 4, "MET_LONG_LONG": 8}
_META_BYTES |= {name.replace("MET_", "MET_U"): size for name, size in _META_BYTES.items()}
_META_BYTES |= {"MET_FLOAT": 4, "MET_DOUBLE": 8}
_META_VECTORS = (
    *("Offset", "Position", "Origin", "CenterOfRotation"),
    *("ElementSpacing", "ElementSize"),
)
_META_MATRICES = ("TransformMatrix", "Rotation", "Orientation")

_NRRD_TYPE = re.compile(
    r"(?:signed |unsigned |u)?(char|short|int|long long|longlong)(?: int)?"
    r"|u?int(8|16|32|64)(?:_t)?|(float|double)"
)
_NRRD_BYTES = {"char": 1, "8": 1, "short": 2, "16": 2, "int": 4, "32": 4, "float": 4}
_NRRD_PACKED = ("gzip", "gz", "bzip2", "bz2")


def check_meta(path: Path) -> None:
    """Check the header of a MetaImage.

    Raises:
      UserError: its numbers do not fit each other or the size of the files, voxels are written as
        text, or lie outside of the header's folder.
    """
    lines, after = _lines(path, rb"^ElementDataFile *[=:][^\n]*\n?")
    fields: dict[str, str] = {}
    for line in lines:
        found = re.fullmatch(r"(\w+) *[=:] *(.*?)[ \r]*", line)
        if found is None or found[1] in fields:
            raise corrupt(path, f"its header has the line {line[:80]!r}")
        fields[found[1]] = found[2]
    axes, *_ = _counts(path, fields, "NDims", 1)
    sizes = _counts(path, fields, "DimSize", axes)
    if axes > _MOST_AXES or list(fields).index("NDims") > list(fields).index("DimSize"):
        raise corrupt(path, f"it has {axes} axes")
    _check_numbers(path, fields, axes)
    channels = _counts(path, {_CHANNELS: "1"} | fields, _CHANNELS, 1)
    if fields.get("BinaryData", "True").lower() != "true":
        raise UserError(f"{path} holds its voxels as text; save it as a binary file")
    if fields.get("ElementType") not in _META_BYTES:
        raise corrupt(path, f"its ElementType is {fields.get('ElementType', '')[:80]!r}")
    declared = math.prod((*sizes, *channels)) * _META_BYTES[fields["ElementType"]]
    stored = _stored(path, fields["ElementDataFile"], after, sizes[-1])
    packed = fields.get("CompressedData", "False").lower() == "true"
    check_size(path, declared, stored, compressed=packed)


def check_nrrd(path: Path) -> None:
    """Check the header of an NRRD file.

    Raises:
      UserError: as `check_meta`.
    """
    lines, after = _lines(path, rb"^\r?\n|\Z|^data ?file: *LIST[^\n]*\n")
    if not lines or not re.fullmatch(r"NRRD000\d\r?", lines[0]):
        raise corrupt(path, "it has no NRRD header")
    fields: dict[str, str] = {}
    for line in lines[1:]:
        found = re.fullmatch(r"([^:]+):=? *(.*?)[ \r]*", line)
        if found is not None:
            fields[found[1].lower().replace(" ", "")] = found[2]
        elif not line.startswith("#") and line.strip():
            raise corrupt(path, f"its header has the line {line[:80]!r}")
    axes, *_ = _counts(path, fields, "dimension", 1)
    if axes > _MOST_AXES:
        raise corrupt(path, f"it has {axes} axes")
    sizes = _counts(path, fields, "sizes", axes)
    kind = _NRRD_TYPE.fullmatch(fields.get("type", ""))
    if kind is None:
        raise corrupt(path, f"its type is {fields.get('type', '')[:80]!r}")
    declared = math.prod(sizes) * _NRRD_BYTES.get(kind[1] or kind[2] or kind[3], 8)
    stored = _stored(path, fields.get("datafile", _LOCAL), after, sizes[-1])
    check_size(path, declared, stored, compressed=fields.get("encoding") in _NRRD_PACKED)


def _lines(path: Path, end: bytes) -> tuple[list[str], int]:
    """Lines of a header, with the one that ends it, and where its voxels begin."""
    with open(path, "rb") as file:
        start = file.read(_HEADER_BYTES)
    found = re.search(end, start, re.M)
    if found is None:
        raise corrupt(path, "its header has no end")
    lines = start[: found.end()].decode("latin-1").split("\n")
    if max(map(len, lines)) > _LONGEST_LINE or "\0" in "".join(lines):
        raise corrupt(path, "its header is no text")
    return [line for line in lines if line.strip()], found.end()


def _counts(path: Path, fields: dict[str, str], name: str, count: int) -> list[int]:
    """Some positive whole numbers."""
    words = fields.get(name, "").split()
    if len(words) != count or not all(re.fullmatch(r"0*[1-9]\d{0,9}", word) for word in words):
        raise corrupt(path, f"its {name} is {fields.get(name, '')[:80]!r}")
    return [int(word) for word in words]


def _check_numbers(path: Path, fields: dict[str, str], axes: int) -> None:
    """Check that vectors and matrices have as many numbers as the axes ask for."""
    counts = dict.fromkeys(_META_VECTORS, axes) | dict.fromkeys(_META_MATRICES, axes**2)
    for name in counts.keys() & fields.keys():
        try:
            numbers = [float(word) for word in fields[name].split()]
        except ValueError:
            numbers = []
        if len(numbers) != counts[name]:
            raise corrupt(path, f"its {name} is {fields[name][:80]!r}")


def _listed(path: Path, start: int) -> list[str]:
    """The lines behind a header, which name files of voxels."""
    if path.stat().st_size - start > _MOST_FILES:
        raise corrupt(path, "its list of files has no end")
    return path.read_bytes()[start:].decode("latin-1").split()


def _numbered(path: Path, where: str, last: int) -> list[str]:
    """The one file that is named, or those that a pattern and its range name."""
    if "%" not in where:
        return [where]
    found = re.fullmatch(r"([^%]*%0?\d?d[^%]*?)((?: +\d{1,9}){0,3})", where)
    if found is None:
        raise corrupt(path, f"its files are {where[:80]!r}")
    given = [int(word) for word in found[2].split()]
    first, last, step = given + [1, last, 1][len(given) :]
    numbers = range(first, last + 1, step or 1)
    if len(numbers) > _MOST_FILES:
        raise corrupt(path, f"its files are {where[:80]!r}")
    return [found[1] % number for number in numbers]


def _stored(path: Path, where: str, after: int, last: int) -> int:
    """Bytes of voxels, which are behind the header or in the files that it names."""
    if where.upper() == _LOCAL:
        return path.stat().st_size - after
    names = _listed(path, after) if where.startswith("LIST") else _numbered(path, where, last)
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(
                f"{path} says that its voxels are in {name}; move that file beside it, and write "
                "its new name into the header"
            )
    files = [path.parent / name for name in names]
    return sum(file.stat().st_size for file in files if file.is_file())
