"""What to do with a scan, and the names of everything that is written."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

from data_pipelines import volumes, writers
from data_pipelines.errors import UserError
from data_pipelines.geometry import Triple
from mmsr_jax.inference.finishing import Consistency, Outside


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of `super_resolve_scan`.

    Attributes:
      scan: all that `data_pipelines.volumes.read_volume` reads; a DICOM file stands for its folder.
      output: its name says the format, see `data_pipelines.writers`.
      series: SeriesInstanceUID, if a folder holds several.
      spacing_mm: (x, y, z) of a scan that has none.
      overwrite: replace existing outputs.
      region: "lung", a mask file on the scan's grid, or empty for everything.
      outside: what fills the pixels outside the region.
      roi: part of the scan that becomes the output, see `mmsr_jax.inference.region.box`.
      slices: likewise.
      consistency: "project" makes the output's block means those of the scan.
      self_ensemble: mean over the eight turned and mirrored slices.
      device_memory_gb: what may be used of a device's memory; by default most of it.
      keep_patient: a DICOM output keeps the patient and the study of a DICOM scan.
    """

    scan: Path
    output: Path
    series: str | None = None
    spacing_mm: Triple | None = None
    overwrite: bool = False
    region: str = ""
    outside: Outside = "bicubic"
    roi: str = ""
    slices: str = ""
    consistency: Consistency = "none"
    self_ensemble: bool = False
    device_memory_gb: float | None = None
    keep_patient: bool = False


class Outputs(NamedTuple):
    """Final names of everything that is written; the deviation is of an ensemble."""

    fine: Path
    disagreement: Path
    deviation: Path | None
    report: Path


def output_paths(options: Options, *, ensemble: bool) -> Outputs:
    """The final names, checked before hours of work.

    Raises:
      UserError: a name without a known format, an output that exists, lies inside the scan or
        cannot be written.
    """
    path = options.output
    extension = writers.extension_of(path)
    stem = path.name[: len(path.name) - len(extension)]
    outputs = Outputs(
        path,
        path.with_name(f"{stem}_disagreement{extension}"),
        path.with_name(f"{stem}_deviation{extension}") if ensemble else None,
        path.with_name(f"{path.name}.json"),
    )
    for volume in filter(None, outputs[:3]):
        volumes.check_output(volume, options.overwrite)
    scan = options.scan.resolve()
    if scan == path.resolve() or (scan.is_dir() and scan in path.resolve().parents):
        raise UserError(f"{path} lies inside the scan {options.scan}; write it elsewhere")
    return outputs
