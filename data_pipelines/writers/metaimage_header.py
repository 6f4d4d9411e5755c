"""Header of a MetaImage in one file."""

from collections.abc import Iterable

import numpy as np

from data_pipelines.writers.slice_writer import VolumeSpec

_TYPES = {
    "int16": "MET_SHORT",
    "uint16": "MET_USHORT",
    "uint8": "MET_UCHAR",
    "float32": "MET_FLOAT",
}


def metaimage_header(spec: VolumeSpec) -> bytes:
    """The header up to the first voxel."""
    geometry = spec.geometry
    axes = np.reshape(geometry.direction, (3, 3)).T  # one axis after the other
    fields = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "TransformMatrix": _numbers(axes.ravel().tolist()),
        "Offset": _numbers(geometry.origin_mm),
        "CenterOfRotation": "0 0 0",
        "ElementSpacing": _numbers(geometry.spacing_mm),
        "DimSize": _numbers(spec.shape[::-1]),
        "ElementType": _TYPES[np.dtype(spec.dtype).name],
        "ElementDataFile": "LOCAL",
    }
    return "".join(f"{name} = {value}\n" for name, value in fields.items()).encode()


def _numbers(values: Iterable[float]) -> str:
    return " ".join(map(repr, values))
