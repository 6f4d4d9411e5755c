"""Header of NRRD in one file."""

from collections.abc import Iterable

import numpy as np

from data_pipelines.writers.slice_writer import VolumeSpec

_TYPES = {"int16": "int16", "uint16": "uint16", "uint8": "uint8", "float32": "float"}


def nrrd_header(spec: VolumeSpec) -> bytes:
    """The header up to the first voxel."""
    geometry = spec.geometry
    steps = np.reshape(geometry.direction, (3, 3)) * geometry.spacing_mm
    lines = (
        "NRRD0004",
        f"content: {spec.description}",
        f"type: {_TYPES[np.dtype(spec.dtype).name]}",
        "dimension: 3",
        "space: left-posterior-superior",
        "sizes: {} {} {}".format(*spec.shape[::-1]),
        f"space directions: {' '.join(_vector(step) for step in steps.T.tolist())}",
        "kinds: domain domain domain",
        "endian: little",
        "encoding: raw",
        'space units: "mm" "mm" "mm"',
        f"space origin: {_vector(geometry.origin_mm)}",
    )
    return ("\n".join(lines) + "\n\n").encode()


def _vector(values: Iterable[float]) -> str:
    return f"({','.join(map(repr, values))})"
