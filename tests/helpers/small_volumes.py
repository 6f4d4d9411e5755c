"""Tiny scans in real files, for the tests of the preparation and of the batches."""

from pathlib import Path

import numpy as np

from data_pipelines.geometry import Geometry, Volume
from data_pipelines.volumes import write_volume

MICRO_ANCHORS = (10_000.0, 50_000.0)


def write_clinical(path: Path, seed: int, shape=(6, 24, 24)) -> Path:
    """Noise between -1000 and 200 HU with the extremes of int16 in one corner."""
    array = np.random.default_rng(seed).integers(-1000, 200, shape).astype(np.int16)
    array[:, 0, 0], array[:, 0, 1] = -32768, 32767
    write_volume(Volume(array, Geometry((0.8, 0.8, 2.0))), path)
    return path


def write_micro(path: Path, seed: int, dtype=np.uint16, shape=(4, 40, 40)) -> Path:
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        array = rng.normal(0.0, 3.0, shape).astype(dtype)
    else:
        limits = np.iinfo(dtype)
        array = rng.integers(limits.min, limits.max + 1, shape).astype(dtype)
        array[:, 0, 0], array[:, 0, 1] = limits.min, limits.max
    write_volume(Volume(array, Geometry((0.2, 0.2, 0.2))), path)
    return path
