"""Scans in files, what is made of them, and processes of their own that do so."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from commands import REPOSITORY
from models import REPEATING, SCALE
from scipy import ndimage

from data_pipelines.volumes import read_volume
from mmsr_jax.inference.options import Options
from mmsr_jax.inference.scan import super_resolve_scan

FORMATS = (".ome.zarr", ".nii", ".nii.gz", ".mha", ".nrrd", ".tif", "")


def noise(shape: tuple[int, int, int] = (4, 20, 24), seed: int = 0) -> np.ndarray:
    """Hounsfield units with air and tissue, and values beyond any window."""
    return np.random.default_rng(seed).integers(-1024, 1500, shape).astype(np.int16)


def smooth(shape: tuple[int, int, int] = (3, 30, 26)) -> np.ndarray:
    """Hounsfield units within the window, as smooth as a scan."""
    field = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=shape), (0, 1.2, 1.2))
    return np.rint(-600 + 250 * field / field.std()).clip(-950, 450).astype(np.int16)


def pooled(fine: np.ndarray) -> np.ndarray:
    slices, rows, columns = fine.shape
    blocks = fine.reshape(slices, rows // SCALE, SCALE, columns // SCALE, SCALE)
    return blocks.mean(axis=(2, 4), dtype=np.float64)


def repeated(coarse: np.ndarray) -> np.ndarray:
    return coarse.repeat(SCALE, axis=1).repeat(SCALE, axis=2)


def negative(micro: Any) -> Any:
    """A model whose output is told from an interpolation at a glance."""
    return -micro


def super_resolve(
    scan: Path, output: Path, *, models: Any = (REPEATING,), **options: Any
) -> tuple[np.ndarray, dict[str, Any]]:
    """(what is written, the report)."""
    report = super_resolve_scan(models, Options(scan, output, **options))
    return read_volume(output).array, report


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def child(*lines: str) -> subprocess.Popen:
    """A process of its own that super-resolves with the stub."""
    code = [
        "import sys",
        "sys.path[:0] = ['tests/helpers']",
        "from pathlib import Path",
        "from models import REPEATING",
        "from mmsr_jax.inference.options import Options",
        "from mmsr_jax.inference.scan import super_resolve_scan",
        *lines,
    ]
    return subprocess.Popen(
        [sys.executable, "-c", "\n".join(code)],
        cwd=REPOSITORY,
        env=os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
