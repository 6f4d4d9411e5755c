"""The JSON beside an output: what was done, with what, how long it took, how well it agrees."""

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import mmsr_jax
from data_pipelines.geometry import Geometry
from data_pipelines.slices import SliceReader
from mmsr_jax.inference.model import SuperResolver
from mmsr_jax.inference.options import Options, Outputs
from mmsr_jax.inference.region import Region

_BLOCK_BYTES = 1 << 20


def settings(
    options: Options, models: Sequence[SuperResolver], reader: SliceReader, region: Region
) -> dict[str, Any]:
    """Everything that decides the voxels of the output."""
    return {
        "input_sha256": sha256(reader.files),
        "input_grid": grid(reader.shape, reader.geometry),
        "models_sha256": [model.provenance["parameters_sha256"] for model in models],
        "roi": options.roi,
        "slices": options.slices,
        "region": options.region,
        "region_sha256": sha256(region.files) if region.files else None,
        "outside": options.outside,
        "consistency": options.consistency,
        "self_ensemble": options.self_ensemble,
        "keep_patient": options.keep_patient,
        "spacing_mm": options.spacing_mm,
        "mmsr_jax": mmsr_jax.__version__,
    }


def sha256(files: Iterable[Path]) -> str:
    """Hash of the contents of files, in their order."""
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()


def grid(shape: tuple[int, int, int], geometry: Geometry) -> dict[str, Any]:
    """Where a volume lies; all triples are (x, y, z)."""
    return {
        "voxels": shape[::-1],
        "spacing_mm": geometry.spacing_mm,
        "origin_mm": geometry.origin_mm,
        "direction": geometry.direction,
    }


def machine() -> dict[str, Any]:
    """Versions and devices."""
    return {
        "mmsr_jax": mmsr_jax.__version__,
        "jax": jax.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "devices": sorted({device.device_kind for device in jax.devices()}),
        "device_count": jax.device_count(),
        "processes": jax.process_count(),
    }


def written(outputs: Outputs) -> dict[str, str]:
    """Names of the outputs, beside which the report lies."""
    return {
        name: path.name
        for name, path in outputs._asdict().items()
        if path is not None and name not in ("report", "stale")
    }


def save(report: Mapping[str, Any], path: Path) -> None:
    """Write a report."""
    path.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
