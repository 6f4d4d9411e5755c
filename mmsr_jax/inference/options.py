"""What to do with a scan, and the names of everything that is written."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

from data_pipelines import volumes, writers
from data_pipelines.dicom_series import is_dicom
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
      keep_patient: a DICOM output keeps patient, study and frame of reference of a DICOM scan.
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
    """Final names of everything that is written.

    Attributes:
      fine: the super-resolved volume.
      disagreement: |x − f(sr)|.
      deviation: of an ensemble.
      report: JSON.
      stale: the deviation of an output that is replaced, which goes with it.
    """

    fine: Path
    disagreement: Path
    deviation: Path | None
    report: Path
    stale: Path | None


def output_paths(options: Options, *, ensemble: bool) -> Outputs:
    """The final names, checked before hours of work.

    Raises:
      UserError: a name without a known format, an output that exists, lies inside the scan or
        cannot be written.
    """
    path = options.output
    extension = writers.extension_of(path)
    stem = path.name[: len(path.name) - len(extension)]
    deviation = path.with_name(f"{stem}_deviation{extension}")
    replaced = options.overwrite and path.exists() and deviation.exists()
    outputs = Outputs(
        path,
        path.with_name(f"{stem}_disagreement{extension}"),
        deviation if ensemble else None,
        path.with_name(f"{path.name}.json"),
        None if ensemble or not replaced else deviation,
    )
    for volume in filter(None, (*outputs[:3], outputs.stale)):
        volumes.check_output(volume, options.overwrite)
    if outputs.report.is_dir() or (outputs.report.exists() and not options.overwrite):
        raise UserError(f"{outputs.report} exists; choose another name or pass --overwrite")
    _check_inputs_stay(options, outputs)
    if options.keep_patient and extension != writers.DICOM:
        raise UserError(f"{path} is no DICOM series, which --keep-patient is for; leave it out")
    return outputs


def _check_inputs_stay(options: Options, outputs: Outputs) -> None:
    inputs = {"the scan": scan_folder(options.scan)}
    if options.region and Path(options.region).exists():
        inputs["the region"] = Path(options.region)
    for output in filter(None, outputs):
        for what, path in inputs.items():
            source, target = path.resolve(), output.resolve()
            if source == target or (source.is_dir() and source in target.parents):
                raise UserError(f"{output} is {what}, {path}, or lies in it; write it elsewhere")


def scan_folder(scan: Path) -> Path:
    """What is read: a DICOM file stands for its folder."""
    return scan.absolute().parent if is_dicom(scan) else scan
